//! The socket of a running strait, for its owner and root alone, and for reading alone: who connects is sent one line
//! and hung up on. Nothing a client does can hold the monitor up: nothing is read, and what does not fit into the
//! socket's buffer waits, for few clients and not for long.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use strait_resources::{
    codes,
    failure::Failure,
    host::sysroot::{SysError, Sysroot},
    journal::Process,
};

use super::guest::{Guest, Subject};
use crate::{
    files::{Directory, PRIVATE_DIRECTORY, RUN, Trust, place, unusable},
    spare::Spare,
};

/// Where the sockets are. Not with the journals: those outlive their strait.
const DIRECTORY: &str = "/run/strait/vm";
const NAME: &str = "vm";
/// A monitor that is taking its machine down or up again answers late.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that are waited for while they read.
const MAX_READING: usize = 16;
/// More than hundreds of devices have to say.
const MAX_ANSWER: u64 = 4 << 20;

/// The end that answers. Its file goes when it is dropped.
pub(crate) struct Socket {
    listener: UnixListener,
    spare: Spare,
    path: PathBuf,
    subject: Subject,
    /// Clients that have not read all of their answer, the oldest first.
    reading: VecDeque<Reading>,
}

/// A client, and what it has not been sent.
struct Reading {
    client: UnixStream,
    rest: Vec<u8>,
    until: Instant,
}

impl Socket {
    /// Makes the file, and removes those of straits that were killed.
    pub(crate) fn new(sysroot: &Sysroot, subject: Subject) -> Result<Self, Failure> {
        let process = Process::current(sysroot)?;
        remove_stale(sysroot)?;
        let run = Directory::run(sysroot, Trust::Owner, true)?;
        let directory = match run {
            Some(run) => run.sub(NAME, Some(PRIVATE_DIRECTORY))?,
            None => None,
        };
        let directory =
            directory.ok_or_else(|| unusable(RUN, io::Error::from(io::ErrorKind::NotFound)))?;
        let path = place(sysroot, &directory, &name(process));
        let make = || -> io::Result<UnixListener> {
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = make().map_err(|error| {
            let cause = format!("{} cannot be made", path.display());
            Failure::new(&codes::E1003, cause, "run strait as root").source(error)
        })?;
        let (spare, reading) = (Spare::new(), VecDeque::new());
        Ok(Self { listener, spare, path, subject, reading })
    }

    /// Answers whoever waits, one client a call. The client that has not taken all at once, to be watched until it takes
    /// more, and one that is not waited for any longer.
    fn serve(&mut self) -> (Option<&UnixStream>, Option<UnixStream>) {
        let Some(reading) = self.answer() else { return (None, None) };
        let given_up = self.keep(reading);
        (self.reading.back().map(|reading| &reading.client), given_up)
    }

    /// The oldest goes when there are many, or when it has had its time.
    fn keep(&mut self, reading: Reading) -> Option<UnixStream> {
        let many = self.reading.len() >= MAX_READING;
        let oldest = self.reading.front().filter(|oldest| many || oldest.until < Instant::now());
        let goes = oldest.is_some();
        self.reading.push_back(reading);
        self.reading.pop_front_if(|_| goes).map(|oldest| oldest.client)
    }

    fn answer(&mut self) -> Option<Reading> {
        let client = self.spare.accept(&self.listener, "the socket for strait inspect")?;
        let uid = rustix::process::geteuid();
        let is_ours = rustix::net::sockopt::socket_peercred(&client)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == uid);
        if !is_ours || client.set_nonblocking(true).is_err() {
            return None;
        }
        let mut rest = serde_json::to_vec(&self.subject.answer()).ok()?;
        rest.push(b'\n');
        let mut reading = Reading { client, rest, until: Instant::now() + PATIENCE };
        reading.goes_on().then_some(reading)
    }
}

impl Reading {
    /// Sends what there is room for. Is there more to send?
    fn goes_on(&mut self) -> bool {
        match self.client.write(&self.rest) {
            Ok(count) => {
                self.rest.drain(..count);
                count > 0 && !self.rest.is_empty()
            }
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        }
    }
}

impl MutEventSubscriber for Socket {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.listener.as_raw_fd() {
            let (watched, given_up) = self.serve();
            // Who cannot be watched is given up with the next ones.
            let _ = watched.map(|client| ops.add(Events::new(client, EventSet::OUT)));
            let _ = given_up.map(|client| ops.remove(Events::empty(&client)));
            return;
        }
        let is_meant = |reading: &Reading| reading.client.as_raw_fd() == events.fd();
        let Some(at) = self.reading.iter().position(is_meant) else { return };
        if !self.reading[at].goes_on()
            && let Some(done) = self.reading.remove(at)
        {
            let _ = ops.remove(Events::empty(&done.client));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            log::warn!("the socket for strait inspect cannot be watched: {error:?}");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Every strait that runs a guest, by process ID. Refuses (E1003) who may not see those of root's, rather than say that
/// there are none.
pub(crate) fn running(sysroot: &Sysroot) -> Result<Vec<Process>, Failure> {
    let mut running = Vec::new();
    let named = named(sysroot).map_err(|error| match error.is_forbidden() {
        true => unusable(RUN, io::Error::from(io::ErrorKind::PermissionDenied)),
        false => error.into(),
    });
    for process in named? {
        if process.lives(sysroot)? {
            running.push(process);
        }
    }
    running.sort_by_key(|process| process.pid);
    Ok(running)
}

/// Asks one of them.
pub(crate) fn ask(sysroot: &Sysroot, process: Process) -> Result<Guest, Failure> {
    let path = sysroot.path(&format!("{DIRECTORY}/{}", name(process)));
    let pid = process.pid;
    let read = || -> io::Result<String> {
        let client = UnixStream::connect(&path)?;
        client.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        client.take(MAX_ANSWER).read_to_string(&mut line)?;
        Ok(line)
    };
    let line = read().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let cause = format!("strait {pid} answers its owner and root only");
            Failure::new(&codes::E1003, cause, "run it with sudo").source(error)
        }
        _ => {
            let cause = format!("strait {pid} runs, but does not answer");
            let fix = "try again: it may be starting or ending";
            Failure::new(&codes::E2110, cause, fix).source(error)
        }
    })?;
    if line.is_empty() {
        let cause = format!("strait {pid} answers its owner and root only");
        return Err(Failure::new(&codes::E1003, cause, "run it with sudo"));
    }
    serde_json::from_str(&line).map_err(|error| {
        let cause = format!("the answer of strait {pid} is not understood");
        let fix = "ask with the strait that it was started with";
        Failure::new(&codes::E2110, cause, fix).source(error)
    })
}

/// A process that is not here may be in another PID namespace that shares /run: its socket listens, and stays.
fn remove_stale(sysroot: &Sysroot) -> Result<(), SysError> {
    for process in named(sysroot)? {
        let path = sysroot.path(&format!("{DIRECTORY}/{}", name(process)));
        if !process.lives(sysroot)? && !listens(&path) {
            // Somebody else's, or removed by another: nothing of ours depends on it.
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// Does a process have this socket open? Asked without waiting: one whose queue is full does, too.
fn listens(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ask = || {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    !matches!(ask(), Err(Errno::CONNREFUSED | Errno::NOENT))
}

fn named(sysroot: &Sysroot) -> Result<Vec<Process>, SysError> {
    let names = sysroot.list_if_present(DIRECTORY)?;
    Ok(names.iter().filter_map(|name| parse(name)).collect())
}

fn name(process: Process) -> String {
    format!("{}-{}.sock", process.pid, process.start)
}

fn parse(name: &str) -> Option<Process> {
    let (pid, start) = name.strip_suffix(".sock")?.split_once('-')?;
    Some(Process { pid: pid.parse().ok()?, start: start.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileTypeExt as _, thread};

    use strait_resources::host::fixture::Tree;

    use super::*;

    const LATE: Duration = Duration::from_millis(1);

    /// A host on which this process runs, and its socket.
    fn served() -> (Tree, Process, Socket) {
        let tree = Tree::new();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        for pid in ["self", &std::process::id().to_string()] {
            tree.file(&format!("/proc/{pid}/stat"), &stat);
        }
        let process = Process::current(&tree.sysroot()).unwrap();
        let socket = Socket::new(&tree.sysroot(), Subject::nothing()).unwrap();
        (tree, process, socket)
    }

    #[test]
    fn r87_who_asks_gets_one_answer() {
        let (tree, process, mut socket) = served();
        assert_eq!(running(&tree.sysroot()).unwrap(), [process]);
        let asking = thread::spawn({
            let sysroot = tree.sysroot();
            move || ask(&sysroot, process)
        });
        while !asking.is_finished() {
            socket.serve();
            thread::yield_now();
        }
        assert_eq!(asking.join().unwrap().unwrap().pid, process.pid);
    }

    #[test]
    fn r87_clients_that_stay_silent_hold_nothing_up() {
        let (tree, process, mut socket) = served();
        let path = tree.sysroot().path(&format!("{DIRECTORY}/{}", name(process)));
        let begin = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..100 {
            let client = UnixStream::connect(&path).unwrap();
            // Says a lot, and never reads.
            client.set_nonblocking(true).unwrap();
            let _ = (&client).write(&[b'x'; 4096]);
            clients.push(client);
            socket.serve();
        }
        // One that left before it was served.
        drop(UnixStream::connect(&path).unwrap());
        socket.serve();
        // Nobody waits.
        socket.serve();
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn clients_that_stall_are_few_and_the_oldest_is_given_up() {
        let (_tree, _, mut socket) = served();
        let reading = || {
            let (client, stalled) = UnixStream::pair().unwrap();
            client.set_nonblocking(true).unwrap();
            let until = Instant::now() + PATIENCE;
            let mut reading = Reading { client, rest: vec![b'x'; 4 << 20], until };
            assert!(reading.goes_on(), "it does not fit");
            (reading, stalled)
        };
        let mut stalled = Vec::new();
        for count in 0..MAX_READING + 3 {
            let (reading, client) = reading();
            stalled.push(client);
            assert_eq!(socket.keep(reading).is_some(), count >= MAX_READING);
        }
        assert_eq!(socket.reading.len(), MAX_READING);
        // One that has had its time makes room for the next.
        socket.reading.truncate(2);
        socket.reading[0].until = Instant::now() - LATE;
        let (reading, _client) = reading();
        assert!(socket.keep(reading).is_some());
        assert_eq!(socket.reading.len(), 2);
    }

    #[test]
    fn answer_that_is_longer_than_a_sockets_buffer_arrives_whole() {
        let (client, mut reader) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let rest = vec![b'x'; 1 << 20];
        let mut reading = Reading { client, rest, until: Instant::now() + PATIENCE };
        assert!(reading.goes_on(), "it does not fit");
        let sending = thread::spawn(move || {
            while reading.goes_on() {
                thread::yield_now();
            }
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        sending.join().unwrap();
        assert_eq!(got.len(), 1 << 20);
    }

    #[test]
    fn r87_socket_is_its_owners_and_goes_with_it() {
        let (tree, process, socket) = served();
        let path = tree.sysroot().path(&format!("{DIRECTORY}/{}", name(process)));
        let made = fs::metadata(&path).unwrap();
        assert!(made.file_type().is_socket());
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn r87_leftover_of_a_killed_strait_is_not_asked_and_goes_with_the_next_start() {
        let (tree, _, socket) = served();
        drop(socket);
        let stale = format!("{DIRECTORY}/{}-1.sock", std::process::id());
        drop(UnixListener::bind(tree.sysroot().path(&stale)).unwrap());
        assert_eq!(running(&tree.sysroot()).unwrap(), []);
        let _socket = Socket::new(&tree.sysroot(), Subject::nothing()).unwrap();
        assert!(!tree.sysroot().exists(&stale));
    }

    /// Its number is nobody's here.
    #[test]
    fn socket_of_a_strait_in_another_pid_namespace_stays() {
        let (tree, _, socket) = served();
        drop(socket);
        let other = format!("{DIRECTORY}/{}-1.sock", std::process::id());
        let _listener = UnixListener::bind(tree.sysroot().path(&other)).unwrap();
        let _socket = Socket::new(&tree.sysroot(), Subject::nothing()).unwrap();
        assert!(tree.sysroot().exists(&other));
    }

    #[test]
    fn directory_of_sockets_is_its_owners_alone() {
        let (tree, _, _socket) = served();
        let made = fs::metadata(tree.sysroot().path(DIRECTORY)).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, 0o700);
    }
}

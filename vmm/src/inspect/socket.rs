//! The socket of a running strait, for its owner and root alone, and for reading alone: who connects is sent one line
//! and hung up on. Nothing a client does can hold the monitor up: nothing is read, what does not fit into the
//! socket's buffer is dropped, and no client is remembered.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::io::Errno;
use strait_resources::{
    codes,
    failure::Failure,
    host::sysroot::{SysError, Sysroot},
    journal::Process,
};

use super::guest::{Guest, Subject};
use crate::files::{Directory, PRIVATE_DIRECTORY, RUN, Trust, place, unusable};

/// Where the sockets are. Not with the journals: those outlive their strait.
const DIRECTORY: &str = "/run/strait/vm";
const NAME: &str = "vm";
/// A monitor that is taking its machine down or up again answers late.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than hundreds of devices have to say.
const MAX_ANSWER: u64 = 4 << 20;

/// The end that answers. Its file goes when it is dropped.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    subject: Subject,
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
        Ok(Self { listener, path, subject })
    }

    /// Answers whoever waits, one client a call.
    pub(crate) fn serve(&self) {
        let Ok((mut client, _)) = self.listener.accept() else { return };
        let uid = rustix::process::geteuid();
        let is_ours = rustix::net::sockopt::socket_peercred(&client)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == uid);
        if !is_ours || client.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(mut line) = serde_json::to_vec(&self.subject.answer()) else { return };
        line.push(b'\n');
        // A client that does not read loses the rest.
        let _ = client.write(&line);
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Every strait that runs a guest, by process ID.
pub(crate) fn running(sysroot: &Sysroot) -> Result<Vec<Process>, SysError> {
    let mut running = Vec::new();
    for process in named(sysroot)? {
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
    use std::{os::unix::fs::FileTypeExt as _, thread, time::Instant};

    use strait_resources::host::fixture::Tree;

    use super::*;

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
        let (tree, process, socket) = served();
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
        let (tree, process, socket) = served();
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

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    sync::mpsc::{Receiver, channel},
};

use super::*;

/// Writes to a socket that nobody may read. Its other end, and the troubles that were told.
fn outlet(most: usize) -> (Outlet, UnixStream, Receiver<String>) {
    let (target, reader) = UnixStream::pair().unwrap();
    let (outlet, told) = with(most, Box::new(target));
    (outlet, reader, told)
}

fn with(most: usize, target: Box<dyn Write + Send>) -> (Outlet, Receiver<String>) {
    let (sender, told) = channel();
    let tell = Box::new(move |trouble: &Trouble| drop(sender.send(format!("{trouble:?}"))));
    (Outlet::start("test", most, target, tell).unwrap(), told)
}

#[test]
fn bytes_arrive_in_order_and_nothing_is_lost_where_somebody_reads() {
    let (outlet, mut reader, told) = outlet(1 << 20);
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n / 3) as u8).collect();
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    bytes.chunks(1000).for_each(|chunk| outlet.push(chunk));
    assert_eq!(outlet.finish(|| false), 0);
    assert!(reading.join().unwrap() == bytes);
    assert!(told.try_recv().is_err());
}

#[test]
fn reader_that_stops_costs_the_oldest_bytes_and_is_told_of_once() {
    const MOST: usize = 64 << 10;
    let (outlet, mut reader, told) = outlet(MOST);
    let line: Vec<u8> = (0..=255).collect();
    // More than the socket takes; nobody reads, and this comes to an end.
    (0..16_384).for_each(|_| outlet.push(&line));
    assert!(outlet.shared.lock().waiting.len() <= MOST);
    assert_eq!(told.recv().unwrap(), format!("Slow {{ most: {MOST} }}"));
    assert!(told.try_recv().is_err(), "once");
    let lost = outlet.shared.lock().lost;
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    assert_eq!(outlet.finish(|| false), lost);
    let got = reading.join().unwrap();
    assert_eq!(got.len() as u64 + lost, 16_384 * 256);
    assert!(got.ends_with(&line), "what was said last is there");
}

#[test]
fn end_does_not_wait_for_a_reader_that_stopped() {
    let (outlet, reader, _) = outlet(1 << 20);
    outlet.push(&[b'x'; 1 << 20]);
    assert!(outlet.finish(|| false) > 0);
    // Whoever is told twice to end does not wait at all.
    assert!(outlet.finish(|| true) > 0);
    drop(reader);
}

#[test]
fn messages_are_taken_whole_and_those_that_are_missing_are_counted() {
    struct Held(Receiver<()>, UnixStream);
    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // From the second on nobody holds it.
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let ((target, mut reader), (release, held)) = (UnixStream::pair().unwrap(), channel());
    let (outlet, _) = with(100, Box::new(Held(held, target)));
    outlet.push_message("> ");
    while outlet.shared.lock().in_hand == 0 {
        thread::yield_now();
    }
    (0..5).for_each(|n| outlet.push_message(&format!("message {n} of thirty-four bytes....\n")));
    drop(release);
    while outlet.shared.lock().in_hand > 0 || !outlet.shared.lock().waiting.is_empty() {
        thread::yield_now();
    }
    outlet.push_message("the next\n");
    outlet.finish(|| false);
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!(
        got,
        "> message 0 of thirty-four bytes....\nmessage 1 of thirty-four bytes....\n\
         (3 messages are missing here: nobody read them)\nthe next\n"
    );
}

/// Takes a few bytes, then refuses some, as a disk does that is full for a while.
struct Full {
    room: usize,
    refusals: usize,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 && self.refusals > 0 {
            self.refusals -= 1;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let count = if self.refusals > 0 { self.room.min(bytes.len()) } else { bytes.len() };
        self.room = self.room.saturating_sub(count);
        self.taken.lock().unwrap().extend(&bytes[..count]);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn file_that_is_full_is_told_of_once_with_numbers_and_tried_again() {
    let taken: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (outlet, told) =
        with(1 << 20, Box::new(Full { room: 6, refusals: 2, taken: Arc::clone(&taken) }));
    for line in ["first line\n", "second\n", "third\n"] {
        outlet.push(line.as_bytes());
        // One write for each.
        while outlet.shared.lock().in_hand > 0 || !outlet.shared.lock().waiting.is_empty() {
            thread::yield_now();
        }
    }
    assert_eq!(outlet.finish(|| false), 5 + 7, "the rest of the first line, and the second");
    assert_eq!(*taken.lock().unwrap(), b"first third\n");
    let first = told.recv().unwrap();
    assert!(first.contains("code: 28") && first.contains("written: 6"), "{first}");
    assert!(told.try_recv().is_err(), "once");
}

/// Says "later" twice, as a terminal does that another program made non-blocking.
#[test]
fn file_that_somebody_else_made_nonblocking_loses_nothing() {
    struct Later(u32, UnixStream);
    impl Write for Later {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(1) {
                None => self.1.write(&bytes[..1]),
                Some(left) => {
                    self.0 = left;
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (target, mut reader) = UnixStream::pair().unwrap();
    let (outlet, told) = with(100, Box::new(Later(2, target)));
    outlet.push(b"hello");
    assert_eq!(outlet.finish(|| false), 0);
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello");
    assert!(told.try_recv().is_err());
}

use std::sync::{
    atomic::AtomicUsize,
    mpsc::{Receiver, Sender, channel},
};

use super::*;
use crate::control::Request;

const MIB: u64 = 1 << 20;

/// An IOMMU that says what it is asked, and does it when it is told to.
struct Iommu {
    peers: PeerMappings,
    control: Arc<Control>,
    asked: Receiver<AddressRange>,
    answers: Sender<bool>,
    live: Arc<AtomicUsize>,
}

struct Live(Arc<AtomicUsize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn iommu() -> Iommu {
    let control = Arc::new(Control::new().unwrap());
    control.resume();
    let ((ask, asked), (answers, answer)) = (channel(), channel());
    let (answer, live) = (Mutex::new(answer), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&live);
    let map = move |range, _| {
        let _ = ask.send(range);
        // Whoever is gone lets everything through.
        if !answer.lock().unwrap().recv().unwrap_or(true) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        count.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Live(Arc::clone(&count))) as Mapping)
    };
    let peers = PeerMappings::start(Box::new(map), &control, None).unwrap();
    Iommu { peers, control, asked, answers, live }
}

impl Iommu {
    fn settled(&self) {
        while !self.peers.is_ready() {
            thread::yield_now();
        }
    }

    fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

fn area(n: usize, len: u64) -> HostMemory {
    HostMemory { address: 0x7000_0000_0000 + (n << 40), len }
}

fn at(first: u64, len: u64) -> AddressRange {
    AddressRange::new(first, len).unwrap()
}

#[test]
fn latest_wish_of_an_area_is_carried_out_and_older_ones_are_not_kept() {
    let iommu = iommu();
    iommu.peers.map(at(0x1000_0000, MIB), area(0, MIB));
    let first = iommu.asked.recv().unwrap();
    // The worker is busy, and the guest moves the BAR meanwhile.
    for n in 0..100_000 {
        iommu.peers.map(at(0x2000_0000 + n % 8 * MIB, MIB), area(0, MIB));
    }
    iommu.peers.map(at(0x3000_0000, MIB), area(0, MIB));
    assert_eq!(iommu.peers.peers.lock().wanted.len(), 1);
    iommu.answers.send(true).unwrap();
    let second = iommu.asked.recv().unwrap();
    iommu.answers.send(true).unwrap();
    iommu.settled();
    assert_eq!((first, second), (at(0x1000_0000, MIB), at(0x3000_0000, MIB)));
    assert!(iommu.asked.try_recv().is_err());
    assert_eq!(iommu.live(), 1);
}

#[test]
fn pieces_of_a_wish_that_is_out_of_date_are_not_mapped() {
    let iommu = iommu();
    let size = 8 * PIECE;
    iommu.peers.map(at(64 * PIECE, size), area(0, size));
    assert_eq!(iommu.asked.recv().unwrap(), at(64 * PIECE, PIECE));
    iommu.peers.map(at(128 * PIECE, size), area(0, size));
    iommu.answers.send(true).unwrap();
    assert_eq!(iommu.asked.recv().unwrap(), at(128 * PIECE, PIECE));
    assert_eq!(iommu.live(), 0, "the first piece is given up before the next is asked for");
    (0..8).for_each(|_| iommu.answers.send(true).unwrap());
    iommu.settled();
    assert_eq!(iommu.live(), 8);
}

#[test]
fn area_that_another_takes_the_addresses_of_goes() {
    let iommu = iommu();
    (0..2).for_each(|_| iommu.answers.send(true).unwrap());
    iommu.peers.map(at(0x1000_0000, MIB), area(0, MIB));
    iommu.settled();
    iommu.peers.map(at(0x1000_0000, MIB), area(1, MIB));
    iommu.settled();
    assert_eq!((iommu.live(), iommu.peers.peers.lock().wanted.len()), (1, 1));
}

#[test]
fn withdrawn_area_is_gone_when_the_call_returns_also_while_it_is_mapped() {
    let iommu = iommu();
    iommu.peers.map(at(0x1000_0000, MIB), area(0, MIB));
    iommu.asked.recv().unwrap();
    thread::scope(|scope| {
        let (peers, live) = (&iommu.peers, &iommu.live);
        let withdrawn = scope.spawn(|| {
            peers.withdraw(area(0, MIB));
            live.load(Ordering::SeqCst)
        });
        iommu.answers.send(true).unwrap();
        assert_eq!(withdrawn.join().unwrap(), 0);
    });
    iommu.settled();
    // One that is there already goes as well, and comes back when it is wanted again.
    iommu.answers.send(true).unwrap();
    iommu.peers.map(at(0x1000_0000, MIB), area(0, MIB));
    iommu.settled();
    assert_eq!(iommu.live(), 1);
    iommu.peers.withdraw(area(0, MIB));
    assert_eq!(iommu.live(), 0);
}

#[test]
fn area_that_the_kernel_refuses_is_tried_once_for_each_place() {
    let iommu = iommu();
    (0..2).for_each(|_| iommu.answers.send(false).unwrap());
    iommu.peers.map(at(0x1000_0000, MIB), area(0, MIB));
    iommu.settled();
    iommu.peers.map(at(0x1000_0000, MIB), area(0, MIB));
    iommu.settled();
    iommu.peers.map(at(0x2000_0000, MIB), area(0, MIB));
    iommu.settled();
    assert_eq!(iommu.asked.try_iter().count(), 2);
}

#[test]
fn vcpu_that_waits_for_a_mapping_stops_with_the_machine() {
    let iommu = iommu();
    iommu.peers.map(at(64 * PIECE, 8 * PIECE), area(0, 8 * PIECE));
    iommu.asked.recv().unwrap();
    thread::scope(|scope| {
        let peers = &iommu.peers;
        let vcpu = scope.spawn(|| peers.wait());
        iommu.control.request(Request::Quit);
        iommu.control.stop(Vec::new());
        vcpu.join().unwrap();
    });
    assert!(!iommu.peers.is_ready());
    // The end of the machine waits for the piece that is under way and asks for no other.
    let Iommu { peers, asked, answers, .. } = iommu;
    let state = Arc::clone(&peers.peers);
    thread::scope(|scope| {
        let end = scope.spawn(|| drop(peers));
        while !state.lock().ending {
            thread::yield_now();
        }
        answers.send(true).unwrap();
        end.join().unwrap();
    });
    assert_eq!(asked.try_iter().count(), 0);
}

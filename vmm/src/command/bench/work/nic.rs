//! A NIC: echoes (ICMP) that a peer on its network answers, one at a time and many under way, and datagrams sent as fast
//! as they go. Through the kernel's own network stack on both sides, as programs use a NIC.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recv, sendto,
    socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::{
    super::{
        guest::{Network, Task},
        said::{Mark, Said, less, more, note},
        stats::percentile,
    },
    PERCENTILES, attribute, interrupts, route, wait_for,
};

/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Echoes under way at the same time, where packets a second are counted.
const WINDOW: u16 = 32;
/// RFC 863: whoever gets them throws them away, or says that nobody listens.
const DISCARD: u16 = 9;
/// Bytes of a datagram or echo: small, so that packets count and not bytes.
const PAYLOAD: usize = 56;

/// Everything about this NIC.
pub(super) fn measure(sysfs: &Path, task: &Task, network: &Network) -> io::Result<()> {
    let directory = wait_for("its network interface", || {
        fs::read_dir(sysfs.join("net")).ok()?.next()?.ok().map(|entry| entry.path())
    })?;
    Said::Mark(Mark::Device).say();
    let was_up = is_up(&directory);
    if !was_up {
        only_ours(&directory)?;
    }
    let index = attribute(&directory, "ifindex").and_then(|text| text.parse().ok());
    let index = index.ok_or_else(|| io::Error::other("the interface has no index"))?;
    let _configured = route::configure(index, network.own, network.prefix, was_up)?;
    wait_for("the link", || (attribute(&directory, "carrier")? == "1").then(|| directory.clone()))?;
    let mut echoes = Echoes::new(network)?;
    // The first one also finds the peer's hardware address; a link may take a moment after its carrier.
    if !(0..10).any(|_| echoes.round_trip().is_ok_and(|answered| answered)) {
        return Err(io::Error::other(format!("{} does not answer to echoes", network.peer)));
    }
    Said::Mark(Mark::First).say();
    single(&mut echoes, sysfs, task)?;
    watched(&mut echoes, task)?;
    let each = Duration::from_millis(task.rate_ms);
    let answered = echoes.many(each)?;
    let rate = |packets: u64| packets as f64 / each.as_secs_f64();
    let title = format!("echoes, {WINDOW} under way");
    more(&format!("net.echo.{WINDOW}"), &title, "1/s", rate(answered));
    match sent(network, &directory, each) {
        Ok(packets) => more("net.sent", "datagrams of 56 bytes sent", "packets/s", rate(packets)),
        Err(error) => note(format!("datagrams: not sent: {error}")),
    }
    Ok(())
}

fn is_up(directory: &Path) -> bool {
    let flags = attribute(directory, "flags").unwrap_or_default();
    u32::from_str_radix(flags.trim_start_matches("0x"), 16).is_ok_and(|flags| flags & 1 != 0)
}

/// Before an interface is switched on: nobody on its network may give it IPv6 addresses and routes. The host's way out
/// must not come to lead through it, and the answers must not be mixed with that.
fn only_ours(directory: &Path) -> io::Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Single echoes, each timed; with silence around them, so that what a console costs is not counted.
fn single(echoes: &mut Echoes, sysfs: &Path, task: &Task) -> io::Result<()> {
    let mut micros = Vec::with_capacity(task.operations as usize);
    Said::Mark(Mark::WorkBegin).say();
    thread::sleep(Duration::from_millis(400));
    let before = interrupts::of(sysfs);
    let begin = Instant::now();
    let mut lost = 0;
    for _ in 0..task.operations {
        let one = Instant::now();
        if echoes.round_trip()? {
            micros.push(one.elapsed().as_secs_f64() * 1e6);
        } else {
            lost += 1;
        }
        if lost > 5 {
            return Err(io::Error::other(format!("{lost} echoes were not answered")));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = interrupts::of(sysfs);
    thread::sleep(Duration::from_millis(400));
    Said::Mark(Mark::WorkEnd).say();
    if lost > 0 {
        note(format!("{lost} of {} echoes were not answered", task.operations));
    }
    micros.sort_by(f64::total_cmp);
    for (id, title, at) in [
        ("net.rtt.median", "round trip, one at a time, median", 50.0),
        ("net.rtt.p99", "round trip, one at a time, 99 %", 99.0),
        ("net.rtt.p999", "round trip, one at a time, 99.9 %", 99.9),
    ] {
        less(id, title, "us", percentile(&micros, at));
    }
    more("net.rtt.rate", "round trips, one at a time", "1/s", micros.len() as f64 / seconds);
    if let Some((before, after)) = before.zip(after) {
        let each = after.saturating_sub(before) as f64 / f64::from(task.operations);
        less("irq.per-echo", "interrupts for each round trip", "", each);
    }
    Said::Latency(PERCENTILES.iter().map(|&at| (at, percentile(&micros, at))).collect()).say();
    Ok(())
}

/// More of them, untimed, for whoever watches their interrupts from outside: watching costs time.
fn watched(echoes: &mut Echoes, task: &Task) -> io::Result<()> {
    Said::Mark(Mark::InterruptsBegin).say();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..task.operations / 4 {
        echoes.round_trip()?;
    }
    thread::sleep(Duration::from_millis(100));
    Said::Mark(Mark::InterruptsEnd).say();
    Ok(())
}

/// Datagrams for so long; how many of them the NIC took, by its own count.
fn sent(network: &Network, directory: &Path, time: Duration) -> io::Result<u64> {
    let count = || -> io::Result<u64> {
        let text = fs::read_to_string(directory.join("statistics/tx_packets"))?;
        text.trim().parse().map_err(io::Error::other)
    };
    let socket = UdpSocket::bind((network.own, 0))?;
    let (before, end) = (count()?, Instant::now() + time);
    while Instant::now() < end {
        for _ in 0..16 {
            // A full queue, or a peer that says that nobody listens: the next one is sent all the same.
            let _ = socket.send_to(&[0; PAYLOAD], (network.peer, DISCARD));
        }
    }
    Ok(count()?.saturating_sub(before))
}

/// A socket for echo requests and their answers.
struct Echoes {
    socket: OwnedFd,
    peer: SocketAddrV4,
    id: u16,
    next: u16,
}

impl Echoes {
    fn new(network: &Network) -> io::Result<Self> {
        let kind = (AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC);
        let socket = socket_with(kind.0, kind.1, kind.2, Some(ipproto::ICMP))?;
        // By its address, so that echoes leave through this NIC and no other.
        bind(&socket, &SocketAddrV4::new(network.own, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let id = std::process::id() as u16;
        Ok(Self { socket, peer: SocketAddrV4::new(network.peer, 0), id, next: 0 })
    }

    /// One echo; was it answered in time?
    fn round_trip(&mut self) -> io::Result<bool> {
        let sequence = self.send()?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.answer()? == Some(sequence) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// As many as go in this time with a window of them under way; how many were answered.
    fn many(&mut self, time: Duration) -> io::Result<u64> {
        let (begin, mut answered, mut under_way) = (Instant::now(), 0, 0);
        while begin.elapsed() < time {
            while under_way < WINDOW {
                self.send()?;
                under_way += 1;
            }
            match self.answer()? {
                Some(_) => {
                    answered += 1;
                    under_way -= 1;
                }
                // They are lost: a new window.
                None => under_way = 0,
            }
        }
        Ok(answered)
    }

    fn send(&mut self) -> io::Result<u16> {
        self.next = self.next.wrapping_add(1);
        sendto(&self.socket, &request(self.id, self.next), SendFlags::empty(), &self.peer)?;
        Ok(self.next)
    }

    /// The sequence number of the next answer of ours; `None` when none came in time.
    fn answer(&self) -> io::Result<Option<u16>> {
        let mut packet = [0; 1500];
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match recv(&self.socket, &mut packet, RecvFlags::empty()) {
                Ok((length, _)) => {
                    let answer = answered(&packet[..length], *self.peer.ip());
                    if let Some((id, sequence)) = answer
                        && id == self.id
                    {
                        return Ok(Some(sequence));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// An echo request (RFC 792) with its checksum.
fn request(id: u16, sequence: u16) -> [u8; 8 + PAYLOAD] {
    let mut packet = [0; 8 + PAYLOAD];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum: u32 =
        packet.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[2..4].copy_from_slice(&folded.to_be_bytes());
    packet
}

/// Identifier and sequence number, if this IP packet is an echo's answer from there.
fn answered(packet: &[u8], from: Ipv4Addr) -> Option<(u16, u16)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let icmp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*icmp.get(at)?, *icmp.get(at + 1)?]));
    (source == from.octets() && *icmp.first()? == 0).then_some((word(4)?, word(6)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_a_checksum_that_sums_up_to_all_ones() {
        for (id, sequence) in [(0, 0), (0x1234, 7), (0xffff, 0xffff)] {
            let packet = request(id, sequence);
            let words = packet.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
            let sum = words.fold(0, |sum, word| {
                let sum = sum + word;
                (sum & 0xffff) + (sum >> 16)
            });
            assert_eq!(sum, 0xffff);
        }
    }

    #[test]
    fn answer_is_ours_only_from_the_peer_and_whole() {
        let peer = Ipv4Addr::new(10, 0, 2, 2);
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&peer.octets());
        packet.extend([0, 0, 0, 0, 0x12, 0x34, 0, 9]);
        assert_eq!(answered(&packet, peer), Some((0x1234, 9)));
        assert_eq!(answered(&packet, Ipv4Addr::LOCALHOST), None);
        assert_eq!(answered(&packet[..27], peer), None);
        assert_eq!(answered(&[], peer), None);
        packet[20] = 8;
        assert_eq!(answered(&packet, peer), None, "a request is no answer");
    }
}

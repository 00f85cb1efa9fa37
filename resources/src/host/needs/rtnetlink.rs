//! Routes of every table, with their interfaces: what /proc/net/route leaves out for IPv4, asked of the kernel by
//! rtnetlink(7), which answers everybody. For a host laid out in a directory the file [`SAVED`] stands in.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with, sockopt,
};

use super::super::sysroot::{SysError, Sysroot};

/// What `ip route save table all` wrote on that host.
const SAVED: &str = "/ip-route.save";
/// Its first word: `ROUTE_DUMP_MAGIC` in iproute2's ip/iproute.c. Messages of the kernel's follow.
const MAGIC: [u8; 4] = 0x4531_1224_u32.to_ne_bytes();

/// linux/netlink.h: struct nlmsghdr is length, type, flags, sequence, port.
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// NLM_F_REQUEST with NLM_F_DUMP.
const DUMP: u16 = 0x301;
/// linux/rtnetlink.h: struct rtmsg is family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const MESSAGE: usize = 12;
const INET: u8 = 2;
/// Attributes of a route, RTA_*.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
/// A gateway of another family.
const VIA: u16 = 18;
/// struct rtnexthop: length, flags, hops, interface.
const HOP: usize = 8;

/// A datagram of a dump is never longer (net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 * 1024;
/// Bytes that are read at most: a router of the Internet has a million routes.
const MOST: usize = 256 << 20;
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// RT_TABLE_MAIN.
pub(super) const MAIN: u32 = 254;

/// What becomes of packets: the types of routes that lead somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// RTN_UNICAST: out of the interface.
    Out,
    /// RTN_LOCAL: the address is the host's own, on that interface.
    Own,
}

/// One way of one IPv4 route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) table: u32,
    pub(super) kind: Kind,
    pub(super) to: IpAddr,
    pub(super) length: u32,
    /// Through another machine.
    pub(super) has_gateway: bool,
    /// The interface's number.
    pub(super) index: u32,
}

/// Every way that `wanted` says yes to. `None` when the host does not tell: no such file, or a sandbox without netlink.
pub(super) fn ways(
    sysroot: &Sysroot,
    wanted: &mut dyn FnMut(&Way) -> bool,
) -> Result<Option<Vec<Way>>, SysError> {
    let mut found = Vec::new();
    let mut take = |way: Way| {
        if wanted(&way) {
            found.push(way);
        }
    };
    if sysroot.is_host() {
        return Ok(ask(&mut take).ok().map(|()| found));
    }
    let Some(saved) = sysroot.bytes_if_present(SAVED)? else { return Ok(None) };
    let Some(messages) = saved.strip_prefix(&MAGIC) else { return Ok(None) };
    parse(messages, &mut take);
    Ok(Some(found))
}

fn ask(take: &mut dyn FnMut(Way)) -> io::Result<()> {
    // NETLINK_ROUTE is protocol 0.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let mut request = [0; HEADER + MESSAGE];
    request[..4].copy_from_slice(&((HEADER + MESSAGE) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&GET_ROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request[HEADER] = INET;
    sendto(&socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut datagram = vec![0; DATAGRAM];
    let mut read = 0;
    while read < MOST {
        let (length, _) = recv(&socket, datagram.as_mut_slice(), RecvFlags::empty())?;
        let part = datagram.get(..length).unwrap_or_default();
        match parse(part, take) {
            Some(End::Done) => return Ok(()),
            Some(End::Refused) => return Err(io::ErrorKind::Unsupported.into()),
            None if length == 0 => break,
            None => read += length,
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// How a dump ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Refused,
}

/// The messages of one datagram, or of a file of them.
fn parse(mut messages: &[u8], take: &mut dyn FnMut(Way)) -> Option<End> {
    loop {
        let length = word(messages, 0)? as usize;
        let body = messages.get(HEADER..length)?;
        match half(messages, 4)? {
            NEW_ROUTE => {
                route(body, take);
            }
            DONE => return Some(End::Done),
            ERROR => return Some(End::Refused),
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(4)..)?;
    }
}

/// One route; `None` when it is cut off, of another family or leads nowhere (unreachable, blackhole).
fn route(body: &[u8], take: &mut dyn FnMut(Way)) -> Option<()> {
    let [family, length, _, _, table, _, _, kind] = *body.first_chunk()?;
    let kind = match kind {
        1 => Kind::Out,
        2 => Kind::Own,
        _ => return None,
    };
    if family != INET || length > 32 {
        return None;
    }
    let to = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let (table, length) = (u32::from(table), u32::from(length));
    let mut way = Way { table, kind, to, length, has_gateway: false, index: 0 };
    let mut hops = None;
    for (kind, value) in attributes(body.get(MESSAGE..)?) {
        match kind {
            DESTINATION => way.to = IpAddr::V4(Ipv4Addr::from(*value.first_chunk::<4>()?)),
            TABLE => way.table = word(value, 0)?,
            MULTIPATH => hops = Some(value),
            _ => hop(&mut way, kind, value)?,
        }
    }
    let Some(mut hops) = hops else {
        take(way);
        return Some(());
    };
    while let Some(length) = half(hops, 0).map(usize::from).filter(|length| *length >= HOP) {
        let mut one = Way { index: word(hops, 4)?, ..way.clone() };
        for (kind, value) in attributes(hops.get(HOP..length)?) {
            hop(&mut one, kind, value)?;
        }
        take(one);
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(())
}

/// What an attribute says of the next machine.
fn hop(way: &mut Way, kind: u16, value: &[u8]) -> Option<()> {
    match kind {
        INTERFACE => way.index = word(value, 0)?,
        GATEWAY | VIA => way.has_gateway = true,
        _ => {}
    }
    Some(())
}

/// struct rtattr: length, type. Ends at the first that is cut off.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_tells_the_address_of_its_loopback_interface() {
        let own = &mut |way: &Way| way.kind == Kind::Own;
        let Some(found) = ways(&Sysroot::host(), own).unwrap() else {
            // A sandbox.
            return;
        };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(found.iter().any(|way| way.to == loopback && way.index == 1), "{found:?}");
    }

    #[test]
    fn dump_ends_with_its_last_message_and_a_refusal_is_one() {
        let message =
            |kind: u16| [&20_u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 14]].concat();
        let end = |kinds: &[u16]| {
            let text: Vec<u8> = kinds.iter().flat_map(|kind| message(*kind)).collect();
            parse(&text, &mut |_| {})
        };
        assert_eq!(end(&[1, 1]), None);
        assert_eq!(end(&[1, DONE]), Some(End::Done));
        assert_eq!(end(&[ERROR, DONE]), Some(End::Refused));
    }

    proptest! {
        /// Lengths lie.
        #[test]
        fn dump_with_anything_in_it_is_read_to_an_end(
            at in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut bytes = include_bytes!("tests/two-uplinks.save").to_vec();
            let at = at.index(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes.splice(at..end, noise);
            let mut count = 0;
            parse(bytes.get(4..).unwrap_or_default(), &mut |_| count += 1);
            prop_assert!(count <= bytes.len());
        }
    }
}

//! Gives a network interface its address and switches it on, and takes both away again: messages of rtnetlink(7), for a
//! guest that has no program to do it, and for a host whose NIC lost its address when the last guest had it.

use std::{io, net::Ipv4Addr};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with,
};

use super::super::said::note;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const ERROR: u16 = 2;
/// Request, with an answer.
const REQUEST: u16 = 1 | 4;
/// Create it.
const CREATE: u16 = 0x400;
const UP: u32 = 1;
const LOCAL: u16 = 2;
const ADDRESS: u16 = 1;
const INET: u8 = 2;

/// An interface as [`configure`] left it. Dropped, the interface loses again what it did not have before: while it has the
/// address, the host uses the device, and no guest may have it.
#[derive(Debug)]
pub(super) struct Configured {
    index: u32,
    address: Option<(Ipv4Addr, u8)>,
    raised: bool,
}

/// `own/prefix` on the interface with this index, which is up afterwards; `was_up` says whether it is already.
pub(super) fn configure(
    index: u32,
    own: Ipv4Addr,
    prefix: u8,
    was_up: bool,
) -> io::Result<Configured> {
    let mut configured = Configured { index, address: None, raised: false };
    ask(&message(NEW_LINK, REQUEST, &link(index, UP)))?;
    configured.raised = !was_up;
    match ask(&message(NEW_ADDRESS, REQUEST | CREATE, &address(index, own, prefix))) {
        Ok(()) => configured.address = Some((own, prefix)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(configured)
}

impl Configured {
    fn undo(&self) -> io::Result<()> {
        if let Some((own, prefix)) = self.address {
            ask(&message(DELETE_ADDRESS, REQUEST, &address(self.index, own, prefix)))?;
        }
        if self.raised {
            ask(&message(NEW_LINK, REQUEST, &link(self.index, 0)))?;
        }
        Ok(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            note(format!("the interface keeps the address of the bench: {error}"));
        }
    }
}

/// struct ifinfomsg: of its flags only whether it is up.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    body
}

/// struct ifaddrmsg and two attributes.
fn address(index: u32, own: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    for kind in [LOCAL, ADDRESS] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(own.octets());
    }
    body
}

/// struct nlmsghdr and the rest.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn ask(message: &[u8]) -> io::Result<()> {
    // NETLINK_ROUTE is protocol 0.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    sendto(&socket, message, SendFlags::empty(), &kernel)?;
    let mut answer = [0; 4096];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    read(&answer[..length])
}

/// struct nlmsgerr: 0 is success.
fn read(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let code: Option<[u8; 4]> = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
    match (kind, code.map(i32::from_ne_bytes)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::other("rtnetlink answers something else")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_tells_its_own_length_and_the_address_twice() {
        let own = Ipv4Addr::new(10, 0, 2, 15);
        let message = message(NEW_ADDRESS, REQUEST | CREATE, &address(7, own, 24));
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        assert_eq!(message.windows(4).filter(|bytes| *bytes == own.octets()).count(), 2);
        assert_eq!((message[16], message[17]), (INET, 24));
        assert_eq!(link(7, UP).len(), 16);
    }

    #[test]
    fn answer_of_the_kernel_is_its_error() {
        let answer = |code: i32| [&message(ERROR, 0, &code.to_ne_bytes())[..], &[0; 16]].concat();
        assert!(read(&answer(0)).is_ok());
        assert_eq!(read(&answer(-17)).unwrap_err().raw_os_error(), Some(17));
        assert!(read(&[]).is_err());
    }

    #[test]
    fn interface_that_does_not_exist_is_refused_by_the_kernel() {
        assert!(configure(i32::MAX as u32, Ipv4Addr::new(192, 0, 2, 1), 24, false).is_err());
    }
}

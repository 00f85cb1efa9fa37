//! What the host would miss, in words, and what a user does about it.

use std::{fmt, net::IpAddr};

/// The end of a chain. The order is the one in which they are told: what says most comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A mounted file system; the chain's last name says where.
    Mount,
    /// The host swaps there: a partition, a volume or a file.
    Swap(String),
    /// The default route.
    DefaultRoute,
    /// Somebody is logged in from this address, perhaps the user.
    Session(IpAddr),
    /// A file system or disk of another machine, which is reached from here.
    Remote {
        /// `/srv over nfs4`, `iSCSI`, `NVMe over TCP`.
        what: String,
        /// The other machine.
        peer: IpAddr,
    },
    /// A route to another network: `10.0.0.0/8`.
    Route(String),
    /// An address of the host's, or the network that it is in.
    Address(String),
    /// A bridge joins the device to these other ports of it.
    Ports(String),
    /// The kernel's messages go out there.
    Console(String),
    /// The kernel resumes from an image there.
    Resume,
    /// Other machines or guests get it from this host: `iSCSI target disk0`.
    Export(String),
    /// A pool that is imported, with or without a mount.
    Pool,
    /// The host's memory is there.
    Memory(String),
    /// The host is reset when nobody serves this watchdog.
    Watchdog(String),
    /// The kernel's cryptography runs on it.
    Crypto(String),
    /// The host's console is on this display.
    BootDisplay,
    /// strait's program or its current directory is on it.
    Own,
    /// A volume over it is active: LVM, RAID, encryption, a cache.
    Active,
    /// The kernel keeps it for itself: a mount that cannot be seen from here, a pool, RAID.
    Claimed,
    /// A program has its device node open.
    Held(Held),
}

/// A program with a device node open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Process ID.
    pub pid: u32,
    /// The program's name, 15 characters at most.
    pub name: String,
    /// The node as the program calls it.
    pub node: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount => f.write_str("mounted"),
            Self::Swap(what) => write!(f, "in use as swap ({what})"),
            Self::DefaultRoute => f.write_str("the host's default route"),
            Self::Session(peer) => write!(f, "a login session with {peer}"),
            Self::Remote { what, peer } => write!(f, "{what} of {peer}"),
            Self::Route(to) => write!(f, "the host's route to {to}"),
            Self::Address(address) => write!(f, "the host's address {address}"),
            Self::Ports(ports) => write!(f, "joined with {ports}"),
            Self::Console(name) => write!(f, "the kernel's console {name}"),
            Self::Resume => f.write_str("the kernel resumes from it (resume=)"),
            Self::Export(what) => write!(f, "exported as {what}"),
            Self::Pool => f.write_str("imported"),
            Self::Memory(what) => write!(f, "the host's memory ({what})"),
            Self::Watchdog(name) => write!(f, "{name} is active"),
            Self::Crypto(what) => write!(f, "the kernel's {what}"),
            Self::BootDisplay => f.write_str("the host's console is on this display"),
            Self::Own => f.write_str("strait's own program or current directory"),
            Self::Active => f.write_str("active"),
            Self::Claimed => f.write_str(
                "claimed by the kernel: a mount elsewhere, a pool, RAID or a volume group",
            ),
            Self::Held(Held { pid, name, .. }) => write!(f, "open in {name} (pid {pid})"),
        }
    }
}

impl Loss {
    /// What lets the host do without it, in words that follow "fix:".
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Mount => "unmount it first (umount), then start again",
            Self::Swap(_) => "swapoff it first, then start again",
            Self::DefaultRoute | Self::Session(_) | Self::Remote { .. } | Self::Route(_) => {
                "give the host another way to the network first"
            }
            Self::Address(_) => {
                "take the host's address away from it first (ip addr flush dev, nmcli device disconnect)"
            }
            Self::Ports(_) => {
                "take it out of the bridge first (ip link set nomaster, ovs-vsctl del-port)"
            }
            Self::Console(_) => {
                "take this console out of the kernel's arguments (console=), or switch netconsole off"
            }
            Self::Resume => "take resume= out of the kernel's arguments first",
            Self::Export(_) => "end the export first (targetcli, nvmetcli)",
            Self::Pool => "export the pool first (zpool export), then start again",
            Self::Memory(_) => {
                "take the memory offline first (daxctl reconfigure-device, cxl disable-region)"
            }
            Self::Watchdog(_) => "stop the watchdog's service first",
            Self::Crypto(_) => "stop what uses this accelerator first (IPsec, dm-crypt)",
            Self::BootDisplay => {
                "work by SSH or a serial console, and say --allow-boot-vga: the host's picture stops"
            }
            Self::Own => "run strait from another disk",
            Self::Active => {
                "stop what stands on it first: vgchange -an, cryptsetup close, mdadm --stop, losetup -d"
            }
            Self::Claimed => "find who has it: lsblk, zpool status, cat /proc/mdstat, pvs",
            Self::Held(_) => "end the program first",
        }
    }
}

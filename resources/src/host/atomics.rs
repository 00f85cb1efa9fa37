//! Atomic operations over PCI Express (PCIe Base 5.0, 6.15): which of them a function's requests to memory can be.
//!
//! The root port completes them, and every switch in between has to route them and must not block them.

use super::{
    capabilities::{self, EXPRESS, Kind, dword, word},
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};

/// PCI Express capabilities: the type of device or port in bits 7:4.
const CAPABILITIES: usize = 0x02;
const ENDPOINT: u16 = 0x0;
const LEGACY_ENDPOINT: u16 = 0x1;
const ROOT_PORT: u16 = 0x4;
const UPSTREAM: u16 = 0x5;
const DOWNSTREAM: u16 = 0x6;
/// Device capabilities 2: routing in bit 6, completion of 32, 64 and 128 bits in bits 9:7.
const CAPABILITIES_2: usize = 0x24;
const ROUTING: u32 = 1 << 6;
const COMPLETION: u32 = 0x7 << 7;
/// Device control 2: requester enable, egress blocking.
const CONTROL_2: usize = 0x28;
const REQUESTER: u16 = 1 << 6;
const BLOCKED: u16 = 1 << 7;

/// What the path from functions to memory completes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtomicOps(u32);

impl AtomicOps {
    /// Of the path above `function`; nothing where it is not known, as without root, or where the function is none that
    /// a switch is asked for: an integrated one, or a virtual one whose physical function issues none.
    pub fn of(sysroot: &Sysroot, function: &HostFunction) -> Result<Self, SysError> {
        // The bit that lets a virtual function issue any is that of its physical function.
        if let Some(bdf) = function.physical_function {
            let physical = pci::find(sysroot, bdf)?;
            let express = physical.as_ref().and_then(Express::of);
            if express.is_none_or(|express| express.control_2 & REQUESTER == 0) {
                return Ok(Self::default());
            }
        }
        if !Express::of(function).is_some_and(|own| [ENDPOINT, LEGACY_ENDPOINT].contains(&own.kind))
        {
            return Ok(Self::default());
        }
        let mut ports = Vec::new();
        for above in pci::upstream(sysroot, function.bdf)? {
            ports.push(pci::find(sysroot, above)?.as_ref().and_then(Express::of));
        }
        let Some((Some(root), switches)) = ports.split_first() else { return Ok(Self::default()) };
        let routes = |port: &Option<Express>| {
            port.is_some_and(|port| {
                [UPSTREAM, DOWNSTREAM].contains(&port.kind)
                    && port.capabilities_2 & ROUTING != 0
                    && port.control_2 & BLOCKED == 0
            })
        };
        let completed = root.kind == ROOT_PORT && switches.iter().all(routes);
        Ok(Self(if completed { root.capabilities_2 & (ROUTING | COMPLETION) } else { 0 }))
    }

    /// What both complete.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Is none of them completed?
    pub fn is_none(self) -> bool {
        self.0 & COMPLETION == 0
    }

    /// The bits of a root port's device capabilities 2: routing and completion.
    pub fn register(self) -> u32 {
        if self.is_none() { 0 } else { self.0 }
    }

    /// The widths in bits of the operands, ascending: of 32, 64 and 128.
    pub fn widths(self) -> Vec<u8> {
        let all = [(1 << 7, 32), (1 << 8, 64), (1 << 9, 128)];
        all.into_iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, width)| width).collect()
    }
}

/// The registers that matter here.
#[derive(Clone, Copy)]
struct Express {
    kind: u16,
    capabilities_2: u32,
    control_2: u16,
}

impl Express {
    /// `None` without the capability, or where it cannot be seen.
    fn of(function: &HostFunction) -> Option<Self> {
        let config = &function.config;
        let at = capabilities::find(config, Kind::Standard, EXPRESS)?.offset;
        let flags = word(config, at + CAPABILITIES)?;
        // The first version of the structure ends before these registers.
        let second = flags & 0xf >= 2;
        Some(Self {
            kind: flags >> 4 & 0xf,
            capabilities_2: if second { dword(config, at + CAPABILITIES_2)? } else { 0 },
            control_2: if second { word(config, at + CONTROL_2)? } else { 0 },
        })
    }
}

// Provenance: registers by PCI Express Base 5.0, 7.5.3; topologies as public lspci listings show
// them; no dump of a whole host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Function, Tree};

    const ROOT: &str = "0000:00:01.1";
    const UP: &str = "0000:01:00.0";
    const DOWN: &str = "0000:02:00.0";
    const GPU: &str = "0000:03:00.0";

    /// A graphics card with a switch of its own behind a root port, as AMD makes them: type and device capabilities 2 of
    /// each as lspci shows them on a host whose root port completes 32 and 64 bits.
    fn card() -> Tree {
        let tree = Tree::new();
        let above = [ROOT, UP, DOWN];
        for (n, bdf) in above.into_iter().chain([GPU]).enumerate() {
            let header_type = if bdf == GPU { 0 } else { 1 };
            let under = above.get(..n).unwrap_or_default();
            tree.function(&Function { bdf, header_type, under, ..Function::default() });
        }
        express(&tree, ROOT, ROOT_PORT, 0x1c0, 0);
        express(&tree, UP, UPSTREAM, 0x40, 0);
        express(&tree, DOWN, DOWNSTREAM, 0x40, 0);
        express(&tree, GPU, LEGACY_ENDPOINT, 0x1c0, 0);
        tree
    }

    fn express(tree: &Tree, bdf: &str, kind: u16, capabilities_2: u32, control_2: u16) {
        let mut config = vec![0; 256];
        config[0x06] = 1 << 4;
        config[0x0e] = u8::from(kind > LEGACY_ENDPOINT);
        config[0x34] = 0x58;
        config[0x58] = 0x10;
        config[0x5a..0x5c].copy_from_slice(&(2 | kind << 4).to_le_bytes());
        config[0x7c..0x80].copy_from_slice(&capabilities_2.to_le_bytes());
        config[0x80..0x82].copy_from_slice(&control_2.to_le_bytes());
        tree.file(&pci::path(bdf.parse().unwrap(), "config"), config);
    }

    fn of(tree: &Tree, bdf: &str) -> AtomicOps {
        let sysroot = tree.sysroot();
        let function = pci::find(&sysroot, bdf.parse().unwrap()).unwrap().unwrap();
        AtomicOps::of(&sysroot, &function).unwrap()
    }

    #[test]
    fn path_through_switches_that_route_completes_what_the_root_port_does() {
        let found = of(&card(), GPU);
        assert_eq!((found.widths(), found.register()), (vec![32, 64], 0x1c0));
    }

    #[test]
    fn switch_that_does_not_route_or_blocks_completes_nothing() {
        for (bdf, kind, capabilities, control) in [
            (UP, UPSTREAM, 0, 0),
            (DOWN, DOWNSTREAM, 0, 0),
            (UP, UPSTREAM, 0x40, BLOCKED),
            (DOWN, DOWNSTREAM, 0x40, BLOCKED),
            // A bridge to conventional PCI.
            (DOWN, 0x7, 0x40, 0),
            // A root port that routes between ports, and completes nothing.
            (ROOT, ROOT_PORT, 0x40, 0),
        ] {
            let tree = card();
            express(&tree, bdf, kind, capabilities, control);
            let found = of(&tree, GPU);
            assert_eq!((found.is_none(), found.register()), (true, 0), "{bdf} {kind}");
        }
    }

    #[test]
    fn integrated_function_and_one_that_only_root_can_see_complete_nothing() {
        let tree = card();
        express(&tree, GPU, 0x9, 0x1c0, 0);
        assert!(of(&tree, GPU).is_none());
        let tree = card();
        tree.file(&pci::path(ROOT.parse().unwrap(), "config"), vec![0; 64]);
        assert!(of(&tree, GPU).is_none());
    }

    #[test]
    fn virtual_function_follows_its_physical_one() {
        for (control, widths) in [(0, vec![]), (REQUESTER, vec![32, 64])] {
            let tree = card();
            let virtual_function = "0000:03:00.1";
            let under = &[ROOT, UP, DOWN];
            tree.function(&Function { bdf: virtual_function, under, ..Function::default() });
            express(&tree, virtual_function, ENDPOINT, 0, 0);
            tree.link(
                &pci::path(virtual_function.parse().unwrap(), "physfn"),
                &format!("../{GPU}"),
            );
            express(&tree, GPU, ENDPOINT, 0x1c0, control);
            assert_eq!(of(&tree, virtual_function).widths(), widths);
        }
    }
}

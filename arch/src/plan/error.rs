//! Why there is no plan: one line, a table of who needs what, a code and a fix.

use std::cmp::Reverse;

use strait_resources::{
    bar::{BarKind, BarSpec},
    bdf::Bdf,
    failure::{Code, Failure},
    range::AddressRange,
};

use super::picture::human;

/// Why a [`PlanRequest`](super::PlanRequest) has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The 64-bit prefetchable windows find no place.
    #[error("64-bit BARs do not fit: {0}")]
    Mmio64(Box<Shortage>),
    /// The BARs that must be below 4 GiB find no place.
    #[error("32-bit BARs do not fit: {0}")]
    Mmio32(Box<Shortage>),
    /// A window size that no machine can have.
    #[error("{option}={} cannot be: {why}", human(*.asked))]
    WindowSize {
        /// `--mmio32` or `--mmio64`.
        option: &'static str,
        /// Bytes asked for.
        asked: u64,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// RAM has no room in what the CPU and the IOMMU can address.
    #[error(
        "{} of guest RAM do not fit: what {} can address has room for {}, up to {last:#x}",
        human(*.ram),
        if *.iommu { "the host's IOMMU" } else { "the CPU" },
        human(*.room_for)
    )]
    RamOutOfReach {
        /// Bytes asked for.
        ram: u64,
        /// Bytes there would be room for.
        room_for: u64,
        /// Last address that RAM may have, 0 when there is none.
        last: u64,
        /// What the CPU can address.
        physical_bits: u8,
        /// Was it an IOMMU that limited it, or only the CPU?
        iommu: bool,
    },
    /// The first 2 MiB cannot be RAM, without which no PC starts.
    #[error(
        "guest RAM cannot start at 0: {}",
        match .reserved {
            Some(hole) => format!("the host's IOMMU reserves {hole}"),
            None => "the host's IOMMU cannot map the first 2 MiB".to_owned(),
        }
    )]
    NoLowMemory {
        /// What is in the way, if it has a name.
        reserved: Option<AddressRange>,
    },
    /// More root ports than bus 0 has room for.
    #[error("{count} slots are to be passed through; the machine has root ports for {limit}")]
    TooManyPorts {
        /// How many were asked for.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
    /// Two ports want one bus.
    #[error("guest bus {bus:02x} is asked for twice: by {first} and by {second}")]
    BusTaken {
        /// The bus.
        bus: u8,
        /// Id of the port that has it.
        first: String,
        /// Id of the port that wants it too.
        second: String,
    },
    /// A bus or function number that a function behind a root port cannot have.
    #[error("{id} cannot be there in the guest: {why}")]
    Address {
        /// Id of the port.
        id: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// A request that its maker should not have made: a mistake of strait's.
    #[error("the address plan was asked for something impossible: {what}")]
    Malformed {
        /// What.
        what: String,
    },
}

/// Who needs what, and what there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Every BAR that must go there, largest first.
    pub needs: Vec<Need>,
    /// Bytes of bridge windows, saturating.
    pub needed: u64,
    /// The strictest alignment among the windows, bytes.
    pub align: u64,
    /// The free space there was, ascending.
    pub room: Vec<AddressRange>,
    /// The user's own window size, when that was the limit.
    pub asked: Option<u64>,
}

/// One BAR and its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The function on the host.
    pub host: Bdf,
    /// What it needs.
    pub spec: BarSpec,
}

impl Shortage {
    pub(super) fn new(mut needs: Vec<Need>) -> Self {
        needs.sort_by_key(|need| (Reverse(need.spec.size), need.host, need.spec.index));
        Self { needs, needed: 0, align: 0, room: Vec::new(), asked: None }
    }

    fn largest(&self) -> u64 {
        self.room.iter().map(|range| range.len()).max().unwrap_or(0)
    }

    fn table(&self) -> Vec<String> {
        let needs = self.needs.iter().map(|Need { host, spec }| {
            format!(
                "{host}  {:<5}  {:>9}  {}",
                spec.index.to_string(),
                human(spec.size),
                in_words(spec.kind)
            )
        });
        let room =
            self.room.iter().map(|range| format!("{:>9} free at {range}", human(range.len())));
        let none = self.room.is_empty().then(|| "no free space at all".to_owned());
        let asked =
            self.asked.map(|bytes| format!("{:>9} asked for as the window's size", human(bytes)));
        needs.chain(room).chain(none).chain(asked).collect()
    }
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "they need {} in windows aligned to {}; ",
            human(self.needed),
            human(self.align)
        )?;
        match self.asked {
            Some(bytes) => write!(f, "the window asked for has {}", human(bytes)),
            None => write!(f, "the largest free piece is {}", human(self.largest())),
        }
    }
}

impl PlanError {
    /// Who needs what, by falling size, then the space there was; empty when it is not about space.
    pub fn table(&self) -> Vec<String> {
        match self {
            Self::Mmio64(shortage) | Self::Mmio32(shortage) => shortage.table(),
            _ => Vec::new(),
        }
    }

    /// What `strait explain` knows it as.
    pub fn code(&self) -> &'static Code {
        use strait_resources::codes;
        match self {
            Self::Mmio64(_) => &codes::E1201,
            Self::WindowSize { option, .. } if *option == MMIO64 => &codes::E1201,
            Self::Mmio32(_) | Self::WindowSize { .. } => &codes::E1202,
            Self::RamOutOfReach { .. } | Self::NoLowMemory { .. } => &codes::E1302,
            Self::TooManyPorts { .. } => &codes::E1208,
            Self::BusTaken { .. } | Self::Address { .. } => &codes::E2005,
            Self::Malformed { .. } => &codes::E9001,
        }
    }

    /// As the user sees it.
    pub fn into_failure(self) -> Failure {
        let mut failure = Failure::new(self.code(), self.to_string(), self.fix());
        failure.details = self.table();
        failure
    }

    fn fix(&self) -> String {
        match self {
            Self::Mmio64(shortage) if shortage.asked.is_some() => {
                "leave --mmio64 away: the window is then as large as the BARs need".to_owned()
            }
            Self::Mmio32(shortage) if shortage.asked.is_some() => {
                "leave --mmio32 away: the window is then as large as the BARs need".to_owned()
            }
            Self::Mmio64(_) => {
                "pass fewer of these devices, give the guest less --memory, or make resizable BARs smaller on the host"
                    .to_owned()
            }
            Self::Mmio32(_) => {
                "pass fewer of these devices, or drop expansion ROMs with rom=off".to_owned()
            }
            Self::WindowSize { option, .. } => {
                format!("leave {option} away: the window is then as large as the BARs need")
            }
            Self::RamOutOfReach { room_for: 0, .. } | Self::NoLowMemory { .. } => {
                "pass another device: this one's IOMMU leaves no room for a PC's memory".to_owned()
            }
            Self::RamOutOfReach { room_for, .. } => {
                format!("give the guest at most {} with --memory", human(*room_for))
            }
            Self::TooManyPorts { limit, .. } => format!("pass at most {limit} slots"),
            Self::BusTaken { .. } => {
                "give one of the two another bus, or leave guest-address= away".to_owned()
            }
            Self::Address { .. } => {
                "choose a bus from 01 to ff, device 00 and function 0 first, or leave guest-address= away"
                    .to_owned()
            }
            Self::Malformed { .. } => {
                "this is a mistake in strait: report it with the command line".to_owned()
            }
        }
    }
}

pub(super) const MMIO32: &str = "--mmio32";
pub(super) const MMIO64: &str = "--mmio64";

/// A BAR's kind in words.
pub(super) const fn in_words(kind: BarKind) -> &'static str {
    match kind {
        BarKind::Io => "I/O",
        BarKind::Memory32 { prefetchable: false } => "32-bit",
        BarKind::Memory32 { prefetchable: true } => "32-bit prefetchable",
        BarKind::Memory64 { prefetchable: false } => "64-bit",
        BarKind::Memory64 { prefetchable: true } => "64-bit prefetchable",
        BarKind::Rom => "ROM",
    }
}

#[cfg(test)]
mod tests {
    use strait_resources::{bar::BarIndex, failure::CODES};

    use super::*;

    #[test]
    fn shortage_table_lists_the_largest_need_first_and_the_room_last() {
        let need = |bus, size| Need {
            host: Bdf::new(0, bus, 0, 0).unwrap(),
            spec: BarSpec {
                index: BarIndex::new(1).unwrap(),
                kind: BarKind::Memory64 { prefetchable: true },
                size,
            },
        };
        let mut shortage = Shortage::new(vec![need(1, 1 << 20), need(2, 1 << 36)]);
        shortage.room = vec![AddressRange::new(1 << 32, 1 << 30).unwrap()];
        let failure = PlanError::Mmio64(Box::new(shortage)).into_failure();

        assert_eq!(failure.code.id, "E1201");
        assert_eq!(
            failure.details,
            [
                "0000:02:00.0  BAR 1     64 GiB  64-bit prefetchable",
                "0000:01:00.0  BAR 1      1 MiB  64-bit prefetchable",
                "    1 GiB free at 0x100000000-0x13fffffff",
            ]
        );
    }

    #[test]
    fn every_error_is_one_line_with_a_known_code() {
        let errors = [
            PlanError::Mmio64(Box::new(Shortage::new(vec![]))),
            PlanError::Mmio32(Box::new(Shortage::new(vec![]))),
            PlanError::WindowSize { option: MMIO64, asked: 3, why: "odd" },
            PlanError::RamOutOfReach {
                ram: 1,
                room_for: 0,
                last: 0,
                physical_bits: 39,
                iommu: true,
            },
            PlanError::NoLowMemory { reserved: None },
            PlanError::TooManyPorts { count: 300, limit: 232 },
            PlanError::BusTaken { bus: 5, first: "a".into(), second: "b".into() },
            PlanError::Address { id: "a".into(), why: "bus 00" },
            PlanError::Malformed { what: "x".into() },
        ];
        for error in errors {
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(CODES.contains(&error.code()), "{error}");
            assert!(!error.into_failure().fix.is_empty());
        }
    }
}

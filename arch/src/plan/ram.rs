//! Where guest RAM goes.

use strait_resources::range::{AddressRange, align_down};

use super::{
    error::PlanError,
    pack::{intersect, normalise, shrink},
};
use crate::layout::LOW_RAM_MAX;

/// RAM comes in pieces of 2 MiB, so that host and guest pages can both be huge.
pub(super) const CHUNK: u64 = 2 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// Where RAM never is, at least: from the highest end of low RAM to 4 GiB.
const GAP: u64 = FOUR_GIB - LOW_RAM_MAX;

/// Every address that RAM may have: what the CPU and the IOMMU can address, less what is reserved.
pub(super) struct Reach {
    usable: Vec<AddressRange>,
    physical_bits: u8,
    iommu: bool,
}

impl Reach {
    /// `iova` and `reserved` are normalised; an empty `iova` means that no IOMMU has a say.
    pub(super) fn new(
        physical_bits: u8,
        iova: &[AddressRange],
        reserved: &[AddressRange],
    ) -> Result<Self, PlanError> {
        let malformed =
            || PlanError::Malformed { what: format!("{physical_bits} physical-address bits") };
        if !(36..=57).contains(&physical_bits) {
            return Err(malformed());
        }
        let all = AddressRange::new(0, 1 << physical_bits).ok_or_else(malformed)?;
        let addressable = if iova.is_empty() { vec![all] } else { intersect(&[all], iova) };
        let usable = addressable
            .iter()
            .flat_map(|range| range.subtract_all(reserved.iter().copied()))
            .filter_map(|range| shrink(range, CHUNK))
            .collect::<Vec<_>>();
        if usable.first().is_none_or(|range| range.first() != 0) {
            let reserved = reserved.iter().copied().find(|hole| hole.first() < CHUNK);
            return Err(PlanError::NoLowMemory { reserved });
        }
        Ok(Self { usable: normalise(&usable), physical_bits, iommu: !iova.is_empty() })
    }

    /// `ram` bytes from 0 up: below `low_limit` as much as there is room, the rest from 4 GiB.
    pub(super) fn place(&self, ram: u64, low_limit: u64) -> Result<Vec<AddressRange>, PlanError> {
        let room: Vec<_> = [(0, align_down(low_limit, CHUNK)), (FOUR_GIB, u64::MAX - FOUR_GIB)]
            .into_iter()
            .filter_map(|(first, len)| AddressRange::new(first, len))
            .collect();
        let mut left = ram;
        let mut placed = Vec::new();
        let room = intersect(&room, &self.usable);
        for range in &room {
            let Some(piece) = AddressRange::new(range.first(), range.len().min(left)) else {
                break;
            };
            left -= piece.len();
            placed.push(piece);
        }
        if left == 0 && !placed.is_empty() {
            return Ok(placed);
        }
        let room_for = room.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
        Err(PlanError::RamOutOfReach {
            ram,
            room_for,
            last: room.last().map_or(0, |range| range.last()),
            physical_bits: self.physical_bits,
            iommu: self.iommu && ram <= (1 << self.physical_bits) - GAP,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn range(first: u64, last: u64) -> AddressRange {
        AddressRange::inclusive(first, last).unwrap()
    }

    #[test]
    fn ram_above_the_low_limit_continues_at_4_gib() {
        let reach = Reach::new(40, &[], &[]).unwrap();
        let placed = reach.place(3 * GIB, 2 * GIB).unwrap();
        assert_eq!(placed, [range(0, 2 * GIB - 1), range(4 * GIB, 5 * GIB - 1)]);
    }

    #[test]
    fn ram_goes_around_a_reserved_region_in_whole_chunks() {
        let reach = Reach::new(40, &[], &[range(0x6f80_a000, 0x6fa2_afff)]).unwrap();
        let placed = reach.place(2 * GIB, 2 * GIB).unwrap();
        let tail = 0x40_0000;
        assert_eq!(
            placed,
            [
                range(0, 0x6f7f_ffff),
                range(0x6fc0_0000, 0x7fff_ffff),
                range(4 * GIB, 4 * GIB + tail - 1)
            ]
        );
    }

    #[test]
    fn ram_jumps_over_hypertransport_on_an_amd_host() {
        let (first, last) = crate::layout::AMD_HYPERTRANSPORT;
        let reach = Reach::new(48, &[], &[range(first, last)]).unwrap();
        let placed = reach.place(1100 * GIB, 2 * GIB).unwrap();
        assert_eq!(placed[1], range(4 * GIB, first - 1));
        assert_eq!(placed[2].first(), last + 1);
        assert_eq!(placed.iter().map(|r| r.len()).sum::<u64>(), 1100 * GIB);
    }

    #[test]
    fn ram_beyond_a_narrow_iommu_is_refused_with_the_room_there_is() {
        let reach = Reach::new(46, &[range(0, (1 << 39) - 1)], &[]).unwrap();
        let error = reach.place(512 * GIB, 2 * GIB).unwrap_err();
        assert!(
            matches!(error, PlanError::RamOutOfReach { room_for, iommu: true, .. } if room_for == 510 * GIB),
            "{error:?}"
        );
    }

    #[test]
    fn ram_beyond_the_cpu_is_not_blamed_on_the_iommu() {
        let reach = Reach::new(39, &[range(0, (1 << 39) - 1)], &[]).unwrap();
        let error = reach.place(512 * GIB, 2 * GIB).unwrap_err();
        assert_eq!(
            error.to_string(),
            "512 GiB of guest RAM do not fit: what the CPU can address has room for 510 GiB, up to 0x7fffffffff"
        );
    }

    #[test]
    fn reserved_first_megabyte_is_refused() {
        let error = Reach::new(46, &[], &[range(0xf_4000, 0xf_4fff)]).err().unwrap();
        assert!(matches!(error, PlanError::NoLowMemory { reserved: Some(_) }), "{error:?}");
    }
}

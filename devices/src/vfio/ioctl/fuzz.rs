//! What a kernel could answer, right or wrong.

use super::{Answer, HOT_RESET_HEADER, affected, parse_iommu_info, region_info};

/// What libFuzzer calls with whatever it makes up: bytes are an answer with its capability chain.
///
/// # Panics
/// When something is believed that the answer does not hold: more elements than it has bytes for, an area outside of its
/// region.
pub fn fuzz(bytes: &[u8]) {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    };
    let answer = Answer { words: bytes.chunks(8).map(word).collect() };
    let len = answer.len();

    let region = region_info(&answer);
    assert!(region.areas.len() <= len / 16 + 1);
    for (offset, area) in region.areas {
        let end = offset.checked_add(area);
        assert!(area > 0 && end.is_some_and(|end| end <= region.size), "{offset:#x} {area:#x}");
    }

    let info = parse_iommu_info(&answer);
    assert!(info.iova.len() <= len / 16);

    let functions = affected(&answer).unwrap_or_default();
    assert!(functions.len() <= len.saturating_sub(HOT_RESET_HEADER) / 8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_answer_is_believed_beyond_its_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 48..400),
            cap in 0_u8..100,
            id in 0_u8..4,
        ) {
            // Flags say that there are capabilities; the chain begins at `cap`.
            bytes[4] |= 0x0f;
            bytes[12..20].copy_from_slice(&[cap & !3, 0, 0, 0, cap & !3, 0, 0, 0]);
            if let Some(header) = bytes.get_mut(usize::from(cap & !3)..usize::from(cap & !3) + 2) {
                header.copy_from_slice(&[id, 0]);
            }
            fuzz(&bytes);
        }
    }
}

//! Sums and patterns that both the agent in the guest and the lab outside compute: no message has to carry them.

/// A sum that tells contents apart: FNV-1a, 64 bits.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Bytes that depend on a word, different everywhere.
pub(crate) fn pattern(word: &str, length: usize) -> Vec<u8> {
    let mut state = sum(word.as_bytes());
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 33)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

//! What holds for every configuration space there could be.

use super::{super::fuzz::fuzz, *};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_config_spaces_never_give_a_denied_register_to_hardware(
        flags: u8,
        mut records in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        records.insert(0, flags & !1);
        fuzz(&records);
    }

    #[test]
    fn raw_config_spaces_never_give_a_denied_register_to_hardware(
        flags: u8,
        mut bytes in proptest::collection::vec(any::<u8>(), 0..4096),
    ) {
        bytes.insert(0, flags | 1);
        fuzz(&bytes);
    }
}

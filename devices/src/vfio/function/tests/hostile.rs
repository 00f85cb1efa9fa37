//! Guests that mean harm, or are only confused.

use proptest::prelude::*;

use super::*;

fn access() -> impl Strategy<Value = ConfigAccess> {
    let offset = prop_oneof![3 => 0u16..0x110, 1 => 0u16..4096];
    (offset, prop_oneof![Just(1u8), Just(2), Just(4)])
        .prop_filter_map("aligned", |(offset, len)| ConfigAccess::new(offset, len))
}

#[derive(Clone, Debug)]
enum Step {
    Config(ConfigAccess, u32),
    Bar(u8, u64, Vec<u8>),
    Fire(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![0u64..0x100, 0x1ff0u64..0x2900, any::<u64>()];
    let data = proptest::collection::vec(any::<u8>(), 1..=8);
    prop_oneof![
        4 => (access(), any::<u32>()).prop_map(|(at, value)| Step::Config(at, value)),
        4 => (0u8..=6, offset, data).prop_map(|(bar, at, data)| Step::Bar(bar, at, data)),
        1 => (0u32..5).prop_map(Step::Fire),
    ]
}

proptest! {
    #[test]
    fn any_width_reads_the_same_bytes(at in access()) {
        let mut bench = bench();
        let wide = bench.read(at.offset() & !3, 4);
        let narrow = bench.function.config_read(at);
        let shift = u32::from(at.offset() % 4) * 8;
        prop_assert_eq!(narrow, wide >> shift & at.all_ones());
    }

    #[test]
    fn hostile_guests_reach_neither_panic_nor_our_registers(
        steps in proptest::collection::vec(step(), 1..120),
        no_resize: bool,
        broken in proptest::option::of(prop_oneof![
            Just("triggers"), Just("vector"), Just("read 7"), Just("write 7"), Just("reset"),
        ]),
    ) {
        let mut bench = attach(gpu().irq(IrqIndex::Msix, 4, no_resize)).unwrap();
        let direct = bench.function.bars().len();
        bench.calls();
        if let Some(call) = broken {
            bench.device.fail(call);
        }
        for step in steps {
            match step {
                Step::Config(at, value) => {
                    for change in bench.function.config_write(at, value) {
                        let size = bench.function.bars.specs().find(|s| s.index == change.bar);
                        prop_assert!(change.address.is_multiple_of(size.unwrap().size));
                    }
                    bench.function.config_read(at);
                    bench.function.settled();
                }
                Step::Bar(bar, at, data) => {
                    bench.bar_write(bar, at, &data);
                    bench.bar_read(bar, at, data.len());
                }
                Step::Fire(vector) => {
                    bench.device.fire(IrqIndex::Msix, vector);
                }
            }
        }
        prop_assert_eq!(bench.function.bars().len(), direct);
        let owned = [MSI + 2, MSIX + 2, 0x10, 0x30, 0x3c].map(|at| format!("write 7 {at:#x} "));
        for call in bench.calls() {
            prop_assert!(owned.iter().all(|start| !call.starts_with(start.as_str())), "{}", call);
            // Decoding never goes off in the device.
            let decodes = call.strip_prefix("write 7 0x4 ").is_none_or(|bytes| {
                u8::from_str_radix(&bytes[..2], 16).is_ok_and(|low| low & 3 == 3)
            });
            prop_assert!(decodes, "{}", call);
        }
    }
}

//! String instructions on I/O ports: REP INS and REP OUTS are many accesses to one port.

use crate::guest::{Guest, strait};

const BUFFER: u32 = 0x21_0000;

/// Says what is in `words` dwords of the buffer, if they are `value`.
fn expect(guest: Guest, words: u32, value: u32) -> Guest {
    (0..words)
        .fold(guest, |guest, word| {
            guest.if_equal(BUFFER + 4 * word, value, &Guest::new().print("y"))
        })
        .power_off()
}

fn says(guest: &Guest, text: &str) {
    let Some(run) = strait(guest, &[]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), text), "{}", run.stderr());
}

#[test]
fn bytes_of_a_string_read_are_all_from_the_same_port() {
    // Line status of the serial port: transmitter empty. The ports behind it are others.
    let guest = Guest::new().string_in(0x3fd, BUFFER, 8, &[0xf3, 0x6c]);
    says(&expect(guest, 2, 0x6060_6060), "yy");
}

#[test]
fn words_of_a_string_read_are_all_from_the_same_port() {
    // PM1 control: ACPI is enabled.
    let guest = Guest::new().string_in(0x604, BUFFER, 4, &[0x66, 0xf3, 0x6d]);
    says(&expect(guest, 2, 0x0001_0001), "yy");
}

#[test]
fn dwords_of_a_string_read_are_all_from_the_same_port() {
    // mov edx,0xcf8; mov eax,0x80000000; out dx,eax: the configuration address register, then what it leads to.
    let guest = Guest::new().raw(&[0xba, 0xf8, 0x0c, 0, 0, 0xb8, 0, 0, 0, 0x80, 0xef]).string_in(
        0xcfc,
        BUFFER,
        3,
        &[0xf3, 0x6d],
    );
    says(&expect(guest, 3, 0x29c0_8086), "yyy");
}

#[test]
fn string_read_of_several_pages_is_whole() {
    let guest = Guest::new().string_in(0x3fd, BUFFER, 0x5001, &[0xf3, 0x6c]);
    let guest = guest.if_equal(BUFFER + 0x5000 - 3, 0x6060_6060, &Guest::new().print("end"));
    says(&guest.if_equal(BUFFER + 0x5001, 0, &Guest::new().print(".")).power_off(), "end.");
}

#[test]
fn string_write_prints_every_byte() {
    says(&Guest::new().print_at_once("all of it at once\n").power_off(), "all of it at once\n");
}

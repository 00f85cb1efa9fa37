//! The open files of a strait that has a machine.

use std::{fs, io::Write};

use super::guest::{Guest, kernel, prompted};

const O_CLOEXEC: u32 = 0o2_000_000;

#[test]
fn no_descriptor_of_a_running_strait_is_inherited_by_its_children() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    let (mut child, mut input, _output) = prompted(file.path(), &["--cpus", "2"]);
    let id = child.id();
    let mut inherited = Vec::new();
    let mut seen = 0;
    for entry in fs::read_dir(format!("/proc/{id}/fd")).expect("listed") {
        let number = entry.expect("listed").file_name().into_string().expect("a number");
        let what = fs::read_link(format!("/proc/{id}/fd/{number}")).expect("a link");
        // Standard input, output and error; and what this test was itself started with.
        let ours = fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|own| own == what);
        if number.parse::<u32>().expect("a number") <= 2
            || (ours && !what.starts_with("anon_inode:"))
        {
            continue;
        }
        let info = fs::read_to_string(format!("/proc/{id}/fdinfo/{number}")).expect("read");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("octal");
        seen += 1;
        if flags & O_CLOEXEC == 0 {
            inherited.push(format!("{number} {}", what.display()));
        }
    }
    assert!(seen > 10, "{seen}");
    assert_eq!(inherited, Vec::<String>::new());
    input.write_all(b"q").expect("typed");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

//! A device's own ROM, through the `rom` file of sysfs, or through VFIO when that has the device.
//!
//! Writing 1 there lets reads switch the device's ROM decoder on; only "0" and a line end, two bytes, ends that
//! (drivers/pci/pci-sysfs.c, pci_write_rom). Whatever a read says, the 0 is written. The ROM answers only while the
//! function decodes memory at all, which nobody has asked for as long as it has no driver: `enable` does. With a
//! driver that file is the driver's; vfio-pci leaves its functions disabled and asleep while no guest has them, but
//! wakes them for whoever opens them.

use std::{
    fs::OpenOptions,
    io::{self, Read as _, Write as _},
};

use super::{Image, RomError, parse};
use crate::{
    bar::BarIndex,
    codes,
    failure::Failure,
    host::{
        framebuffer,
        pci::{self, HostFunction},
        sysroot::Sysroot,
    },
};

/// The largest ROM that a ROM BAR can show.
const MAX_SIZE: u64 = 16 << 20;
const ON: &str = "1\n";
const OFF: &str = "0\n";
/// Line of the ROM in `resource`, and where a copy of the firmware's lies.
const ROM_LINE: usize = 6;
const SHADOW: &str = "0x00000000000c0000";

/// What a device's ROM holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Every byte that the kernel gave.
    pub bytes: Vec<u8>,
    /// Its images, or what is wrong with them.
    pub images: Result<Vec<Image>, RomError>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// How the kernel's files are used; tests have none.
trait Files {
    fn write(&self, path: &str, value: &str) -> io::Result<()>;
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
}

impl Files for Sysroot {
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.path(path))?.write_all(value.as_bytes())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(self.path(path))?.take(MAX_SIZE).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// A host laid out in a directory: its files hold what a read gave, and switch nothing.
struct Snapshot<'a>(&'a Sysroot);

impl Files for Snapshot<'_> {
    fn write(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        Files::read(self.0, path)
    }
}

/// Reads it where that disturbs nobody: the function has no driver, is awake, and no framebuffer of the host's lies in its
/// BARs, which may share their decoder with the ROM. `Ok(None)`: it is left alone. Refuses as [`dump`] does.
pub fn peek(sysroot: &Sysroot, function: &HostFunction) -> Result<Option<Dump>, Failure> {
    let sleeps = function.power_state.as_deref().is_some_and(|state| state.starts_with("D3"));
    let draws = framebuffer::on(sysroot, function.bdf)?.is_some();
    if function.driver.is_some() || sleeps || draws {
        return Ok(None);
    }
    refuse(sysroot, function)?;
    let files: &dyn Files = if sysroot.is_host() { sysroot } else { &Snapshot(sysroot) };
    by_sysfs(sysroot, files, function).map(Some)
}

/// Reads it; `by_vfio` does for a function that VFIO has. E1116 says why there is nothing to read.
///
/// # Errors
/// Also E1003 without the right to, and what `by_vfio` refuses: E1107 while a guest has the function.
pub fn dump(
    sysroot: &Sysroot,
    function: &HostFunction,
    by_vfio: impl FnOnce() -> Result<Vec<u8>, Failure>,
) -> Result<Dump, Failure> {
    refuse(sysroot, function)?;
    match function.is_on_vfio() {
        true => judged(sysroot, function, by_vfio()?, Vec::new()),
        false => by_sysfs(sysroot, sysroot, function),
    }
}

fn by_sysfs(
    sysroot: &Sysroot,
    files: &dyn Files,
    function: &HostFunction,
) -> Result<Dump, Failure> {
    let mut undo = Vec::new();
    let read = prepare(sysroot, files, function, &mut undo)
        .map_err(|error| refused(sysroot, function, error))
        .and_then(|awake| match awake {
            Some(state) => Err(sleeps(function, &state)),
            None => files
                .read(&pci::path(function.bdf, "rom"))
                .map_err(|error| refused(sysroot, function, error)),
        });
    let mut notes = Vec::new();
    for (path, value) in undo.iter().rev() {
        if let Err(error) = files.write(path, value) {
            notes.push(format!("{path} could not be set back to {}: {error}", value.trim()));
        }
    }
    match read {
        Ok(bytes) => judged(sysroot, function, bytes, notes),
        Err(failure) => Err(notes.into_iter().fold(failure, Failure::detail)),
    }
}

fn judged(
    sysroot: &Sysroot,
    function: &HostFunction,
    mut bytes: Vec<u8>,
    mut notes: Vec<String>,
) -> Result<Dump, Failure> {
    if bytes.iter().all(|byte| *byte == 0xff) || bytes.iter().all(|byte| *byte == 0) {
        return Err(nothing(sysroot, function, "there is nothing in its ROM"));
    }
    if is_shadow(sysroot, function)? {
        notes.push(
            "this is the firmware's copy in RAM at 0xc0000, and it may have changed it".to_owned(),
        );
    } else if function.boot_vga == Some(true) {
        notes.push("the firmware has run it at boot: what is read now may be changed".to_owned());
    }
    let images = parse(&bytes);
    // VFIO pads to the size of the BAR.
    if let Some(last) = images.as_ref().ok().and_then(|images| images.last()) {
        let end = last.offset + last.len;
        if bytes.get(end..).is_some_and(|rest| rest.iter().all(|byte| *byte == 0xff)) {
            bytes.truncate(end);
        }
    }
    Ok(Dump { bytes, images, notes })
}

/// Wakes the device, enables it and turns its ROM decoder on. `undo` has what to write to end that, latest last, also
/// after an error. A power state is the answer when it does not wake up.
fn prepare(
    sysroot: &Sysroot,
    files: &dyn Files,
    function: &HostFunction,
    undo: &mut Vec<(String, String)>,
) -> io::Result<Option<String>> {
    let path = |name| pci::path(function.bdf, name);
    let now = |name| sysroot.read_if_present(&path(name)).map_err(io::Error::other);
    let mut set = |name, value: &str, back: String| {
        let written = files.write(&path(name), value);
        // Whatever else went wrong, the kernel has not seen a write that it had no permission for or was too busy.
        if !matches!(&written, Err(error) if did_nothing(error)) {
            undo.push((path(name), back));
        }
        written
    };
    if now("power_state")?.is_some_and(|state| state.starts_with("D3")) {
        let before = now("power/control")?.unwrap_or_default();
        set("power/control", "on\n", before + "\n")?;
        if let Some(state) = now("power_state")?.filter(|state| state.starts_with("D3")) {
            return Ok(Some(state));
        }
    }
    if now("enable")?.as_deref() == Some("0") {
        set("enable", ON, OFF.to_owned())?;
    }
    set("rom", ON, OFF.to_owned())?;
    Ok(None)
}

fn did_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ResourceBusy)
}

/// What can be known without touching the device.
fn refuse(sysroot: &Sysroot, function: &HostFunction) -> Result<(), Failure> {
    let bdf = function.bdf;
    let none = |cause: String, fix: String| Err(Failure::new(&codes::E1116, cause, fix));
    if !sysroot.exists(&pci::path(bdf, "rom")) {
        let fix = "a guest that boots by --kernel needs none; for UEFI give it one with rom=FILE";
        return match function.physical_function {
            Some(physical) => none(
                format!("{bdf} is a virtual function and has no ROM of its own"),
                format!("the ROM is its physical function's: strait rom dump {physical}"),
            ),
            None if function.unassigned.contains(&BarIndex::ROM) => none(
                format!("{bdf} has a ROM, but the host gave it no address"),
                "look for its BARs in dmesg; above-4G decoding in the firmware makes room"
                    .to_owned(),
            ),
            None => none(format!("{bdf} has no ROM"), fix.to_owned()),
        };
    }
    Ok(())
}

/// It was asked to wake up.
fn sleeps(function: &HostFunction, state: &str) -> Failure {
    let cause = format!("{} stays in {state}, where its ROM does not answer", function.bdf);
    let fix = "power cycle the host; if a driver sent it to sleep, take it away: strait bind";
    Failure::new(&codes::E1116, cause, fix)
}

/// The kernel refused.
fn refused(sysroot: &Sysroot, function: &HostFunction, error: io::Error) -> Failure {
    let bdf = function.bdf;
    if error.kind() != io::ErrorKind::PermissionDenied {
        return nothing(sysroot, function, "the kernel finds no ROM in it").source(error);
    }
    let lockdown = sysroot.read("/sys/kernel/security/lockdown").unwrap_or_default();
    let mode = lockdown.split(['[', ']']).nth(1).filter(|mode| *mode != "none");
    match mode {
        Some(mode) => {
            let cause = format!(
                "the kernel is locked down ({mode}) and may not let anybody read {bdf}'s ROM"
            );
            let fix = "without Secure Boot the kernel is not locked down; or take rom=FILE";
            Failure::new(&codes::E1116, cause, fix).source(error)
        }
        None => {
            let cause = format!("only root may read the ROM of {bdf}");
            Failure::new(&codes::E1003, cause, format!("sudo strait rom dump {bdf}")).source(error)
        }
    }
}

/// There is a ROM BAR, and nothing of use behind it.
fn nothing(sysroot: &Sysroot, function: &HostFunction, seen: &str) -> Failure {
    let bdf = function.bdf;
    let shadow = is_shadow(sysroot, function).unwrap_or(false);
    let (why, fix) = match () {
        () if function.is_dead() => (
            "the device does not answer at all: its config space reads as all ones",
            "power cycle the host".to_owned(),
        ),
        () if shadow => (
            "the firmware ran it at boot, and what the host sees is a shadow in RAM, no longer a ROM",
            "boot the host with another display; the firmware's setup calls that the primary one"
                .to_owned(),
        ),
        () if function.boot_vga == Some(true) => (
            "the host booted with this display: firmware and drivers often switch its ROM off",
            "boot the host with another display; the firmware's setup calls that the primary one"
                .to_owned(),
        ),
        () => match &function.driver {
            Some(driver) if !function.is_on_vfio() => (
                "its driver may have switched the ROM off",
                format!("take it from {driver} and look again: strait bind {bdf}"),
            ),
            _ => (
                "the device has a place for a ROM and none in it, or it was switched off",
                format!("dmesg | grep {bdf} tells what the kernel read; a power cycle may help"),
            ),
        },
    };
    Failure::new(&codes::E1116, format!("{bdf}: {seen}"), fix).detail(why)
}

/// Does the kernel show the firmware's copy instead of the device's ROM?
fn is_shadow(sysroot: &Sysroot, function: &HostFunction) -> Result<bool, Failure> {
    let table = sysroot.read_if_present(&pci::path(function.bdf, "resource"))?.unwrap_or_default();
    Ok(table.lines().nth(ROM_LINE).is_some_and(|line| line.starts_with(SHADOW)))
}

// Provenance: images by PCI Local Bus 3.0, 6.3, made up; no ROM of a card.
#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::host::fixture::Tree;

    const BDF: &str = "0000:3b:00.0";

    /// Files that note what is done to them.
    struct Fake {
        answer: Result<Vec<u8>, io::ErrorKind>,
        done: RefCell<Vec<String>>,
    }

    impl Fake {
        fn new(answer: Result<Vec<u8>, io::ErrorKind>) -> Self {
            Self { answer, done: RefCell::default() }
        }

        fn note(&self, path: &str, what: &str) {
            let name = path.rsplit('/').next().unwrap_or_default();
            self.done.borrow_mut().push(format!("{name} {what:?}"));
        }
    }

    impl Files for Fake {
        fn write(&self, path: &str, value: &str) -> io::Result<()> {
            self.note(path, value);
            Ok(())
        }

        fn read(&self, path: &str) -> io::Result<Vec<u8>> {
            self.note(path, "read");
            self.answer.clone().map_err(io::Error::from)
        }
    }

    fn card(change: impl FnOnce(&Tree)) -> (Tree, HostFunction) {
        let tree = Tree::two_cards();
        tree.file(&format!("/sys/bus/pci/devices/{BDF}/rom"), "");
        change(&tree);
        let function = pci::find(&tree.sysroot(), BDF.parse().unwrap()).unwrap().unwrap();
        (tree, function)
    }

    fn refusal(
        change: impl FnOnce(&Tree),
        answer: Result<Vec<u8>, io::ErrorKind>,
    ) -> (String, String) {
        let (tree, function) = card(change);
        let fake = Fake::new(answer);
        let failure = refuse(&tree.sysroot(), &function)
            .and_then(|()| by_sysfs(&tree.sysroot(), &fake, &function))
            .unwrap_err();
        let done = fake.done.borrow();
        let on = done.iter().filter(|what| **what == format!("rom {ON:?}")).count();
        let off = done.iter().filter(|what| **what == format!("rom {OFF:?}")).count();
        assert_eq!(on, off, "{done:?}");
        let told = format!("{} {:?} {}", failure.cause, failure.details, failure.fix);
        (failure.code.id.to_owned(), told)
    }

    fn attribute(tree: &Tree, name: &str, value: &str) {
        tree.file(&format!("/sys/bus/pci/devices/{BDF}/{name}"), value);
    }

    #[test]
    fn r43_decoder_is_on_for_the_read_alone() {
        for (enabled, expected) in [
            ("0\n", "enable 1, rom 1, rom read, rom 0, enable 0"),
            ("1\n", "rom 1, rom read, rom 0"),
        ] {
            let (tree, function) = card(|tree| attribute(tree, "enable", enabled));
            let fake = Fake::new(Ok(vec![0x55, 0xaa, 0]));
            let dump = by_sysfs(&tree.sysroot(), &fake, &function).unwrap();
            assert_eq!(dump.bytes, [0x55, 0xaa, 0]);
            assert_eq!(dump.images, Err(RomError::NoPcir { offset: 0 }));
            let done = fake.done.borrow().join(", ").replace("\\n", "").replace('"', "");
            assert_eq!(done, expected);
        }
    }

    #[test]
    fn r43_sleeping_device_goes_back_to_sleep() {
        let (tree, function) = card(|tree| {
            attribute(tree, "power_state", "D3hot");
            attribute(tree, "power/control", "auto\n");
        });
        let fake = Fake::new(Ok(Vec::new()));
        let failure = by_sysfs(&tree.sysroot(), &fake, &function).unwrap_err();
        assert!(failure.cause.ends_with("stays in D3hot, where its ROM does not answer"));
        assert_eq!(*fake.done.borrow(), ["control \"on\\n\"", "control \"auto\\n\""]);
    }

    #[test]
    fn r43_empty_rom_is_explained() {
        let io_error = || Err(io::ErrorKind::Other);
        for (change, answer, code, says) in [
            (
                (|tree| tree.remove(&format!("/sys/bus/pci/devices/{BDF}/rom"))) as fn(&Tree),
                io_error(),
                "E1116",
                "has no ROM",
            ),
            (|tree| attribute(tree, "power_state", "D3hot"), io_error(), "E1116", "stays in D3hot"),
            (|tree| attribute(tree, "boot_vga", "1"), io_error(), "E1116", "another display"),
            (
                |tree| {
                    let line = "0x00000000000c0000 0x00000000000dffff 0x0000000000000212\n";
                    attribute(tree, "resource", &("0x0 0x0 0x0\n".repeat(6) + line));
                },
                Ok(vec![0xff; 512]),
                "E1116",
                "a shadow in RAM",
            ),
            (|_| {}, Ok(vec![0; 512]), "E1116", "none in it"),
            (|_| {}, Err(io::ErrorKind::PermissionDenied), "E1003", "sudo"),
            (
                |tree| {
                    tree.file("/sys/kernel/security/lockdown", "none [integrity] confidentiality")
                },
                Err(io::ErrorKind::PermissionDenied),
                "E1116",
                "locked down (integrity)",
            ),
        ] {
            let (found, told) = refusal(change, answer);
            assert_eq!(found, code, "{told}");
            assert!(told.contains(says), "{told}");
        }
    }

    #[test]
    fn r43_what_vfio_pads_is_cut_off() {
        let (tree, function) = card(|_| {});
        let mut rom = vec![0; 512];
        rom[..2].copy_from_slice(&[0x55, 0xaa]);
        rom[0x18] = 0x20;
        rom[0x20..0x24].copy_from_slice(b"PCIR");
        rom[0x30] = 1;
        rom[0x35] = 0x80;
        let padded = [rom.clone(), vec![0xff; 1536]].concat();
        assert!(function.is_on_vfio());
        let read = dump(&tree.sysroot(), &function, || Ok(padded)).unwrap();
        assert_eq!(read.bytes, rom);
    }

    #[test]
    fn r43_copy_of_a_boot_display_comes_with_a_note() {
        let (tree, function) = card(|tree| attribute(tree, "boot_vga", "1"));
        let dump = by_sysfs(&tree.sysroot(), &Fake::new(Ok(vec![0x55, 0xaa])), &function).unwrap();
        assert!(dump.notes[0].contains("may be changed"), "{:?}", dump.notes);
    }
}

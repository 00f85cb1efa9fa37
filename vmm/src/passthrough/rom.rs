//! Which expansion ROM a function shows. A file is looked at before anything starts: a wrong one costs hours inside
//! a guest.

use std::path::Path;

use strait_devices::vfio::rom::RomSource;
use strait_resources::{
    codes,
    failure::Failure,
    host::{
        check::Warning,
        pci::{self, HostFunction},
        rom::{self, Fitting, Wearer},
        sysroot::Sysroot,
    },
};

use crate::config::{Identity, RomChoice, VfioConfig, files};

/// The ROM that the user wants for a function. With a whole slot, a file is its `first` function's.
pub(super) fn choose(
    sysroot: &Sysroot,
    device: &VfioConfig,
    first: bool,
    function: &HostFunction,
) -> Result<(RomSource, Option<Warning>), Failure> {
    let path = match &device.rom {
        RomChoice::On => return Ok((RomSource::Device, None)),
        RomChoice::Off => return Ok((RomSource::Off, None)),
        RomChoice::File(_) if !first => {
            return Ok((RomSource::Device, None));
        }
        RomChoice::File(path) => path,
    };
    let bytes = files::rom(path)?;
    let fitting = fits(sysroot, path, &bytes, function, device.identity)?;
    let warning = fitting.relative.map(|relative| {
        let cause = format!("{} for {}: {relative}", path.display(), function.bdf);
        let fix = "nothing, when the file comes from this very machine or was made for it";
        Failure::new(&codes::E2107, cause, fix)
    });
    Ok((RomSource::Bytes(bytes), warning))
}

/// What a ROM has for a function, which shows `identity` to the guest; refuses (E2106) one for another device.
pub(crate) fn fits(
    sysroot: &Sysroot,
    path: &Path,
    bytes: &[u8],
    function: &HostFunction,
    identity: Identity,
) -> Result<Fitting, Failure> {
    let own = (function.vendor, function.device);
    let shown = (identity.vendor.unwrap_or(own.0), identity.device.unwrap_or(own.1));
    let mut siblings = Vec::new();
    for other in pci::slot_functions(sysroot, function.bdf)? {
        let other = pci::find(sysroot, other)?.filter(|other| other.bdf != function.bdf);
        siblings.extend(other.map(|other| (other.vendor, other.device)));
    }
    let wearer = Wearer { ids: vec![own, shown], class: function.class, siblings };
    rom::check(bytes, &wearer).map_err(|error| {
        let cause = format!("{} is no ROM for {}: {error}", path.display(), function.bdf);
        let fix =
            format!("read the card's own with strait rom dump {}, or use rom=off", function.bdf);
        Failure::new(&codes::E2106, cause, fix)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use strait_resources::host::{fixture::Tree, reset::Choice};

    use super::*;
    use crate::config::{After, Managed};

    /// The GPU of a fixture, and what a user says of its ROM.
    fn choice(rom: RomChoice, first: bool) -> Result<RomSource, Failure> {
        let tree = Tree::two_cards();
        let function = pci::find(&tree.sysroot(), "3b:00.0".parse().unwrap()).unwrap().unwrap();
        let device = VfioConfig {
            selector: "3b:00".parse().unwrap(),
            id: None,
            guest_bus: None,
            guest_function: None,
            rom,
            expect: None,
            reset: Choice::Auto,
            managed: Managed::No,
            raw_config: false,
            after: After::Host,
            trust_guest: false,
            identity: Identity::default(),
        };
        choose(&tree.sysroot(), &device, first, &function).map(|(source, _)| source)
    }

    #[test]
    fn r44_rom_off_is_no_rom_and_on_is_the_devices() {
        assert_eq!(choice(RomChoice::Off, true).unwrap(), RomSource::Off);
        assert_eq!(choice(RomChoice::On, true).unwrap(), RomSource::Device);
    }

    #[test]
    fn r41_file_is_for_the_first_function_and_must_be_a_rom() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "no rom").unwrap();
        let path = || RomChoice::File(file.path().into());
        assert_eq!(choice(path(), false).unwrap(), RomSource::Device);
        let failure = choice(path(), true).unwrap_err();
        assert_eq!(failure.code.id, "E2106");
        assert!(failure.cause.contains("55 aa"), "{}", failure.cause);
        assert!(failure.fix.contains("strait rom dump 0000:3b:00.0"), "{}", failure.fix);
    }
}

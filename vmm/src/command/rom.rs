//! `strait rom`: expansion ROMs, the device's own and files.

mod json;

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use strait_devices::vfio::{backend::VfioBackend as _, dma::DmaDomain};
use strait_resources::{
    bar::BarIndex,
    codes,
    failure::Failure,
    host::{
        check,
        pci::HostFunction,
        rom::{self, CodeType, Image},
        sysroot::Sysroot,
    },
    names::Names,
    size::Size,
};

use crate::{
    cli::{RomArgs, RomCheckArgs, RomCommand, RomDumpArgs},
    config::{Identity, files},
    passthrough,
    report::{self, GOOD, QUIET, STRONG, WARNING, plain},
};

/// The largest ROM that a ROM BAR can show (PCI 6.2.5.2).
const MAX_SIZE: u64 = 16 << 20;

/// What there is to say of a ROM.
struct Findings<'a> {
    /// Where the bytes are; `None` on standard output.
    file: Option<&'a Path>,
    device: Option<&'a HostFunction>,
    bytes: &'a [u8],
    images: &'a [Image],
    notes: Vec<String>,
}

/// Dumps or checks.
pub(crate) fn run(args: &RomArgs) -> Result<u8, Failure> {
    match &args.command {
        RomCommand::Dump(args) => dump(args),
        RomCommand::Check(args) => check_file(args),
    }?;
    Ok(0)
}

fn dump(args: &RomDumpArgs) -> Result<(), Failure> {
    let sysroot = Sysroot::at(&args.answer.sysroot);
    let function = one(&sysroot, &args.device)?;
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    let path = args.output.clone().unwrap_or_else(|| {
        PathBuf::from(format!("{}.rom", function.bdf.to_string().replace(':', "-")))
    });
    if !to_stdout && path.exists() {
        let cause = format!("{} exists", path.display());
        let fix = "name another file with --output, or remove that one";
        return Err(Failure::new(&codes::E2101, cause, fix));
    }
    // Not between switching the decoder on and off.
    crate::signals::hold().map_err(crate::builder::internal("installing a signal handler"))?;
    let rom::Dump { bytes, images, mut notes } =
        rom::dump(&sysroot, &function, || by_vfio(&function))?;
    let images = images.unwrap_or_else(|error| {
        notes.push(format!("it was written, but it is not sound: {error}"));
        Vec::new()
    });
    if to_stdout {
        return io::stdout().write_all(&bytes).map_err(|error| cannot_write(&path, error));
    }
    let write = || OpenOptions::new().write(true).create_new(true).open(&path)?.write_all(&bytes);
    write().map_err(|error| cannot_write(&path, error))?;
    let (file, device) = (Some(path.as_path()), Some(&function));
    tell(
        &sysroot,
        args.answer.json,
        &Findings { file, device, bytes: &bytes, images: &images, notes },
    )
}

/// As the guest would read it.
fn by_vfio(function: &HostFunction) -> Result<Vec<u8>, Failure> {
    let domain = DmaDomain::new(None).map_err(|error| error.into_failure())?;
    let device = domain.open(function.bdf).map_err(|error| error.into_failure())?;
    let region = BarIndex::ROM.get().into();
    // Without a ROM behind its BAR, VFIO shows none.
    let size = device.region(region).size.min(MAX_SIZE) as usize;
    let mut bytes = vec![0xff; size];
    if size > 0 {
        device.region_read(region, 0, &mut bytes).map_err(|error| {
            let cause = format!("VFIO does not read the ROM of {}", function.bdf);
            Failure::new(&codes::E1116, cause, "look at dmesg | tail").source(error)
        })?;
    }
    Ok(bytes)
}

fn check_file(args: &RomCheckArgs) -> Result<(), Failure> {
    let sysroot = Sysroot::at(&args.answer.sysroot);
    files::readable("strait rom check", &args.file)?;
    let bytes = files::rom(&args.file)?;
    let device = args.device.as_ref().map(|word| one(&sysroot, word)).transpose()?;
    let (images, notes) = match &device {
        Some(function) => {
            let fitting = passthrough::rom::fits(
                &sysroot,
                &args.file,
                &bytes,
                function,
                Identity::default(),
            )?;
            (fitting.images, Vec::from_iter(fitting.relative))
        }
        None => (rom::parse(&bytes).map_err(|error| not_a_rom(&args.file, &error))?, Vec::new()),
    };
    let (file, device) = (Some(args.file.as_path()), device.as_ref());
    tell(
        &sysroot,
        args.answer.json,
        &Findings { file, device, bytes: &bytes, images: &images, notes },
    )
}

/// A ROM belongs to one function.
fn one(sysroot: &Sysroot, word: &str) -> Result<HostFunction, Failure> {
    let mut found = check::select(sysroot, &[word.to_owned()])?;
    match found.as_slice() {
        // Of a whole slot it is the first function that has one.
        [_, ..] => Ok(found.swap_remove(0)),
        [] => Err(Failure::new(&codes::E1101, format!("there is no {word}"), "see strait devices")),
    }
}

fn not_a_rom(path: &Path, error: &rom::RomError) -> Failure {
    let cause = format!("{} is no expansion ROM: {error}", path.display());
    Failure::new(&codes::E2106, cause, "read the card's own with strait rom dump")
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    let cause = format!("{} cannot be written", path.display());
    Failure::new(&codes::E2101, cause, "name a place that is yours with --output").source(error)
}

fn tell(sysroot: &Sysroot, as_json: bool, findings: &Findings<'_>) -> Result<(), Failure> {
    if as_json {
        return report::json(&json::answer(findings));
    }
    report::out(&render(findings, &Names::load(sysroot)))
}

fn render(findings: &Findings<'_>, names: &Names) -> String {
    let Findings { file, device, bytes, images, notes } = findings;
    let mut text = String::new();
    let name = file.map(|file| file.display().to_string()).unwrap_or_default();
    let name = plain(&name);
    let used: usize = images.iter().map(|image| image.len).sum();
    let count = match images.len() {
        1 => "1 image".to_owned(),
        count => format!("{count} images"),
    };
    let _ = writeln!(
        text,
        "{STRONG}{name}{STRONG:#}  {}, {count} in the first {}",
        Size(bytes.len() as u64),
        Size(used as u64)
    );
    for image in *images {
        let ids: Vec<String> = image
            .devices
            .iter()
            .map(|device| format!("{:04x}:{device:04x}", image.vendor))
            .collect();
        let (checksum, style) = match image.checksum_ok {
            Some(true) => ("  checksum right", GOOD),
            Some(false) => ("  checksum wrong", WARNING),
            None => ("", QUIET),
        };
        let _ = writeln!(
            text,
            "  at {:#07x}  {:>8}  {:18}  {}{style}{checksum}{style:#}",
            image.offset,
            Size(image.len as u64).to_string(),
            kind(image),
            shortened_list(&ids)
        );
    }
    let (word, style) = if rom::has_efi(images) { ("yes", GOOD) } else { ("no", WARNING) };
    let _ = writeln!(text, "  UEFI capable: {style}{word}{style:#}");
    if let Some(function) = device {
        let own = images.iter().any(|image| image.serves(function.vendor, function.device));
        let (word, style) = if own { ("yes", GOOD) } else { ("not quite", WARNING) };
        let _ = writeln!(
            text,
            "  for {} {}: {style}{word}{style:#}",
            function.bdf,
            plain(&names.function(function))
        );
    }
    for note in notes {
        let _ = writeln!(text, "  {WARNING}note{WARNING:#}: {note}");
    }
    text
}

/// A list of IDs can have hundreds.
fn shortened_list(ids: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = ids.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match ids.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// `UEFI (GOP), x86-64`.
fn kind(image: &Image) -> String {
    let machine = match image.machine {
        Some(0x8664) => "x86-64",
        Some(0x014c) => "32-bit x86",
        Some(0xaa64) => "ARM64",
        _ => "unknown machine",
    };
    match image.code {
        CodeType::Legacy => "legacy BIOS".to_owned(),
        // UEFI code of a display is what gives the firmware its picture: the Graphics Output Protocol.
        CodeType::Efi if image.class.is_display() => format!("UEFI (GOP), {machine}"),
        CodeType::Efi => format!("UEFI, {machine}"),
        CodeType::Other(code) => format!("other code ({code:#04x})"),
    }
}

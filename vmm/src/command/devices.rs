//! `strait devices`: the host's PCI functions, and which of them a guest can have.

mod json;
mod show;
mod table;
mod tree;

use serde_json::Value;
use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check,
        inventory::{self, Entry, Verdict},
        needs::Needs,
        pci::Class,
        sysroot::Sysroot,
    },
    names::Names,
};

use super::report::to_value;
use crate::{
    cli::{DeviceClass, DevicesArgs, DevicesCommand, ShowArgs},
    report,
};

/// Lists, or shows one device in full.
pub(crate) fn run(args: &DevicesArgs) -> Result<u8, Failure> {
    match &args.command {
        Some(DevicesCommand::Show(args)) => show(args),
        None => list(args),
    }?;
    Ok(0)
}

fn list(args: &DevicesArgs) -> Result<(), Failure> {
    let sysroot = Sysroot::at(&args.output.sysroot);
    let names = Names::load(&sysroot);
    let entries = inventory::inventory(&sysroot)?;
    let wanted = |entry: &Entry| {
        args.vendor.is_none_or(|vendor| vendor == entry.function.vendor)
            && args.class.is_none_or(|class| is_of(class, entry.function.class))
            && !(args.assignable && matches!(entry.verdict, Verdict::No(_)))
    };
    let chosen: Vec<&Entry> = entries.iter().filter(|entry| wanted(entry)).collect();
    if args.output.json {
        return report::json(&json::list(&chosen, &names));
    }
    let columns = report::columns();
    if chosen.is_empty() {
        let all = entries.len();
        return report::out(&format!("None of the host's {all} PCI functions is that.\n"));
    }
    report::out(&if args.group {
        tree::groups(&entries, &chosen, &names, columns)
    } else if args.tree {
        tree::buses(&entries, &chosen, &names, columns)
    } else {
        table::render(&chosen, &names, columns)
    })
}

/// All of them for an archive: what `strait devices --json` answers.
pub(super) fn answer(sysroot: &Sysroot) -> Result<Value, Failure> {
    let entries = inventory::inventory(sysroot)?;
    to_value(&json::list(&entries.iter().collect::<Vec<_>>(), &Names::load(sysroot)))
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let sysroot = Sysroot::at(&args.output.sysroot);
    let names = Names::load(&sysroot);
    let wanted: Vec<Bdf> = check::select(&sysroot, &args.devices)?.iter().map(|f| f.bdf).collect();
    let (mut shown, needs) = (Vec::new(), Needs::new(&sysroot));
    for entry in inventory::inventory(&sysroot)? {
        if wanted.contains(&entry.function.bdf) {
            shown.push(show::Facts::collect(&needs, entry)?);
        }
    }
    if args.output.json {
        return report::json(&json::show(&shown, &names));
    }
    report::out(&show::render(&shown, &names, report::columns()))
}

fn is_of(wanted: DeviceClass, class: Class) -> bool {
    let (base, sub) = (class.base(), class.sub());
    match wanted {
        // Compute cards without a display are 3D controllers or processing accelerators.
        DeviceClass::Gpu => class.is_display() || base == 0x12,
        DeviceClass::Nic => base == 0x02,
        DeviceClass::Nvme => (base, sub) == (0x01, 0x08),
        DeviceClass::Usb => (base, sub) == (0x0c, 0x03),
    }
}

/// How the refusal of a device that the host needs begins, behind its address.
const NOT_TAKEN: &str = " is not taken away from the host: ";

/// The verdict in one or two words, with its colour.
fn verdict(entry: &Entry) -> (&'static str, anstyle::Style) {
    match &entry.verdict {
        Verdict::Assignable => ("assignable", report::GOOD),
        Verdict::AfterBinding(_) => ("after binding", report::WARNING),
        Verdict::No(_) if entry.function.is_bridge() => ("bridge", report::QUIET),
        Verdict::No(_) => ("no", report::ERROR),
    }
}

/// Why it is not simply assignable; `None` where the one word says all.
fn reason(entry: &Entry) -> Option<String> {
    match &entry.verdict {
        Verdict::Assignable => None,
        Verdict::AfterBinding(bind) if bind.as_slice() == [entry.function.bdf] => None,
        Verdict::AfterBinding(bind) => {
            let bdf = entry.function.bdf;
            let others: Vec<Bdf> = bind.iter().copied().filter(|other| *other != bdf).collect();
            Some(format!("its group goes along: {}", report::addresses(&others)))
        }
        Verdict::No(_) if entry.function.is_bridge() => None,
        Verdict::No(failure) => {
            let id = failure.code.id;
            // The same for every device, so in few words.
            if failure.code.exit == codes::E1001.exit {
                return Some(format!("{} ({id}): see strait doctor", failure.code.title));
            }
            // The way from the device to what would be lost says it all.
            let (_, way) = failure.cause.split_once(NOT_TAKEN).unwrap_or(("", &failure.cause));
            Some(format!("{way} ({id})"))
        }
    }
}

/// `VGA controller, NVIDIA Corporation TU102 [GeForce RTX 2080 Ti]`.
fn title(entry: &Entry, names: &Names) -> String {
    let function = &entry.function;
    let class = strait_resources::names::class(function.class);
    let name = names.function(function);
    let name = name.strip_suffix(&format!(" [{}]", function.id())).unwrap_or(&name);
    // Without a name in the database the phrase has the class already.
    if name.contains(&class) { name.to_owned() } else { format!("{class}, {name}") }
}

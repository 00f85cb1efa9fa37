//! `strait bind` and `strait unbind`: functions to vfio-pci, and back, by hand.

mod json;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use strait_resources::{
    codes,
    failure::Failure,
    host::{
        check::{self, Allowed, Bindable},
        pci::{HostFunction, is_vfio_driver},
        sysroot::Sysroot,
    },
    journal::{Entry, Kind},
};

use self::json::Answer;
use crate::{
    binding::{self, Binder, Undone, View, Wishes},
    cli::{BindArgs, ChangeArgs, UnbindArgs},
    report::{self, plain},
};

/// Gives functions to vfio-pci until `strait unbind` or a reboot.
pub(crate) fn bind(args: &BindArgs) -> Result<u8, Failure> {
    let json = args.change.json;
    let done = with_binder(&args.change, |view, binder| bound(view, binder, args));
    report::answered(json, done.and_then(|done| done.tell(json)))
}

/// Gives functions back to the host.
pub(crate) fn unbind(args: &UnbindArgs) -> Result<u8, Failure> {
    let json = args.change.json;
    let done = with_binder(&args.change, |view, binder| unbound(view, binder, args));
    report::answered(json, done.and_then(|done| done.tell(json)))
}

/// A dry run looks at a host that may be laid out in a directory, and gets nothing that could change one.
fn with_binder(
    args: &ChangeArgs,
    work: impl FnOnce(&View, Option<&Binder>) -> Result<Done, Failure>,
) -> Result<Done, Failure> {
    if args.dry_run {
        return work(&View::at(Sysroot::at(&args.sysroot)), None);
    }
    let binder = Binder::host();
    work(&binder, Some(&binder))
}

/// What was done, or would be: for people and for programs.
struct Done {
    text: String,
    answer: Answer,
    status: u8,
}

impl Done {
    fn tell(self, json: bool) -> Result<u8, Failure> {
        match json {
            true => report::json(&self.answer)?,
            false => report::out(&self.text)?,
        }
        Ok(self.status)
    }
}

fn bound(view: &View, binder: Option<&Binder>, args: &BindArgs) -> Result<Done, Failure> {
    let allowed = Allowed { boot_vga: args.allow_boot_vga, release_fb: args.release_fb };
    let sysroot = view.sysroot();
    let locked = match binder {
        None => None,
        Some(binder) => {
            binder.need_root("strait bind")?;
            let lock = binder.lock()?;
            // This is about others than the devices of the answer.
            let undone = binder.recover_locked(&lock)?;
            report::notes(&undone.lines);
            report::warnings(&undone.warnings);
            if args.persist {
                binder.may_persist()?;
            }
            Some((binder, lock))
        }
    };
    let functions = check::select(sysroot, &args.functions)?;
    let planned = view.plan(&functions, &allowed)?;
    if !args.change.json {
        report::warnings(&planned.warnings);
    }
    let entry = |taking| Entry::before(sysroot, taking);
    let entries = planned.take.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    let mut answer = json::bind(sysroot, &functions, &planned, &entries, args.persist)?;
    let Some((binder, lock)) = locked else {
        let text = would_bind(&planned, &entries, &answer);
        return Ok(Done { text, answer, status: 0 });
    };
    let mut text = String::new();
    for function in functions.iter().filter(|function| function.is_on_vfio()) {
        let driver = plain(function.driver.as_deref().unwrap_or_default());
        let _ = writeln!(text, "{} is on {driver} already", function.bdf);
    }
    if !planned.take.is_empty() {
        binder.take(&lock, Kind::Bind, &planned, &[], &Wishes::default())?.keep()?;
        went(&mut text, &planned);
        let _ = writeln!(text, "back with: strait unbind {}", args.functions.join(" "));
    }
    if args.persist {
        let along =
            planned.take.iter().filter(|taking| taking.along).map(|taking| &taking.function);
        let mut files = Vec::new();
        for function in functions.iter().chain(along) {
            files.push(binder.persist(function)?);
        }
        let _ = writeln!(
            text,
            "at every boot, by {files}\n  \
             where the initramfs loads the old driver, it needs the rule too: update-initramfs -u, or dracut -f\n  \
             undo: rm {files}",
            files = files.join(" ")
        );
    }
    answer.done(sysroot, &[])?;
    Ok(Done { text, answer, status: 0 })
}

/// What a dry run says.
fn would_bind(planned: &Bindable, entries: &[Entry], answer: &Answer) -> String {
    let mut text = String::new();
    for (taking, entry) in planned.take.iter().zip(entries) {
        let HostFunction { bdf, driver, .. } = &taking.function;
        let driver = plain(driver.as_deref().unwrap_or("no driver"));
        let why = if taking.along { ", as it shares its IOMMU group" } else { "" };
        let _ = match &taking.framebuffer {
            Some(screen) if taking.function.is_on_vfio() => {
                writeln!(text, "the host's framebuffer {} would let go of {bdf}:", screen.name)
            }
            Some(screen) => writeln!(
                text,
                "the host's framebuffer {} would let go of {bdf}, which would go from {driver} to vfio-pci{why}:",
                screen.name
            ),
            None => writeln!(text, "{bdf} would go from {driver} to vfio-pci{why}:"),
        };
        text.push_str(&binding::commands(entry));
    }
    for file in answer.devices.iter().filter_map(|device| device.rule_file.as_ref()) {
        let _ = writeln!(text, "{file} would be written");
    }
    if text.is_empty() {
        text.push_str("nothing to do: all are on vfio-pci\n");
    }
    text
}

/// What was done for each function.
fn went(text: &mut String, planned: &Bindable) {
    for taking in &planned.take {
        let HostFunction { bdf, driver, .. } = &taking.function;
        if let Some(screen) = &taking.framebuffer {
            let _ = writeln!(text, "the host's framebuffer {} let go of {bdf}", screen.name);
        }
        if !taking.function.is_on_vfio() {
            let driver = plain(driver.as_deref().unwrap_or("no driver"));
            let why = if taking.along { " (it shares an IOMMU group)" } else { "" };
            let _ = writeln!(text, "{bdf} went from {driver} to vfio-pci{why}");
        }
    }
}

fn unbound(view: &View, binder: Option<&Binder>, args: &UnbindArgs) -> Result<Done, Failure> {
    let sysroot = view.sysroot();
    let locked = match binder {
        None => None,
        Some(binder) => {
            binder.need_root("strait unbind")?;
            Some((binder, binder.lock()?))
        }
    };
    let functions = check::select(sysroot, &args.functions)?;
    let mut answer = json::unbind(sysroot, &functions, &view.noted(&functions)?)?;
    let Some((binder, lock)) = locked else {
        return Ok(Done { text: would_unbind(&answer), answer, status: 0 });
    };
    let undone = binder.unbind(&lock, &functions)?;
    answer.done(sysroot, &undone.warnings)?;
    let mut text: String = undone.lines.iter().map(|line| format!("{}\n", plain(line))).collect();
    for device in &answer.devices {
        if let Some(file) = &device.rule_file {
            let _ = writeln!(
                text,
                "{} goes to vfio-pci again at the next boot; undo: rm {file}",
                device.bdf
            );
        }
    }
    answer.notes = Some(undone.lines);
    if !args.change.json {
        report::warnings(&undone.warnings);
    }
    // Neither a framebuffer that the kernel has forgotten nor a journal of somebody else's keeps anybody from using the device.
    let other = |warning: &Failure| warning.code == &codes::E1126;
    let back = undone.warnings.iter().all(|it| Undone::is_back(it) || other(it));
    Ok(Done { text, answer, status: if back { 0 } else { codes::E1105.exit } })
}

/// What a dry run says.
fn would_unbind(answer: &Answer) -> String {
    let mut text = String::new();
    for device in &answer.devices {
        let (bdf, driver) = (device.bdf, device.driver_before.as_deref());
        let _ = match driver.filter(|driver| is_vfio_driver(driver)) {
            Some(driver) => {
                let to = device.driver_after.iter().map(|to| format!(" for {to}"));
                let why = if device.asked_for { "" } else { ", as it was taken along" };
                writeln!(text, "{bdf} would leave {driver}{}{why}", to.collect::<String>())
            }
            None => {
                let driver = plain(driver.unwrap_or("no driver"));
                writeln!(text, "{bdf} is on {driver}: nothing to do")
            }
        };
    }
    text
}

//! `strait bind` and `strait unbind`: functions to vfio-pci, and back, by hand.

use std::fmt::Write as _;

use strait_resources::{
    codes,
    failure::Failure,
    host::{check, check::Allowed},
};

use crate::{
    binding::{self, Binder, Entry, Kind, rule_file},
    cli::{BindArgs, UnbindArgs},
    report,
};

/// Gives functions to vfio-pci until `strait unbind` or a reboot.
pub(crate) fn bind(args: &BindArgs) -> Result<u8, Failure> {
    let binder = Binder::host();
    let allowed = Allowed { boot_vga: args.allow_boot_vga, peers: binding::session_peers() };
    if args.dry_run {
        let functions = check::select(binder.sysroot(), &args.functions)?;
        let planned = binder.plan(&functions, &allowed)?;
        report::warnings(&planned.warnings);
        let mut text = String::new();
        for taking in &planned.take {
            let function = &taking.function;
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let why = if taking.along { ", as it shares its IOMMU group" } else { "" };
            let _ = writeln!(text, "{} would go from {driver} to vfio-pci{why}:", function.bdf);
            text.push_str(&binding::commands(&Entry::before(binder.sysroot(), taking)?));
        }
        if args.persist {
            for function in &functions {
                let _ = writeln!(text, "{} would be written", rule_file(function.bdf));
            }
        }
        if text.is_empty() {
            text.push_str("nothing to do: all are on vfio-pci\n");
        }
        report::out(&text)?;
        return Ok(0);
    }
    binder.need_root("strait bind")?;
    let lock = binder.lock()?;
    let undone = binder.recover_locked(&lock)?;
    report::notes(&undone.lines);
    report::warnings(&undone.warnings);
    let functions = check::select(binder.sysroot(), &args.functions)?;
    let planned = binder.plan(&functions, &allowed)?;
    report::warnings(&planned.warnings);
    let mut text = String::new();
    for function in functions.iter().filter(|function| function.is_on_vfio()) {
        let driver = function.driver.as_deref().unwrap_or_default();
        let _ = writeln!(text, "{} is on {driver} already", function.bdf);
    }
    if !planned.take.is_empty() {
        binder.take(&lock, Kind::Bind, &planned, &[])?.keep()?;
        for taking in &planned.take {
            let function = &taking.function;
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let why = if taking.along { " (it shares an IOMMU group)" } else { "" };
            let _ = writeln!(text, "{} went from {driver} to vfio-pci{why}", function.bdf);
        }
        let _ = writeln!(text, "back with: strait unbind {}", args.functions.join(" "));
    }
    if args.persist {
        let along =
            planned.take.iter().filter(|taking| taking.along).map(|taking| &taking.function);
        let mut files = Vec::new();
        for function in functions.iter().chain(along) {
            files.push(binding::persist(binder.sysroot(), function)?);
        }
        let _ = writeln!(
            text,
            "at every boot, by {files}\n  \
             where the initramfs loads the old driver, it needs the rule too: update-initramfs -u, or dracut -f\n  \
             undo: rm {files}",
            files = files.join(" ")
        );
    }
    report::out(&text)?;
    Ok(0)
}

/// Gives functions back to the host.
pub(crate) fn unbind(args: &UnbindArgs) -> Result<u8, Failure> {
    let binder = Binder::host();
    if args.dry_run {
        let mut text = String::new();
        for function in check::select(binder.sysroot(), &args.functions)? {
            let bdf = function.bdf;
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let _ = match function.is_on_vfio() {
                true => writeln!(text, "{bdf} would leave {driver}"),
                false => writeln!(text, "{bdf} is on {driver}: nothing to do"),
            };
        }
        report::out(&text)?;
        return Ok(0);
    }
    binder.need_root("strait unbind")?;
    let lock = binder.lock()?;
    let functions = check::select(binder.sysroot(), &args.functions)?;
    let undone = binder.unbind(&lock, &functions)?;
    let mut text: String = undone.lines.iter().map(|line| format!("{line}\n")).collect();
    for function in &functions {
        let file = rule_file(function.bdf);
        if binder.sysroot().exists(&file) {
            let _ = writeln!(
                text,
                "{} goes to vfio-pci again at the next boot; undo: rm {file}",
                function.bdf
            );
        }
    }
    report::warnings(&undone.warnings);
    report::out(&text)?;
    Ok(if undone.warnings.is_empty() { 0 } else { codes::E1105.exit })
}

//! `strait bind` and `strait unbind`: functions to vfio-pci, and back, by hand.

use std::{collections::BTreeMap, fmt::Write as _};

use strait_resources::{
    codes,
    failure::Failure,
    host::{check, check::Allowed, pci::HostFunction},
};

use crate::{
    binding::{self, Binder, Entry, Kind, rule_file},
    cli::{BindArgs, UnbindArgs},
    report,
};

/// Gives functions to vfio-pci until `strait unbind` or a reboot.
pub(crate) fn bind(args: &BindArgs) -> Result<u8, Failure> {
    let binder = Binder::host();
    let allowed = Allowed {
        boot_vga: args.allow_boot_vga,
        release_fb: args.release_fb,
        peers: binding::session_peers(),
    };
    if args.dry_run {
        let functions = check::select(binder.sysroot(), &args.functions)?;
        let planned = binder.plan(&functions, &allowed)?;
        report::warnings(&planned.warnings);
        let mut text = String::new();
        for taking in &planned.take {
            let HostFunction { bdf, driver, .. } = &taking.function;
            let driver = driver.as_deref().unwrap_or("no driver");
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
        binder.take(&lock, Kind::Bind, &planned, &[], &BTreeMap::new())?.keep()?;
        for taking in &planned.take {
            let HostFunction { bdf, driver, .. } = &taking.function;
            if let Some(screen) = &taking.framebuffer {
                let _ = writeln!(text, "the host's framebuffer {} let go of {bdf}", screen.name);
            }
            if !taking.function.is_on_vfio() {
                let driver = driver.as_deref().unwrap_or("no driver");
                let why = if taking.along { " (it shares an IOMMU group)" } else { "" };
                let _ = writeln!(text, "{bdf} went from {driver} to vfio-pci{why}");
            }
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
    // A framebuffer that the kernel has forgotten keeps nobody from using the device.
    let back = undone.warnings.iter().all(|warning| warning.code == &codes::E1117);
    Ok(if back { 0 } else { codes::E1105.exit })
}

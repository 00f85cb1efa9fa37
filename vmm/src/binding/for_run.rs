//! Binding as a part of `strait run`: devices are taken after everything that can be checked without it, and given back
//! when the machine is gone.

use std::collections::BTreeMap;

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check::{Allowed, Bindable},
        framebuffer,
        pci::HostFunction,
        reset,
    },
};

use super::{Binder, Guard, Kind, View, Wishes, methods};
use crate::{
    builder::internal,
    config::{After, Managed, RunConfig},
    passthrough::{Candidates, Reset, Selection},
    report, signals,
};

/// What of the devices has to be taken from the host's drivers. Found before the first change; [`Found::take`] makes it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Functions that strait may take.
    managed: Vec<HostFunction>,
    planned: Bindable,
    wishes: Wishes,
    allowed: Allowed,
}

/// Finds the devices, and refuses what cannot be taken. A run, which has a binder, first puts back what a strait that was
/// killed has left; without one nothing is changed: it is a dry run.
pub(crate) fn look<'a>(
    view: &View,
    binder: Option<&Binder>,
    config: &'a RunConfig,
) -> Result<(Candidates<'a>, Found), Failure> {
    let sysroot = view.sysroot();
    let root = view.is_root()?;
    // A guest without devices has nothing to do with what became of others'.
    if let Some(binder) = binder.filter(|_| root && !config.vfio.is_empty()) {
        let undone = binder.recover()?;
        report::notes(&undone.lines);
        report::warnings(&undone.warnings);
    }
    let candidates = Candidates::find(sysroot, &config.vfio)?;
    may_release(view, config, &candidates, root)?;
    let resets = candidates.resets(view.sysroot())?;
    let wishes = wishes(view, binder.is_none(), &candidates, &resets, root)?;
    let managed = match managed(view, &candidates, root)? {
        Some(managed) if root && !(managed.is_empty() && wishes.methods.is_empty()) => managed,
        _ => return Ok((candidates, Found::default())),
    };
    let allowed = Allowed { boot_vga: config.allow_boot_vga, release_fb: config.release_fb };
    let planned = view.plan(&managed, &allowed)?;
    let mut refused = unreset(&candidates, &resets).into_iter();
    if let Some((_, refused)) = refused.find(|(bdf, _)| planned.takes(*bdf)) {
        return Err(refused);
    }
    Ok((candidates, Found { managed, planned, wishes, allowed }))
}

impl Found {
    /// Is there anything to change on the host?
    pub(crate) fn changes(&self) -> bool {
        !self.planned.take.is_empty() || !self.wishes.methods.is_empty()
    }

    /// What would be taken.
    pub(crate) fn planned(&self) -> &Bindable {
        &self.planned
    }

    /// The same, for whoever only shows it.
    pub(crate) fn into_planned(self) -> Bindable {
        self.planned
    }

    /// Takes it; `all` are the machine's functions. The first change of the host.
    pub(crate) fn take(self, binder: &Binder, all: &[HostFunction]) -> Result<Guard, Failure> {
        let lock = binder.lock()?;
        // Another strait may have been there since.
        let planned = binder.plan(&self.managed, &self.allowed)?;
        report::warnings(&planned.warnings);
        // A signal must not end strait between two drivers.
        signals::hold().map_err(internal("installing a signal handler"))?;
        let others: Vec<HostFunction> = all
            .iter()
            .filter(|function| function.is_on_vfio() && !planned.takes(function.bdf))
            .cloned()
            .collect();
        let guard = binder.take(&lock, Kind::Run, &planned, &others, &self.wishes)?;
        drop(lock);
        for entry in guard.taken() {
            if let Some(screen) = &entry.screen {
                log::info!("the host's framebuffer {} let go of {}", screen.name, entry.bdf);
            }
            if let Some(before) = &entry.before {
                let driver = before.driver.as_deref().unwrap_or("no driver");
                log::info!("{} was taken from {driver}", entry.bdf);
            }
            if let Some(methods) = &entry.methods {
                log::info!("{} is reset by: {}", entry.bdf, methods::shown(methods));
            }
        }
        Ok(guard)
    }
}

/// What the user wants of the devices. Only root may change `reset_method`.
fn wishes(
    view: &View,
    dry_run: bool,
    candidates: &Candidates<'_>,
    resets: &[Reset],
    root: bool,
) -> Result<Wishes, Failure> {
    let methods: BTreeMap<Bdf, String> =
        resets.iter().filter_map(|reset| Some((reset.bdf, reset.methods.clone()?))).collect();
    if !root && !dry_run && !methods.is_empty() {
        view.need_root("reset=")?;
    }
    let staying = candidates.functions().filter(|(_, device)| device.after == After::Vfio);
    Ok(Wishes { methods, stays: staying.map(|(function, _)| function.bdf).collect() })
}

/// The functions whose driver would get them back as a guest leaves them, without the user's consent, and the refusals.
/// `resets` are those of the candidates, in their order.
pub(crate) fn unreset(candidates: &Candidates<'_>, resets: &[Reset]) -> Vec<(Bdf, Failure)> {
    let all = candidates.functions().zip(resets);
    let refused = all.filter_map(|((function, device), Reset { way, .. })| {
        let goes_back = device.after == After::Host && !device.trust_guest;
        let refused = reset::given_back(function, way).err().filter(|_| goes_back)?;
        Some((function.bdf, refused))
    });
    refused.collect()
}

/// --release-fb changes drivers of the host: only root may, and only with a device whose bindings are strait's matter.
fn may_release(
    view: &View,
    config: &RunConfig,
    candidates: &Candidates<'_>,
    root: bool,
) -> Result<(), Failure> {
    for (function, device) in candidates.functions().filter(|_| config.release_fb) {
        if framebuffer::on(view.sysroot(), function.bdf)?.is_none() {
            continue;
        }
        if !root {
            view.need_root("--release-fb")?;
        }
        if device.managed == Managed::No {
            let cause = format!(
                "--release-fb changes a driver of the host, and managed=no forbids that for {}",
                function.bdf
            );
            return Err(Failure::new(&codes::E1205, cause, "leave managed=no out"));
        }
    }
    Ok(())
}

/// The functions that strait may take. `None` when one that it may not take is on another driver: that is refused
/// later, and then nothing may have been changed.
fn managed(
    view: &View,
    candidates: &Candidates<'_>,
    root: bool,
) -> Result<Option<Vec<HostFunction>>, Failure> {
    let mut managed = Vec::new();
    for (function, device) in candidates.functions() {
        let may = match device.managed {
            Managed::Yes => {
                if !function.is_on_vfio() {
                    view.need_root("managed=yes")?;
                }
                true
            }
            Managed::Auto => root,
            Managed::No => false,
        };
        if may {
            managed.push(function.clone());
        } else if !function.is_on_vfio() {
            return Ok(None);
        }
    }
    Ok(Some(managed))
}

/// `strait ps` shows this run too. Nothing depends on it.
pub(crate) fn registered(binder: &Binder, selection: &Selection) -> Option<Guard> {
    let functions: Vec<HostFunction> = selection.functions().cloned().collect();
    let registered = binder.register(&functions);
    registered.map_err(|failure| log::info!("strait ps will not show this run: {failure}")).ok()
}

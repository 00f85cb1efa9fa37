//! `--json` of both commands: the document is docs/json.md.

use serde::Serialize;
use strait_resources::{
    bdf::Bdf,
    failure::Failure,
    host::{
        check::Bindable,
        pci::{self, HostFunction},
        sysroot::Sysroot,
    },
    journal::Entry,
    names::Names,
};

use crate::{binding::rule_file, report::Refusal};

#[derive(Serialize)]
pub(super) struct Answer {
    schema: &'static str,
    dry_run: bool,
    pub(super) devices: Vec<Device>,
    /// Of `strait unbind` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) notes: Option<Vec<String>>,
    warnings: Vec<Refusal>,
}

#[derive(Serialize)]
pub(super) struct Device {
    #[serde(with = "strait_resources::journal::text")]
    pub(super) bdf: Bdf,
    ids: String,
    name: String,
    group: Option<u32>,
    pub(super) asked_for: bool,
    pub(super) driver_before: Option<String>,
    pub(super) driver_after: Option<String>,
    pub(super) framebuffer: Option<String>,
    power_control: Option<String>,
    pub(super) rule_file: Option<String>,
}

/// What `strait bind` would do. `taken` are those of `functions` and of their groups that would be written to.
pub(super) fn bind(
    sysroot: &Sysroot,
    functions: &[HostFunction],
    planned: &Bindable,
    taken: &[Entry],
    persist: bool,
) -> Result<Answer, Failure> {
    let along = planned.take.iter().filter(|taking| taking.along).map(|taking| &taking.function);
    let names = Names::load(sysroot);
    let mut devices = Vec::new();
    for function in functions.iter().chain(along) {
        let asked_for = functions.iter().any(|asked| asked.bdf == function.bdf);
        let entry = taken.iter().find(|entry| entry.bdf == function.bdf);
        let mut device = Device::of(sysroot, &names, function, asked_for)?;
        if let Some(entry) = entry {
            device.framebuffer = entry.screen.as_ref().map(|screen| screen.name.to_string());
        }
        if let Some(before) = entry.and_then(|entry| entry.before.as_ref()) {
            device.driver_after = Some("vfio-pci".to_owned());
            device.power_control = before.power_control.as_ref().map(|_| "on".to_owned());
        }
        device.rule_file = persist.then(|| rule_file(function.bdf));
        devices.push(device);
    }
    Ok(Answer::new("strait.bind/1", None, devices, &planned.warnings))
}

/// What `strait unbind` would do; `noted` is what a `strait bind` knows of these functions, and of those that it took
/// along.
pub(super) fn unbind(
    sysroot: &Sysroot,
    functions: &[HostFunction],
    noted: &[Entry],
) -> Result<Answer, Failure> {
    let names = Names::load(sysroot);
    let mut all = functions.to_vec();
    for entry in noted {
        if functions.iter().all(|function| function.bdf != entry.bdf) {
            all.extend(pci::find(sysroot, entry.bdf)?);
        }
    }
    let mut devices = Vec::new();
    for function in &all {
        let entry = noted.iter().find(|entry| entry.bdf == function.bdf);
        let before = entry.and_then(|entry| entry.before.as_ref());
        let asked_for = functions.iter().any(|asked| asked.bdf == function.bdf);
        let mut device = Device::of(sysroot, &names, function, asked_for)?;
        device.framebuffer =
            entry.and_then(|entry| entry.screen.as_ref()).map(|screen| screen.name.to_string());
        if function.is_on_vfio() {
            device.driver_after = before.and_then(|before| before.driver.clone()).map(String::from);
        }
        if let Some(power) = before.and_then(|before| before.power_control) {
            device.power_control = Some(power.word().to_owned());
        }
        let file = rule_file(function.bdf);
        device.rule_file = sysroot.exists(&file).then_some(file);
        devices.push(device);
    }
    Ok(Answer::new("strait.unbind/1", Some(Vec::new()), devices, &[]))
}

impl Answer {
    fn new(
        schema: &'static str,
        notes: Option<Vec<String>>,
        mut devices: Vec<Device>,
        warnings: &[Failure],
    ) -> Self {
        devices.sort_by_key(|device| device.bdf);
        let warnings = warnings.iter().map(Refusal::from).collect();
        Self { schema, dry_run: true, devices, notes, warnings }
    }

    /// It was done: what came of it, as the host tells.
    pub(super) fn done(&mut self, sysroot: &Sysroot, warnings: &[Failure]) -> Result<(), Failure> {
        self.dry_run = false;
        self.warnings.extend(warnings.iter().map(Refusal::from));
        for device in &mut self.devices {
            device.driver_after = sysroot.link_name(&pci::path(device.bdf, "driver"))?;
            device.power_control = power_control(sysroot, device.bdf)?;
        }
        Ok(())
    }
}

impl Device {
    /// As it is now.
    fn of(
        sysroot: &Sysroot,
        names: &Names,
        function: &HostFunction,
        asked_for: bool,
    ) -> Result<Self, Failure> {
        Ok(Self {
            bdf: function.bdf,
            ids: function.id(),
            name: names.function(function),
            group: function.group,
            asked_for,
            driver_before: function.driver.clone(),
            driver_after: function.driver.clone(),
            framebuffer: None,
            power_control: power_control(sysroot, function.bdf)?,
            rule_file: None,
        })
    }
}

fn power_control(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<String>, Failure> {
    Ok(sysroot.read_if_present(&pci::path(bdf, "power/control"))?)
}

//! Devices in parts: SR-IOV and mediated devices.

use super::{
    super::pci::{self, HostFunction},
    Answer, Host, Outcome,
};

/// 44: virtual functions.
pub(super) fn sriov(host: &Host<'_>, function: &HostFunction) -> Answer {
    if let Some(physical) = function.physical_function {
        return Ok(vec![Outcome::info(format!("it is a virtual function of {physical}"))]);
    }
    let number = |name: &str| {
        let text = host.text(&pci::path(function.bdf, name));
        text.map(|text| text.and_then(|text| text.parse::<u32>().ok()))
    };
    let Some(total) = number("sriov_totalvfs")? else {
        return Ok(vec![Outcome::info(
            "no SR-IOV: the device has none, or the firmware has it off",
        )]);
    };
    if total == 0 {
        let fact = "it has SR-IOV, but may have no virtual function";
        return Ok(vec![Outcome::warn(fact, "switch on SR-IOV in the firmware setup")]);
    }
    let now = number("sriov_numvfs")?.unwrap_or(0);
    Ok(vec![if now == 0 {
        Outcome::info(format!("it can be split into {total} virtual functions"))
    } else {
        Outcome::warn(
            format!("{now} of its {total} virtual functions are in being, and go when it goes"),
            format!("pass one of them, or: echo 0 > {}", pci::path(function.bdf, "sriov_numvfs")),
        )
    }])
}

/// 45: vGPU types, of the mediated kind or NVIDIA's newer one.
pub(super) fn vgpu(host: &Host<'_>, function: &HostFunction) -> Answer {
    let types = host.sysroot.list_if_present(&pci::path(function.bdf, "mdev_supported_types"))?;
    let mut found = Vec::new();
    if !types.is_empty() {
        found.push(Outcome::info(format!(
            "its driver offers {} kinds of mediated device",
            types.len()
        )));
    }
    if let Some(kind) = host.text(&pci::path(function.bdf, "nvidia/current_vgpu_type"))? {
        let word = if kind == "0" {
            "no vGPU type is set on it".to_owned()
        } else {
            format!("vGPU type {kind} is set on it")
        };
        found.push(Outcome::info(word));
    }
    let devices = host.sysroot.list_if_present(&pci::path(function.bdf, "mdev_devices"))?;
    if !devices.is_empty() {
        found.push(Outcome::warn(
            format!("{} mediated devices are on it and go when it goes", devices.len()),
            "remove them first: echo 1 > .../remove",
        ));
    }
    Ok(found)
}

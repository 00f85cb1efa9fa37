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
        return Ok(vec![Outcome::info("the device has none, or the firmware has it off")]);
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

/// 45: vGPU types, of the mediated kind or NVIDIA's newer one, and what has been made of them.
pub(super) fn vgpu(host: &Host<'_>, function: &HostFunction) -> Answer {
    let at = |name: &str| pci::path(function.bdf, name);
    let mut found = Vec::new();
    let (mut kinds, mut made, mut manager) = (Vec::new(), Vec::new(), false);
    for kind in host.sysroot.list_if_present(&at("mdev_supported_types"))? {
        let kind_at = |name: &str| at(&format!("mdev_supported_types/{kind}/{name}"));
        let name = host.text(&kind_at("name"))?.map_or_else(String::new, |name| format!(" {name}"));
        let left = host.text(&kind_at("available_instances"))?.unwrap_or_default();
        kinds.push(format!("{kind}{name}: {left} more"));
        manager |= kind.starts_with("nvidia-");
        made.extend(host.sysroot.list_if_present(&kind_at("devices"))?);
    }
    if !kinds.is_empty() {
        let fact = format!("its driver offers {} kinds of mediated device", kinds.len());
        found.push(kinds.into_iter().fold(Outcome::info(fact), Outcome::detail));
    }
    if manager && !host.sysroot.exists("/sys/module/nvidia_vgpu_vfio") {
        found.push(Outcome::warn(
            "NVIDIA's module for vGPUs, nvidia_vgpu_vfio, is not loaded",
            "modprobe nvidia_vgpu_vfio; systemctl start nvidia-vgpu-mgr",
        ));
    }
    if let Some(kind) = host.text(&at("nvidia/current_vgpu_type"))? {
        found.push(Outcome::info(match kind.as_str() {
            "0" => "no vGPU type is set on it".to_owned(),
            kind => format!("vGPU type {kind} is set on it"),
        }));
    }
    if !made.is_empty() {
        let count = match made.len() {
            1 => "a mediated device is made of it and goes".to_owned(),
            several => format!("{several} mediated devices are made of it and go"),
        };
        let fix = format!("remove it first: echo 1 > {}", at(&format!("{}/remove", made[0])));
        let outcome = Outcome::warn(format!("{count} when it goes"), fix);
        found.push(made.into_iter().fold(outcome, Outcome::detail));
    }
    Ok(found)
}

//! VFIO: modules, nodes, other users.

use super::{
    super::{
        check::{assignable, machine},
        iommu::{self, State},
        needs::group_node,
        pci::HostFunction,
    },
    Answer, Host, Outcome,
};

const MODULES: [&str; 3] = ["vfio", "vfio_pci", "vfio_iommu_type1"];

/// 10: loaded or built in, and the node that every user of it opens.
pub(super) fn modules(host: &Host<'_>) -> Answer {
    let kernel = host.text("/proc/sys/kernel/osrelease")?.unwrap_or_default();
    let built_in = host.text(&format!("/lib/modules/{kernel}/modules.builtin"))?;
    let built_in = built_in.unwrap_or_default();
    let has = |module: &str| {
        let file = format!("/{}.ko", module.replace('_', "-"));
        let other = format!("/{module}.ko");
        host.sysroot.exists(&format!("/sys/module/{module}"))
            || built_in.lines().any(|line| line.ends_with(&file) || line.ends_with(&other))
    };
    // Without an IOMMU a run does not come as far.
    if iommu::state(host.sysroot)? == State::On
        && let Err(failure) = machine::container(host.sysroot)
    {
        return Ok(vec![Outcome::refusal(failure)]);
    }
    let missing: Vec<&str> = MODULES.into_iter().filter(|module| !has(module)).collect();
    Ok(vec![if missing.is_empty() {
        Outcome::pass("vfio, vfio_pci and vfio_iommu_type1 are there")
    } else {
        Outcome::warn(format!("not loaded: {}", missing.join(", ")), "modprobe vfio-pci")
    }])
}

/// 11: what Secure Boot keeps from root.
pub(super) fn lockdown(host: &Host<'_>) -> Answer {
    const SECURE_BOOT: &str =
        "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let lockdown = host.text("/sys/kernel/security/lockdown")?;
    let mode = lockdown
        .as_deref()
        .and_then(|text| text.split_once('[')?.1.split_once(']'))
        .map(|(mode, _)| mode);
    let mut found = Vec::new();
    match mode {
        Some("none") => found.push(Outcome::pass("the kernel is not locked down")),
        Some(mode) => found.push(Outcome::info(format!(
            "the kernel is locked down ({mode}): unsigned modules do not load, and BARs and ROMs cannot be read through /sys; VFIO works"
        ))),
        None => found.push(Outcome::skip("the kernel does not show a lockdown state", "")),
    }
    // Four bytes of attributes, then the value.
    if host.sysroot.exists(SECURE_BOOT) {
        let on = host.sysroot.read_bytes(SECURE_BOOT)?.get(4) == Some(&1);
        let word = if on { "on" } else { "off" };
        found.push(Outcome::info(format!("it is {word} in the firmware")));
    }
    Ok(found)
}

/// 21: we may open the group. Its node appears when VFIO has the first device of it.
pub(super) fn node(host: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(group) = function.group.filter(|_| function.is_on_vfio()) else {
        return Ok(Vec::new());
    };
    let path = format!("/dev/vfio/{group}");
    let open = assignable::node(host.sysroot, group, &path);
    Ok(vec![Outcome::of(open, format!("{path} opens"))])
}

/// 22: nobody else has it.
pub(super) fn in_use(host: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(group) = function.group else { return Ok(Vec::new()) };
    let path = format!("/dev/vfio/{group}");
    let node = group_node(host.sysroot, &group.to_string())?;
    let found = host.needs.files()?.holders(&[node]);
    let mut outcome = Outcome::of(
        assignable::free(host.sysroot, function.bdf, group, &found.found),
        format!("no process has {path} open"),
    );
    if found.found.is_empty() && found.hidden > 0 {
        let fact = format!("{} processes could not be looked into", found.hidden);
        outcome = Outcome::skip(fact, "run strait doctor as root");
    }
    Ok(vec![outcome])
}

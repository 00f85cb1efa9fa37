//! Who a machine is, as its guest reads it in SMBIOS: what the user says, and for the rest what suits.

use strait_arch::{
    cpuid::Hide,
    smbios::{Identity, uuid_of},
};
use strait_resources::host::sysroot::Sysroot;

use crate::config::{RunConfig, Smbios};

/// The whole identity. The number stays the same from start to start, and differs from machine to machine: it follows from
/// this host's machine ID and the passed devices, which one guest at a time has; without any, from the kernel's path.
pub(crate) fn identity(sysroot: &Sysroot, config: &RunConfig) -> Identity {
    let asked = config.smbios.clone();
    let uuid = asked.uuid.unwrap_or_else(|| uuid_of(description(sysroot, config).as_bytes()));
    let usual = Identity::usual(uuid, config.cpu.hide != Hide::No);
    Identity {
        uuid,
        manufacturer: asked.manufacturer.unwrap_or(usual.manufacturer),
        product: asked.product.unwrap_or(usual.product),
        version: asked.version.unwrap_or(usual.version),
        serial: asked.serial.unwrap_or(usual.serial),
        sku: asked.sku.unwrap_or(usual.sku),
        family: asked.family.unwrap_or(usual.family),
        asset: asked.asset.unwrap_or(usual.asset),
        oem: asked.oem,
    }
}

/// The machine with nothing left out: as it is shown.
pub(crate) fn spelt_out(sysroot: &Sysroot, config: &RunConfig) -> Smbios {
    let Identity { uuid, manufacturer, product, version, serial, sku, family, asset, oem } =
        identity(sysroot, config);
    let told = |text: String| Some(text).filter(|text| !text.is_empty());
    Smbios {
        uuid: Some(uuid),
        manufacturer: told(manufacturer),
        product: told(product),
        version: told(version),
        serial: told(serial),
        sku: told(sku),
        family: told(family),
        asset: told(asset),
        oem,
    }
}

fn description(sysroot: &Sysroot, config: &RunConfig) -> String {
    // A host without an ID, or that hides it, has machines with numbers of their own all the same.
    let host = sysroot.read_if_present("/etc/machine-id").ok().flatten().unwrap_or_default();
    let mut own: Vec<String> =
        config.vfio.iter().map(|device| device.selector.to_string()).collect();
    if own.is_empty() {
        own.push(config.kernel.path.display().to_string());
    }
    format!("{}\n{}", host.trim(), own.join("\n"))
}

/// `123e4567-e89b-12d3-a456-426614174000`.
pub(crate) fn uuid_text(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    let group = |from: usize, to: usize| digits.get(from..to).unwrap_or_default().to_owned();
    [group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::twin;

    fn config(words: &[&str]) -> RunConfig {
        let line = ["strait", "run", "--kernel=k"].iter().chain(words).map(Into::into);
        RunConfig::meaning(twin::read_line(&line.collect::<Vec<_>>()).unwrap()).unwrap()
    }

    fn host(id: &str) -> (tempfile::TempDir, Sysroot) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(directory.path().join("etc/machine-id"), id).unwrap();
        let sysroot = Sysroot::at(directory.path());
        (directory, sysroot)
    }

    #[test]
    fn number_is_the_same_at_each_start_and_another_for_another_machine() {
        let (_a, a) = host("0123456789abcdef0123456789abcdef\n");
        let (_b, b) = host("fedcba9876543210fedcba9876543210\n");
        let uuid = |host: &Sysroot, words: &[&str]| identity(host, &config(words)).uuid;
        assert_eq!(uuid(&a, &[]), uuid(&a, &["--cpus=2"]), "no matter how large it is");
        assert_ne!(uuid(&a, &[]), uuid(&b, &[]));
        assert_ne!(uuid(&a, &["--vfio=3b:00.0"]), uuid(&a, &["--vfio=3b:00.1"]));
        let upgraded = ["--vfio=0000:3b:00.0", "--initramfs=i"];
        assert_eq!(
            uuid(&a, &["--vfio=3b:00.0"]),
            uuid(&a, &upgraded),
            "a new kernel is no new machine"
        );
        let own = "123e4567-e89b-12d3-a456-426614174000";
        let asked = format!("--smbios=uuid={own}");
        assert_eq!(uuid_text(uuid(&a, &[&asked])), own);
    }

    #[test]
    fn hidden_guest_reads_no_name_of_ours_but_the_users() {
        let (_host, host) = host("x");
        let hidden = identity(&host, &config(&["--cpu=hide=kvm", "--smbios=serial=S1"]));
        assert_eq!(
            (hidden.manufacturer.as_str(), hidden.serial.as_str()),
            ("System manufacturer", "S1")
        );
        assert_eq!(identity(&host, &config(&[])).manufacturer, "strait");
    }
}

//! The monitors that are compared: what starts the same guest in each, and what could not be made equal.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use strait_resources::{bdf::Bdf, codes, failure::Failure, nearest::nearest};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Monitor {
    /// This program.
    Strait,
    /// QEMU with its q35 machine.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

const PEERS: [(&str, Monitor); 2] =
    [("qemu", Monitor::Qemu), ("cloud-hypervisor", Monitor::CloudHypervisor)];

/// The guest, the same for all.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) cmdline: String,
    pub(super) memory_mib: u64,
    pub(super) cpus: u32,
    pub(super) bdf: Bdf,
}

impl Monitor {
    /// Reads a name of `--against`.
    pub(super) fn peer(name: &str) -> Result<Self, Failure> {
        if let Some((_, monitor)) = PEERS.iter().find(|(known, _)| *known == name) {
            return Ok(*monitor);
        }
        let fix = match nearest(name, PEERS.iter().map(|(known, _)| *known)) {
            Some(near) => format!("did you mean {near}?"),
            None => "there are qemu and cloud-hypervisor".to_owned(),
        };
        Err(Failure::new(&codes::E2003, format!("--against knows no monitor '{name}'"), fix))
    }

    /// For tables and files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Strait => "strait",
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// The program, if this host has it.
    pub(super) fn program(self) -> Option<PathBuf> {
        let name = match self {
            // As it was started, even if the file was replaced since.
            Self::Strait => return Some(PathBuf::from("/proc/self/exe")),
            Self::Qemu => "qemu-system-x86_64",
            Self::CloudHypervisor => "cloud-hypervisor",
        };
        let path = env::var_os("PATH").unwrap_or_default();
        let more = ["/usr/libexec", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
        let places = env::split_paths(&path).chain(more);
        // Red Hat keeps its QEMU out of the way.
        let names = if self == Self::Qemu { vec![name, "qemu-kvm"] } else { vec![name] };
        let mut candidates = places
            .flat_map(|place| names.iter().map(move |name| place.join(name)).collect::<Vec<_>>());
        candidates.find(|candidate| candidate.is_file())
    }

    /// The first line of `--version`.
    pub(super) fn version(self, program: &Path) -> String {
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("unknown").trim().to_owned()
    }

    /// The program's arguments.
    pub(super) fn arguments(self, guest: &Guest) -> Vec<String> {
        let Guest { kernel, initramfs, cmdline, memory_mib, cpus, bdf } = guest;
        let (kernel, initramfs) = (kernel.display().to_string(), initramfs.display().to_string());
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (cpus, memory) = (cpus.to_string(), format!("{memory_mib}M"));
        match self {
            Self::Strait => words(&[
                "run",
                "--kernel",
                &kernel,
                "--initramfs",
                &initramfs,
                "--cmdline",
                cmdline,
                "--memory",
                &memory,
                "--cpus",
                &cpus,
                "--vfio",
                // The bench has taken it already, for every monitor.
                &format!("{bdf},managed=no"),
            ]),
            Self::Qemu => words(&[
                "-M",
                "q35",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-display",
                "none",
                "-nodefaults",
                "-no-user-config",
                "-serial",
                "stdio",
                "-kernel",
                &kernel,
                "-initrd",
                &initramfs,
                "-append",
                cmdline,
                "-m",
                &memory,
                "-smp",
                &cpus,
                "-device",
                "pcie-root-port,id=rp0,chassis=0",
                "-device",
                &format!("vfio-pci,host={bdf},bus=rp0"),
            ]),
            Self::CloudHypervisor => words(&[
                "--kernel",
                &kernel,
                "--initramfs",
                &initramfs,
                "--cmdline",
                cmdline,
                "--memory",
                &format!("size={memory}"),
                "--cpus",
                &format!("boot={cpus}"),
                "--serial",
                "tty",
                "--console",
                "off",
                "--device",
                &format!("path=/sys/bus/pci/devices/{bdf}/"),
            ]),
        }
    }

    /// What is not the same as in strait, for readers of the figures.
    pub(super) fn differences(self) -> &'static [&'static str] {
        match self {
            Self::Strait => &[],
            Self::Qemu => {
                &["qemu: firmware (SeaBIOS) runs before the kernel, and its q35 has more devices"]
            }
            Self::CloudHypervisor => &[
                "cloud-hypervisor: no root port above the device; its interrupt controller is split",
            ],
        }
    }
}

/// The running kernel's file, where distributions put it.
pub(super) fn kernel_of(release: &str) -> Option<PathBuf> {
    let places = [
        format!("/boot/vmlinuz-{release}"),
        format!("/lib/modules/{release}/vmlinuz"),
        format!("/usr/lib/modules/{release}/vmlinuz"),
        "/boot/vmlinuz-linux".to_owned(),
    ];
    places.iter().map(PathBuf::from).find(|path| fs::File::open(path).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_monitor_gets_the_same_guest() {
        let guest = Guest {
            kernel: "/k".into(),
            initramfs: "/i".into(),
            cmdline: "console=ttyS0 a b".into(),
            memory_mib: 768,
            cpus: 3,
            bdf: "0000:3b:00.0".parse().unwrap(),
        };
        for monitor in [Monitor::Strait, Monitor::Qemu, Monitor::CloudHypervisor] {
            let words = monitor.arguments(&guest);
            for wanted in ["/k", "/i", "console=ttyS0 a b"] {
                assert!(
                    words.iter().any(|word| word == wanted),
                    "{monitor:?} lacks {wanted}: {words:?}"
                );
            }
            let line = words.join(" ");
            for wanted in ["768M", "3", "0000:3b:00.0"] {
                assert!(line.contains(wanted), "{monitor:?} lacks {wanted}: {line}");
            }
        }
    }

    #[test]
    fn unknown_peer_is_refused_with_the_nearest() {
        let failure = Monitor::peer("qemo").unwrap_err();
        assert_eq!((failure.code.id, failure.fix.as_str()), ("E2003", "did you mean qemu?"));
        assert_eq!(Monitor::peer("cloud-hypervisor").unwrap(), Monitor::CloudHypervisor);
    }
}

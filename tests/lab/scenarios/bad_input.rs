//! What strait refuses: the code, the exit status, a cause with the facts in it, a fix, and a host as it was.

use crate::{hosts::HostKind, scenario::Scenario};

/// One refusal.
#[derive(Clone, Copy)]
struct Refusal {
    name: &'static str,
    about: &'static str,
    code: &'static str,
    status: i32,
    /// Shell before the bindings are noted.
    before: &'static str,
    /// Words before `strait`, to run it as somebody else.
    by: &'static str,
    /// strait's arguments after `run`; a kernel is added unless one is here.
    arguments: &'static str,
    /// Shell that undoes `before`.
    after: &'static str,
    /// What stderr must say besides the code.
    says: &'static [&'static str],
    host: HostKind,
    real: bool,
}

const NOTHING: Refusal = Refusal {
    name: "",
    about: "",
    code: "",
    status: 0,
    before: "",
    by: "",
    arguments: "",
    after: "",
    says: &[],
    host: HostKind::Main,
    real: false,
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    [devices(), host(), memory(), files(), words()].into_iter().flatten().map(scenario).collect()
}

fn scenario(refusal: Refusal) -> Scenario {
    let Refusal { name, about, code, status, before, by, arguments, after, says, host, real } =
        refusal;
    let kernel = if arguments.contains("--kernel") { "" } else { "--kernel $VMLINUX" };
    let script = format!(
        "{before}\n\
         bindings >$J/before\n\
         run_vm bad {by} strait run {kernel} {arguments}\n\
         bindings >$J/after\n\
         {after}\n\
         cmp $J/before $J/after || echo FAIL: the host is not as it was\n"
    );
    let mut scenario = Scenario::new(format!("refuse-{name}"), host, about)
        .strait_only()
        .limit(120)
        .script(script);
    scenario.real = real;
    scenario.check(move |outcome| {
        let run = outcome.vm("bad")?;
        let said = run.errors.trim();
        if run.status != Some(status) {
            return Err(format!("exit status {:?}, not {status}: {said}", run.status));
        }
        let header = format!("error[{code}]: ");
        for word in [header.as_str(), "fix: "].iter().chain(says) {
            if !said.contains(word) {
                return Err(format!("stderr does not say `{word}`: {said}"));
            }
        }
        Ok(())
    })
}

fn devices() -> Vec<Refusal> {
    vec![
        Refusal {
            name: "unknown-device",
            about: "a device that does not exist; the nearest one is suggested",
            code: "E1101",
            status: 4,
            arguments: "--vfio 0000:01:04.0",
            says: &["0000:01:04.0", "0000:00:04.0"],
            ..NOTHING
        },
        Refusal {
            name: "wrong-expect",
            about: "another device than expected",
            code: "E1010",
            status: 4,
            before: "bind $nvme0",
            arguments: "--vfio $nvme0,expect=10de:1e07",
            says: &["10de:1e07", "1b36:0010"],
            ..NOTHING
        },
        Refusal {
            name: "host-driver",
            about: "a device that a host driver holds; the driver is named",
            code: "E1102",
            status: 4,
            before: "give_back $nvme0\n[ $(driver $nvme0) = nvme ] || echo FAIL: nvme does not bind",
            arguments: "--vfio $nvme0,managed=no",
            says: &["0000:00:04.0", "nvme"],
            ..NOTHING
        },
        Refusal {
            name: "group",
            about: "a group with a member on a host driver; members and drivers are listed",
            code: "E1103",
            status: 4,
            before: "bind $slot0\ngive_back $slot3\n[ $(driver $slot3) = nvme ] || echo FAIL: nvme does not bind",
            arguments: "--vfio $slot0,managed=no",
            says: &["0000:00:0c.3", "nvme"],
            ..NOTHING
        },
        Refusal {
            name: "busy",
            about: "a device that another process uses",
            code: "E1107",
            status: 4,
            before: "bind $nvme0\nsleep 50 9<>/dev/vfio/$(group $nvme0) &\nholder=$!\nusleep 300000",
            arguments: "--vfio $nvme0",
            after: "kill $holder",
            says: &["0000:00:04.0"],
            ..NOTHING
        },
        Refusal {
            name: "duplicate",
            about: "a device named twice",
            code: "E2004",
            status: 2,
            before: "bind $nvme0",
            arguments: "--vfio $nvme0 --vfio 00:04.0",
            says: &["00:04.0"],
            ..NOTHING
        },
    ]
}

fn host() -> Vec<Refusal> {
    vec![
        Refusal {
            name: "no-kvm",
            about: "no /dev/kvm",
            code: "E1002",
            status: 3,
            before: "mv /dev/kvm /dev/kvm.away",
            after: "mv /dev/kvm.away /dev/kvm",
            says: &["/dev/kvm"],
            ..NOTHING
        },
        Refusal {
            name: "no-vfio",
            about: "no /dev/vfio",
            code: "E1004",
            status: 3,
            before: "bind $nvme0\nmv /dev/vfio /dev/vfio.away",
            arguments: "--vfio $nvme0",
            after: "mv /dev/vfio.away /dev/vfio",
            says: &["vfio"],
            ..NOTHING
        },
        Refusal {
            name: "no-permission",
            about: "a user who may not use the device nodes",
            code: "E1003",
            status: 3,
            before: "bind $nvme0\nchmod 600 /dev/kvm",
            by: "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups",
            arguments: "--vfio $nvme0",
            says: &["/dev/"],
            ..NOTHING
        },
        Refusal {
            name: "no-iommu",
            about: "a host without an IOMMU",
            code: "E1001",
            status: 3,
            arguments: "--vfio $nvme0",
            says: &["IOMMU"],
            host: HostKind::NoIommu,
            ..NOTHING
        },
    ]
}

fn memory() -> Vec<Refusal> {
    vec![
        Refusal {
            name: "memlock",
            about: "a user whose locked-memory limit is smaller than the guest",
            code: "E1306",
            status: 6,
            before: "bind $nvme0\n\
                     chmod 666 /dev/kvm /dev/vfio/vfio\n\
                     chown nobody /dev/vfio/$(group $nvme0)\n\
                     ulimit -l 65536",
            by: "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups",
            arguments: "--memory 512M --vfio $nvme0",
            after: "ulimit -l unlimited\nchmod 600 /dev/kvm",
            says: &["64 MiB"],
            ..NOTHING
        },
        Refusal {
            name: "memory",
            about: "more memory than the host has",
            code: "E1301",
            status: 6,
            arguments: "--memory 64G",
            says: &["64 GiB"],
            ..NOTHING
        },
        Refusal {
            name: "ram-beyond-iommu",
            about: "RAM beyond what the IOMMU can address",
            code: "E1302",
            status: 6,
            before: "bind $nvme0",
            arguments: "--memory 600G --vfio $nvme0",
            host: HostKind::Narrow,
            ..NOTHING
        },
        Refusal {
            name: "bar-the-host-lost",
            about: "a BAR that the host itself found no free place for",
            code: "E1203",
            status: 5,
            before: "bind $bar512g",
            arguments: "--vfio $bar512g",
            says: &["0000:00:07.0", "BAR 2", "can't reserve"],
            host: HostKind::Narrow,
            ..NOTHING
        },
    ]
}

fn files() -> Vec<Refusal> {
    vec![
        Refusal {
            name: "not-a-kernel",
            about: "a file that is no kernel",
            code: "E2102",
            status: 2,
            arguments: "--kernel /etc/passwd",
            says: &["/etc/passwd"],
            real: true,
            ..NOTHING
        },
        Refusal {
            name: "big-kernel",
            about: "a kernel bigger than the guest's RAM",
            code: "E2103",
            status: 2,
            arguments: "--memory 32M",
            says: &["32 MiB"],
            real: true,
            ..NOTHING
        },
        Refusal {
            name: "rom",
            about: "a ROM file of another card",
            code: "E2106",
            status: 2,
            before: "bind $nvme0",
            arguments: "--vfio $nvme0,rom=/lab/edu0.rom",
            says: &["1234:11e8", "1b36:0010", "strait rom dump"],
            ..NOTHING
        },
        Refusal {
            name: "acpi-table",
            about: "a table that the machine makes itself",
            code: "E2108",
            status: 2,
            arguments: "--acpi-table /sys/firmware/acpi/tables/FACP",
            says: &["FACP", "strait makes that table"],
            ..NOTHING
        },
        Refusal {
            name: "missing-initramfs",
            about: "an initramfs that does not exist",
            code: "E2101",
            status: 2,
            arguments: "--initramfs /nowhere/i.img",
            says: &["/nowhere/i.img"],
            real: true,
            ..NOTHING
        },
    ]
}

fn words() -> Vec<Refusal> {
    vec![
        Refusal {
            name: "unknown-flag",
            about: "a mistyped flag; the nearest one is suggested",
            code: "E2001",
            status: 2,
            arguments: "--memry 512M",
            says: &["--memry", "--memory"],
            real: true,
            ..NOTHING
        },
        Refusal {
            name: "unknown-key",
            about: "a mistyped key of --vfio; the nearest one is suggested",
            code: "E2002",
            status: 2,
            arguments: "--vfio 0000:00:04.0,exspect=1b36:0010",
            says: &["exspect", "expect"],
            real: true,
            ..NOTHING
        },
        Refusal {
            name: "bad-value",
            about: "a value that means nothing",
            code: "E2003",
            status: 2,
            arguments: "--memory 12Q",
            says: &["12Q"],
            real: true,
            ..NOTHING
        },
    ]
}

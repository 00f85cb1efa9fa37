//! What strait has for drivers that do not like their guest: ROMs of files, other IDs, ACPI tables.

use crate::{
    files,
    hosts::{HostKind, option_rom},
    scenario::{Ending, Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![rom_dump(), other_ids(), acpi_extra(), inspect()]
}

/// The stock kernel has drivers for batteries and adapters, as modules.
fn acpi_extra() -> Scenario {
    Scenario::new(
        "acpi-extra",
        HostKind::Main,
        "--acpi-table and --fake-battery: the guest has the tables, the device, a battery and mains",
    )
    .strait_only()
    .limit(300)
    .vm(Vm::new("a", "acpi;acpi-devices")
        .modules(&["battery", "ac"])
        .flags("--fake-battery --acpi-table /lab/extra.aml"))
    .check(super::boot::tables_are_clean)
    .check(|outcome| {
        let guest = outcome.vm("a")?;
        let ssdts = guest.all("acpi.table").filter(|line| line.starts_with("SSDT")).count();
        if ssdts != 2 {
            return Err(format!("the guest has {ssdts} SSDTs"));
        }
        for (key, wanted) in [
            ("acpi.device", "LABT0001:00 \\_SB_.LABX"),
            ("acpi.device", "PNP0C0A:00 \\_SB_.BAT0"),
            ("acpi.device", "ACPI0003:00 \\_SB_.AC00"),
            ("acpi.power", "BAT0 Battery Full 100 Li-ion"),
            ("acpi.power", "AC00 Mains 1"),
        ] {
            let seen: Vec<&str> = guest.all(key).collect();
            if !seen.contains(&wanted) {
                return Err(format!("no {key} is {wanted}: {seen:?}"));
            }
        }
        Ok(())
    })
}

/// The disk's own driver goes by class, so it takes a disk of any maker; what it needs of the IDs is none.
fn other_ids() -> Scenario {
    const KEYS: &str = "vendor-id=0x144d,device-id=a808,sub-vendor-id=1043,sub-device-id=0x8888";
    Scenario::new(
        "other-ids",
        HostKind::Main,
        "vendor-id= and the others: the guest sees these IDs, and the disk works",
    )
    .strait_only()
    .vm(Vm::new("a", "pci;nvme-verify,0,{nonce}/ids").device_with("nvme0", KEYS).modules(&["nvme"]))
    .reports("a", "nvme.readback", "same")
    .check(|outcome| {
        let wanted = "144d:a808 class 010802 driver nvme";
        let seen: Vec<&str> = outcome.vm("a")?.all("pci").collect();
        let there = |line: &&&str| line.contains(wanted) && line.contains("subsystem 1043:8888");
        match seen.iter().find(there) {
            Some(_) => Ok(()),
            None => Err(format!("no function is {wanted}: {seen:?}")),
        }
    })
}

fn rom_dump() -> Scenario {
    Scenario::new(
        "rom-dump",
        HostKind::Main,
        "strait rom dump reads a ROM with no driver and with vfio-pci, and leaves nothing switched on",
    )
    .strait_only()
    .limit(120)
    .script(
        "give_back $edu0\n\
         bindings >$J/before\n\
         run_vm none strait rom dump $edu0 --output $J/none.rom\n\
         bindings >$J/after\n\
         cmp $J/before $J/after || echo FAIL: something is still switched on\n\
         bind $edu0\n\
         run_vm vfio strait rom dump $edu0 --output $J/vfio.rom\n\
         run_vm absent strait rom dump $bar16m\n",
    )
    .check(|outcome| {
        let wanted = option_rom("edu0", 24);
        for name in ["none", "vfio"] {
            let run = outcome.vm(name)?;
            let found = files::read(&outcome.job.join(format!("{name}.rom")))
                .map_err(|error| format!("{error:#} ({})", run.errors.trim()))?;
            if run.status != Some(0) || found != wanted {
                return Err(format!("{name}: {} bytes are not the ROM", found.len()));
            }
            if !run.serial.contains("UEFI capable: no") {
                return Err(format!("{name}: it says {}", run.serial));
            }
        }
        let absent = outcome.vm("absent")?;
        let good = absent.status == Some(4) && absent.errors.contains("error[E1116]");
        if good { Ok(()) } else { Err(format!("no ROM: {}", absent.errors)) }
    })
}

/// Asked while the disk works: what strait says from outside must be what goes on inside.
fn inspect() -> Scenario {
    Scenario::new(
        "inspect",
        HostKind::Main,
        "strait inspect: a working disk is healthy and its interrupts are counted; one without a driver is found out",
    )
    .strait_only()
    .limit(300)
    .vm(Vm::new("a", "nvme-verify,0,{nonce}/inspect;irqs;mark,ready;sleep,20")
        .device_with("nvme0", "id=disk")
        .modules(&["nvme"]))
    .vm(Vm::new("b", "mark,ready;sleep,20").device("nvme1").ends(Ending::Whatever))
    .script(
        "bind {all}\n\
         vm_a &\n\
         wait_mark a ready 200 || exit 1\n\
         run_vm working strait inspect --json\n\
         run_vm page strait inspect disk\n\
         run_vm report strait report --output $J/report.tar.gz\n\
         wait\n\
         run_vm nobody strait inspect\n\
         vm_b &\n\
         wait_mark b ready 200 || exit 1\n\
         run_vm idle strait inspect $nvme1 --json\n\
         kill -9 $(cat $J/b.pid)\n\
         wait\n\
         ls /run/strait/vm >$J/left\n\
         run_vm nobody strait inspect\n",
    )
    .check(|outcome| {
        let answer = |name: &str| -> Result<serde_json::Value, String> {
            let run = outcome.vm(name)?;
            serde_json::from_str(&run.serial).map_err(|_| format!("{name}: {}", run.errors))
        };
        let working = answer("working")?;
        let disk = &working["devices"][0];
        let counted = disk["interrupts"]["delivered"].as_u64().unwrap_or_default();
        let good = disk["verdict"]["healthy"] == true
            && disk["guest"] == "0000:01:00.0"
            && disk["interrupts"]["mode"] == "msix"
            && disk["bars"][0]["decoded"] == true
            && disk["interrupts"]["per_second"].is_u64()
            && disk["activity"]["config"].as_u64() <= working["seconds"].as_u64()
            && disk["activity"]["config"].is_u64()
            && disk["activity"]["bar"].is_u64()
            && disk["activity"]["interrupts"].is_u64()
            && disk["dead_reads"] == 0
            && disk["errors"]["counted"] == false
            && counted > 10;
        if !good {
            return Err(format!("the working disk: {disk}"));
        }
        let page = &outcome.vm("page")?.serial;
        if !page.contains("healthy: MSI-X with ") {
            return Err(format!("the page says {page}"));
        }
        if !page.lines().any(|line| line.starts_with("  activity ") && line.contains(" ago")) {
            return Err(format!("the page tells no activity: {page}"));
        }
        let report = outcome.vm("report")?;
        if report.status != Some(0) || !report.serial.contains(".toml") {
            return Err(format!("the report: {} {}", report.serial, report.errors));
        }
        let idle = answer("idle")?;
        let text = idle["devices"][0]["verdict"]["text"].as_str().unwrap_or_default();
        if text != "bus mastering never enabled: no driver loaded" {
            return Err(format!("the disk without a driver: {text}"));
        }
        let nobody = outcome.vm("nobody")?;
        if nobody.status != Some(2) || !nobody.errors.contains("error[E2110]") {
            return Err(format!("with no guest: {}", nobody.errors));
        }
        Ok(())
    })
}

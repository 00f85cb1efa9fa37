mod group;
mod journals;
mod methods;
mod screen;
mod stay;

use strait_resources::host::check::Allowed;

use super::{
    fake::{AUDIO, GPU, Host, STUCK_CHILD},
    *,
};

fn take(host: &Host, kind: Kind) -> Result<Guard, Failure> {
    let binder = host.binder();
    let lock = binder.lock()?;
    let planned = binder.plan(&[host.find(GPU)], &Allowed::default())?;
    binder.take(&lock, kind, &planned, &[], &Wishes::default())
}

fn drivers(host: &Host) -> [Option<String>; 2] {
    [host.find(GPU).driver, host.find(AUDIO).driver]
}

fn on_vfio() -> [Option<String>; 2] {
    [Some("vfio-pci".to_owned()), Some("vfio-pci".to_owned())]
}

#[test]
fn r24_taken_functions_are_given_back_as_they_were() {
    let host = Host::card();
    host.file("/sys/bus/pci/devices/0000:02:00.1/driver_override", "snd_hda_intel\n");
    let before = host.state();
    let guard = take(&host, Kind::Run).unwrap();
    assert_eq!(drivers(&host), on_vfio());
    assert!(host.state().iter().all(|line| line.ends_with("Some(\"vfio-pci\") on 0")));
    assert_eq!(host.journals(), 1);
    drop(guard);
    assert_eq!((host.state(), host.journals()), (before, 0));
}

/// A signal that came while the first one was being taken.
#[test]
fn function_that_is_not_taken_yet_stays_where_it_is_when_strait_is_told_to_end() {
    let host = Host::card();
    let before = host.state();
    host.kernel.ends_after.set(1);
    let guard = take(&host, Kind::Run).unwrap();
    assert_eq!(drivers(&host), [Some("vfio-pci".to_owned()), Some("snd_hda_intel".to_owned())]);
    drop(guard);
    assert_eq!((host.state(), host.journals()), (before, 0));
    let writes = host.kernel.writes.borrow();
    assert!(writes.iter().all(|write| !write.contains(AUDIO)), "{writes:?}");
}

#[test]
fn r23_override_comes_before_the_unbind_and_new_id_never() {
    let host = Host::card();
    drop(take(&host, Kind::Run).unwrap());
    let writes = host.kernel.writes.borrow();
    let at = |end: &str| writes.iter().position(|write| write.contains(end)).unwrap();
    assert!(at("02:00.0/driver_override vfio-pci") < at("02:00.0/driver/unbind"), "{writes:?}");
    assert!(writes.iter().all(|write| !write.contains("new_id")), "{writes:?}");
}

/// However far the first strait came before it was killed, the second puts everything back.
#[test]
fn r24_killed_after_any_write_the_next_strait_restores() {
    let steps = {
        let host = Host::card();
        take(&host, Kind::Run).unwrap().die();
        host.kernel.writes.borrow().len()
    };
    assert_eq!(steps, 12);
    for kind in [Kind::Run, Kind::Bind] {
        for budget in 0..=steps {
            let host = Host::card();
            let before = host.state();
            host.kernel.budget.set(budget);
            // Dropping a guard restores nothing either when no write works any more.
            let taken = take(&host, kind);
            assert_eq!(taken.is_ok(), budget == steps, "{budget}");
            let _ = taken.map(Guard::die);
            host.kernel.budget.set(usize::MAX);
            assert_eq!(host.journals(), 1, "{budget}");
            host.kill_owner();
            let undone = host.binder().recover().unwrap();
            assert!(undone.warnings.is_empty(), "{budget}: {:?}", undone.warnings);
            assert_eq!(undone.lines.len(), 1, "{budget}");
            assert_eq!((host.state(), host.journals()), (before, 0), "{budget}");
        }
    }
}

#[test]
fn recovery_that_is_killed_as_well_is_finished_by_a_third() {
    for budget in 0..10 {
        let host = Host::card();
        let before = host.state();
        take(&host, Kind::Run).unwrap().die();
        host.kill_owner();
        host.kernel.budget.set(budget);
        assert!(!host.binder().recover().unwrap().warnings.is_empty(), "{budget}");
        host.kernel.budget.set(usize::MAX);
        assert!(host.binder().recover().unwrap().warnings.is_empty(), "{budget}");
        assert_eq!((host.state(), host.journals()), (before, 0), "{budget}");
    }
}

#[test]
fn r31_live_owner_is_left_alone_and_its_group_is_refused() {
    let host = Host::card();
    let guard = take(&host, Kind::Run).unwrap();
    assert!(host.binder().recover().unwrap().lines.is_empty());
    assert_eq!(drivers(&host), on_vfio());
    let failure = host.binder().plan(&[host.find(AUDIO)], &Allowed::default()).unwrap_err();
    assert_eq!(failure.code.id, "E1114");
    let lock = host.binder().lock().unwrap();
    let failure = host.binder().unbind(&lock, &[host.find(GPU)]).unwrap_err();
    assert_eq!(failure.code.id, "E1114");
    drop(lock);
    drop(guard);
}

#[test]
fn journal_of_an_earlier_boot_is_removed_and_nothing_else_done() {
    let host = Host::card();
    take(&host, Kind::Run).unwrap().die();
    host.reboot();
    let writes = host.kernel.writes.borrow().len();
    assert!(host.binder().recover().unwrap().lines.is_empty());
    assert_eq!((host.journals(), host.kernel.writes.borrow().len()), (0, writes));
}

#[test]
fn device_that_vfio_refuses_goes_back_at_once() {
    let host = Host::card();
    let before = host.state();
    host.kernel.vfio_refuses.set(true);
    let failure = take(&host, Kind::Run).err().unwrap();
    assert_eq!(failure.code.id, "E1105");
    assert_eq!((host.state(), host.journals()), (before, 0));
}

#[test]
fn r32_driver_that_hangs_is_named_with_its_child_and_the_rest_restored() {
    let host = Host::card();
    *host.kernel.hangs.borrow_mut() = Some("snd_hda_intel".to_owned());
    host.process(STUCK_CHILD, 'D', 11);
    let failure = take(&host, Kind::Run).err().unwrap();
    assert_eq!(failure.code.id, "E1112");
    assert!(failure.cause.starts_with("snd_hda_intel does not let go of 0000:02:00.1"));
    assert!(failure.fix.contains(&STUCK_CHILD.to_string()), "{}", failure.fix);
    assert_eq!(host.find(GPU).driver.as_deref(), Some("nouveau"));
    // While the child hangs, nobody else is caught by the same driver.
    host.kill_owner();
    let writes = host.kernel.writes.borrow().len();
    let warnings = host.binder().recover().unwrap().warnings;
    assert_eq!(
        warnings.iter().map(|w| (w.code.id, w.code.exit)).collect::<Vec<_>>(),
        [("E1115", 0)]
    );
    assert_eq!((host.journals(), host.kernel.writes.borrow().len()), (1, writes));
    let again = host.binder().plan(&[host.find(AUDIO)], &Allowed::default()).unwrap_err();
    assert_eq!(again.code.id, "E1112");
    assert!(again.cause.contains(&STUCK_CHILD.to_string()), "{}", again.cause);
    // It ends at last.
    host.process(STUCK_CHILD, 'Z', 11);
    *host.kernel.hangs.borrow_mut() = None;
    assert!(host.binder().recover().unwrap().warnings.is_empty());
    assert_eq!(drivers(&host), [Some("nouveau".to_owned()), Some("snd_hda_intel".to_owned())]);
    assert_eq!(host.journals(), 0);
}

#[test]
fn r35_bound_functions_outlive_their_strait_and_unbind_gives_them_back() {
    let host = Host::card();
    let before = host.state();
    take(&host, Kind::Bind).unwrap().keep().unwrap();
    host.kill_owner();
    assert!(host.binder().recover().unwrap().lines.is_empty());
    assert_eq!(drivers(&host), on_vfio());
    let lock = host.binder().lock().unwrap();
    // The audio function was only taken along: it goes with the one that was asked for.
    let undone = host.binder().unbind(&lock, &[host.find(GPU)]).unwrap();
    assert_eq!(undone.lines.len(), 2);
    assert!(undone.warnings.is_empty());
    assert_eq!((host.state(), host.journals()), (before, 0));
}

#[test]
fn unbind_of_a_function_that_nobody_noted_lets_the_kernel_choose() {
    let host = Host::card();
    let before = host.state();
    take(&host, Kind::Bind).unwrap().keep().unwrap();
    host.reboot();
    let lock = host.binder().lock().unwrap();
    host.binder().unbind(&lock, &[host.find(GPU), host.find(AUDIO)]).unwrap();
    let driver = |state: &[String]| -> Vec<String> {
        state.iter().map(|line| line.split(' ').take(3).collect()).collect()
    };
    assert_eq!(driver(&host.state()), driver(&before));
    assert_eq!(host.journals(), 0);
}

#[test]
fn unbind_of_a_function_on_its_own_driver_does_nothing() {
    let host = Host::card();
    let lock = host.binder().lock().unwrap();
    let undone = host.binder().unbind(&lock, &[host.find(GPU)]).unwrap();
    assert_eq!(undone.lines, ["0000:02:00.0 is on nouveau: nothing to do"]);
    assert!(host.kernel.writes.borrow().is_empty());
}

#[test]
fn driver_of_somebody_else_stays() {
    let host = Host::card();
    take(&host, Kind::Run).unwrap().die();
    // An administrator moves the card to another driver while strait is dead.
    host.kill_owner();
    let driver = host.sysroot().path("/sys/bus/pci/devices/0000:02:00.0/driver");
    std::fs::remove_file(&driver).unwrap();
    std::os::unix::fs::symlink("../../../../bus/pci/drivers/nvidia", driver).unwrap();
    let warnings = host.binder().recover().unwrap().warnings;
    assert!(warnings[0].cause.contains("has nvidia now, not nouveau"), "{}", warnings[0].cause);
    assert_eq!(host.find(GPU).driver.as_deref(), Some("nvidia"));
}

#[test]
fn registered_run_is_listed_and_leaves_no_trace() {
    let host = Host::card();
    let guard = host.binder().register(&[host.find(GPU)]).unwrap();
    let (owners, others) = host.binder().owners().unwrap();
    assert_eq!(owners[0].journal.functions[0].bdf.to_string(), GPU);
    assert!(owners[0].lives && others.is_empty());
    assert_eq!(guard.taken().count(), 0);
    drop(guard);
    assert_eq!(host.journals(), 0);
    assert!(host.kernel.writes.borrow().is_empty());
}

#[test]
fn r26_rule_names_address_and_ids_and_loads_the_driver() {
    let host = Host::card();
    let path = host.binder().persist(&host.find(GPU)).unwrap();
    assert_eq!(path, "/etc/udev/rules.d/10-strait-0000:02:00.0.rules");
    let rule = host.sysroot().read(&path).unwrap();
    let line = rule.lines().last().unwrap();
    for part in [
        "KERNEL==\"0000:02:00.0\"",
        "ATTR{vendor}==\"0x8086\"",
        "ATTR{device}==\"0x10d3\"",
        "ATTR{driver_override}=\"vfio-pci\"",
        "kmod load vfio-pci",
    ] {
        assert!(line.contains(part), "{line}");
    }
}

/// A rule is carried out by root at every boot.
#[test]
fn rule_is_not_written_through_a_link_nor_into_a_directory_of_others() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let host = Host::card();
    let path = host.sysroot().path(&rule_file(GPU.parse().unwrap()));
    host.file("/etc/udev/rules.d/other.rules", "");
    host.file("/tmp/victim", "old");
    symlink(host.sysroot().path("/tmp/victim"), &path).unwrap();
    host.binder().persist(&host.find(GPU)).unwrap();
    assert_eq!(host.sysroot().read("/tmp/victim").unwrap(), "old");
    let written = std::fs::symlink_metadata(&path).unwrap();
    assert_eq!((written.is_file(), written.permissions().mode() & 0o7777), (true, 0o644));
    let directory = path.parent().unwrap();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    for refused in [
        host.binder().may_persist().unwrap_err(),
        host.binder().persist(&host.find(AUDIO)).unwrap_err(),
    ] {
        assert_eq!(refused.code.id, "E1125");
    }
}

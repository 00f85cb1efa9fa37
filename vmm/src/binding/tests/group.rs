//! What a guest left in a device must not reach all of the host's memory when the device is back: the type of its group.

use super::*;

const TYPE: &str = "/sys/kernel/iommu_groups/7/type";

/// A card on a host that was booted with iommu=pt.
fn untranslated() -> Host {
    let host = Host::card();
    host.file(TYPE, "identity\n");
    host
}

fn kind(host: &Host) -> String {
    host.sysroot().read(TYPE).unwrap()
}

#[test]
fn group_is_translated_before_the_first_driver_of_the_host_gets_a_function_back() {
    let host = untranslated();
    let before = host.state();
    drop(take(&host, Kind::Run).unwrap());
    assert_eq!((host.state(), kind(&host).as_str()), (before, "DMA"));
    let writes = host.kernel.writes.borrow();
    let at = |wanted: &str| writes.iter().rposition(|write| write.contains(wanted)).unwrap();
    let kind = at("iommu_groups/7/type DMA");
    assert!(at("02:00.0/driver/unbind") < kind && at("02:00.1/driver/unbind") < kind, "{writes:?}");
    let probes = writes.iter().enumerate().filter(|(_, write)| write.contains("drivers_probe"));
    let back: Vec<usize> = probes.map(|(position, _)| position).skip(2).collect();
    assert!(back.len() == 2 && back.iter().all(|probe| *probe > kind), "{writes:?}");
}

#[test]
fn group_that_is_translated_is_left_as_it_is() {
    for before in ["DMA", "DMA-FQ", "blocked"] {
        let host = untranslated();
        host.file(TYPE, before);
        drop(take(&host, Kind::Run).unwrap());
        assert_eq!(kind(&host), before);
        assert!(host.kernel.writes.borrow().iter().all(|write| !write.contains("/type ")));
    }
}

#[test]
fn unbind_of_a_bound_card_translates_its_group() {
    let host = untranslated();
    take(&host, Kind::Bind).unwrap().keep().unwrap();
    host.kill_owner();
    let lock = host.binder().lock().unwrap();
    let undone = host.binder().unbind(&lock, &[host.find(GPU)]).unwrap();
    assert!(undone.warnings.is_empty(), "{:?}", undone.warnings);
    assert_eq!(kind(&host), "DMA");
}

#[test]
fn kernel_that_keeps_the_type_is_told_and_the_card_goes_back() {
    let host = untranslated();
    let before = host.state();
    take(&host, Kind::Run).unwrap().die();
    host.kill_owner();
    host.kernel.refuses.borrow_mut().push("DMA".to_owned());
    let undone = host.binder().recover().unwrap();
    let codes: Vec<_> = undone.warnings.iter().map(|it| (it.code.id, it.code.exit)).collect();
    assert_eq!(codes, [("E1128", 0)]);
    assert_eq!((undone.lines.len(), host.state(), host.journals()), (1, before, 0));
}

/// Both the strait that took the card and the next one are killed after any write.
#[test]
fn group_of_a_strait_killed_after_any_write_is_translated_by_the_next() {
    for budget in 0..24 {
        let host = untranslated();
        let before = host.state();
        host.kernel.budget.set(budget);
        let _ = take(&host, Kind::Run).map(Guard::die);
        host.kill_owner();
        host.kernel.budget.set(usize::MAX);
        let undone = host.binder().recover().unwrap();
        assert!(undone.warnings.is_empty(), "{budget}: {:?}", undone.warnings);
        assert_eq!((host.state(), host.journals()), (before.clone(), 0), "{budget}");

        let host = untranslated();
        take(&host, Kind::Run).unwrap().die();
        host.kill_owner();
        host.kernel.budget.set(budget);
        let _ = host.binder().recover().unwrap();
        host.kernel.budget.set(usize::MAX);
        assert!(host.binder().recover().unwrap().warnings.is_empty(), "{budget}");
        assert_eq!((host.state(), kind(&host).as_str()), (before, "DMA"), "{budget}");
    }
}

//! The host's framebuffer on a card that is taken.

use super::*;

/// A card with the host's console on its display function.
fn desk() -> Host {
    let host = Host::card();
    host.screen(GPU);
    host
}

fn take(host: &Host, kind: Kind) -> Result<Guard, Failure> {
    let binder = host.binder();
    let lock = binder.lock()?;
    let allowed = Allowed { release_fb: true, ..Allowed::default() };
    let planned = binder.plan(&[host.find(GPU)], &allowed)?;
    binder.take(&lock, kind, &planned, &[], &Wishes::default())
}

#[test]
fn screen_lets_go_before_the_card_is_switched_and_is_put_back_after() {
    let host = desk();
    let before = host.state();
    let guard = take(&host, Kind::Run).unwrap();
    assert_eq!((host.draws(), drivers(&host)), ((false, false), on_vfio()));
    drop(guard);
    assert_eq!((host.draws(), host.state(), host.journals()), ((true, true), before, 0));
    let writes = host.kernel.writes.borrow();
    let order = ["vtcon1/bind 0", "vesa-framebuffer/unbind", "02:00.0/driver_override vfio-pci"];
    let at = |end: &str| writes.iter().position(|write| write.contains(end)).unwrap();
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{writes:?}");
    assert_eq!(writes.last().unwrap(), "/sys/class/vtconsole/vtcon1/bind 1");
}

#[test]
fn screen_without_leave_stays_and_nothing_is_written() {
    let host = desk();
    let refused = super::take(&host, Kind::Run).err().unwrap();
    assert_eq!((refused.code.id, host.draws(), host.journals()), ("E1205", (true, true), 0));
    assert!(host.kernel.writes.borrow().is_empty());
}

/// However far the first strait came before it was killed, the second puts everything back.
#[test]
fn screen_of_a_strait_killed_after_any_write_is_back_with_the_next() {
    let steps = {
        let host = desk();
        take(&host, Kind::Run).unwrap().die();
        host.kernel.writes.borrow().len()
    };
    assert_eq!(steps, 14);
    for budget in 0..=steps {
        let host = desk();
        let before = host.state();
        host.kernel.budget.set(budget);
        let _ = take(&host, Kind::Run).map(Guard::die);
        host.kernel.budget.set(usize::MAX);
        host.kill_owner();
        let undone = host.binder().recover().unwrap();
        assert!(undone.warnings.is_empty(), "{budget}: {:?}", undone.warnings);
        let now = (host.draws(), host.state(), host.journals());
        assert_eq!(now, ((true, true), before, 0), "{budget}");
    }
}

#[test]
fn screen_that_the_kernel_deletes_is_a_warning_and_the_rest_goes_back() {
    let host = desk();
    let before = host.state();
    host.kernel.vfio_removes_screen.set(true);
    take(&host, Kind::Bind).unwrap().keep().unwrap();
    host.kill_owner();
    let lock = host.binder().lock().unwrap();
    let undone = host.binder().unbind(&lock, &[host.find(GPU)]).unwrap();
    let codes: Vec<_> = undone.warnings.iter().map(|warning| warning.code.id).collect();
    assert_eq!(codes, ["E1117"]);
    assert!(undone.warnings[0].cause.contains("vesa-framebuffer.0"), "{:?}", undone.warnings);
    assert_eq!((host.state(), host.journals()), (before, 0));
}

#[test]
fn screen_that_keeps_the_bar_is_refused_and_put_back() {
    let host = desk();
    let before = host.state();
    host.kernel.screen_stays.set(true);
    let refused = take(&host, Kind::Run).err().unwrap();
    assert_eq!(refused.code.id, "E1205");
    assert!(refused.fix.contains("initcall_blacklist=sysfb_init"), "{}", refused.fix);
    assert_eq!((host.draws(), host.state(), host.journals()), ((true, true), before, 0));
}

#[test]
fn screen_on_a_card_that_vfio_has_already_lets_go_of_it_alone() {
    let host = desk();
    super::take(&host, Kind::Bind).err().unwrap();
    // By a rule at boot, say.
    for bdf in [GPU, AUDIO] {
        let driver = host.sysroot().path(&format!("/sys/bus/pci/devices/{bdf}/driver"));
        std::fs::remove_file(&driver).unwrap();
        std::os::unix::fs::symlink("../../../../bus/pci/drivers/vfio-pci", driver).unwrap();
    }
    let guard = take(&host, Kind::Run).unwrap();
    assert_eq!(guard.taken().count(), 1);
    assert_eq!(host.kernel.writes.borrow().len(), 2);
    drop(guard);
    assert_eq!((host.draws(), drivers(&host), host.journals()), ((true, true), on_vfio(), 0));
}

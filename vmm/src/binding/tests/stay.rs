//! `after=vfio`: no driver of the host gets a device back by itself.

use super::*;

const LIST: &str = "/sys/bus/pci/devices/0000:02:00.0/reset_method";

fn wishes() -> Wishes {
    Wishes { stays: BTreeSet::from([GPU.parse().unwrap()]), ..Wishes::default() }
}

fn take(host: &Host, wishes: &Wishes) -> Result<Guard, Failure> {
    let binder = host.binder();
    let lock = binder.lock()?;
    let planned = binder.plan(&[host.find(GPU)], &Allowed::default())?;
    binder.take(&lock, Kind::Run, &planned, &[], wishes)
}

fn unbind(host: &Host) -> Undone {
    let binder = host.binder();
    let lock = binder.lock().unwrap();
    binder.unbind(&lock, &[host.find(GPU)]).unwrap()
}

/// The audio function was only taken along: it stays with the card, and goes back with it.
#[test]
fn function_stays_with_what_was_taken_along_until_unbind() {
    let host = Host::card();
    let before = host.state();
    drop(take(&host, &wishes()).unwrap());
    assert_eq!((drivers(&host), host.journals()), (on_vfio(), 1));
    host.kill_owner();
    let again = host.binder().recover().unwrap();
    assert!(again.lines.is_empty() && again.warnings.is_empty(), "{again:?}");
    assert_eq!(drivers(&host), on_vfio());
    let undone = unbind(&host);
    assert_eq!((undone.lines.len(), undone.warnings.len()), (2, 0));
    assert_eq!((host.state(), host.journals()), (before, 0));
}

#[test]
fn other_function_goes_back_when_one_stays() {
    let host = Host::card();
    let binder = host.binder();
    let lock = binder.lock().unwrap();
    let all = [host.find(GPU), host.find(AUDIO)];
    let planned = binder.plan(&all, &Allowed::default()).unwrap();
    let guard = binder.take(&lock, Kind::Run, &planned, &[], &wishes()).unwrap();
    drop(lock);
    drop(guard);
    let audio = Some("snd_hda_intel".to_owned());
    assert_eq!(drivers(&host), [Some("vfio-pci".to_owned()), audio]);
}

/// However far the strait that tidies up comes: what a guest may have had stays and is noted once, what could not be taken as
/// a whole goes back.
#[test]
fn killed_after_any_write_the_next_strait_leaves_on_vfio_what_a_guest_may_have_had() {
    let steps = {
        let host = Host::card();
        take(&host, &wishes()).unwrap().die();
        host.kernel.writes.borrow().len()
    };
    for budget in 0..=steps {
        for second in [0, 1, 3, usize::MAX] {
            let host = Host::card();
            let before = host.state();
            host.kernel.budget.set(budget);
            let taken = take(&host, &wishes());
            let stays = taken.is_ok();
            assert_eq!(stays, budget == steps, "{budget}");
            let _ = taken.map(Guard::die);
            host.kill_owner();
            host.kernel.budget.set(second);
            let _ = host.binder().recover().unwrap();
            host.kernel.budget.set(usize::MAX);
            let undone = host.binder().recover().unwrap();
            assert!(undone.warnings.is_empty(), "{budget} {second}: {:?}", undone.warnings);
            assert_eq!(host.find(GPU).is_on_vfio(), stays, "{budget} {second}");
            assert_eq!(host.journals(), usize::from(stays), "{budget} {second}");
            assert!(unbind(&host).warnings.is_empty(), "{budget} {second}");
            assert_eq!((host.state(), host.journals()), (before, 0), "{budget} {second}");
        }
    }
}

/// Killed between the host's driver and vfio-pci.
#[test]
fn function_that_had_not_come_to_vfio_goes_back() {
    let host = Host::card();
    let before = host.state();
    take(&host, &wishes()).unwrap().die();
    for bdf in [GPU, AUDIO] {
        let driver = format!("/sys/bus/pci/devices/{bdf}/driver");
        std::fs::remove_file(host.sysroot().path(&driver)).unwrap();
    }
    host.kill_owner();
    assert!(host.binder().recover().unwrap().warnings.is_empty());
    assert_eq!((host.state(), host.journals()), (before, 0));
}

#[test]
fn recovery_says_that_the_function_stays() {
    let host = Host::card();
    take(&host, &wishes()).unwrap().die();
    host.kill_owner();
    let lines = host.binder().recover().unwrap().lines;
    assert_eq!(
        lines,
        ["strait 100 ended: after=vfio leaves 0000:02:00.0, 0000:02:00.1 on vfio-pci"]
    );
}

/// No guest has had it.
#[test]
fn function_that_could_not_be_taken_goes_back_at_once() {
    let host = Host::card();
    let before = host.state();
    *host.kernel.hangs.borrow_mut() = Some("snd_hda_intel".to_owned());
    host.process(STUCK_CHILD, 'Z', 11);
    assert_eq!(take(&host, &wishes()).err().unwrap().code.id, "E1112");
    *host.kernel.hangs.borrow_mut() = None;
    host.kill_owner();
    host.binder().recover().unwrap();
    assert_eq!((host.state(), host.journals()), (before, 0));
}

/// The next guest's resets are not this one's.
#[test]
fn list_of_resets_is_put_back_although_the_function_stays() {
    let host = Host::card();
    host.file(LIST, "flr pm\n");
    let methods = BTreeMap::from([(GPU.parse().unwrap(), String::new())]);
    drop(take(&host, &Wishes { methods, ..wishes() }).unwrap());
    assert_eq!(host.sysroot().read(LIST).unwrap(), "flr pm");
    assert_eq!(drivers(&host), on_vfio());
}

#[test]
fn function_stays_when_it_cannot_be_noted_and_the_next_strait_notes_it() {
    let host = Host::card();
    let guard = take(&host, &wishes()).unwrap();
    // A directory has the name of the journal that would say so.
    let name = host.sysroot().list_if_present("/run/strait/journal").unwrap();
    let run = name.iter().find(|name| name.starts_with("run-")).unwrap();
    let place = format!("/run/strait/journal/{}", run.replace("run-", "bind-"));
    host.file(&format!("{place}/x"), "");
    drop(guard);
    assert_eq!(drivers(&host), on_vfio());
    assert!(host.sysroot().exists(&format!("/run/strait/journal/{run}")));
    std::fs::remove_dir_all(host.sysroot().path(&place)).unwrap();
    host.kill_owner();
    assert_eq!(host.binder().recover().unwrap().lines.len(), 1);
    assert!(
        host.sysroot().exists(&place)
            && !host.sysroot().exists(&format!("/run/strait/journal/{run}"))
    );
}

//! Other ways to reset a function while a guest has it.

use super::*;

const LIST: &str = "/sys/bus/pci/devices/0000:02:00.0/reset_method";

fn list(host: &Host) -> String {
    host.sysroot().read(LIST).unwrap()
}

/// A card that the kernel resets by FLR, else by PM.
fn resettable() -> Host {
    let host = Host::card();
    host.file(LIST, "flr pm\n");
    host
}

fn resets(wanted: &str) -> Wishes {
    let methods = BTreeMap::from([(GPU.parse().unwrap(), wanted.to_owned())]);
    Wishes { methods, ..Wishes::default() }
}

fn take(host: &Host, wanted: &str) -> Result<Guard, Failure> {
    let binder = host.binder();
    let lock = binder.lock()?;
    let planned = binder.plan(&[host.find(GPU)], &Allowed::default())?;
    let wishes = resets(wanted);
    binder.take(&lock, Kind::Run, &planned, &[], &wishes)
}

#[test]
fn p1_chosen_reset_is_set_for_the_guest_and_the_list_is_put_back() {
    for wanted in ["pm", ""] {
        let host = resettable();
        let before = host.state();
        let guard = take(&host, wanted).unwrap();
        assert_eq!((list(&host).as_str(), drivers(&host)), (wanted, on_vfio()));
        drop(guard);
        assert_eq!((list(&host).as_str(), host.state(), host.journals()), ("flr pm", before, 0));
    }
}

#[test]
fn p1_list_of_a_strait_killed_after_any_write_is_put_back_by_the_next() {
    let steps = {
        let host = resettable();
        take(&host, "").unwrap().die();
        host.kernel.writes.borrow().len()
    };
    for budget in 0..=steps {
        let host = resettable();
        let before = host.state();
        host.kernel.budget.set(budget);
        let _ = take(&host, "").map(Guard::die);
        host.kernel.budget.set(usize::MAX);
        host.kill_owner();
        let undone = host.binder().recover().unwrap();
        assert!(undone.warnings.is_empty(), "{budget}: {:?}", undone.warnings);
        let now = (list(&host), host.state(), host.journals());
        assert_eq!(now, ("flr pm".to_owned(), before, 0), "{budget}");
    }
}

#[test]
fn p1_function_on_vfio_has_only_its_list_changed() {
    let host = resettable();
    let driver = host.sysroot().path("/sys/bus/pci/devices/0000:02:00.0/driver");
    std::fs::remove_file(&driver).unwrap();
    std::os::unix::fs::symlink("../../../../bus/pci/drivers/vfio-pci", driver).unwrap();
    let binder = host.binder();
    let lock = binder.lock().unwrap();
    let wishes = resets("pm");
    let (others, planned) = ([host.find(GPU)], Bindable::default());
    let guard = binder.take(&lock, Kind::Run, &planned, &others, &wishes).unwrap();
    drop(lock);
    assert_eq!(list(&host), "pm");
    drop(guard);
    assert_eq!(list(&host), "flr pm");
    assert_eq!(host.kernel.writes.borrow().len(), 2);
}

#[test]
fn p1_reset_that_the_kernel_refuses_is_told_and_nothing_stays_changed() {
    let host = resettable();
    let before = host.state();
    host.kernel.refuses.borrow_mut().push("device_specific".to_owned());
    let refused = take(&host, "device_specific").err().unwrap();
    assert_eq!(refused.code.id, "E1404");
    assert!(refused.cause.contains("by 'device_specific'"), "{}", refused.cause);
    assert_eq!((list(&host).as_str(), host.state(), host.journals()), ("flr pm", before, 0));
}

#[test]
fn p1_list_that_the_kernel_does_not_take_back_is_made_anew() {
    let host = resettable();
    let guard = take(&host, "pm").unwrap();
    host.kernel.refuses.borrow_mut().push("flr pm".to_owned());
    drop(guard);
    assert_eq!((list(&host).as_str(), host.journals()), ("default", 0));
}

//! Journals that others wrote, or would like to be carried out, and owners that are told apart by their locks.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::files::RUN;

fn directory() -> String {
    format!("{RUN}/journal")
}

/// What a strait that was killed left, as a value to change.
fn left_behind(host: &Host) -> (String, Value) {
    take(host, Kind::Run).unwrap().die();
    host.kill_owner();
    let names = host.sysroot().list(&directory()).unwrap();
    let path = format!("{}/{}", directory(), names[0]);
    let journal = serde_json::from_str(&host.sysroot().read(&path).unwrap()).unwrap();
    (path, journal)
}

fn codes(warnings: &[Failure]) -> Vec<&str> {
    warnings.iter().map(|warning| warning.code.id).collect()
}

#[test]
fn journal_and_its_directories_are_for_their_owner_alone() {
    let host = Host::card();
    let _guard = take(&host, Kind::Run).unwrap();
    let mode = |path: &str| fs::metadata(host.sysroot().path(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode(RUN), mode(&directory()), mode(&format!("{RUN}/lock"))),
        (0o700, 0o700, 0o600)
    );
    assert_eq!(mode(&format!("{}/run-100-7.json", directory())), 0o600);
}

/// As under an old strait that was started with umask 0.
#[test]
fn directory_that_others_may_write_to_is_refused_before_anything_is_changed() {
    let host = Host::card();
    for path in [RUN.to_owned(), directory()] {
        host.file(&format!("{path}/x"), "");
        let on_disk = host.sysroot().path(&path);
        fs::set_permissions(&on_disk, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = take(&host, Kind::Run).err().unwrap();
        assert_eq!(refused.code.id, "E1125");
        assert_eq!(host.binder().recover().unwrap_err().code.id, "E1125");
        assert_eq!(host.binder().owners().err().unwrap().code.id, "E1125");
        fs::set_permissions(&on_disk, fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert!(host.kernel.writes.borrow().is_empty());
}

#[test]
fn journal_that_is_a_link_or_has_a_second_name_is_refused() {
    let host = Host::card();
    let (path, journal) = left_behind(&host);
    let writes = host.kernel.writes.borrow().len();
    let on_disk = host.sysroot().path(&path);
    let elsewhere = host.sysroot().path("/tmp/evil.json");
    fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    fs::rename(&on_disk, &elsewhere).unwrap();
    symlink(&elsewhere, &on_disk).unwrap();
    let refused = host.binder().recover().unwrap_err();
    assert!(refused.code.id == "E1125" && refused.cause.contains("a symbolic link"), "{refused}");
    fs::remove_file(&on_disk).unwrap();
    fs::hard_link(&elsewhere, &on_disk).unwrap();
    let refused = host.binder().recover().unwrap_err();
    assert!(refused.code.id == "E1125" && refused.cause.contains("2 names"), "{refused}");
    fs::remove_file(&elsewhere).unwrap();
    assert_eq!(host.kernel.writes.borrow().len(), writes);
    assert!(journal.is_object());
    assert!(host.binder().recover().unwrap().warnings.is_empty());
}

/// What user 65534 would like root to write, from a public report of such a hole.
#[test]
fn journal_with_a_path_for_a_driver_is_left_alone_and_told() {
    let host = Host::card();
    let (path, mut journal) = left_behind(&host);
    let writes = host.kernel.writes.borrow().len();
    journal["functions"][0]["screen"] = json!({
        "name": "x",
        "driver": "../../../../../tmp/evil",
        "device": "../../../../../tmp/x/\ntoor::0:0::",
        "consoles": []
    });
    host.file(&path, &journal.to_string());
    for _ in 0..2 {
        let undone = host.binder().recover().unwrap();
        assert_eq!((codes(&undone.warnings), undone.lines.len()), (vec!["E1126"], 0));
        assert!(undone.warnings[0].cause.starts_with(&path), "{}", undone.warnings[0].cause);
    }
    assert_eq!((host.kernel.writes.borrow().len(), host.journals()), (writes, 1));
}

#[test]
fn journal_of_another_version_is_told_and_never_undone() {
    let host = Host::card();
    let (path, mut journal) = left_behind(&host);
    let writes = host.kernel.writes.borrow().len();
    journal["schema"] = json!("strait.journal/9");
    host.file(&path, &journal.to_string());
    let undone = host.binder().recover().unwrap();
    assert_eq!(codes(&undone.warnings), ["E1126"]);
    assert!(undone.warnings[0].cause.contains("strait.journal/9"), "{}", undone.warnings[0].cause);
    assert_eq!((host.kernel.writes.borrow().len(), host.journals()), (writes, 1));
}

/// Else it would be undone at every start: what is removed afterwards is the file that the journal's content names.
#[test]
fn copy_of_a_journal_is_told_and_not_undone() {
    let host = Host::card();
    let before = host.state();
    let (path, _) = left_behind(&host);
    let copy = format!("{}/copy.json", directory());
    fs::copy(host.sysroot().path(&path), host.sysroot().path(&copy)).unwrap();
    let undone = host.binder().recover().unwrap();
    assert_eq!((codes(&undone.warnings), undone.lines.len()), (vec!["E1126"], 1));
    assert!(undone.warnings[0].cause.contains("copy of the journal run-100-7.json"));
    assert_eq!(host.state(), before);
    let writes = host.kernel.writes.borrow().len();
    assert!(host.binder().recover().unwrap().lines.is_empty());
    assert_eq!((host.kernel.writes.borrow().len(), host.journals()), (writes, 1));
}

/// In another PID namespace that shares /run the owner's process ID means nothing, or another process.
#[test]
fn owner_in_another_pid_namespace_is_alive_as_long_as_it_holds_its_journal() {
    let host = Host::card();
    let before = host.state();
    let guard = take(&host, Kind::Run).unwrap();
    // Seen from elsewhere: no process 100, and another namespace.
    host.kill_owner();
    fs::create_dir_all(host.sysroot().path("/proc/self/ns")).unwrap();
    symlink("pid:[4026532999]", host.sysroot().path("/proc/self/ns/pid")).unwrap();
    let writes = host.kernel.writes.borrow().len();
    assert!(host.binder().recover().unwrap().lines.is_empty());
    assert_eq!((host.kernel.writes.borrow().len(), drivers(&host)), (writes, on_vfio()));
    assert!(host.binder().owners().unwrap().0[0].lives);
    let refused = host.binder().plan(&[host.find(AUDIO)], &Allowed::default()).unwrap_err();
    assert_eq!(refused.code.id, "E1114");
    // That number is somebody else's process here.
    assert!(!refused.fix.contains("kill"), "{}", refused.fix);
    guard.die();
    host.binder().recover().unwrap();
    assert_eq!((host.state(), host.journals()), (before, 0));
}

/// A process of the same number and even the same start time is not the owner: it does not hold the journal.
#[test]
fn process_with_the_owners_number_is_not_the_owner() {
    let host = Host::card();
    let before = host.state();
    take(&host, Kind::Run).unwrap().die();
    assert!(!host.binder().owners().unwrap().0[0].lives);
    host.binder().recover().unwrap();
    assert_eq!((host.state(), host.journals()), (before, 0));
}

#[test]
fn those_who_look_are_no_owners_to_each_other() {
    let host = Host::card();
    take(&host, Kind::Run).unwrap().die();
    let (one, another) = (host.binder().journals.list(), host.binder().journals.list());
    assert!(!one.unwrap().found[0].lives && !another.unwrap().found[0].lives);
}

/// Whatever the fields of a journal hold, root writes to a few files of sysfs alone. `path` is judged by its text, not by the
/// type that made it.
fn is_allowed(path: &str) -> bool {
    let inside = |parent: &str, ends: &[&str]| {
        let rest = path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/'));
        rest.and_then(|rest| rest.split_once('/')).is_some_and(|(name, attribute)| {
            name != ".." && name != "." && ends.contains(&attribute)
        })
    };
    let of_function =
        ["driver_override", "driver/unbind", "power/control", "d3cold_allowed", "reset_method"];
    path == "/sys/bus/pci/drivers_probe"
        || inside("/sys/bus/pci/devices", &of_function)
        || inside("/sys/bus/pci/drivers", &["bind"])
        || inside("/sys/kernel/iommu_groups", &["type"])
        || inside("/sys/bus/platform/drivers", &["bind"])
        || inside("/sys/class/vtconsole", &["bind"])
}

fn noise() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!(GPU)),
        Just(json!("nouveau")),
        Just(json!("1")),
        "(\\.\\./){1,5}[a-z]{1,5}".prop_map(Value::from),
        "[a-z.]{0,6}[\n/ ]?[a-z:]{0,6}".prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
    ]
}

const FIELDS: [&str; 9] = [
    "/functions/0/bdf",
    "/functions/0/group",
    "/functions/0/before/driver",
    "/functions/0/before/driver_override",
    "/functions/0/before/power_control",
    "/functions/0/before/d3cold_allowed",
    "/functions/0/screen",
    "/functions/0/methods",
    "/functions/1/bdf",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_journal_says_recovery_writes_known_files_alone(
        changes in prop::collection::vec((0..FIELDS.len(), noise()), 0..4),
        methods in any::<bool>(),
    ) {
        let host = Host::card();
        let (path, mut journal) = left_behind(&host);
        if methods {
            host.file("/sys/bus/pci/devices/0000:02:00.0/reset_method", "flr\n");
            journal["functions"][0]["methods"] = json!({"wanted": "", "before": "flr"});
        }
        for (field, value) in changes {
            *journal.pointer_mut(FIELDS[field]).unwrap() = value;
        }
        host.file(&path, &journal.to_string());
        host.kernel.writes.borrow_mut().clear();
        let undone = host.binder().recover().unwrap();
        let writes = host.kernel.writes.borrow();
        prop_assert!(writes.iter().all(|write| is_allowed(write.split(' ').next().unwrap())), "{writes:?}");
        prop_assert!(!writes.is_empty() || !undone.warnings.is_empty() || !undone.lines.is_empty());
        // The pure list of what it may come to is not shorter than what it came to.
        if let Ok(journal) = Journal::parse(journal.to_string().as_bytes()) {
            let listed: Vec<String> = journal.functions.iter().flat_map(Entry::way_back)
                .map(|write| format!("{} {}", write.to, write.value.trim())).collect();
            for write in writes.iter() {
                prop_assert!(listed.contains(write), "{write} is not in {listed:?}");
            }
        }
    }
}

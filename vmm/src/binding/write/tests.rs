use super::*;

fn writer(script: &str) -> ChildWriter {
    ChildWriter::with(["sh", "-c", script].map(OsString::from).to_vec())
}

fn probe() -> Write {
    Write::new(Attribute::Probe, "0000:3b:00.0")
}

fn end(child: u32) {
    Command::new("kill").arg(child.to_string()).status().unwrap();
}

#[test]
fn write_that_hangs_is_left_behind_in_bounded_time() {
    let begin = Instant::now();
    let writer = writer("echo ready; exec sleep 30");
    for bdf in ["0000:3b:00.0", "0000:3b:00.1"] {
        let write = Write::new(Attribute::Unbind(bdf.parse().unwrap()), bdf);
        let error = writer.write_within(&write, Duration::from_millis(200)).unwrap_err();
        let WriteError::Stuck { child, path: stuck } = error else { panic!("{error}") };
        assert_eq!(stuck, write.to.to_string());
        // It is still there: strait does not end what sits in a driver.
        assert!(Path::new(&format!("/proc/{child}")).exists());
        end(child);
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn write_that_is_refused_tells_what_the_kernel_said() {
    let error = writer("echo ready; echo 16; read x").write(&probe()).unwrap_err();
    let WriteError::Refused { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(16));
    let died = writer("echo ready; exit 0").write(&probe()).unwrap_err();
    assert!(matches!(died, WriteError::Refused { .. }), "{died}");
}

#[test]
fn child_that_a_signal_ends_before_it_is_ready_has_a_successor() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("second").display().to_string();
    let script =
        format!("[ -e {mark} ] || {{ touch {mark}; kill -TERM $$; }}; echo ready; echo 0; read x");
    writer(&script).write(&probe()).unwrap();
    // One that never gets there is told, after a bounded number of tries.
    let error = writer("exit 0").write(&probe()).unwrap_err();
    assert!(matches!(error, WriteError::Refused { .. }), "{error}");
}

#[test]
fn one_child_does_many_writes_until_it_may_rest() {
    let writer = writer("echo ready; echo 0; echo 0; exec sleep 30 <&0 >/dev/null");
    writer.write(&probe()).unwrap();
    let child = || writer.worker.lock().unwrap().as_ref().map(|w| w.child.as_ref().unwrap().id());
    let first = child();
    writer.write(&probe()).unwrap();
    assert!(first.is_some());
    assert_eq!(child(), first);
    end(first.unwrap());
    writer.rest();
    assert_eq!(child(), None);
    writer.ready();
    let early = child();
    writer.ready();
    writer.write(&probe()).unwrap();
    assert!(early.is_some());
    assert_eq!(child(), early);
    end(early.unwrap());
    writer.rest();
}

#[test]
fn child_writes_each_value_whole_and_reports_each() {
    let dir = tempfile::tempdir().unwrap();
    let (own, power) = (dir.path().join("override"), dir.path().join("power"));
    for file in [&own, &power] {
        std::fs::write(file, "").unwrap();
    }
    let open = |attribute: &Attribute| match attribute {
        Attribute::DriverOverride(_) => OpenOptions::new().write(true).open(&own),
        Attribute::PowerControl(_) => OpenOptions::new().write(true).open(&power),
        _ => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    };
    let at = |name: &str| format!("/sys/bus/pci/devices/0000:3b:00.0/{name}");
    let serve = |request: &str| {
        let mut said = Vec::new();
        super::serve(&mut request.as_bytes(), &mut said, open);
        String::from_utf8(said).unwrap()
    };
    let request =
        [&at("driver_override"), "\n", &at("d3cold_allowed"), "on", &at("power/control"), "x", ""];
    assert_eq!(serve(&request.join("\0")), "ready\n0\n2\n0\n");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "\n");
    assert_eq!(std::fs::read_to_string(&power).unwrap(), "x");
    // Half a request is none.
    serve(&format!("{}\0no", at("power/control")));
    assert_eq!(std::fs::read_to_string(&power).unwrap(), "x");
    // Nor is one for another file.
    let victim = dir.path().join("victim").display().to_string();
    std::fs::write(&victim, "old").unwrap();
    assert_eq!(serve(&format!("{victim}\0new\0")), "ready\n1\n");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "old");
}

#[test]
fn file_of_another_file_system_and_link_to_one_are_not_the_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("bind"), dir.path().join("link"));
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let number = |path: &Path| open_in_sysfs(path).unwrap_err().raw_os_error();
    assert_eq!(number(&file), Some(libc::EXDEV));
    assert_eq!(number(&link), Some(libc::ELOOP));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
}

#[test]
fn modprobe_is_the_kernels_and_never_one_of_path() {
    let tree = strait_resources::host::fixture::Tree::new();
    assert_eq!(modprobe(&tree.sysroot()), "/sbin/modprobe");
    tree.file("/usr/sbin/modprobe", "");
    assert_eq!(modprobe(&tree.sysroot()), "/usr/sbin/modprobe");
    tree.file("/nix/store/kmod/bin/modprobe", "");
    tree.file("/proc/sys/kernel/modprobe", "/nix/store/kmod/bin/modprobe\n");
    assert_eq!(modprobe(&tree.sysroot()), "/nix/store/kmod/bin/modprobe");
    tree.file("/proc/sys/kernel/modprobe", "modprobe\n");
    assert_eq!(modprobe(&tree.sysroot()), "/usr/sbin/modprobe");
}

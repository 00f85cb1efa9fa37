//! A host in a directory, and what a kernel would do with the writes.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    os::unix::fs::symlink,
    rc::Rc,
    time::Duration,
};

use strait_resources::{
    bdf::Bdf,
    host::{
        pci::{self, HostFunction},
        sysroot::Sysroot,
    },
    journal::Write,
};

use super::{
    Binder, View,
    journals::Journals,
    write::{WriteError, Writer},
};
use crate::files::Trust;

const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// The functions of [`Host::card`].
pub(crate) const GPU: &str = "0000:02:00.0";
pub(crate) const AUDIO: &str = "0000:02:00.1";

/// The tree and its kernel.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) kernel: Rc<Kernel>,
}

/// Changes the tree as the kernel would.
pub(crate) struct Kernel {
    sysroot: Sysroot,
    /// The drivers that want each function.
    native: RefCell<Vec<(Bdf, String)>>,
    /// Every write, in order.
    pub(crate) writes: RefCell<Vec<String>>,
    /// After so many writes nothing is written any more: strait was killed.
    pub(crate) budget: Cell<usize>,
    /// After so many writes strait is told to end.
    pub(crate) ends_after: Cell<usize>,
    /// A driver that never lets go.
    pub(crate) hangs: RefCell<Option<String>>,
    /// vfio-pci refuses everything.
    pub(crate) vfio_refuses: Cell<bool>,
    /// vfio-pci deletes the firmware's framebuffer, as since Linux 6.0.
    pub(crate) vfio_removes_screen: Cell<bool>,
    /// Values that it takes nowhere.
    pub(crate) refuses: RefCell<Vec<String>>,
    /// The framebuffer's driver keeps the BAR although it let go of its device.
    pub(crate) screen_stays: Cell<bool>,
}

/// What changes drivers on a host of another fixture, and the writes that it made.
pub(crate) fn binder_on(sysroot: &Sysroot) -> (Binder, Rc<Kernel>) {
    let kernel = Rc::new(Kernel::new(sysroot.clone()));
    let journals = Journals::new(sysroot.clone(), Trust::Owner);
    let view = View { sysroot: sysroot.clone(), journals };
    (Binder { view, writer: Rc::clone(&kernel) as _ }, kernel)
}

/// Where the fake framebuffer's platform device and its driver are.
const SCREEN: &str = "/sys/bus/platform/devices/vesa-framebuffer.0";
const SCREEN_DRIVER: &str = "/sys/bus/platform/drivers/vesa-framebuffer";
const CONSOLE: &str = "/sys/class/vtconsole/vtcon1";

/// The child that a hanging write leaves.
pub(crate) const STUCK_CHILD: u32 = 4711;

impl Kernel {
    fn new(sysroot: Sysroot) -> Self {
        Self {
            sysroot,
            native: RefCell::default(),
            writes: RefCell::default(),
            budget: Cell::new(usize::MAX),
            ends_after: Cell::new(usize::MAX),
            hangs: RefCell::default(),
            vfio_refuses: Cell::new(false),
            vfio_removes_screen: Cell::new(false),
            refuses: RefCell::default(),
            screen_stays: Cell::new(false),
        }
    }
}

impl Host {
    /// Root's, with IOMMU and vfio-pci, and this process as 100.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Rc::new(Kernel::new(Sysroot::at(dir.path())));
        let host = Self { dir, kernel };
        host.file(BOOT, "boot-1\n");
        host.file("/proc/self/status", "Uid:\t0\t0\t0\t0\n");
        host.process(100, 'R', 7);
        host.file("/proc/self/stat", &stat(100, 'R', 7));
        fs::create_dir_all(host.sysroot().path("/sys/bus/pci/drivers/vfio-pci")).unwrap();
        host
    }

    pub(crate) fn sysroot(&self) -> Sysroot {
        Sysroot::at(self.dir.path())
    }

    pub(crate) fn binder(&self) -> Binder {
        let sysroot = self.sysroot();
        let journals = Journals::new(sysroot.clone(), Trust::Owner);
        Binder { view: View { sysroot, journals }, writer: Rc::clone(&self.kernel) as _ }
    }

    pub(crate) fn file(&self, path: &str, content: &str) {
        let path = self.sysroot().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn process(&self, pid: u32, state: char, start: u64) {
        self.file(&format!("/proc/{pid}/stat"), &stat(pid, state, start));
    }

    /// This process is 100 no more, and 100 is gone.
    pub(crate) fn kill_owner(&self) {
        fs::remove_dir_all(self.sysroot().path("/proc/100")).unwrap();
        self.process(200, 'R', 9);
        self.file("/proc/self/stat", &stat(200, 'R', 9));
    }

    pub(crate) fn reboot(&self) {
        self.file(BOOT, "boot-2\n");
    }

    /// A card whose two functions share a group.
    pub(crate) fn card() -> Self {
        let host = Self::new();
        host.function(GPU, Some("nouveau"), 7);
        host.function(AUDIO, Some("snd_hda_intel"), 7);
        host
    }

    /// A function on its own driver.
    pub(crate) fn function(&self, bdf: &str, driver: Option<&str>, group: u32) -> HostFunction {
        let at = |name: &str| format!("{}/{bdf}/{name}", pci::DEVICES);
        let mut config = [0u8; 64];
        config[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
        for (name, text) in [
            ("vendor", "0x8086\n"),
            ("device", "0x10d3\n"),
            ("class", "0x020000\n"),
            ("driver_override", "(null)\n"),
            ("power/control", "auto\n"),
            ("d3cold_allowed", "1\n"),
            ("resource", ""),
        ] {
            self.file(&at(name), text);
        }
        fs::write(self.sysroot().path(&at("config")), config).unwrap();
        let target = format!("../../../../kernel/iommu_groups/{group}");
        symlink(target, self.sysroot().path(&at("iommu_group"))).unwrap();
        self.file(&format!("/sys/kernel/iommu_groups/{group}/reserved_regions"), "");
        let members = self.sysroot().path(&format!("/sys/kernel/iommu_groups/{group}/devices"));
        fs::create_dir_all(&members).unwrap();
        symlink(format!("../../../../bus/pci/devices/{bdf}"), members.join(bdf)).unwrap();
        let address: Bdf = bdf.parse().unwrap();
        if let Some(driver) = driver {
            self.file(&format!("/sys/bus/pci/drivers/{driver}/bind"), "");
            self.kernel.native.borrow_mut().push((address, driver.to_owned()));
            self.kernel.attach(address, driver);
        }
        self.find(bdf)
    }

    /// vesafb draws a text console into a BAR of this function.
    pub(crate) fn screen(&self, bdf: &str) {
        self.file("/proc/fb", "0 VESA VGA\n");
        self.file(&format!("{SCREEN_DRIVER}/bind"), "");
        self.file(&format!("{SCREEN}/screen-of"), bdf);
        self.kernel.draw(true);
        self.file(&format!("{CONSOLE}/bind"), "1\n");
    }

    /// Does it draw, and the console with it?
    pub(crate) fn draws(&self) -> (bool, bool) {
        let sysroot = self.sysroot();
        let console = sysroot.read_if_present(&format!("{CONSOLE}/bind")).unwrap();
        (sysroot.read("/proc/iomem").unwrap().contains("vesafb"), console.as_deref() == Some("1"))
    }

    pub(crate) fn find(&self, bdf: &str) -> HostFunction {
        pci::find(&self.sysroot(), bdf.parse().unwrap()).unwrap().unwrap()
    }

    /// Everything that taking changes, for comparison.
    pub(crate) fn state(&self) -> Vec<String> {
        let sysroot = self.sysroot();
        let mut state = Vec::new();
        for function in pci::scan(&sysroot).unwrap() {
            let read = |name: &str| sysroot.read(&pci::path(function.bdf, name)).unwrap();
            let (power, d3cold) = (read("power/control"), read("d3cold_allowed"));
            let (bdf, driver) = (function.bdf, function.driver);
            let only = pci::driver_override(&sysroot, bdf).unwrap();
            state.push(format!("{bdf} {driver:?} {only:?} {power} {d3cold}"));
        }
        state
    }

    pub(crate) fn journals(&self) -> usize {
        let names = self.sysroot().list_if_present("/run/strait/journal").unwrap();
        names.iter().filter(|name| name.ends_with(".json")).count()
    }
}

fn stat(pid: u32, state: char, start: u64) -> String {
    format!("{pid} (strait) {state} {}{start} 0\n", "0 ".repeat(18))
}

impl Kernel {
    fn link(&self, bdf: Bdf) -> std::path::PathBuf {
        self.sysroot.path(&pci::path(bdf, "driver"))
    }

    fn attach(&self, bdf: Bdf, driver: &str) {
        symlink(format!("../../../../bus/pci/drivers/{driver}"), self.link(bdf)).unwrap();
        if driver == "vfio-pci" {
            if self.vfio_removes_screen.take() {
                fs::remove_dir_all(self.sysroot.path(SCREEN)).unwrap();
            }
            let function = pci::find(&self.sysroot, bdf).unwrap().unwrap();
            let node = self.sysroot.path(&format!("/dev/vfio/{}", function.group.unwrap()));
            fs::create_dir_all(node.parent().unwrap()).unwrap();
            fs::write(node, "").unwrap();
            // As vfio_pci_core_register_device() does: an unused device may sleep.
            fs::write(self.sysroot.path(&pci::path(bdf, "power/control")), "auto\n").unwrap();
        }
    }

    /// The framebuffer's driver has its device from now on, or not any more.
    fn draw(&self, draws: bool) {
        let write = |path: &str, text: &str| {
            let path = self.sysroot.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let bdf = self.sysroot.read(&format!("{SCREEN}/screen-of")).unwrap();
        let links = [
            (format!("{SCREEN}/driver"), "../../drivers/vesa-framebuffer"),
            (format!("{SCREEN_DRIVER}/vesa-framebuffer.0"), "../../devices/vesa-framebuffer.0"),
        ];
        for (link, target) in links {
            let link = self.sysroot.path(&link);
            if draws { symlink(target, link) } else { fs::remove_file(link) }.unwrap();
        }
        let console = self.sysroot.path(CONSOLE);
        if draws {
            write(&format!("{CONSOLE}/name"), "(M) frame buffer device\n");
            write(&format!("{CONSOLE}/bind"), "0\n");
        } else {
            // The console's driver goes with its last framebuffer.
            fs::remove_dir_all(console).unwrap();
        }
        let line = if draws || self.screen_stays.get() { "  0-0 : vesafb\n" } else { "" };
        write("/proc/iomem", &format!("0-0 : {bdf}\n{line}"));
    }

    fn probe(&self, bdf: Bdf) {
        let function = pci::find(&self.sysroot, bdf).unwrap().unwrap();
        if function.driver.is_some() {
            return;
        }
        let native = self.native.borrow();
        let native = native.iter().find(|(known, _)| *known == bdf).map(|(_, name)| name.as_str());
        match pci::driver_override(&self.sysroot, bdf).unwrap().as_deref() {
            Some("vfio-pci") if self.vfio_refuses.get() => {}
            Some(name) => self.attach(bdf, name),
            None => {
                if let Some(name) = native {
                    self.attach(bdf, name);
                }
            }
        }
    }
}

impl Writer for Kernel {
    fn write(&self, Write { to, value }: &Write) -> Result<(), WriteError> {
        let (path, value) = (to.to_string(), value.as_str());
        let path = path.as_str();
        let refused =
            |source| WriteError::Refused { path: path.to_owned(), value: value.to_owned(), source };
        if self.budget.get() == 0 {
            return Err(refused(io::Error::other("killed")));
        }
        self.budget.set(self.budget.get() - 1);
        let journals = self.sysroot.list_if_present("/run/strait/journal").unwrap();
        assert!(!journals.is_empty(), "{path} is written before the journal");
        self.writes.borrow_mut().push(format!("{path} {}", value.trim()));
        if self.refuses.borrow().iter().any(|refused| refused == value) {
            return Err(refused(io::ErrorKind::InvalidInput.into()));
        }
        if let Some(attribute) = path.strip_prefix(&format!("{SCREEN_DRIVER}/")) {
            assert_eq!(value, "vesa-framebuffer.0");
            self.draw(attribute == "bind");
        } else if path.starts_with(CONSOLE) {
            fs::write(self.sysroot.path(path), value).map_err(refused)?;
        } else if path.ends_with("/driver/unbind") {
            let bdf = value.parse().unwrap();
            let driver = pci::find(&self.sysroot, bdf).unwrap().unwrap().driver;
            if driver.is_some() && driver == *self.hangs.borrow() {
                return Err(WriteError::Stuck { path: path.to_owned(), child: STUCK_CHILD });
            }
            fs::remove_file(self.link(bdf)).unwrap();
        } else if path.starts_with("/sys/kernel/iommu_groups/") {
            // As iommu_group_store_type(): every driver of the group has let go.
            let group = path.split('/').nth(4).unwrap().parse().ok();
            let functions = pci::scan(&self.sysroot).unwrap();
            if functions.iter().any(|it| it.group == group && it.driver.is_some()) {
                return Err(refused(io::ErrorKind::ResourceBusy.into()));
            }
            fs::write(self.sysroot.path(path), value).map_err(refused)?;
        } else if path == "/sys/bus/pci/drivers_probe" {
            self.probe(value.parse().unwrap());
        } else if let Some(driver) = path.strip_suffix("/bind") {
            self.attach(value.parse().unwrap(), driver.rsplit('/').next().unwrap());
        } else {
            fs::write(self.sysroot.path(path), value).map_err(refused)?;
        }
        Ok(())
    }

    fn load(&self, _: &str) -> io::Result<()> {
        Err(io::Error::other("no such module"))
    }

    fn pause(&self, _: Duration) {}

    fn is_to_end(&self) -> bool {
        self.writes.borrow().len() >= self.ends_after.get()
    }
}

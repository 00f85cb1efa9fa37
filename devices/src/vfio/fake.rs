//! A scripted device with its monitor, for tests and fuzzing: no root, no IOMMU, no hardware. Everything that is done to
//! it is written down as a line, in one order for device, router and line.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    pci::{caps, regs},
    ports::{HostMemory, IrqLine, MsiMessage, MsiRouter, MsiVector},
    vfio::backend::{CONFIG_REGION, IrqIndex, IrqInfo, RegionInfo, VfioBackend},
};

/// Where region 0 is mapped unless [`FakeDevice::mapped_from`] says otherwise; the others a TiB apart.
pub const FAKE_MEMORY: usize = 0x7000_0000_0000;

/// What was done, and what shall fail.
#[derive(Clone, Debug, Default)]
struct Script {
    calls: Arc<Mutex<Vec<String>>>,
    failing: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn call(&self, call: String) -> io::Result<()> {
        let fails = self.failing.lock().unwrap().iter().any(|start| call.starts_with(start));
        self.calls.lock().unwrap().push(call);
        if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

#[derive(Debug, Default)]
struct Region {
    info: RegionInfo,
    content: Mutex<Vec<u8>>,
}

/// A device.
#[derive(Debug)]
pub struct FakeDevice {
    script: Script,
    regions: HashMap<u32, Region>,
    irqs: HashMap<IrqIndex, IrqInfo>,
    triggers: Mutex<HashMap<(IrqIndex, u32), EventFd>>,
    /// Where the host's kernel reads something else than VFIO.
    host_only: Vec<(u16, Vec<u8>)>,
    resets: bool,
    dies_on_reset: bool,
    busy: AtomicU32,
    memory: usize,
}

impl Default for FakeDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeDevice {
    /// An endpoint without BARs, interrupts or capabilities.
    pub fn new() -> Self {
        let device = Self {
            script: Script::default(),
            regions: HashMap::new(),
            irqs: HashMap::new(),
            triggers: Mutex::default(),
            host_only: Vec::new(),
            resets: true,
            dies_on_reset: false,
            busy: AtomicU32::new(0),
            memory: FAKE_MEMORY,
        };
        device
            .region(CONFIG_REGION, &[0; 4096])
            .config32(regs::VENDOR_ID, 0x1234_10de)
            .config32(regs::REVISION_ID, 0x0300_00a1)
    }

    /// A region with this content.
    pub fn region(mut self, index: u32, content: &[u8]) -> Self {
        self = self.empty_region(index, content.len() as u64);
        *self.regions[&index].content.lock().unwrap() = content.to_vec();
        self
    }

    /// A region that reads as zeros and can be mapped.
    pub fn empty_region(mut self, index: u32, size: u64) -> Self {
        let info = RegionInfo {
            size,
            readable: true,
            writable: true,
            mappable: true,
            areas: vec![(0, size)],
        };
        self.regions.insert(index, Region { info, content: Mutex::default() });
        self
    }

    /// What can be mapped of a region; nothing makes it unmappable.
    pub fn areas(mut self, index: u32, areas: &[(u64, u64)]) -> Self {
        let info = &mut self.regions.get_mut(&index).unwrap().info;
        info.areas = areas.to_vec();
        info.mappable = !areas.is_empty();
        self
    }

    /// A region that cannot be written.
    pub fn read_only(mut self, index: u32) -> Self {
        self.regions.get_mut(&index).unwrap().info.writable = false;
        self
    }

    /// Configuration space of another size.
    pub fn config_size(mut self, size: u64) -> Self {
        self.regions.get_mut(&CONFIG_REGION).unwrap().info.size = size;
        self
    }

    /// A dword of configuration space.
    pub fn config32(self, offset: u16, value: u32) -> Self {
        self.poke(offset, &value.to_le_bytes());
        self
    }

    /// A capability: its bytes after the two of the header. The list grows at its head.
    pub fn capability(self, id: u8, offset: u8, body: &[u8]) -> Self {
        let head = self.peek(regs::CAPABILITIES_POINTER);
        self.poke(offset.into(), &[id, head]);
        self.poke(u16::from(offset) + 2, body);
        self.poke(regs::CAPABILITIES_POINTER, &[offset]);
        self.poke(regs::STATUS, &[regs::STATUS_CAPABILITIES as u8]);
        self
    }

    /// Bytes that the host's kernel reads there, and that VFIO hides.
    pub fn hidden(mut self, offset: u16, bytes: &[u8]) -> Self {
        self.host_only.push((offset, bytes.to_vec()));
        self
    }

    /// An interrupt type.
    pub fn irq(mut self, index: IrqIndex, count: u32, no_resize: bool) -> Self {
        let automasked = index == IrqIndex::Intx;
        self.irqs.insert(index, IrqInfo { count, automasked, no_resize });
        self
    }

    /// Region 0 is mapped at this host address, so that devices can be told apart by what is mapped.
    pub fn mapped_from(mut self, memory: usize) -> Self {
        self.memory = memory;
        self
    }

    /// No function reset.
    pub fn without_reset(mut self) -> Self {
        self.resets = false;
        self
    }

    /// A reset that the device does not survive.
    pub fn dying_on_reset(mut self) -> Self {
        self.dies_on_reset = true;
        self
    }

    /// So many resets that only say to try again.
    pub fn busy(self, resets: u32) -> Self {
        self.busy.store(resets, Relaxed);
        self
    }

    /// From now on every call that starts like this fails with EIO.
    pub fn failing(self, start: &str) -> Self {
        self.fail(start);
        self
    }

    /// As [`Self::failing`], later.
    pub fn fail(&self, start: &str) {
        self.script.failing.lock().unwrap().push(start.to_owned());
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.script.failing.lock().unwrap().clear();
    }

    /// Sets bytes of configuration space behind everyone's back.
    pub fn poke(&self, offset: u16, bytes: &[u8]) {
        let mut config = self.regions[&CONFIG_REGION].content.lock().unwrap();
        config[usize::from(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// A byte of configuration space.
    pub fn peek(&self, offset: u16) -> u8 {
        self.regions[&CONFIG_REGION].content.lock().unwrap()[usize::from(offset)]
    }

    /// What was done since the last time, oldest first.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.script.calls.lock().unwrap())
    }

    /// The device signals an interrupt. False if nobody listens.
    pub fn fire(&self, index: IrqIndex, vector: u32) -> bool {
        let triggers = self.triggers.lock().unwrap();
        triggers.get(&(index, vector)).map(|trigger| trigger.write(1).unwrap()).is_some()
    }

    /// A monitor that writes into the same list.
    pub fn monitor(&self) -> FakeMonitor {
        FakeMonitor {
            script: self.script.clone(),
            vectors: AtomicUsize::new(0),
            routes: Arc::default(),
        }
    }

    fn check(&self, index: u32, offset: u64, len: usize) -> io::Result<&Region> {
        self.regions
            .get(&index)
            .filter(|region| offset.saturating_add(len as u64) <= region.info.size)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl VfioBackend for FakeDevice {
    fn region(&self, index: u32) -> RegionInfo {
        self.regions.get(&index).map(|region| region.info.clone()).unwrap_or_default()
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        self.irqs.get(&index).copied().unwrap_or_default()
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.script.call(format!("read {index} {offset:#x} {}", data.len()))?;
        let region = self.check(index, offset, data.len())?;
        let content = region.content.lock().unwrap();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = content.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.script.call(format!("write {index} {offset:#x} {hex}"))?;
        let region = self.check(index, offset, data.len())?;
        let mut content = region.content.lock().unwrap();
        let status = content.get(usize::from(regs::STATUS)).copied();
        for (at, &byte) in (offset as usize..).zip(data) {
            if let Some(to) = content.get_mut(at) {
                *to = byte;
            }
        }
        // As on PCIe: these bits do not exist, or only say something.
        if let Some(status) = status.filter(|_| index == CONFIG_REGION) {
            content[usize::from(regs::STATUS)] = status;
            content[usize::from(regs::COMMAND)] &= 0x47;
            content[usize::from(regs::COMMAND) + 1] &= 0x05;
        }
        Ok(())
    }

    fn map(&self, index: u32, offset: u64, len: u64) -> io::Result<HostMemory> {
        self.script.call(format!("map {index} {offset:#x} {len:#x}"))?;
        let address = self.memory + ((index as usize) << 40) + offset as usize;
        Ok(HostMemory { address, len })
    }

    fn set_triggers(
        &self,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let drawn: String =
            triggers.iter().map(|trigger| if trigger.is_some() { '+' } else { '-' }).collect();
        self.script.call(format!("triggers {index:?} {start} {drawn}"))?;
        let mut known = self.triggers.lock().unwrap();
        for (n, trigger) in (start..).zip(triggers) {
            match trigger {
                Some(trigger) => known.insert((index, n), trigger.try_clone()?),
                None => known.remove(&(index, n)),
            };
        }
        Ok(())
    }

    fn host_config(&self) -> io::Result<Vec<u8>> {
        let mut config = self.regions[&CONFIG_REGION].content.lock().unwrap().clone();
        for (offset, bytes) in &self.host_only {
            config[usize::from(*offset)..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(config)
    }

    fn disable_irqs(&self, index: IrqIndex) -> io::Result<()> {
        self.script.call(format!("disable {index:?}"))?;
        self.triggers.lock().unwrap().retain(|&(of, _), _| of != index);
        Ok(())
    }

    fn set_intx_unmask(&self, resample: Option<&EventFd>) -> io::Result<()> {
        self.script.call(format!("resample {}", if resample.is_some() { '+' } else { '-' }))
    }

    fn mask_intx(&self) -> io::Result<()> {
        self.script.call("mask".to_owned())
    }

    fn unmask_intx(&self) -> io::Result<()> {
        self.script.call("unmask".to_owned())
    }

    fn can_reset(&self) -> bool {
        self.resets
    }

    fn reset(&self) -> io::Result<()> {
        self.script.call("reset".to_owned())?;
        let less = |busy: u32| busy.checked_sub(1);
        if self.busy.fetch_update(Relaxed, Relaxed, less).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let mut config = self.regions[&CONFIG_REGION].content.lock().unwrap();
        // The kernel brings configuration space back to what it was, bus mastering too, but in D0.
        let list = caps::capabilities(&config);
        if let Some(power) = list.iter().find(|found| found.id == regs::capability::PM) {
            config[usize::from(power.offset + regs::pm::CONTROL)] &= !regs::pm::CONTROL_STATE as u8;
        }
        if self.dies_on_reset {
            config.fill(0xff);
        }
        Ok(())
    }
}

/// The monitor's side: vectors and a line.
#[derive(Debug)]
pub struct FakeMonitor {
    script: Script,
    vectors: AtomicUsize,
    routes: Arc<Routes>,
}

/// The interrupt controller's table, as far as its updates go.
#[derive(Debug, Default)]
struct Routes {
    table: Mutex<HashMap<usize, MsiMessage>>,
    changed: AtomicBool,
    updates: AtomicUsize,
}

impl Routes {
    fn put(&self, number: usize, message: MsiMessage) {
        let before = self.table.lock().unwrap().insert(number, message);
        self.changed.fetch_or(before != Some(message), Relaxed);
    }
}

impl FakeMonitor {
    /// How often the table of the interrupt controller was updated.
    pub fn updates(&self) -> usize {
        self.routes.updates.load(Relaxed)
    }
}

impl MsiRouter for FakeMonitor {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        let number = self.vectors.fetch_add(1, Relaxed);
        if self.script.failing.lock().unwrap().iter().any(|start| start == "vector") {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let eventfd = EventFd::new(EFD_NONBLOCK)?;
        let routes = Arc::clone(&self.routes);
        Ok(Box::new(FakeVector { script: self.script.clone(), routes, number, eventfd }))
    }
}

impl IrqLine for FakeMonitor {
    fn irq(&self) -> u8 {
        10
    }

    fn connect(&self, _: &EventFd, _: &EventFd) -> io::Result<()> {
        self.script.call("line on".to_owned())
    }

    fn disconnect(&self, _: &EventFd, _: &EventFd) -> io::Result<()> {
        self.script.call("line off".to_owned())
    }
}

struct FakeVector {
    script: Script,
    routes: Arc<Routes>,
    number: usize,
    eventfd: EventFd,
}

impl MsiVector for FakeVector {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn announce(&mut self, message: MsiMessage) {
        self.routes.put(self.number, message);
    }

    fn connect(&mut self, message: MsiMessage) -> io::Result<()> {
        self.routes.put(self.number, message);
        if self.routes.changed.swap(false, Relaxed) {
            self.routes.updates.fetch_add(1, Relaxed);
        }
        self.script.call(format!("connect {} {:#x}", self.number, message.data))
    }

    fn disconnect(&mut self) {
        self.routes.table.lock().unwrap().remove(&self.number);
        self.script.call(format!("disconnect {}", self.number)).unwrap();
    }
}

impl Drop for FakeVector {
    fn drop(&mut self) {
        self.script.calls.lock().unwrap().push(format!("drop {}", self.number));
    }
}

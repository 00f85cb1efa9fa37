//! The KVM virtual machine: /dev/kvm, the in-kernel interrupt controllers, memslots.

#![allow(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION takes an address of this process")]

use std::{
    arch::x86_64::{__cpuid, CpuidResult},
    io,
    os::fd::AsRawFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_MSR_EXIT_REASON_FILTER, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, KVM_X86_DISABLE_EXITS_HLT, KVM_X86_DISABLE_EXITS_PAUSE, kvm_create_device,
    kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_enable_cap, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use strait_arch::{cpuid, layout, msr::Hwcr};
use strait_devices::{
    pci::function::DirectArea,
    ports::{Access, GuestMapper, GuestMapping, HostMemory},
};
use strait_resources::{codes, failure::Failure, range::AddressRange, window::IdPool};
use vfio_ioctls::VfioDeviceFd;
use vmm_sys_util::eventfd::EventFd;

use crate::{builder::internal, p2p::PeerMappings, vcpu::STACK};

/// What strait asks of KVM, with the name that the kernel's documentation uses.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// A VM that a thread makes while the host is looked at: KVM waits for grace periods and for a thread of its own. It
/// changes nothing on the host, and why it cannot be had is told only when the checks have said what they know better.
pub(crate) enum NewVm {
    /// Being made.
    Begun(JoinHandle<Result<(Host, Vm), Failure>>),
    /// There.
    Ready(Box<(Host, Vm)>),
}

impl NewVm {
    /// Begins.
    pub(crate) fn start() -> io::Result<Self> {
        let make = || {
            let host = Host::open()?;
            let vm = Vm::new(&host)?;
            Ok((host, vm))
        };
        thread::Builder::new().name("vm".to_owned()).stack_size(STACK).spawn(make).map(Self::Begun)
    }

    /// Waits for it.
    pub(crate) fn finish(self) -> Result<(Host, Vm), Failure> {
        match self {
            Self::Begun(thread) => thread.join().unwrap_or_else(|_| {
                let error = io::Error::other("the thread panicked, see above");
                Err(internal("making a virtual machine")(error))
            }),
            Self::Ready(made) => Ok(*made),
        }
    }

    /// Waits for it, and keeps it.
    pub(crate) fn ready(self) -> Result<Self, Failure> {
        self.finish().map(|made| Self::Ready(Box::new(made)))
    }
}

/// /dev/kvm, checked to be able to do what a machine needs.
pub(crate) struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens /dev/kvm. E1002 when that fails or the API is not version 12, E1005 when a capability is missing.
    pub(crate) fn open() -> Result<Self, Failure> {
        let kvm = Kvm::new().map_err(|e| {
            let source = io::Error::from_raw_os_error(e.errno());
            let fix = match e.errno() {
                libc::EACCES | libc::EPERM => "add yourself to the group that owns /dev/kvm: sudo usermod -aG kvm $USER, then log in again",
                _ => "load the module for this CPU (modprobe kvm_intel or kvm_amd) and turn virtualization on in the firmware",
            };
            Failure::new(&codes::E1002, "/dev/kvm cannot be opened", fix).source(source)
        })?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            let cause =
                format!("/dev/kvm speaks API version {version}, strait needs {KVM_API_VERSION}");
            return Err(Failure::new(&codes::E1002, cause, "boot a kernel newer than 2.6.22"));
        }
        let missing: Vec<&str> = NEEDED
            .iter()
            .filter(|(cap, _)| !kvm.check_extension(*cap))
            .map(|(_, name)| *name)
            .collect();
        if !missing.is_empty() {
            let cause = format!("this host's KVM lacks {}", missing.join(", "));
            let fix = "use a kernel with hardware KVM (kvm_intel or kvm_amd)";
            return Err(Failure::new(&codes::E1005, cause, fix));
        }
        Ok(Self { kvm })
    }

    /// What it can, for a person.
    pub(crate) fn summary(&self) -> String {
        format!(
            "API {KVM_API_VERSION} with all {} capabilities that strait needs; {} memory slots and {} vCPUs a guest",
            NEEDED.len(),
            self.kvm.get_nr_memslots(),
            self.kvm.get_max_vcpus()
        )
    }

    /// What CPUID KVM can give to a guest, with what this CPU says of itself.
    pub(crate) fn supported_cpuid(&self) -> Result<CpuId, Failure> {
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm_failure("KVM_GET_SUPPORTED_CPUID"))?;
        let leaves = cpuid::complete(supported.as_slice().to_vec(), |function| {
            let CpuidResult { eax, ebx, ecx, edx } = __cpuid(function);
            [eax, ebx, ecx, edx]
        });
        CpuId::from_entries(&leaves)
            .map_err(|error| internal("building CPUID")(io::Error::other(format!("{error:?}"))))
    }

    /// MSRs that make up a vCPU's state.
    pub(crate) fn msr_indices(&self) -> Result<Vec<u32>, Failure> {
        let list = self.kvm.get_msr_index_list().map_err(kvm_failure("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }

    /// What [`Vm::idle_natively`] refuses.
    pub(crate) fn check_idle_natively(&self, vcpus: usize) -> Result<(), Failure> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let known = self.kvm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into());
        can_idle_natively(known, vcpus, cpus).map(drop)
    }

    /// Refuses more vCPUs than KVM can give one guest.
    pub(crate) fn check_vcpus(&self, count: usize) -> Result<(), Failure> {
        let most = self.kvm.get_max_vcpus();
        if count <= most {
            return Ok(());
        }
        let cause =
            format!("{count} vCPUs are asked for, this host's KVM gives a guest at most {most}");
        Err(Failure::new(&codes::E1005, cause, format!("use --cpus {most} or fewer")))
    }

    /// Physical-address bits that a guest has here: leaf 0x8000_0008, EAX 7:0 (AMD APM 3, E.4.7).
    pub(crate) fn physical_bits(supported: &CpuId) -> u8 {
        let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
        // 36 is what a CPU without the leaf has.
        leaf.map_or(36, |entry| entry.eax as u8)
    }

    /// How fast the TSC of a guest runs here, in kHz, as `KVM_GET_TSC_KHZ` tells it: that takes a vCPU, so one is made
    /// and thrown away.
    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        let vm = self.kvm.create_vm().ok()?;
        vm.create_vcpu(0).ok()?.get_tsc_khz().ok().filter(|khz| *khz != 0)
    }

    /// Does KVM emulate the APIC's TSC-deadline timer?
    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

/// One virtual machine with its interrupt controllers and timer, without memory or vCPUs.
pub(crate) struct Vm {
    fd: Arc<VmFd>,
    /// What the interrupt controllers and the timer are after power-on.
    power_on: (Vec<kvm_irqchip>, kvm_pit_state2),
}

impl Vm {
    /// Creates the VM, the full in-kernel irqchip (PIC, I/O APIC, local APICs) and the PIT.
    pub(crate) fn new(host: &Host) -> Result<Self, Failure> {
        let fd = host.kvm.create_vm().map_err(kvm_failure("KVM_CREATE_VM"))?;
        // Intel hosts without unrestricted guest need both, before the first vCPU; others ignore them.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(kvm_failure("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(kvm_failure("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(kvm_failure("KVM_CREATE_IRQCHIP"))?;
        // The speaker port is read by timer calibration: in the kernel it costs no exit to us.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(kvm_failure("KVM_CREATE_PIT2"))?;
        level_trigger_pci_lines(&fd)?;
        let power_on = Self::controllers(&fd)?;
        Ok(Self { fd: Arc::new(fd), power_on })
    }

    /// From now on an idle vCPU stays in the guest, and the host's CPU with it. Before the first vCPU. Refused (E1005)
    /// where vCPUs would have to share CPUs: one that idles would keep the others out, and where KVM cannot.
    pub(crate) fn idle_natively(&self, vcpus: usize, cpus: usize) -> Result<(), Failure> {
        let known = self.fd.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into());
        let known = can_idle_natively(known, vcpus, cpus)?;
        let wanted = KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE;
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..Default::default() };
        cap.args[0] = (known & wanted).into();
        self.fd.enable_cap(&cap).map_err(kvm_failure("KVM_CAP_X86_DISABLE_EXITS"))
    }

    /// From now on an AMD guest's accesses to HWCR leave KVM, a few a boot, and the vCPU answers them: KVM itself lets
    /// the register say that the TSC counts at the frequency of P0 only since Linux 6.7. Before Linux 5.10 KVM cannot
    /// do this either, and the guest's kernel finds a firmware bug, which changes nothing else.
    pub(crate) fn answer_hwcr(&self) {
        let capabilities = [Cap::X86UserSpaceMsr, Cap::X86MsrFilter];
        if !capabilities.into_iter().all(|cap| self.fd.check_extension(cap)) {
            return log::info!("this host's KVM leaves no register to strait: HWCR is KVM's");
        }
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        cap.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: Hwcr::INDEX,
            msr_count: 1,
            // KVM reads whole words of a bitmap. A 0 is a register that leaves KVM.
            bitmap: &[0; 8],
        };
        let filtered = self
            .fd
            .enable_cap(&cap)
            .and_then(|()| self.fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range]));
        if let Err(error) = filtered {
            log::info!("HWCR is KVM's: {error}");
        }
    }

    /// Takes the performance counters away from every vCPU that is made later, their MSRs too: CPUID alone does not on
    /// AMD hosts, whose old counters need no bit. Before Linux 5.18 KVM cannot; then CPUID must do.
    pub(crate) fn give_no_counters(&self) {
        let known = self.fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
        if u32::try_from(known).unwrap_or(0) & KVM_PMU_CAP_DISABLE == 0 {
            return log::debug!("KVM cannot take performance counters away from a guest");
        }
        let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = KVM_PMU_CAP_DISABLE.into();
        if let Err(error) = self.fd.enable_cap(&cap) {
            log::info!("the guest may reach performance counters: {error}");
        }
    }

    /// The file that vCPUs and interrupts are made from.
    pub(crate) fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The KVM device through which VFIO groups are made known to KVM (Documentation/virt/kvm/devices/vfio.rst).
    pub(crate) fn vfio_device(&self) -> Result<VfioDeviceFd, Failure> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let fd = self
            .fd
            .create_device(&mut device)
            .map_err(kvm_failure("KVM_CREATE_DEVICE for VFIO"))?;
        Ok(VfioDeviceFd::new_from_kvm(fd))
    }

    /// Puts the interrupt controllers and the PIT back to what they are after power-on. No vCPU may run.
    pub(crate) fn reset(&self) -> Result<(), Failure> {
        for chip in &self.power_on.0 {
            self.fd.set_irqchip(chip).map_err(kvm_failure("KVM_SET_IRQCHIP"))?;
        }
        self.fd.set_pit2(&self.power_on.1).map_err(kvm_failure("KVM_SET_PIT2"))
    }

    fn controllers(fd: &VmFd) -> Result<(Vec<kvm_irqchip>, kvm_pit_state2), Failure> {
        let chips =
            [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_bindings::KVM_IRQCHIP_IOAPIC];
        let read = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            fd.get_irqchip(&mut chip).map_err(kvm_failure("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        let chips = chips.into_iter().map(read).collect::<Result<_, Failure>>()?;
        let pit = fd.get_pit2().map_err(kvm_failure("KVM_GET_PIT2"))?;
        Ok((chips, pit))
    }

    /// Signals on `event` raise a line of the interrupt controllers: an edge.
    pub(crate) fn register_irq(&self, event: &EventFd, gsi: u32) -> Result<(), Failure> {
        self.fd.register_irqfd(event, gsi).map_err(kvm_failure("KVM_IRQFD"))
    }
}

/// Sets the 8259s' edge/level registers (ports 4D0h and 4D1h) as firmware would for the interrupts of PCI lines: a guest
/// without ACPI takes them as they are.
fn level_trigger_pci_lines(fd: &VmFd) -> Result<(), Failure> {
    let level = layout::PCI_IRQS.iter().fold(0_u16, |bits, irq| bits | 1 << irq);
    let [first, second] = level.to_le_bytes();
    let chips = [(KVM_IRQCHIP_PIC_MASTER, first), (KVM_IRQCHIP_PIC_SLAVE, second)];
    for (chip_id, level) in chips {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        fd.get_irqchip(&mut chip).map_err(kvm_failure("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.elcr = level;
        fd.set_irqchip(&chip).map_err(kvm_failure("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

/// KVM refused something that it never refuses on a working host.
fn can_idle_natively(known: i32, vcpus: usize, cpus: usize) -> Result<u32, Failure> {
    let refused = |cause: String| {
        Failure::new(
            &codes::E1005,
            cause,
            "leave idle=native out: KVM polls a while before it halts a vCPU anyway",
        )
    };
    if vcpus > cpus {
        let cause = format!(
            "idle=native gives every vCPU a CPU of its own: {vcpus} vCPUs are asked for, strait may use {cpus} CPUs"
        );
        return Err(refused(cause));
    }
    let known = u32::try_from(known).unwrap_or(0);
    if known & KVM_X86_DISABLE_EXITS_HLT == 0 {
        let cause = "this host's KVM cannot let a guest halt the CPU (idle=native)";
        return Err(refused(cause.to_owned()));
    }
    Ok(known)
}

pub(crate) fn kvm_failure(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Failure {
    move |error| {
        Failure::new(
            &codes::E1005,
            format!("KVM refused {what}"),
            "look at the host's kernel log (dmesg), and try without other virtual machines running",
        )
        .source(io::Error::from_raw_os_error(error.errno()))
    }
}

/// Gives memslots out: guest RAM, and BARs of passed devices wherever the guest puts them.
pub(crate) struct Memslots {
    vm: Arc<VmFd>,
    ids: Arc<IdPool>,
    /// Where BARs go too when devices may reach each other.
    peers: Option<PeerMappings>,
}

impl Memslots {
    /// Room for as many memslots as this VM has.
    pub(crate) fn new(vm: &Vm, peers: Option<PeerMappings>) -> Self {
        // 32 is what every KVM has had; the capability reads 0 where it is unknown.
        let most = u32::try_from(vm.fd.check_extension_int(Cap::NrMemslots)).unwrap_or(0).max(32);
        let ids = IdPool::new(0, most - 1);
        Self { vm: Arc::clone(&vm.fd), ids: Arc::new(ids), peers }
    }

    /// The same slots, without P2P: for guest RAM, which the DMA domain maps by itself.
    pub(crate) fn map_ram(&self, range: AddressRange, memory: HostMemory) -> io::Result<Memslot> {
        Memslot::new(self, range, memory, Access::ReadWrite)
    }
}

impl Memslots {
    /// Makes the direct parts of a BAR at `address` reachable for other devices before the guest maps it: that takes
    /// the kernel seconds for a large one, and a vCPU should not wait for it.
    pub(crate) fn prepare_peer(&self, address: u64, direct: &[DirectArea]) {
        let Some(peers) = &self.peers else { return };
        for area in direct.iter().filter(|area| area.access == Access::ReadWrite) {
            let first = address.checked_add(area.offset);
            if let Some(range) = first.and_then(|first| AddressRange::new(first, area.memory.len)) {
                peers.map(range, area.memory);
            }
        }
    }
}

impl Memslots {
    /// Is there DMA between passed devices?
    pub(crate) fn has_peers(&self) -> bool {
        self.peers.is_some()
    }

    /// Do devices reach each other's BARs, where somebody waits for that?
    pub(crate) fn peers_are_ready(&self) -> bool {
        self.peers.as_ref().is_none_or(PeerMappings::is_ready)
    }
}

impl GuestMapper for Memslots {
    fn map(
        &self,
        range: AddressRange,
        memory: HostMemory,
        access: Access,
    ) -> io::Result<Box<dyn GuestMapping>> {
        let slot = Memslot::new(self, range, memory, access)?;
        // The IOMMU takes memory that can be written only.
        if let Some(peers) = self.peers.as_ref().filter(|_| access == Access::ReadWrite) {
            peers.map(range, memory);
        }
        Ok(Box::new(slot))
    }

    fn withdraw(&self, memory: HostMemory) {
        self.peers.iter().for_each(|peers| peers.withdraw(memory));
    }

    fn settle(&self) {
        self.peers.iter().for_each(PeerMappings::wait);
    }
}

impl GuestMapping for Memslot {}

/// One memslot; dropping it takes the memory out of the guest.
pub(crate) struct Memslot {
    vm: Arc<VmFd>,
    ids: Arc<IdPool>,
    id: u32,
    flags: u32,
}

impl Memslot {
    fn new(
        slots: &Memslots,
        range: AddressRange,
        memory: HostMemory,
        access: Access,
    ) -> io::Result<Self> {
        if range.len() != memory.len {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let id = slots.ids.allocate().map_err(io::Error::other)?;
        // From here on the drop gives the id back.
        // A write to a slot that the guest may only read is an exit.
        let flags = if access == Access::ReadOnly { KVM_MEM_READONLY } else { 0 };
        let slot = Self { vm: Arc::clone(&slots.vm), ids: Arc::clone(&slots.ids), id, flags };
        slot.set(range.first(), memory.address as u64, memory.len)?;
        Ok(slot)
    }

    fn set(&self, guest_phys_addr: u64, userspace_addr: u64, memory_size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: self.id,
            flags: self.flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the memory is a mapping of guest RAM or of a BAR whose owner outlives the slot: RAM is
        // dropped after every slot by the machine's field order, and a function keeps its mappings until
        // the root complex has dropped the function's slots.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}

impl Drop for Memslot {
    fn drop(&mut self) {
        // A slot of size 0 is a deleted one. It cannot fail for a slot that exists; when it never came to
        // exist, deleting it does nothing.
        let _ = self.set(0, 0, 0);
        self.ids.free(self.id);
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vm({})", self.fd.as_raw_fd())
    }
}

#[cfg(test)]
mod tests;

//! vCPUs in their threads, with guests of a few instructions. Needs /dev/kvm, of any kind.

mod reset;
mod stress;

use std::{
    fs::File,
    mem,
    sync::{Mutex, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use strait_arch::{boot::Entry, msr};
use strait_resources::{host::fixture::skipped, range::AddressRange};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    config::Pages,
    vm::{Host, Memslot, Memslots, Vm},
};

/// Bytes of RAM, from address 0.
const RAM: u64 = 2 << 20;
/// Where the boot CPU starts, in flat 32-bit mode without a stack, as by a PVH kernel's note.
const BOOT_CODE: u64 = 0x10_0000;
/// Where the other CPU's start-up message sends it, in real mode.
const OTHER_CODE: u64 = 0x8000;
/// Nothing is here: every read is an exit to strait.
const ABSENT: u32 = 0xd000_0000;
/// Interrupt command register of the local APIC, low half.
const INTERRUPT_COMMAND: u32 = 0xfee0_0300;

/// Machine code of a guest.
#[derive(Clone, Default)]
struct Code(Vec<u8>);

impl Code {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// An instruction whose last four bytes are `value`.
    fn with(self, opcode: &[u8], value: u32) -> Self {
        self.raw(opcode).raw(&value.to_le_bytes())
    }

    /// `mov dword [address], value`
    fn store(self, address: u32, value: u32) -> Self {
        self.with(&[0xc7, 0x05], address).raw(&value.to_le_bytes())
    }

    /// `lock inc dword [address]`
    fn increment(self, address: u32) -> Self {
        self.with(&[0xf0, 0xff, 0x05], address)
    }

    /// `body` for ever.
    fn forever(self, body: &Code) -> Self {
        let back = -(body.0.len() as i32 + 5);
        self.raw(&body.0).with(&[0xe9], back as u32)
    }

    /// Sends every other CPU to [`OTHER_CODE`]: INIT, SIPI.
    fn start_others(self) -> Self {
        self.store(INTERRUPT_COMMAND, 0x000c_4500).store(INTERRUPT_COMMAND, 0x000c_4608)
    }

    /// From where a start-up message leaves a CPU to where the boot CPU starts: jmp +6; limit and base of the boot GDT;
    /// cli; lgdt cs:[2]; mov eax,cr0; or eax,1; mov cr0,eax; jmp 0x10:0x8022; mov ax,0x18; mov ds,ax; mov es,ax;
    /// mov ss,ax.
    fn from_real_mode() -> Self {
        Self::default()
            .raw(&[0xeb, 0x06, 0x27, 0x00, 0x00, 0x05, 0x00, 0x00])
            .raw(&[0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x02, 0x00, 0x0f, 0x20, 0xc0])
            .raw(&[0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0])
            .raw(&[0x66, 0xea, 0x22, 0x80, 0x00, 0x00, 0x10, 0x00])
            .raw(&[0x66, 0xb8, 0x18, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0])
    }
}

/// What a vCPU's thread leaves behind.
type Told<T> = Arc<Mutex<Option<T>>>;
/// The threads of vCPUs, with what they leave.
type Started<T> = (Vec<JoinHandle<()>>, Vec<Told<T>>);

/// A machine of two vCPUs and nothing else. Fields in the order of tear-down.
struct Tiny {
    vcpus: Vec<Vcpu>,
    _slots: Vec<Memslot>,
    _vm: Vm,
    ram: Arc<GuestRam>,
    control: Arc<Control>,
    /// Where the boot CPU starts.
    boot: BootState,
    /// MSRs of KVM's list.
    msrs: Vec<u32>,
}

impl Tiny {
    /// `None`, said aloud, where there is no KVM.
    fn new() -> Option<Self> {
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            skipped("/dev/kvm cannot be opened");
            return None;
        }
        install_kick_handler().unwrap();
        let host = Host::open().unwrap();
        let vm = Vm::new(&host).unwrap();
        let ram = GuestRam::new(&[AddressRange::new(0, RAM).unwrap()], Pages::Default).unwrap();
        let slots = Memslots::new(&vm, None);
        let slots =
            ram.regions().map(|(range, memory)| slots.map_ram(range, memory).unwrap()).collect();
        let msrs = host.msr_indices().unwrap();
        let supported = host.supported_cpuid().unwrap();
        let vcpus: Vec<Vcpu> = (0..2)
            .map(|index| {
                let cpuid = |_| Ok(supported.clone());
                Vcpu::new(vm.fd(), index, index as u32, cpuid, false, &msrs).unwrap()
            })
            .collect();
        let entry = Entry::Pvh { rip: BOOT_CODE, start_info: 0 };
        let boot = regs::boot_state(ram.memory(), entry, vcpus[0].power_on_sregs()).unwrap();
        let control = Arc::new(Control::new().unwrap());
        Some(Self { vcpus, _slots: slots, _vm: vm, ram, control, boot, msrs })
    }

    fn write(&self, address: u64, code: &Code) {
        self.ram.memory().write_slice(&code.0, GuestAddress(address)).unwrap();
    }

    fn read(&self, address: u32) -> u32 {
        self.ram.memory().load(GuestAddress(address.into()), Ordering::SeqCst).unwrap()
    }

    /// Waits until the guest has put at least `value` there.
    fn wait_for(&self, address: u32, value: u32) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.read(address) < value {
            assert!(Instant::now() < end, "the guest does not get on: {address:#x}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Each vCPU in a thread that does what [`Vcpu::start`]'s does, with `after` at its end.
    fn start<T: Send + 'static>(&mut self, after: fn(&VcpuFd, &[u32]) -> T) -> Started<T> {
        let start = |vcpu: Vcpu| {
            let (mut seat, control) = (self.control.seat(), Arc::clone(&self.control));
            let boot = (vcpu.index == 0).then_some(self.boot);
            let (told, msrs) = (Arc::new(Mutex::new(None)), self.msrs.clone());
            let (tell, ram) = (Arc::clone(&told), Arc::clone(&self.ram));
            let thread = thread::spawn(move || {
                let Vcpu { fd, power_on, hwcr, .. } = vcpu;
                let (fd, bus) = (Kickable::new(fd), Arc::new(Bus::new()));
                let mut running = Running { fd, power_on, hwcr, bus, boot, amid_access: false };
                match running.run(&mut seat, &control) {
                    Ok(()) => *tell.lock().unwrap() = Some(after(&running.fd, &msrs)),
                    Err(end) => panic!("{:?}", end.describe(vcpu.index, &mut running.fd, &ram)),
                }
            });
            (thread, told)
        };
        mem::take(&mut self.vcpus).into_iter().map(start).unzip()
    }
}

//! Configuration accesses and resets of a passed function.

use std::{io, thread::sleep, time::Duration};

use strait_resources::bar::{BarKind, BarSpec};

use super::{DeviceFault, VfioFunction, express::SharedControl, vpd::Vpd};
use crate::{
    pci::{
        caps::read16,
        msi::MsiEffect,
        regs::{self, af, msix, pcie, pm},
    },
    vfio::{
        attach::{AttachError, is_alive},
        backend::CONFIG_REGION,
        irqs::Wanted,
        life::Activity,
        policy::{Register, Run, Source},
    },
};

/// How long a device may be busy before a reset, or take to answer after the kernel says that it is over: tries, and
/// the time between.
const REVIVAL: (u32, Duration) = (20, Duration::from_millis(50));
/// The bits of Command that are the guest's own view.
const COMMAND_SHADOW: u16 =
    regs::COMMAND_IO | regs::COMMAND_MEMORY | regs::COMMAND_INTX_DISABLE | COMMAND_ERRORS;
/// What the device reports of errors is the host's: it hears of them.
const COMMAND_ERRORS: u16 = regs::COMMAND_PARITY | regs::COMMAND_SERR;
/// The bits of Command that reach the device.
const COMMAND_DEVICE: u16 = regs::COMMAND_MASTER
    | regs::COMMAND_SPECIAL
    | regs::COMMAND_INVALIDATE
    | regs::COMMAND_VGA_SNOOP
    | regs::COMMAND_FAST_BACK;

/// The Command register: the guest's and the device's.
#[derive(Debug)]
pub(super) struct Command {
    guest: u16,
    /// What is on in the device from attach on: error reporting as the host has it, and decoding. The kernel takes
    /// mappings away while a device does not decode, and a guest access then ends the guest; so decoding goes on and
    /// off in the guest's bus only.
    base: u16,
}

impl Command {
    pub(super) fn new(bars: impl Iterator<Item = BarSpec>, config: &[u8]) -> Self {
        let errors = read16(config, regs::COMMAND).unwrap_or(0) & COMMAND_ERRORS;
        let base = bars.fold(errors, |base, spec| {
            base | if spec.kind == BarKind::Io { regs::COMMAND_IO } else { regs::COMMAND_MEMORY }
        });
        Self { guest: 0, base }
    }

    /// As the guest reads it.
    pub(super) fn guest(&self) -> u16 {
        self.guest
    }
}

/// The power state, as far as it concerns BARs.
#[derive(Debug)]
pub(super) struct Power {
    /// PM control and status.
    at: Option<u16>,
    /// PM capabilities.
    capabilities: u16,
    in_d0: bool,
}

/// A write that waits until guest and other devices have lost the BARs. In D3hot the kernel takes the mappings away, so
/// that an access of the guest ends it; and what a peer sends to a device that does not answer is an error at the
/// host's port.
#[derive(Debug)]
pub(super) enum Waiting {
    /// These bytes to power management control, at this offset: out of D0.
    Power(u16, Vec<u8>),
    /// A function level reset.
    Reset,
}

impl Power {
    pub(super) fn new(config: &[u8], at: Option<u16>) -> Self {
        let register = |offset| read16(config, offset).unwrap_or(0);
        let capabilities =
            at.map_or(0, |at| register(at.saturating_sub(pm::CONTROL - pm::CAPABILITIES)));
        let in_d0 = at.is_none_or(|at| register(at) & pm::CONTROL_STATE == 0);
        Self { at, capabilities, in_d0 }
    }

    pub(super) fn in_d0(&self) -> bool {
        self.in_d0
    }

    /// A write of an unsupported state changes nothing (PM 3.2.4).
    fn supports(&self, state: u8) -> bool {
        match state {
            1 => self.capabilities & PM_D1 != 0,
            2 => self.capabilities & PM_D2 != 0,
            _ => true,
        }
    }
}

/// PM capabilities: D1 exists.
const PM_D1: u16 = 1 << 9;
/// PM capabilities: D2 exists.
const PM_D2: u16 = 1 << 10;

impl VfioFunction {
    /// D0, decoding on, bus mastering off: how a device is while the guest has not touched it.
    pub(super) fn wake(&mut self) -> Result<(), AttachError> {
        if let Some(at) = self.power.at.filter(|_| !self.power.in_d0) {
            self.write_hardware(at, &[0, 0]);
        }
        self.power.in_d0 = true;
        self.backend
            .region_write(CONFIG_REGION, regs::COMMAND.into(), &self.command.base.to_le_bytes())
            .map_err(AttachError::Command)
    }

    /// The BARs are gone.
    pub(super) fn carry_out(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Power(offset, bytes) => self.write_hardware(offset, &bytes),
            Waiting::Reset => {
                self.reset_device();
                // As after power-on: the guest restores them from what it saved (PCIe 6.6.2).
                self.bars.clear();
                self.settle_interrupts();
            }
        }
    }

    /// One run of a read.
    pub(super) fn read_run(&mut self, run: Run, bytes: &mut [u8]) {
        let relative = |at: u16| run.offset.saturating_sub(at);
        let word = |value: u16, at: u16| {
            value.to_le_bytes().into_iter().chain([0, 0]).skip(relative(at).into())
        };
        match run.source {
            Source::Hardware | Source::ReadOnly | Source::Ours(Register::Power) => {
                self.read_live(run.offset, bytes);
            }
            Source::Ours(Register::DeviceControl | Register::DeviceControl2) => {
                self.read_control(run.offset, bytes);
            }
            Source::Ours(Register::Vpd) => self.read_vpd(run.offset, bytes),
            Source::Shadow => {
                let byte = |at| self.shadow.get(&at).copied().unwrap_or(self.policy.constant(at));
                fill(bytes, (run.offset..).map(byte));
            }
            Source::Constant => {
                fill(bytes, (run.offset..).map(|offset| self.policy.constant(offset)));
            }
            Source::Ours(Register::Command) => {
                fill(bytes, word(self.command.guest, regs::COMMAND));
            }
            Source::Ours(Register::Bars) => {
                fill(bytes, (run.offset..).map(|offset| self.bars.read_byte(offset)));
            }
            Source::Ours(Register::InterruptLine) => bytes.fill(self.interrupt_line),
            Source::Ours(Register::Msi) => {
                let Some((at, msi)) = &self.msi else { return };
                let pending = || self.irqs.waiting_msi();
                fill(bytes, (relative(*at)..).map(|offset| msi.read_byte(offset, pending)));
            }
            Source::Ours(Register::Msix) => {
                let Some((at, _, msix)) = &self.msix else { return };
                fill(bytes, word(msix.control(), at.saturating_add(msix::CONTROL)));
            }
            // Its one bit reads as 0 (AF ECN).
            Source::Ours(Register::AdvancedFeatures) => bytes.fill(0),
        }
    }

    /// One run of a write.
    pub(super) fn write_run(&mut self, run: Run, bytes: &[u8]) {
        let relative = |at: u16| run.offset.saturating_sub(at);
        match run.source {
            Source::Constant | Source::ReadOnly => {}
            Source::Shadow => {
                for (at, &byte) in (run.offset..).zip(bytes) {
                    let writable = self.policy.writable(at);
                    let old = self.shadow.get(&at).copied().unwrap_or(self.policy.constant(at));
                    self.shadow.insert(at, old & !writable | byte & writable);
                }
            }
            Source::Hardware => self.write_hardware(run.offset, bytes),
            Source::Ours(Register::Command) => {
                self.write_command(splice(self.command.guest, relative(regs::COMMAND), bytes));
            }
            Source::Ours(Register::Bars) => {
                for (offset, &byte) in (run.offset..).zip(bytes) {
                    self.bars.write_byte(offset, byte);
                }
            }
            Source::Ours(Register::InterruptLine) => {
                self.interrupt_line = bytes.first().copied().unwrap_or(self.interrupt_line);
            }
            Source::Ours(Register::Msi) => {
                let Some((at, msi)) = &mut self.msi else { return };
                if msi.write(relative(*at), bytes) != MsiEffect::None {
                    self.warnings.life.active(Activity::Interrupts);
                    self.settle_interrupts();
                }
            }
            Source::Ours(Register::Msix) => {
                let Some((at, _, msix)) = &mut self.msix else { return };
                let offset = relative(at.saturating_add(msix::CONTROL));
                let effect = msix.write_control(splice(msix.control(), offset, bytes));
                self.after_msix(effect);
            }
            Source::Ours(Register::Power) => self.write_power(run.offset, bytes),
            Source::Ours(Register::DeviceControl) => {
                let landmarks = self.policy.landmarks();
                let at = landmarks.device_control.unwrap_or(run.offset);
                let written = splice(0, run.offset.saturating_sub(at), bytes);
                if landmarks.flr && written & pcie::DEVICE_CONTROL_FLR != 0 {
                    self.reset_function();
                } else {
                    self.write_control(run.offset, bytes);
                }
            }
            Source::Ours(Register::DeviceControl2) => self.write_control(run.offset, bytes),
            Source::Ours(Register::Vpd) => self.write_vpd(run.offset, bytes),
            Source::Ours(Register::AdvancedFeatures) => {
                if bytes.first().is_some_and(|byte| byte & af::CONTROL_FLR != 0) {
                    self.reset_function();
                }
            }
        }
    }

    fn write_command(&mut self, value: u16) {
        let old = self.command.guest;
        let mut new = value & (COMMAND_SHADOW | COMMAND_DEVICE);
        if new & !old & regs::COMMAND_MASTER != 0 && !self.gate.is_open() {
            self.warnings.once("bus mastering stays off", &"guest RAM is not mapped for DMA yet");
            new &= !regs::COMMAND_MASTER;
        }
        self.command.guest = new & COMMAND_SHADOW | old & COMMAND_DEVICE;
        if (new ^ old) & COMMAND_DEVICE != 0 {
            if new & !old & regs::COMMAND_MASTER != 0 {
                self.warnings.life.bus_master();
            }
            let reached = self.write_device_command(new & COMMAND_DEVICE);
            self.command.guest = new & COMMAND_SHADOW | reached & COMMAND_DEVICE;
        }
        if (new ^ old) & regs::COMMAND_INTX_DISABLE != 0 {
            self.settle_interrupts();
        }
    }

    /// Writes Command and returns what stuck: bits that the device lacks read as 0.
    fn write_device_command(&mut self, value: u16) -> u16 {
        self.write_hardware(regs::COMMAND, &(value | self.command.base).to_le_bytes());
        let mut back = [0; 2];
        self.read_hardware(regs::COMMAND, &mut back);
        match u16::from_le_bytes(back) {
            // A device that is gone enables nothing.
            0xffff => 0,
            back => back,
        }
    }

    fn write_power(&mut self, offset: u16, bytes: &[u8]) {
        let Some(at) = self.power.at else { return };
        let low = (offset == at).then(|| bytes.first().copied()).flatten();
        let state = low.map(|low| low & pm::CONTROL_STATE as u8);
        match state.filter(|&state| self.power.supports(state)) {
            Some(1..) if self.power.in_d0 => {
                self.power.in_d0 = false;
                self.waiting = Some(Waiting::Power(offset, bytes.to_vec()));
            }
            Some(0) if !self.power.in_d0 => {
                self.write_hardware(offset, bytes);
                let mut back = [0xff; 2];
                self.read_hardware(at, &mut back);
                self.power.in_d0 = u16::from_le_bytes(back) & pm::CONTROL_STATE == 0;
            }
            _ => self.write_hardware(offset, bytes),
        }
    }

    /// Function level reset by the guest, if there is one.
    fn reset_function(&mut self) {
        if self.backend.can_reset() {
            self.waiting = Some(Waiting::Reset);
        } else {
            self.warnings.once("a function level reset is ignored", &"VFIO cannot reset it");
        }
    }

    /// The device reset, and everything of ours but the BARs as after power-on. Without a way to reset, the device
    /// at least loses interrupts and bus mastering.
    pub(super) fn reset_device(&mut self) {
        // The kernel saves and restores interrupt registers around a reset, and eventfds know nothing of it: none of
        // them may be in use.
        if let Some((_, msi)) = &mut self.msi {
            msi.reset();
        }
        if let Some((_, _, msix)) = &mut self.msix {
            msix.reset();
        }
        self.irqs.set(Wanted::None);
        self.interrupt_line = 0;
        self.command.guest = 0;
        self.device_control.iter_mut().for_each(SharedControl::reset);
        self.vpd.iter_mut().for_each(Vpd::reset);
        self.waiting = None;

        self.fault = None;
        if self.backend.can_reset() {
            let outcome = self.reset_patiently();
            self.warnings.life.reset(outcome.is_ok());
            // A reset that could not begin leaves the device asleep.
            self.power.in_d0 |= outcome.is_ok();
            self.fault = outcome.err().map(|error| DeviceFault::Reset(error.to_string()));
        }
        if let Err(error) = self.wake() {
            self.warnings.once("the device cannot be set up after a reset", &error);
        }
        if !self.revives() {
            self.fault.get_or_insert(DeviceFault::Gone);
        }
        self.warnings.life.lost(self.fault.is_some());
        if let Some(fault) = self.fault.clone() {
            self.warnings.once("the device is lost", &fault);
        }
    }

    /// The kernel does not wait for the device's lock: a reset while somebody reads its sysfs files fails and says to
    /// try again.
    fn reset_patiently(&self) -> io::Result<()> {
        let (tries, pause) = REVIVAL;
        for _ in 1..tries {
            match self.backend.reset() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(pause),
                outcome => return outcome,
            }
        }
        self.backend.reset()
    }

    fn revives(&self) -> bool {
        let (tries, pause) = REVIVAL;
        (0..tries).any(|attempt| {
            if attempt > 0 {
                sleep(pause);
            }
            is_alive(&*self.backend)
        })
    }

    /// A register of the device for the guest, which is counted when nobody is there.
    pub(super) fn read_live(&mut self, offset: u16, bytes: &mut [u8]) {
        self.read_hardware(offset, bytes);
        // A register may well hold all ones; only then it is worth asking who is there.
        if bytes.iter().all(|byte| *byte == 0xff) && !is_alive(&*self.backend) {
            self.warnings.life.dead_read();
        }
    }

    pub(super) fn read_hardware(&mut self, offset: u16, bytes: &mut [u8]) {
        let mut rest = bytes;
        for (at, len) in natural(offset, rest.len()) {
            let (piece, after) = rest.split_at_mut(len);
            rest = after;
            if let Err(error) = self.backend.region_read(CONFIG_REGION, at.into(), piece) {
                piece.fill(0xff);
                self.warnings.once("configuration space cannot be read", &error);
            }
        }
    }

    pub(super) fn write_hardware(&mut self, offset: u16, bytes: &[u8]) {
        let mut rest = bytes;
        for (at, len) in natural(offset, rest.len()) {
            let (piece, after) = rest.split_at(len);
            rest = after;
            if let Err(error) = self.backend.region_write(CONFIG_REGION, at.into(), piece) {
                self.warnings.once("configuration space cannot be written", &error);
            }
        }
    }
}

/// An access of 1 to 4 bytes as naturally aligned ones of 1, 2 or 4.
fn natural(offset: u16, len: usize) -> impl Iterator<Item = (u16, usize)> {
    let end = usize::from(offset).saturating_add(len);
    let mut at = usize::from(offset);
    std::iter::from_fn(move || {
        let fits = |len: &usize| at.is_multiple_of(*len) && *len <= end.saturating_sub(at);
        let len = [4, 2, 1].into_iter().find(fits)?;
        let piece = (u16::try_from(at).ok()?, len);
        at = at.saturating_add(len);
        Some(piece)
    })
}

/// `value` with `bytes` written at a byte offset; what does not fit is dropped.
pub(super) fn splice(value: u16, offset: u16, bytes: &[u8]) -> u16 {
    let mut word = value.to_le_bytes();
    for (to, from) in word.iter_mut().skip(offset.into()).zip(bytes) {
        *to = *from;
    }
    u16::from_le_bytes(word)
}

fn fill(bytes: &mut [u8], values: impl Iterator<Item = u8>) {
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = value;
    }
}

//! Everything of a vCPU after a reset, beside that of a machine that was just made.

use std::{collections::BTreeMap, ops::Range};

use super::*;

/// Each counts itself when it has changed what it can.
const DIRTY: u32 = 0x2000;
/// Its interrupt descriptors, and their handlers behind them.
const DESCRIPTORS: u64 = 0x3000;
const ON_FAULT: u64 = 0x3800;
const ON_INTERRUPT: u64 = 0x3880;
/// MSRs of which each bit is changed.
const LIST: u64 = 0x4000;
/// For FXRSTOR.
const FX_IMAGE: u64 = 0x7400;
/// Stacks, one below the other.
const STACKS: u32 = 0x7000;

/// MSRs that only count, or that the test itself needs: the TSC, and the local APIC's base, whose mode comes last.
const SPARED: [u32; 2] = [msr::TSC, 0x1b];
/// Those through which KVM and Hyper-V talk to guests: most hold an address where KVM writes.
const PARAVIRTUAL: [Range<u32>; 3] =
    [0x11..0x13, 0x4b56_4d00..0x4b56_4d10, 0x4000_0000..0x4000_0200];
/// So some of them get values of their own, with memory that nothing else is in; and those of machine checks that take 0
/// or all ones.
const WRITTEN: [(u32, u32); 8] = [
    (0x4b56_4d00, 0xa000),
    (0x4b56_4d01, 0xa101),
    (0x4b56_4d03, 0xa201),
    (0x4b56_4d04, 0xa300),
    (0x4b56_4d05, 0),
    (0x4000_0000, 0x1234),
    (0x17b, 0),
    (0x400, 0),
];
/// Extended features: the special registers have it, KVM's list has not.
const EFER: u32 = 0xc000_0080;

/// Changes every bit of every listed MSR that the CPU lets it change: what a general-protection fault refuses is left out.
fn change_msrs() -> Code {
    Code::default()
        // mov esi,LIST; each: lodsd; cmp eax,-1; je end; mov ecx,eax; mov ebp,1; xor edi,edi
        .with(&[0xbe], LIST as u32)
        .raw(&[0xad, 0x83, 0xf8, 0xff, 0x74, 0x19, 0x89, 0xc1, 0xbd, 1, 0, 0, 0, 0x31, 0xff])
        // bit: rdmsr; xor eax,ebp; xor edx,edi; wrmsr; add ebp,ebp; adc edi,edi; jnc bit; jmp each
        .raw(&[0x0f, 0x32, 0x31, 0xe8, 0x31, 0xfa, 0x0f, 0x30, 0x01, 0xed, 0x11, 0xff, 0x73, 0xf2])
        .raw(&[0xeb, 0xe1])
}

fn write_msrs() -> Code {
    WRITTEN.into_iter().fold(Code::default(), |code, (index, value)| {
        // mov ecx,index; mov eax,value; xor edx,edx; wrmsr
        code.with(&[0xb9], index).with(&[0xb8], value).raw(&[0x31, 0xd2, 0x0f, 0x30])
    })
}

/// Changes every bit of CR4 that may be changed, then CR2, CR3 and the bits of CR0 that stop nothing.
fn change_control_registers() -> Code {
    Code::default()
        // mov ebp,1; bit: mov eax,cr4; xor eax,ebp; mov cr4,eax; add ebp,ebp; jnc bit
        .raw(&[
            0xbd, 1, 0, 0, 0, 0x0f, 0x20, 0xe0, 0x31, 0xe8, 0x0f, 0x22, 0xe0, 0x01, 0xed, 0x73,
            0xf4,
        ])
        // mov eax,..; mov cr2,eax; mov eax,..; mov cr3,eax
        .raw(&[
            0xb8, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x22, 0xd0, 0xb8, 0, 0, 0x05, 0, 0x0f, 0x22, 0xd8,
        ])
        // mov eax,cr0; or eax,0x50022 (AM, WP, NE, MP); mov cr0,eax
        .raw(&[0x0f, 0x20, 0xc0, 0x0d, 0x22, 0, 0x05, 0, 0x0f, 0x22, 0xc0])
}

/// Debug registers with breakpoints where nothing is.
fn change_debug_registers() -> Code {
    (0..4_u8)
        .fold(Code::default(), |code, number| {
            // mov eax,..; mov drN,eax
            code.with(&[0xb8], 0x7000_0000 + u32::from(number)).raw(&[
                0x0f,
                0x23,
                0xc0 | number << 3,
            ])
        })
        // mov eax,0xffff0ff8..; mov dr6,eax; mov eax,0x455; mov dr7,eax
        .raw(&[0xb8, 0xf5, 0x4f, 0xff, 0xff, 0x0f, 0x23, 0xf0])
        .raw(&[0xb8, 0x55, 0x04, 0, 0, 0x0f, 0x23, 0xf8])
}

/// x87 and SSE registers and their modes, all at once from [`FX_IMAGE`]: that much KVM emulates where it has to. Where
/// there is XSAVE, XCR0 too.
fn change_fpu(xsave: bool) -> Code {
    // fninit; fxrstor [FX_IMAGE]
    let code = Code::default().raw(&[0xdb, 0xe3]).with(&[0x0f, 0xae, 0x0d], FX_IMAGE as u32);
    if !xsave {
        return code;
    }
    // xor ecx,ecx; mov eax,3; xor edx,edx; xsetbv
    code.raw(&[0x31, 0xc9, 0xb8, 3, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x01, 0xd1])
}

/// What FXRSTOR takes (Intel SDM 1, 10.5.1): control word, tag word, MXCSR; then x87 and SSE registers.
fn fx_image() -> Code {
    let head = Code::default().raw(&[0x60, 0x03, 0, 0, 0xff, 0]);
    let modes = Code(vec![0; 18]).with(&[], 0x9fa0).with(&[], 0xffff);
    let registers = (0..256).map(|n| n as u8 | 1).collect();
    head.raw(&modes.0).raw(&Code(registers).0).raw(&[0; 224])
}

/// The local APIC's registers, a timer that has run, interrupts that are pending and one that never ends.
fn change_local_apic() -> Code {
    let registers: [(u32, u32); 13] = [
        (0x020, 0x0500_0000),
        (0x0d0, 0x0200_0000),
        (0x0e0, 0x0fff_ffff),
        (0x0f0, 0x01ff),
        (0x330, 0x0001_0061),
        (0x340, 0x0001_0062),
        (0x350, 0x0001_0063),
        (0x360, 0x0001_0064),
        (0x370, 0x65),
        (0x3e0, 0xb),
        (0x320, 0x0002_0071),
        (0x380, 1000),
        (0x310, 0x0100_0000),
    ];
    let code = registers
        .into_iter()
        .fold(Code::default(), |code, (at, value)| code.store(0xfee0_0000 + at, value));
    // To itself: 0x91, which is taken (sti; mov ecx,4096; loop to itself; cli) and never ends, then 0x55 and 0xa1, which
    // stay pending.
    code.store(INTERRUPT_COMMAND, 0x0004_0091)
        .raw(&[0xfb, 0xb9, 0, 0x10, 0, 0, 0xe2, 0xfe, 0xfa])
        .store(INTERRUPT_COMMAND, 0x0004_0055)
        .store(INTERRUPT_COMMAND, 0x0004_00a1)
        .store(0xfee0_0080, 0x20)
}

/// Everything, in an order in which it can be done.
fn dirty(xsave: bool, stack: u32) -> Code {
    // mov esp,stack; lidt [DESCRIPTORS - 8]
    Code::default()
        .with(&[0xbc], stack)
        .with(&[0x0f, 0x01, 0x1d], DESCRIPTORS as u32 - 8)
        .raw(&change_local_apic().0)
        .raw(&change_control_registers().0)
        .raw(&change_fpu(xsave).0)
        .raw(&change_debug_registers().0)
        .raw(&write_msrs().0)
        .raw(&change_msrs().0)
        // mov ecx,0x1b; rdmsr; or eax,0x400; wrmsr: x2APIC.
        .raw(&[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0d, 0, 0x04, 0, 0, 0x0f, 0x30])
        // All general registers: mov reg,..
        .raw(&[0xb8, 1, 1, 1, 1, 0xb9, 2, 2, 2, 2, 0xba, 3, 3, 3, 3, 0xbb, 4, 4, 4, 4])
        .raw(&[0xbd, 5, 5, 5, 5, 0xbe, 6, 6, 6, 6, 0xbf, 7, 7, 7, 7])
        .increment(DIRTY)
}

/// Interrupt gates of 32 bits.
fn descriptors() -> Code {
    (0..256_u64).fold(Code::default(), |code, vector| {
        let handler = if vector < 32 { ON_FAULT } else { ON_INTERRUPT };
        let [low, high, ..] = handler.to_le_bytes();
        code.raw(&[low, high, 0x10, 0, 0, 0x8e, 0, 0])
    })
}

/// Steps over the instruction that faulted with an error code: 2 bytes from 0f 30 on, 3 before. Not by IRET, which KVM does
/// not emulate where it has to.
fn on_fault() -> Code {
    // pop ebx; pop ebx; add esp,8; cmp byte [ebx+1],0x30; jae two; inc ebx; two: add ebx,2; jmp ebx
    Code::default()
        .raw(&[0x5b, 0x5b, 0x83, 0xc4, 0x08, 0x80, 0x7b, 0x01, 0x30, 0x73, 0x01, 0x43])
        .raw(&[0x83, 0xc3, 0x02, 0xff, 0xe3])
}

/// Goes on behind, interrupts off: the local APIC is told nothing of an end.
fn on_interrupt() -> Code {
    // pop ebx; add esp,8; jmp ebx
    Code::default().raw(&[0x5b, 0x83, 0xc4, 0x08, 0xff, 0xe3])
}

/// Every part of a vCPU's state that KVM tells, by name.
type State = BTreeMap<String, String>;

fn state(fd: &VcpuFd, listed: &[u32]) -> State {
    let mut state = State::new();
    let mut put = |name: &str, value: String| state.insert(name.to_owned(), value);
    put("regs", format!("{:x?}", fd.get_regs().unwrap()));
    put("sregs", format!("{:x?}", fd.get_sregs().unwrap()));
    put("debug", format!("{:x?}", fd.get_debug_regs().unwrap()));
    put("mp_state", format!("{:x?}", fd.get_mp_state().unwrap()));
    put("events", format!("{:x?}", fd.get_vcpu_events().unwrap()));
    put("xcrs", format!("{:x?}", fd.get_xcrs().ok()));
    let lapic = fd.get_lapic().unwrap();
    for (index, register) in lapic.regs.chunks_exact(16).enumerate() {
        put(&format!("lapic {:03x}", index * 16), format!("{:x?}", &register[..4]));
    }
    // KVM_GET_FPU only where there is nothing better: it tells the bytes of a component that is in its initial state, and
    // those are whatever they were.
    let xsave = match fd.get_xsave() {
        Ok(area) => area.region.to_vec(),
        Err(_) => {
            put("fpu", format!("{:x?}", fd.get_fpu().unwrap()));
            Vec::new()
        }
    };
    for (index, word) in xsave.iter().enumerate() {
        put(&format!("xsave {:03x}", index * 4), format!("{word:x}"));
    }
    for index in listed.iter().copied().chain(msr::unlisted()) {
        let entry = kvm_bindings::kvm_msr_entry { index, ..Default::default() };
        let mut asked = Msrs::from_entries(&[entry]).unwrap();
        if fd.get_msrs(&mut asked).unwrap() == 1 && !counts(index) {
            put(&format!("msr {index:x}"), format!("{:x}", asked.as_slice()[0].data));
        }
    }
    state
}

/// Counts by itself.
fn counts(index: u32) -> bool {
    // IA32_MPERF and IA32_APERF (Intel SDM 4, 2.1); HV_X64_MSR_TIME_REF_COUNT and KVM's reference TSC do too.
    [msr::TSC, 0xe7, 0xe8, 0x4000_0020].contains(&index)
}

fn differences(one: &State, other: &State) -> Vec<String> {
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    names
        .filter(|name| one.get(*name) != other.get(*name))
        .map(|name| format!("{name}: {:?} and {:?}", one.get(name), other.get(name)))
        .collect()
}

/// The states of both vCPUs before their first entry.
fn made() -> Option<Vec<State>> {
    let mut tiny = Tiny::new()?;
    let (threads, states) = tiny.start(state);
    tiny.control.stop(threads);
    Some(taken(&states))
}

fn taken(states: &[Told<State>]) -> Vec<State> {
    states.iter().map(|state| state.lock().unwrap().take().unwrap()).collect()
}

/// Both vCPUs change what they can.
fn soiled() -> Option<(Tiny, Started<State>)> {
    let mut tiny = Tiny::new()?;
    let xsave = tiny.vcpus[0].fd.get_xcrs().is_ok_and(|xcrs| xcrs.nr_xcrs > 0);
    // The boot CPU ends in a loop, the other one halted with interrupts on.
    let boot = Code::default().start_others().raw(&dirty(xsave, STACKS).0);
    tiny.write(BOOT_CODE, &boot.forever(&Code::default()));
    let other = Code::from_real_mode().raw(&dirty(xsave, STACKS - 0x400).0);
    tiny.write(OTHER_CODE, &other.raw(&[0xfb, 0xf4, 0xeb, 0xfc]));
    let limit = Code::default().raw(&0x7ff_u16.to_le_bytes()).with(&[], DESCRIPTORS as u32);
    tiny.write(DESCRIPTORS - 8, &limit);
    tiny.write(DESCRIPTORS, &descriptors());
    tiny.write(FX_IMAGE, &fx_image());
    tiny.write(ON_FAULT, &on_fault());
    tiny.write(ON_INTERRUPT, &on_interrupt());
    let spared = |index: &u32| {
        !SPARED.contains(index) && !PARAVIRTUAL.iter().any(|range| range.contains(index))
    };
    let list = tiny.msrs.iter().copied().chain(msr::unlisted()).chain([EFER]).filter(spared);
    tiny.write(
        LIST,
        &list.chain([u32::MAX]).fold(Code::default(), |code, index| code.with(&[], index)),
    );
    let started = tiny.start(state);
    tiny.control.resume();
    tiny.wait_for(DIRTY, 2);
    Some((tiny, started))
}

#[test]
fn vcpus_are_after_a_reset_as_those_of_a_machine_that_was_just_made() {
    let (Some(fresh), Some((tiny, (threads, states)))) = (made(), soiled()) else { return };
    tiny.control.pause_to_reset(&threads);
    tiny.control.reset_vcpus();
    tiny.control.stop(threads);
    for (index, (fresh, reset)) in fresh.iter().zip(taken(&states)).enumerate() {
        assert_eq!(differences(fresh, &reset), Vec::<String>::new(), "vCPU {index}");
    }
}

/// Some of what [`dirty`] changes wherever there is KVM.
const PARTS: [&str; 10] = [
    "regs",
    "sregs",
    "debug",
    "lapic 0d0",
    "lapic 320",
    "msr 174",
    "msr 277",
    "msr 200",
    "msr c0000082",
    "msr 17a",
];

/// So that the test above does not pass because nothing was changed.
#[test]
fn guest_that_changes_what_it_can_is_seen_to() {
    let (Some(fresh), Some((tiny, (threads, states)))) = (made(), soiled()) else { return };
    tiny.control.stop(threads);
    for (fresh, soiled) in fresh.iter().zip(taken(&states)) {
        let differ = differences(fresh, &soiled);
        for part in PARTS {
            assert!(
                differ.iter().any(|line| line.starts_with(part)),
                "{part} is not in {differ:#?}"
            );
        }
    }
}

//! Control, debug and model-specific registers, CPUID, XSAVE and translation in any order, with any
//! values.

#![no_main]

use belljar_fuzz::Input;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use belljar_x86::xsave::{self, Restore, Save};
use belljar_x86::{Access, CpuState, control, debug, msr, paging, reset};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static MODEL: LazyLock<CpuidModel> = LazyLock::new(|| {
    CpuidModel::new(&CpuidConfig {
        cpus: 2,
        tsc_hz: 2_000_000_000,
        avx512: true,
    })
});
static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| GuestMemory::new(1 << 20).expect("the host has memory"));

/// One step. Faults are right answers.
fn step(cpu: &mut CpuState, input: &mut Input) {
    let (model, memory) = (&*MODEL, &*MEMORY);
    match input.u8() % 14 {
        0 => drop(control::write_cr0(cpu, memory, input.u64())),
        1 => drop(control::write_cr3(cpu, model, memory, input.u64())),
        2 => drop(control::write_cr4(cpu, model, memory, input.u64())),
        3 => drop(control::write_xcr(cpu, model, input.u32(), input.u64())),
        4 => drop(control::invpcid(
            cpu,
            input.u64(),
            [input.u64(), input.u64()],
        )),
        5 => drop(debug::write(cpu, input.u8(), input.u64())),
        6 => {
            let (at, size) = (input.u64(), u64::from(input.u8()));
            debug::instruction_breakpoint(cpu, at);
            debug::data_breakpoint(cpu, at, size, true);
        }
        7 => drop(msr::read(cpu, model, input.u32(), input.u64())),
        8 => drop(msr::write(
            cpu,
            model,
            input.u32(),
            input.u64(),
            input.u64(),
        )),
        9 => drop(model.query(input.u32(), input.u32(), cpu, 1, true)),
        10 => save_and_restore(cpu, input),
        11 => {
            let at = GuestPhysAddr(u64::from(input.u32() & 0x7_fff8));
            memory
                .write(at, &input.u64().to_le_bytes())
                .expect("the address lies in low memory");
        }
        12 => drop(paging::translate(
            cpu,
            memory,
            input.u64(),
            Access::Write,
            input.u8() & 1 != 0,
        )),
        _ => {
            reset::init(cpu, 0, input.u8() & 1 != 0);
            reset::start_up(cpu, input.u8());
        }
    }
}

/// Saves, spoils the area, and restores it in either format.
fn save_and_restore(cpu: &mut CpuState, input: &mut Input) {
    let model = &*MODEL;
    let form = [Save::Xsave, Save::Xsaveopt, Save::Xsavec, Save::Xsaves];
    let form = form[usize::from(input.u8() & 3)];
    let (mask, wide) = (input.u64(), input.u8() & 1 != 0);
    let mut area = vec![0; xsave::save_size(cpu, model, form, mask)];
    xsave::save(cpu, model, form, mask, wide, &mut area);
    for _ in 0..input.u8() & 7 {
        let at = usize::from(input.u16()) % area.len();
        area[at] = input.u8();
    }
    let header = area[xsave::LEGACY_SIZE..xsave::EXTENDED_OFFSET].try_into();
    let header = header.expect("an area has a header");
    let (form, mask) = match form {
        Save::Xsaves => (Restore::Xrstors, input.u64()),
        _ => (Restore::Xrstor, input.u64()),
    };
    if let Ok(size) = xsave::restore_size(cpu, model, form, mask, header) {
        area.resize(size, 0x55);
        let _ = xsave::restore(cpu, model, form, mask, wide, &area);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut cpu = CpuState::reset(0);
    while !input.is_empty() {
        step(&mut cpu, &mut input);
    }
    // Whatever happened, what the architecture excludes did not.
    assert_eq!(cpu.cr4 & !MODEL.cr4_mask(), 0);
    assert_eq!(cpu.xcr0 & !MODEL.xcr0_mask(), 0);
    assert_eq!(cpu.vector.x87.mxcsr & !xsave::MXCSR_MASK, 0);
    assert!(
        !cpu.long_mode() || cpu.cr0 >> 31 & 1 != 0,
        "LMA without paging"
    );
});

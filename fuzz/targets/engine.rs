//! The decoder and the instructions behind it: any bytes, run in real, 32-bit and 64-bit mode.

#![no_main]

use belljar_clock::{Clock, Entropy, HostEntropy, ManualClock};
use belljar_engine::{Attention, Board, Engine, MsrRefused, Vcpu, VcpuId, VcpuSetup};
use belljar_fuzz::Input;
use belljar_interpreter::Interpreter;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::bits::{cr0, cr4, efer};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use belljar_x86::{CpuState, Seg, Segment};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::Arc;

/// RAM; a program that leaves it meets the board.
const RAM: u64 = 2 << 20;
/// Where the program lies.
const CODE: u64 = 0x8000;
/// The page-map level 4 and the page-directory-pointer table.
const TABLES: [u64; 2] = [0x1000, 0x2000];
/// Instructions of a run.
const BUDGET: u64 = 500;

/// A board without devices.
#[derive(Debug)]
struct Empty;

impl Board for Empty {
    fn port_read(&self, _: VcpuId, port: u16, _: u8) -> u32 {
        u32::from(port).wrapping_mul(0x0101_0101)
    }

    fn port_write(&self, _: VcpuId, _: u16, _: u8, _: u32) {}

    fn mmio_read(&self, _: VcpuId, _: GuestPhysAddr, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: VcpuId, _: GuestPhysAddr, _: &[u8]) {}

    fn msr_read(&self, _: VcpuId, _: u32) -> Result<u64, MsrRefused> {
        Err(MsrRefused)
    }

    fn msr_write(&self, _: VcpuId, _: u32, _: u64, _: &CpuState) -> Result<(), MsrRefused> {
        Err(MsrRefused)
    }

    fn task_priority(&self, _: VcpuId) -> u8 {
        0
    }

    fn set_task_priority(&self, _: VcpuId, _: u8) {}

    fn acknowledge_interrupt(&self, _: VcpuId) -> Option<u8> {
        None
    }

    fn relax(&self, _: VcpuId) {}
}

struct Machine {
    memory: GuestMemory,
    vcpu: Box<dyn Vcpu>,
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fn machine() -> Machine {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(0));
    let entropy: Arc<dyn Entropy> = Arc::new(HostEntropy::new().expect("the host has entropy"));
    let memory = GuestMemory::new(RAM).expect("the host has memory");
    let setup = VcpuSetup {
        id: 0,
        memory: memory.clone(),
        board: Arc::new(Empty),
        attention: Arc::from([Attention::new()]),
        cpuid: Arc::new(CpuidModel::new(&CpuidConfig {
            cpus: 1,
            tsc_hz: clock.tsc_hz(),
            avx512: true,
        })),
        clock,
        entropy,
        state: CpuState::reset(0),
    };
    let vcpu = Interpreter::new()
        .create_vcpu(setup)
        .expect("the interpreter runs on any host");
    Machine { memory, vcpu }
}

/// A state in one of three modes, with registers from the input.
fn state(input: &mut Input) -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.segments[Seg::Cs as usize] = Segment::real_mode(0, 0x9b);
    let mode = input.u8() % 3;
    if mode > 0 {
        for segment in &mut cpu.segments {
            segment.limit = u32::MAX;
            segment.rights |= Segment::BIG | Segment::GRANULARITY;
        }
        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.xcr0 = 7;
    }
    if mode > 1 {
        let code = &mut cpu.segments[Seg::Cs as usize].rights;
        *code = *code & !Segment::BIG | Segment::LONG;
        cpu.cr0 |= cr0::PG | cr0::WP;
        cpu.cr3 = TABLES[0];
        cpu.cr4 |= cr4::PAE;
        cpu.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    }
    for register in &mut cpu.gpr {
        // Small values reach memory often.
        *register = match input.u8() {
            0 => input.u64(),
            small => u64::from(small) << 8,
        };
    }
    cpu.rip = CODE;
    cpu
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let state = state(&mut input);
    MACHINE.with_borrow_mut(|machine| {
        let memory = &machine.memory;
        for region in memory.regions() {
            memory
                .zero(region.start, region.len)
                .expect("the region is RAM");
        }
        for (at, entry) in [(TABLES[0], TABLES[1] | 7), (TABLES[1], 0x87)] {
            memory
                .write(GuestPhysAddr(at), &entry.to_le_bytes())
                .expect("the tables lie in RAM");
        }
        memory
            .write(GuestPhysAddr(CODE), input.take(0x1000))
            .expect("the program lies in RAM");
        machine.vcpu.set_state(state);
        machine.vcpu.run(Some(BUDGET));
    });
});

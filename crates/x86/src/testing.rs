//! A small memory and ready-made processors for the tests of this crate.

use crate::bits::{cr0, cr4, efer, pf};
use crate::descriptor::system;
use crate::state::TableRegister;
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, PhysicalMemory, Seg, Segment};
use belljar_memory::GuestPhysAddr;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Memory without translation, in which single pages can be made absent or read-only.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestMemory {
    bytes: RefCell<BTreeMap<u64, u8>>,
    pub(crate) absent: BTreeSet<u64>,
    pub(crate) read_only: BTreeSet<u64>,
    /// How many times a task switch changed the address space.
    pub(crate) switches: u32,
    /// The next compare-and-swap loses its race: this value is in memory instead.
    pub(crate) race: RefCell<Option<u64>>,
}

impl TestMemory {
    pub(crate) fn get(&self, at: u64, size: u8) -> u64 {
        let bytes = self.bytes.borrow();
        (0..u64::from(size)).rev().fold(0, |value, index| {
            value << 8 | u64::from(*bytes.get(&(at + index)).unwrap_or(&0))
        })
    }

    pub(crate) fn put(&self, at: u64, size: u8, value: u64) {
        let mut bytes = self.bytes.borrow_mut();
        for index in 0..u64::from(size) {
            bytes.insert(at + index, (value >> (8 * index)) as u8);
        }
    }

    fn check(
        &self,
        cpu: &CpuState,
        linear: u64,
        size: u32,
        access: Access,
    ) -> Result<(), Exception> {
        for at in [linear, linear + u64::from(size) - 1] {
            let page = at & !0xfff;
            let absent = self.absent.contains(&page);
            if absent || (access.is_write() && self.read_only.contains(&page)) {
                let mut error = if absent { 0 } else { pf::P };
                error |= if access.is_write() { pf::W } else { 0 };
                let user = cpu.cpl == 3 && !access.is_implicit_supervisor();
                error |= if user { pf::U } else { 0 };
                return Err(Exception::page_fault(at.max(linear), error));
            }
        }
        Ok(())
    }

    fn exchange(&self, at: u64, size: u8, old: u64, new: u64) -> bool {
        if let Some(value) = self.race.borrow_mut().take() {
            self.put(at, size, value);
            return false;
        }
        let same = self.get(at, size) == old;
        if same {
            self.put(at, size, new);
        }
        same
    }
}

impl LinearMemory for TestMemory {
    fn load(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u8,
        access: Access,
    ) -> Result<u64, Exception> {
        self.check(cpu, linear, u32::from(size), access)?;
        Ok(self.get(linear, size))
    }

    fn store(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u8,
        value: u64,
        access: Access,
    ) -> Result<(), Exception> {
        self.check(cpu, linear, u32::from(size), access)?;
        self.put(linear, size, value);
        Ok(())
    }

    fn probe(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u32,
        access: Access,
    ) -> Result<(), Exception> {
        self.check(cpu, linear, size, access)
    }

    fn address_space_changed(&mut self, _cpu: &mut CpuState) -> Result<(), Exception> {
        self.switches += 1;
        Ok(())
    }
}

impl PhysicalMemory for TestMemory {
    fn load_u32(&self, at: GuestPhysAddr) -> u32 {
        self.get(at.get(), 4) as u32
    }

    fn load_u64(&self, at: GuestPhysAddr) -> u64 {
        self.get(at.get(), 8)
    }

    fn compare_exchange_u32(&self, at: GuestPhysAddr, old: u32, new: u32) -> bool {
        self.exchange(at.get(), 4, u64::from(old), u64::from(new))
    }

    fn compare_exchange_u64(&self, at: GuestPhysAddr, old: u64, new: u64) -> bool {
        self.exchange(at.get(), 8, old, new)
    }
}

pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT: u64 = 0x2000;
pub(crate) const TSS: u64 = 0x3000;
pub(crate) const LDT: u64 = 0x4000;
/// The top of the stack of the code that runs.
pub(crate) const STACK: u64 = 0x8000;
/// The tops of the stacks that the TSS names for levels 0, 1 and 2.
pub(crate) const INNER_STACK: [u64; 3] = [0xa000, 0xc000, 0xe000];

/// Rights of descriptors, present and of level 0.
pub(crate) const CODE: u16 = 0x9b;
pub(crate) const DATA: u16 = 0x93;
pub(crate) const FLAT: u16 = Segment::GRANULARITY | Segment::BIG;
pub(crate) const FLAT64: u16 = Segment::GRANULARITY | Segment::LONG;

/// Selectors of the GDT that [`protected`] and [`long`] build; code and data of level n are `8 * n`
/// further.
pub(crate) const CODE0: u16 = 0x08;
pub(crate) const DATA0: u16 = 0x28;
pub(crate) const TSS_SELECTOR: u16 = 0x48;
pub(crate) const LDT_SELECTOR: u16 = 0x58;
/// The first of the entries that tests may fill.
pub(crate) const FREE: u16 = 0x80;

/// The rights of privilege level `level`.
pub(crate) const fn level(level: u8) -> u16 {
    (level as u16) << 5
}

/// The selector of level `n`'s code segment, RPL included.
pub(crate) const fn code(n: u8) -> u16 {
    (CODE0 + 8 * n as u16) | n as u16
}

/// The selector of level `n`'s data segment, RPL included.
pub(crate) const fn data(n: u8) -> u16 {
    (DATA0 + 8 * n as u16) | n as u16
}

/// A segment descriptor; `limit` as it is encoded.
pub(crate) fn segment(base: u32, limit: u32, rights: u16) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (limit & 0xf_0000) << 32
        | (base & 0xff_ffff) << 16
        | (base & 0xff00_0000) << 32
        | u64::from(rights) << 40
}

/// The first 8 bytes of a present gate; `count` is the number of parameters or the interrupt stack.
pub(crate) fn gate(selector: u16, offset: u32, kind: u8, dpl: u8, count: u8) -> u64 {
    let offset = u64::from(offset);
    offset & 0xffff
        | (offset & 0xffff_0000) << 32
        | u64::from(selector) << 16
        | u64::from(0x80 | dpl << 5 | kind) << 40
        | u64::from(count) << 32
}

/// Puts `descriptor` at `selector` of the GDT.
pub(crate) fn define(mem: &TestMemory, selector: u16, descriptor: u64) {
    mem.put(GDT + u64::from(selector & !7), 8, descriptor);
}

/// A segment register with a descriptor of the GDT loaded.
pub(crate) fn loaded(mem: &TestMemory, selector: u16) -> Segment {
    let raw = mem.get(GDT + u64::from(selector & !7), 8);
    let descriptor = crate::descriptor::Descriptor(raw);
    Segment {
        selector,
        rights: descriptor.rights(),
        limit: descriptor.limit(),
        base: u64::from(descriptor.base()),
        usable: true,
    }
}

/// Registers and tables that protected and long mode have in common.
fn with_tables(cpl: u8, code_rights: u16) -> (CpuState, TestMemory) {
    let mem = TestMemory::default();
    for n in 0..4 {
        define(
            &mem,
            code(n),
            segment(0, 0xf_ffff, CODE | level(n) | code_rights),
        );
        define(&mem, data(n), segment(0, 0xf_ffff, DATA | level(n) | FLAT));
    }
    let tss = 0x80 | u16::from(system::TSS32_BUSY);
    define(&mem, TSS_SELECTOR, segment(TSS as u32, 0x2067, tss));
    let ldt = 0x80 | u16::from(system::LDT);
    define(&mem, LDT_SELECTOR, segment(LDT as u32, 0xff, ldt));

    let mut cpu = CpuState::reset(0);
    cpu.cr0 |= cr0::PE;
    cpu.cpl = cpl;
    cpu.gdtr = TableRegister {
        base: GDT,
        limit: 0xff,
    };
    cpu.idtr = TableRegister {
        base: IDT,
        limit: 0xfff,
    };
    cpu.rip = 0x5_0000;
    cpu.gpr[Gpr::Rsp as usize] = STACK;
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.segments[seg as usize] = loaded(&mem, data(cpl));
    }
    cpu.segments[Seg::Cs as usize] = loaded(&mem, code(cpl));
    cpu.tr = loaded(&mem, TSS_SELECTOR);
    cpu.ldtr = crate::descriptor::null_segment(0);
    (cpu, mem)
}

/// 32-bit protected mode at level `cpl` with flat segments, without paging.
pub(crate) fn protected(cpl: u8) -> (CpuState, TestMemory) {
    let (cpu, mem) = with_tables(cpl, FLAT);
    for (n, top) in (0..).zip(INNER_STACK) {
        mem.put(TSS + 4 + 8 * n, 4, top);
        mem.put(TSS + 8 + 8 * n, 2, u64::from(data(n as u8)));
    }
    mem.put(TSS + 0x66, 2, 0x68);
    (cpu, mem)
}

/// 64-bit mode at level `cpl`.
pub(crate) fn long(cpl: u8) -> (CpuState, TestMemory) {
    let (mut cpu, mem) = with_tables(cpl, FLAT64);
    cpu.cr0 |= cr0::PG;
    cpu.cr4 |= cr4::PAE;
    cpu.efer |= efer::LME | efer::LMA | efer::NXE | efer::SCE;
    for (n, top) in (0..).zip(INNER_STACK) {
        mem.put(TSS + 4 + 8 * n, 8, top);
    }
    (cpu, mem)
}

/// Real-address mode with all segments at 0.
pub(crate) fn real() -> (CpuState, TestMemory) {
    let mut cpu = CpuState::reset(0);
    cpu.segments[Seg::Cs as usize].selector = 0x1000;
    cpu.segments[Seg::Cs as usize].base = 0x10000;
    cpu.rip = 0x200;
    cpu.gpr[Gpr::Rsp as usize] = STACK;
    (cpu, TestMemory::default())
}

/// Virtual-8086 mode over the tables of [`protected`].
pub(crate) fn virtual_8086() -> (CpuState, TestMemory) {
    let (mut cpu, mem) = protected(0);
    cpu.rflags |= crate::bits::rflags::VM;
    cpu.cpl = 3;
    cpu.segments = [0x2000; 6].map(crate::descriptor::virtual_8086_segment);
    cpu.rip = 0x200;
    (cpu, mem)
}

/// What lies on the stack from RSP on, `count` values of `size` bytes.
pub(crate) fn stacked(cpu: &CpuState, mem: &TestMemory, size: u8, count: u64) -> Vec<u64> {
    let base = if cpu.code64() {
        0
    } else {
        cpu.seg(Seg::Ss).base
    };
    (0..count)
        .map(|index| {
            mem.get(
                base + cpu.gpr[Gpr::Rsp as usize] + index * u64::from(size),
                size,
            )
        })
        .collect()
}

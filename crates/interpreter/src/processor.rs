//! The processor as the instructions' handlers see it.

use crate::decode;
use crate::flags::LazyFlags;
use crate::host::Word;
use crate::mmu::{Mmu, check_alignment};
use crate::op::{Fault, Flow, Op, Step};
use crate::shared::Member;
use belljar_clock::{Clock, Entropy};
use belljar_engine::{Attention, Board, Reason, VcpuId, VcpuSetup};
use belljar_passthrough::{Stub, Stubs};
use belljar_x86::bits::rflags;
use belljar_x86::cpuid::CpuidModel;
use belljar_x86::state::{Activity, Shadow};
use belljar_x86::syscall::Vendor;
use belljar_x86::{
    Access, CpuState, Event, Exception, Gpr, LinearMemory, Seg, debug, delivery, segmentation,
};
use iced_x86::Instruction;
use std::sync::Arc;

/// Registers, flags, memory and surroundings of one vCPU.
#[derive(Debug)]
pub struct Core {
    /// The architectural state. While a block runs, `rip` and the status flags in `rflags` are
    /// stale.
    pub cpu: CpuState,
    /// The status flags.
    pub flags: LazyFlags,
    /// Memory.
    pub mmu: Mmu,
    /// Instruction pointer at the start of the present block.
    pub block_rip: u64,
    /// Whether 64-bit code runs.
    pub code64: bool,
    /// What decoding depends on; blocks of other modes are other blocks.
    pub mode: u32,
    /// Reasons of the attention word that can be acted upon now.
    pub heeded: u32,
    /// Instructions must be executed one by one: TF, RF, a shadow, breakpoints, or the processor is
    /// not running.
    pub special: bool,
    /// One instruction is being executed by itself: no repeat prefix may run on.
    pub single: bool,
    /// The exception of the last [`Fault`].
    pub exception: Exception,
    /// The vCPU's number.
    pub id: VcpuId,
    /// The rest of the machine.
    pub board: Arc<dyn Board>,
    /// The attention words of all vCPUs.
    pub attention: Arc<[Attention]>,
    /// What CPUID tells.
    pub model: Arc<CpuidModel>,
    /// The machine's time.
    pub clock: Arc<dyn Clock>,
    /// The machine's randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Whose processor it is.
    pub vendor: Vendor,
    /// How the decoder is to take instructions: what [`DecoderOptions`](iced_x86::DecoderOptions) has.
    pub decoding: u32,
    /// Decoded instructions of ops whose handlers need more of them than the op holds.
    pub instructions: Vec<Instruction>,
    /// Compiled instructions of ops that run on the host.
    pub compiled: Vec<Stub>,
    /// The code of the compiled instructions.
    pub stubs: Stubs,
    /// The vCPU among the others.
    pub member: Member,
    /// PAUSEs executed.
    pub pauses: u32,
}

impl Core {
    /// A processor in the state of `setup`.
    pub fn new(setup: VcpuSetup, stubs: Stubs, member: Member) -> Self {
        let mmu = Mmu::new(
            setup.memory,
            Arc::clone(&setup.board),
            setup.id,
            Arc::clone(member.own()),
        );
        let vendor = setup.cpuid.vendor();
        let decoding = decode::options(&setup.cpuid);
        let mut core = Self {
            cpu: setup.state,
            flags: LazyFlags::default(),
            mmu,
            block_rip: 0,
            code64: false,
            mode: 0,
            heeded: 0,
            special: false,
            single: false,
            exception: Exception::invalid_opcode(),
            id: setup.id,
            board: setup.board,
            attention: setup.attention,
            model: setup.cpuid,
            clock: setup.clock,
            entropy: setup.entropy,
            vendor,
            decoding,
            instructions: Vec::new(),
            compiled: Vec::new(),
            stubs,
            member,
            pauses: 0,
        };
        core.load_flags();
        core.refresh();
        core
    }

    /// Computes anew what is cached from the registers.
    pub fn refresh(&mut self) {
        let cpu = &self.cpu;
        self.code64 = cpu.code64();
        self.mode = (cpu.code_bits() / 32)
            | ((cpu.stack_bits() / 32) << 2)
            | (u32::from(cpu.cpl == 3) << 4)
            | (u32::from(cpu.protected()) << 5);
        self.mmu.select(cpu);
        self.heed();
    }

    /// Computes anew what the processor heeds between instructions.
    #[inline]
    pub fn heed(&mut self) {
        let cpu = &self.cpu;
        self.heeded = Reason::MACHINE.0 | Reason::ENGINE.0;
        if cpu.rflags & rflags::IF != 0 {
            self.heeded |= Reason::INTERRUPT.0;
        }
        if !cpu.nmi_blocked {
            self.heeded |= Reason::NMI.0;
        }
        self.special = cpu.rflags & (rflags::TF | rflags::RF) != 0
            || cpu.shadow != Shadow::None
            || cpu.activity != Activity::Running
            || cpu.pending_event.is_some()
            || cpu.pending_debug != 0
            || debug::any_active(cpu);
    }

    /// The reasons for attention that can be acted upon now.
    #[inline(always)]
    pub fn calls(&self) -> u32 {
        self.attention
            .get(self.id as usize)
            .map_or(0, Attention::pending)
            & self.heeded
    }

    /// Takes AC from `flags`, where an engine keeps flags that STAC and CLAC have changed.
    #[inline]
    pub fn set_access(&mut self, flags: u32) {
        let access = u64::from(flags) & rflags::AC;
        self.cpu.rflags = self.cpu.rflags & !rflags::AC | access;
    }

    /// Raises an exception.
    #[inline(never)]
    pub fn raise(&mut self, exception: Exception) -> Fault {
        self.exception = exception;
        Fault
    }

    /// Raises #GP(0).
    #[cold]
    pub(crate) fn protection_fault(&mut self) -> Fault {
        self.raise(Exception::general_protection(0))
    }

    /// Raises #UD.
    #[cold]
    pub(crate) fn invalid_opcode(&mut self) -> Fault {
        self.raise(Exception::invalid_opcode())
    }

    /// #GP(0) unless at CPL 0.
    #[inline]
    pub(crate) fn require_cpl0(&mut self) -> Result<(), Fault> {
        if self.cpu.cpl != 0 {
            return Err(self.protection_fault());
        }
        Ok(())
    }

    /// Brings the status flags in `rflags` up to date.
    #[inline]
    pub fn sync_flags(&mut self) {
        self.cpu.rflags = self.cpu.rflags & !rflags::STATUS | self.flags.bits();
    }

    /// Takes the status flags from `rflags`.
    #[inline]
    pub fn load_flags(&mut self) {
        self.flags.set_bits(self.cpu.rflags);
    }

    /// Brings `rip` (the instruction's own address) and `rflags` up to date, for functions of the
    /// architecture.
    #[inline]
    pub(crate) fn sync(&mut self, op: &Op) {
        self.cpu.rip = self.block_rip.wrapping_add(u64::from(op.offset));
        self.sync_flags();
    }

    /// The instruction pointer `bytes` after the start of the present block.
    #[inline(always)]
    pub(crate) fn next_after(&self, bytes: u64) -> u64 {
        let next = self.block_rip.wrapping_add(bytes);
        if self.code64 {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// Address of the next instruction.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        self.next_after(op.end())
    }

    /// Delivers an event with `rip` and everything else as it stands.
    pub fn deliver(&mut self, event: Event) -> Flow {
        self.sync_flags();
        tracing::trace!(
            target: "belljar::event",
            vcpu = self.id,
            ?event,
            rip = format_args!("{:#x}", self.cpu.rip),
            cpl = self.cpu.cpl,
            cr2 = format_args!("{:#x}", self.cpu.cr2),
        );
        let result = delivery::deliver(&mut self.cpu, &mut self.mmu, event);
        self.mmu.noncanonical = false;
        self.load_flags();
        self.refresh();
        match result {
            Ok(()) => Flow::ResyncJump,
            Err(delivery::TripleFault) => Flow::TripleFault,
        }
    }

    // Registers.

    /// A general-purpose register.
    #[inline(always)]
    pub(crate) fn gpr(&self, number: u8) -> u64 {
        self.cpu.gpr[usize::from(number & 15)]
    }

    /// Sets a general-purpose register.
    #[inline(always)]
    pub(crate) fn set_gpr(&mut self, number: u8, value: u64) {
        self.cpu.gpr[usize::from(number & 15)] = value;
    }

    /// A register operand; see [`Op::dst`].
    #[inline(always)]
    pub(crate) fn reg<T: Word>(&self, number: u8) -> T {
        if T::BYTES == 1 {
            T::truncate(self.gpr(number) >> ((number & 16) >> 1))
        } else {
            T::truncate(self.gpr(number))
        }
    }

    /// Sets a register operand: 32 bits are zero-extended, fewer leave the rest alone.
    #[inline(always)]
    pub(crate) fn set_reg<T: Word>(&mut self, number: u8, value: T) {
        let register = &mut self.cpu.gpr[usize::from(number & 15)];
        *register = match T::BYTES {
            1 => {
                let shift = (number & 16) >> 1;
                *register & !(0xff << shift) | value.extend() << shift
            }
            2 => *register & !0xffff | value.extend(),
            _ => value.extend(),
        };
    }

    /// The part of a register that addresses of `mask` use.
    #[inline(always)]
    pub(crate) fn masked(&self, register: Gpr, mask: u64) -> u64 {
        self.cpu.gpr[register as usize] & mask
    }

    /// Sets the part of a register that addresses of `mask` use: as a write of that operand size
    /// does.
    #[inline(always)]
    pub(crate) fn set_masked(&mut self, register: Gpr, mask: u64, value: u64) {
        let register = &mut self.cpu.gpr[register as usize];
        *register = if mask == 0xffff {
            *register & !mask | value & mask
        } else {
            value & mask
        };
    }

    // Memory at linear addresses.

    /// Reads memory.
    #[inline(always)]
    pub(crate) fn read<T: Word>(&mut self, linear: u64) -> Result<T, Fault> {
        match self.mmu.fast_read::<T>(linear) {
            // SAFETY: the TLB holds host addresses of RAM pages, and the access stays within its
            // page.
            Some(host) => Ok(unsafe { T::load(host) }),
            None => self.read_slow(linear),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow<T: Word>(&mut self, linear: u64) -> Result<T, Fault> {
        self.mmu
            .load_word(&self.cpu, linear, Access::Read)
            .map_err(|e| self.raise(e))
    }

    /// Writes memory.
    #[inline(always)]
    pub(crate) fn write<T: Word>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        match self.mmu.fast_write::<T>(linear) {
            Some(host) => {
                // SAFETY: as in `read`; the page is writable and holds no cached code.
                unsafe { T::store(host, value) };
                Ok(())
            }
            None => self.write_slow(linear, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_slow<T: Word>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        self.mmu
            .store_word(&self.cpu, linear, value, Access::Write)
            .map_err(|e| self.raise(e))
    }

    /// Reads, changes and writes memory, not atomically.
    #[inline(always)]
    pub(crate) fn modify<T: Word>(
        &mut self,
        linear: u64,
        change: impl FnOnce(&mut LazyFlags, T) -> T,
    ) -> Result<(), Fault> {
        if let Some(host) = self.mmu.fast_write::<T>(linear) {
            // SAFETY: as in `write`.
            unsafe { T::store(host, change(&mut self.flags, T::load(host))) };
            return Ok(());
        }
        self.probe_write(linear, T::BYTES)?;
        let old = self.read_slow(linear)?;
        let mut flags = self.flags;
        let new = change(&mut flags, old);
        self.write_slow(linear, new)?;
        self.flags = flags;
        Ok(())
    }

    /// Checks that a write would succeed.
    #[cold]
    #[inline(never)]
    pub(crate) fn probe_write(&mut self, linear: u64, size: u64) -> Result<(), Fault> {
        check_alignment(&self.cpu, linear, size)
            .and_then(|()| {
                self.mmu
                    .probe(&self.cpu, linear, size as u32, Access::Write)
            })
            .map_err(|e| self.raise(e))
    }

    /// Reads, changes and writes memory atomically; gives what was there. `change` may be called
    /// more than once.
    #[inline]
    pub(crate) fn modify_locked<T: Word>(
        &mut self,
        linear: u64,
        change: impl Fn(&mut LazyFlags, T) -> T,
    ) -> Result<T, Fault> {
        let (host, fast) = match self.mmu.fast_write::<T>(linear) {
            Some(host) => (Some(host), true),
            None => (self.locked_range(linear, T::BYTES)?, false),
        };
        let Some(host) = host else {
            return self.modify_split(linear, change);
        };
        // SAFETY: the TLB or `locked_range` gave the host address of `BYTES` bytes of writable RAM.
        let mut old = unsafe { T::load(host) };
        loop {
            let mut flags = self.flags;
            let new = change(&mut flags, old);
            // SAFETY: as above.
            let seen = unsafe { T::compare_exchange(host, old, new) };
            if seen == old {
                self.flags = flags;
                break;
            }
            old = seen;
        }
        if !fast {
            self.note_locked_write(host, T::BYTES);
        }
        Ok(old)
    }

    /// Host address of the operand of a locked operation if it is RAM in one piece.
    pub(crate) fn locked_range(
        &mut self,
        linear: u64,
        size: u64,
    ) -> Result<Option<*mut u8>, Fault> {
        let range = check_alignment(&self.cpu, linear, size).and_then(|()| {
            self.mmu
                .host_range(&self.cpu, linear, size as usize, Access::Write)
        });
        range.map_err(|e| self.raise(e))
    }

    /// Notes a locked write that did not take the fast path.
    pub(crate) fn note_locked_write(&mut self, host: *mut u8, size: u64) {
        self.mmu.written(host);
        self.mmu.written(host.wrapping_add(size as usize - 1));
    }

    /// A locked operation on a device or on two pages that are not neighbours on the host.
    #[cold]
    fn modify_split<T: Word>(
        &mut self,
        linear: u64,
        change: impl Fn(&mut LazyFlags, T) -> T,
    ) -> Result<T, Fault> {
        let result = {
            let _exclusive = self.member.split_lock();
            let load = self.mmu.load_word(&self.cpu, linear, Access::Read);
            load.and_then(|old| {
                let new = change(&mut self.flags, old);
                self.mmu
                    .store_word(&self.cpu, linear, new, Access::Write)
                    .map(|()| old)
            })
        };
        result.map_err(|e| self.raise(e))
    }

    /// What a handler that may have written to memory gives.
    #[inline(always)]
    #[allow(clippy::unnecessary_wraps)] // Handlers end with it.
    pub(crate) fn stored(&self) -> Step {
        Ok(if self.mmu.disturbed {
            Flow::Leave
        } else {
            Flow::Next
        })
    }

    // The stack.

    /// Turns a fault on an address that is not canonical into one of the stack.
    #[cold]
    pub(crate) fn stack_fault(&mut self, fault: Fault) -> Fault {
        if std::mem::take(&mut self.mmu.noncanonical) {
            self.exception = Exception::stack_fault(0);
        }
        fault
    }

    /// The mask of the stack pointer.
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.code64 || self.cpu.seg(Seg::Ss).has(belljar_x86::Segment::BIG) {
            if self.code64 { u64::MAX } else { 0xffff_ffff }
        } else {
            0xffff
        }
    }

    /// The linear address of stack offset `offset`.
    #[inline(always)]
    pub(crate) fn stack_linear<T: Word>(
        &mut self,
        offset: u64,
        access: Access,
    ) -> Result<u64, Fault> {
        if self.code64 {
            return Ok(offset);
        }
        segmentation::linear_address(&self.cpu, Seg::Ss, offset, T::BYTES as u32, access)
            .map_err(|e| self.raise(e))
    }

    /// Sets the part of the stack pointer that is in use.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let rsp = &mut self.cpu.gpr[Gpr::Rsp as usize];
        *rsp = *rsp & !mask | value & mask;
    }

    /// Pushes.
    #[inline(always)]
    pub(crate) fn push<T: Word>(&mut self, value: T) -> Result<(), Fault> {
        let offset = self.cpu.gpr[Gpr::Rsp as usize].wrapping_sub(T::BYTES) & self.stack_mask();
        let linear = self.stack_linear::<T>(offset, Access::Write)?;
        if let Err(fault) = self.write(linear, value) {
            return Err(self.stack_fault(fault));
        }
        self.set_stack_pointer(offset);
        Ok(())
    }

    /// Checks that a push would succeed.
    #[cold]
    pub(crate) fn probe_push<T: Word>(&mut self) -> Result<(), Fault> {
        let offset = self.cpu.gpr[Gpr::Rsp as usize].wrapping_sub(T::BYTES) & self.stack_mask();
        let linear = self.stack_linear::<T>(offset, Access::Write)?;
        self.probe_write(linear, T::BYTES)
            .map_err(|fault| self.stack_fault(fault))
    }

    /// Reads the stack, `above` bytes above its top.
    #[inline(always)]
    pub(crate) fn peek<T: Word>(&mut self, above: u64) -> Result<T, Fault> {
        let offset = self.cpu.gpr[Gpr::Rsp as usize].wrapping_add(above) & self.stack_mask();
        let linear = self.stack_linear::<T>(offset, Access::Read)?;
        match self.read(linear) {
            Ok(value) => Ok(value),
            Err(fault) => Err(self.stack_fault(fault)),
        }
    }

    /// Moves the stack pointer up (or down).
    #[inline(always)]
    pub(crate) fn release(&mut self, bytes: u64) {
        let rsp = self.cpu.gpr[Gpr::Rsp as usize].wrapping_add(bytes);
        self.set_stack_pointer(rsp);
    }

    /// Pops.
    #[inline(always)]
    pub(crate) fn pop<T: Word>(&mut self) -> Result<T, Fault> {
        let value = self.peek(0)?;
        self.release(T::BYTES);
        Ok(value)
    }

    // Events of the engine.

    /// Works off the requests of other vCPUs.
    pub fn answer_requests(&mut self) {
        if let Some(own) = self.attention.get(self.id as usize) {
            own.clear(Reason::ENGINE);
        }
        self.mmu.answer_requests();
    }

    /// What a serialising instruction does: changes of code by other vCPUs that happened before are
    /// visible after it.
    #[inline]
    pub(crate) fn serialise(&mut self) {
        while !self.member.all_answered() {
            self.answer_requests();
            std::thread::yield_now();
        }
    }
}

//! The fabric that ties the 8259As, the I/O APIC and the local APICs together, and to the vCPUs.
//!
//! Wiring, as on a PC: ISA line n goes to the 8259A pair's input n and to the I/O APIC's input n
//! (line 0 to input 2); the pair's output goes to LINT0 of every processor and to the I/O APIC's
//! input 0; the board's NMI goes to LINT1 of every processor. PCI's lines go to the I/O APIC's inputs
//! from 16 on.
//!
//! # Locks
//!
//! In this order: a device's lock, the 8259As', the I/O APIC's, one local APIC's. No two local
//! APICs are locked at once, and nothing is taken while one is but the sleepers' lock of an
//! attention word and what the machine takes in [`TimerWake`]. An access to a local APIC by its own
//! vCPU takes that lock only, unless it sends or ends a level-triggered interrupt, which is done
//! after the lock is released.

use crate::bus::{SharedDevice, read_bytes, write_bytes};
use crate::ioapic::IoApic;
use crate::irq::IrqSink;
use crate::lapic::{Effect, Lapic, LapicState, Lint, Register, Shorthand, Signal};
use crate::layout;
use crate::message::{DeliveryMode, Message};
use crate::pci::{LevelSink, MessageSink};
use crate::pic::Pic;
use crate::timers::{SharedTimed, TimerWake, lock};
use belljar_clock::{Clock, Nanos};
use belljar_engine::{Attention, MsrRefused, Reason, VcpuId};
use belljar_memory::{GuestPhysAddr, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// IA32_APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The x2APIC's registers.
const MSR_X2APIC: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8ff;
/// `page` of a local APIC that is not in memory; `deadline` of one whose timer is not armed.
const NONE: u64 = u64::MAX;

/// One vCPU's local APIC, with what is read without its lock.
#[derive(Debug)]
struct Slot {
    lapic: Mutex<Lapic>,
    page: AtomicU64,
    deadline: AtomicU64,
}

/// The state of [`Interrupts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptsState {
    pic: Pic,
    ioapic: IoApic,
    lapics: Vec<LapicState>,
    nmi_line: bool,
}

/// All interrupt controllers of a machine.
#[derive(Debug)]
pub struct Interrupts {
    pic: Mutex<Pic>,
    ioapic: Mutex<IoApic>,
    slots: Box<[Slot]>,
    nmi_line: Mutex<bool>,
    attention: Arc<[Attention]>,
    wake: Arc<dyn TimerWake>,
    /// Whose turn it is among processors of equal priority.
    turn: AtomicU32,
}

impl Interrupts {
    /// The controllers of a machine of `cpus` vCPUs after power-on. vCPU n has the APIC ID n;
    /// `attention` holds a word for each.
    pub fn new(
        cpus: u32,
        attention: Arc<[Attention]>,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Arc<Self> {
        let lapics = (0..cpus).map(|id| Lapic::new(id, Arc::clone(&clock)));
        Self::build(
            Pic::new(),
            IoApic::new(),
            lapics.collect(),
            false,
            attention,
            wake,
        )
    }

    /// The controllers as they were saved. The vCPUs' attention words are set to match.
    pub fn restore(
        state: InterruptsState,
        attention: Arc<[Attention]>,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Arc<Self> {
        let lapics = state
            .lapics
            .into_iter()
            .map(|lapic| Lapic::restore(lapic, Arc::clone(&clock)));
        Self::build(
            state.pic,
            state.ioapic,
            lapics.collect(),
            state.nmi_line,
            attention,
            wake,
        )
    }

    fn build(
        pic: Pic,
        ioapic: IoApic,
        lapics: Vec<Lapic>,
        nmi_line: bool,
        attention: Arc<[Attention]>,
        wake: Arc<dyn TimerWake>,
    ) -> Arc<Self> {
        let slots = lapics.into_iter().map(|lapic| Slot {
            lapic: Mutex::new(lapic),
            page: AtomicU64::new(NONE),
            deadline: AtomicU64::new(NONE),
        });
        let this = Arc::new(Self {
            pic: Mutex::new(pic),
            ioapic: Mutex::new(ioapic),
            slots: slots.collect(),
            nmi_line: Mutex::new(nmi_line),
            attention,
            wake,
            turn: AtomicU32::new(0),
        });
        for vcpu in 0..this.slots.len() {
            this.with_lapic(vcpu, |_| ());
        }
        this
    }

    /// The whole state, apart from NMI, INIT and start-up messages that a vCPU has yet to take from
    /// its attention word.
    pub fn save(&self) -> InterruptsState {
        InterruptsState {
            pic: lock(&self.pic).clone(),
            ioapic: lock(&self.ioapic).clone(),
            lapics: self.slots.iter().map(|s| lock(&s.lapic).save()).collect(),
            nmi_line: *lock(&self.nmi_line),
        }
    }

    /// Power-on reset. Lines keep the levels that their devices drive.
    pub fn reset(&self) {
        {
            let mut pic = lock(&self.pic);
            pic.reset();
            self.propagate(&pic);
        }
        lock(&self.ioapic).reset();
        for vcpu in 0..self.slots.len() {
            self.with_lapic(vcpu, Lapic::reset);
        }
    }

    /// Sets up what PC firmware leaves to a kernel: the 8259As initialised and masked, ACPI's
    /// interrupt level triggered, and the bootstrap processor's virtual wire. For machines that
    /// start a kernel without firmware.
    pub fn firmware_handoff(&self) {
        {
            let mut pic = lock(&self.pic);
            pic.firmware_handoff(1 << layout::SCI_IRQ);
            self.propagate(&pic);
        }
        self.with_lapic(0, Lapic::set_virtual_wire);
    }

    /// Runs `act` on a local APIC, then shows its state: to its vCPU, to accesses without a lock
    /// and to the timers.
    fn with_lapic<R>(&self, vcpu: usize, act: impl FnOnce(&mut Lapic) -> R) -> Option<R> {
        let (slot, attention) = (self.slots.get(vcpu)?, self.attention.get(vcpu)?);
        let mut lapic = lock(&slot.lapic);
        let result = act(&mut lapic);
        // Under the lock, so that the word never shows an older state than the lock protects.
        let pending = lapic.interrupt_pending();
        if pending != attention.has(Reason::INTERRUPT) {
            if pending {
                attention.raise(Reason::INTERRUPT);
            } else {
                attention.clear(Reason::INTERRUPT);
            }
        }
        slot.page
            .store(lapic.page().unwrap_or(NONE), Ordering::Release);
        let deadline = lapic.deadline().map_or(NONE, |at| at.0);
        if slot.deadline.swap(deadline, Ordering::SeqCst) != deadline && deadline != NONE {
            self.wake.deadline_changed(Nanos(deadline));
        }
        Some(result)
    }

    /// Passes to a vCPU what its local APIC signals to the core.
    fn signal(&self, vcpu: usize, signal: Signal) {
        let Some(attention) = self.attention.get(vcpu) else {
            return;
        };
        match signal {
            Signal::None => {}
            Signal::Nmi => attention.raise(Reason::NMI),
            Signal::Init => {
                // A start-up message that came before INIT is lost with the processor's state.
                attention.clear(Reason::SIPI);
                attention.raise(Reason::INIT);
            }
            Signal::StartUp(vector) => attention.raise_sipi(vector),
        }
    }

    /// Shows the 8259As' output, whose lock the caller holds, to the processors and the I/O APIC.
    fn propagate(&self, pic: &Pic) {
        self.set_pic_output(pic.output());
    }

    fn set_pic_output(&self, high: bool) {
        for vcpu in 0..self.slots.len() {
            let signal = self.with_lapic(vcpu, |lapic| lapic.set_lint(Lint::Lint0, high));
            self.signal(vcpu, signal.unwrap_or(Signal::None));
        }
        self.set_ioapic_pin(0, high);
    }

    fn set_ioapic_pin(&self, pin: u8, high: bool) {
        lock(&self.ioapic).set_pin(pin, high, &mut |message| self.deliver(message));
    }

    /// Sets the level of the board's NMI line.
    pub fn set_nmi_line(&self, high: bool) {
        *lock(&self.nmi_line) = high;
        for vcpu in 0..self.slots.len() {
            let signal = self.with_lapic(vcpu, |lapic| lapic.set_lint(Lint::Lint1, high));
            self.signal(vcpu, signal.unwrap_or(Signal::None));
        }
    }

    /// Delivers the message-signalled interrupt that a write of `data` to `address` is. Other
    /// writes do nothing.
    pub fn deliver_msi(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.deliver(&message);
        } else {
            tracing::debug!(address, data, "not a message-signalled interrupt");
        }
    }

    /// Delivers a message to the local APICs that its destination names.
    fn deliver(&self, message: &Message) {
        if message.mode == DeliveryMode::LowestPriority {
            self.deliver_lowest(message);
            return;
        }
        for vcpu in 0..self.slots.len() {
            self.deliver_to(vcpu, message, |lapic| lapic.matches(message));
        }
    }

    fn deliver_to(&self, vcpu: usize, message: &Message, wanted: impl FnOnce(&Lapic) -> bool) {
        let signal = self.with_lapic(vcpu, |lapic| {
            if lapic.enabled() && wanted(lapic) {
                lapic.accept(message)
            } else {
                Signal::None
            }
        });
        self.signal(vcpu, signal.unwrap_or(Signal::None));
    }

    /// Delivers to the one processor of the lowest priority; those of equal priority take turns.
    fn deliver_lowest(&self, message: &Message) {
        let count = self.slots.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let candidates = (0..count).map(|i| turn.wrapping_add(i) % count);
        let chosen = candidates
            .filter_map(|vcpu| {
                let lapic = lock(&self.slots.get(vcpu)?.lapic);
                (lapic.arbitrates() && lapic.matches(message))
                    .then(|| (lapic.arbitration_priority(), vcpu))
            })
            .min_by_key(|(priority, _)| *priority);
        if let Some((_, vcpu)) = chosen {
            self.deliver_to(vcpu, message, |_| true);
        }
    }

    /// Carries out what a register write of `vcpu` makes happen elsewhere. The local APIC's lock is
    /// released.
    fn carry_out(&self, vcpu: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => {
                lock(&self.ioapic).end_of_interrupt(vector, &mut |m| self.deliver(m));
            }
            Effect::Send(Shorthand::None, message) => self.deliver(&message),
            Effect::Send(Shorthand::Myself, message) => self.deliver_to(vcpu, &message, |_| true),
            Effect::Send(shorthand, message) => {
                for other in 0..self.slots.len() {
                    if other != vcpu || shorthand == Shorthand::All {
                        self.deliver_to(other, &message, |_| true);
                    }
                }
            }
        }
    }

    /// Takes the vector of the interrupt to deliver to `vcpu` now; `None` if there is none (any
    /// more).
    pub fn acknowledge(&self, vcpu: VcpuId) -> Option<u8> {
        let index = vcpu as usize;
        let slot = self.slots.get(index)?;
        // The 8259A's interrupts have no priority among the local APIC's: they come first.
        let ext_int = lock(&slot.lapic).ext_int_pending();
        if ext_int && let Some(vector) = self.acknowledge_pic(index) {
            return Some(vector);
        }
        self.with_lapic(index, Lapic::acknowledge)?
    }

    /// The 8259A's interrupt, if another processor did not take it or its device withdraw it.
    fn acknowledge_pic(&self, vcpu: usize) -> Option<u8> {
        let mut pic = lock(&self.pic);
        let vector = pic.output().then(|| pic.acknowledge());
        self.with_lapic(vcpu, Lapic::ext_int_acknowledged);
        if vector.is_some() {
            // The output falls with the acknowledgement and rises again for the next request.
            self.set_pic_output(false);
            self.propagate(&pic);
        }
        vector
    }

    /// The task priority of `vcpu`, as CR8 shows it.
    pub fn task_priority(&self, vcpu: VcpuId) -> u8 {
        self.slots
            .get(vcpu as usize)
            .map_or(0, |slot| lock(&slot.lapic).task_priority())
    }

    /// Sets the task priority of `vcpu` (MOV to CR8).
    pub fn set_task_priority(&self, vcpu: VcpuId, priority: u8) {
        self.with_lapic(vcpu as usize, |lapic| lapic.set_task_priority(priority));
    }

    /// The register and the first byte of it that an access of `vcpu` to `at` is to; `None` if its
    /// local APIC is not there.
    fn register(&self, vcpu: VcpuId, at: GuestPhysAddr) -> Option<(Register, usize)> {
        let page = self.slots.get(vcpu as usize)?.page.load(Ordering::Acquire);
        let offset = at.0.checked_sub(page).filter(|o| *o < PAGE_SIZE)?;
        // Registers lie 16 bytes apart in the first KiB, the rest of the page is empty.
        let number = u8::try_from(offset >> 4).unwrap_or(u8::MAX);
        Some((Register(number), (offset & 0xf) as usize))
    }

    /// Reads the local APIC's page if `at` lies in that of `vcpu`; else tells `false`.
    pub fn mmio_read(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &mut [u8]) -> bool {
        let Some((register, first)) = self.register(vcpu, at) else {
            return false;
        };
        let value = self.with_lapic(vcpu as usize, |lapic| lapic.read_xapic(register));
        let bytes = value.unwrap_or(0).to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(first + i).copied().unwrap_or(0);
        }
        true
    }

    /// Writes the local APIC's page if `at` lies in that of `vcpu`; else tells `false`. Only
    /// aligned writes of 32 bits reach a register: the others are undefined (SDM 3A, 11.4.1), and
    /// here without effect.
    pub fn mmio_write(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &[u8]) -> bool {
        let Some((register, first)) = self.register(vcpu, at) else {
            return false;
        };
        if let (0, Ok(word)) = (first, <[u8; 4]>::try_from(data)) {
            let value = u32::from_le_bytes(word);
            let effect = self.with_lapic(vcpu as usize, |l| l.write_xapic(register, value));
            self.carry_out(vcpu as usize, effect.unwrap_or(Effect::None));
        }
        true
    }

    /// Reads one of the local APIC's MSRs. `None` if `index` is not one of them.
    pub fn msr_read(&self, vcpu: VcpuId, index: u32) -> Option<Result<u64, MsrRefused>> {
        let access = |lapic: &mut Lapic| match index {
            MSR_APIC_BASE => Ok(lapic.base()),
            MSR_TSC_DEADLINE => Ok(lapic.tsc_deadline()),
            _ if lapic.x2apic() => lapic
                .read_x2apic(Register(index as u8))
                .map_err(|_| MsrRefused),
            _ => Err(MsrRefused),
        };
        Self::is_msr(index).then(|| {
            self.with_lapic(vcpu as usize, access)
                .unwrap_or(Err(MsrRefused))
        })
    }

    /// Writes one of the local APIC's MSRs. `None` if `index` is not one of them. `tsc_adjust` is
    /// what the vCPU's time-stamp counter is ahead of the machine's.
    pub fn msr_write(
        &self,
        vcpu: VcpuId,
        index: u32,
        value: u64,
        tsc_adjust: u64,
    ) -> Option<Result<(), MsrRefused>> {
        let access = |lapic: &mut Lapic| match index {
            MSR_APIC_BASE => lapic.set_base(value).map(|()| Effect::None),
            MSR_TSC_DEADLINE => {
                lapic.set_tsc_deadline(value, tsc_adjust);
                Ok(Effect::None)
            }
            _ if lapic.x2apic() => lapic.write_x2apic(Register(index as u8), value),
            _ => Err(crate::lapic::RegisterRefused),
        };
        Self::is_msr(index).then(|| {
            let effect = self
                .with_lapic(vcpu as usize, access)
                .ok_or(MsrRefused)?
                .map_err(|_| MsrRefused)?;
            self.carry_out(vcpu as usize, effect);
            Ok(())
        })
    }

    fn is_msr(index: u32) -> bool {
        matches!(
            index,
            MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..=MSR_X2APIC_LAST
        )
    }
}

impl IrqSink for Interrupts {
    fn set_irq(&self, irq: u8, level: bool) {
        {
            let mut pic = lock(&self.pic);
            let before = pic.output();
            pic.set_line(irq, level);
            if pic.output() != before {
                self.propagate(&pic);
            }
        }
        self.set_ioapic_pin(layout::isa_gsi(irq), level);
    }
}

impl LevelSink for Interrupts {
    /// PCI's lines are active low, and end at the I/O APIC alone.
    fn set_pci_line(&self, gsi: u8, asserted: bool) {
        self.set_ioapic_pin(gsi, !asserted);
    }
}

impl MessageSink for Interrupts {
    fn deliver_message(&self, address: u64, data: u32) {
        self.deliver_msi(address, data);
    }
}

impl SharedTimed for Interrupts {
    fn deadline(&self) -> Option<Nanos> {
        let deadlines = self.slots.iter().map(|s| s.deadline.load(Ordering::SeqCst));
        deadlines.min().filter(|at| *at != NONE).map(Nanos)
    }

    fn expire(&self, now: Nanos) {
        for (vcpu, slot) in self.slots.iter().enumerate() {
            if slot.deadline.load(Ordering::SeqCst) <= now.0 {
                self.with_lapic(vcpu, |lapic| lapic.expire(now));
            }
        }
    }
}

/// The ports of the 8259As, at [`layout::PIC`].
#[derive(Clone, Debug)]
pub struct PicPorts(pub Arc<Interrupts>);

impl SharedDevice for PicPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut pic = lock(&self.0.pic);
        read_bytes(offset, data, |at| pic.read(at));
        self.0.propagate(&pic);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut pic = lock(&self.0.pic);
        write_bytes(offset, data, |at, value| pic.write(at, value));
        self.0.propagate(&pic);
    }
}

/// The page of the I/O APIC, at [`layout::IOAPIC`].
#[derive(Clone, Debug)]
pub struct IoApicPage(pub Arc<Interrupts>);

impl SharedDevice for IoApicPage {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.0.ioapic).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.0.ioapic).write(offset, data, &mut |message| self.0.deliver(message));
    }
}

#[cfg(test)]
mod tests;

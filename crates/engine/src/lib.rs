//! The seam between engines and the machine.
//!
//! It lies between floors 1 and 2. An [`Engine`] makes [`Vcpu`]s; a [`Vcpu`] runs guest code on the
//! thread that calls it until something outside it must act. What it needs of the machine while it
//! runs it asks of the [`Board`]; what the machine wants of it comes through its [`Attention`]
//! word. The seam is the same for every engine.

#![forbid(unsafe_code)]

mod attention;

pub use attention::{Attention, Reason};

use belljar_clock::{Clock, Entropy};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::CpuState;
use belljar_x86::cpuid::CpuidModel;
use std::sync::Arc;
use thiserror::Error;

/// Number of a vCPU in its machine: 0 is the bootstrap processor.
pub type VcpuId = u32;

/// Why an engine could not make or run a vCPU.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The host lacks what the engine needs.
    #[error("the engine {engine} cannot run on this host: {reason}")]
    Unavailable {
        /// The engine's name.
        engine: &'static str,
        /// What is missing.
        reason: String,
    },
    /// The host refused something.
    #[error("the engine {engine} failed: {what}")]
    Host {
        /// The engine's name.
        engine: &'static str,
        /// What was refused.
        what: String,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
}

/// The machine does not know the MSR, or the value is not one that it can hold: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRefused;

/// What a vCPU reaches outside itself. Implemented by the machine; called on the vCPUs' threads,
/// several at once.
pub trait Board: Send + Sync + std::fmt::Debug {
    /// IN: reads `size` (1, 2 or 4) bytes from `port`. Unassigned ports give all ones.
    fn port_read(&self, vcpu: VcpuId, port: u16, size: u8) -> u32;

    /// OUT: writes the low `size` (1, 2 or 4) bytes of `value` to `port`. Unassigned ports swallow
    /// them.
    fn port_write(&self, vcpu: VcpuId, port: u16, size: u8, value: u32);

    /// Reads what is not RAM: `data` is 1 to 64 bytes within one page. Unassigned addresses give
    /// all ones.
    fn mmio_read(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &mut [u8]);

    /// Writes what is not RAM: `data` is 1 to 64 bytes within one page. Unassigned addresses
    /// swallow them.
    fn mmio_write(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &[u8]);

    /// Reads an MSR that is not the core's: APIC_BASE, TSC_DEADLINE, the x2APIC's, the paravirtual
    /// ones.
    ///
    /// # Errors
    /// [`MsrRefused`] if there is no such MSR.
    fn msr_read(&self, vcpu: VcpuId, index: u32) -> Result<u64, MsrRefused>;

    /// Writes an MSR that is not the core's. `cpu` is the vCPU's state as it stands (paravirtual
    /// clocks need its TSC).
    ///
    /// # Errors
    /// [`MsrRefused`] if there is no such MSR or it cannot hold `value`.
    fn msr_write(
        &self,
        vcpu: VcpuId,
        index: u32,
        value: u64,
        cpu: &CpuState,
    ) -> Result<(), MsrRefused>;

    /// The task priority: bits 7 to 4 of the local APIC's TPR, as CR8 shows it.
    fn task_priority(&self, vcpu: VcpuId) -> u8;

    /// Sets the task priority (MOV to CR8).
    fn set_task_priority(&self, vcpu: VcpuId, priority: u8);

    /// Takes the vector of the interrupt to deliver now, which is from then on in service; `None`
    /// if there is none (any more). Called when [`Reason::INTERRUPT`] is set and the vCPU can take
    /// an interrupt.
    fn acknowledge_interrupt(&self, vcpu: VcpuId) -> Option<u8>;

    /// The vCPU executed PAUSE in a loop: a good time to let another thread run.
    fn relax(&self, vcpu: VcpuId);
}

/// What an engine needs to make a vCPU.
#[derive(Clone, Debug)]
pub struct VcpuSetup {
    /// The vCPU's number.
    pub id: VcpuId,
    /// The machine's RAM.
    pub memory: GuestMemory,
    /// The rest of the machine.
    pub board: Arc<dyn Board>,
    /// The attention words of all vCPUs of the machine, indexed by [`VcpuId`].
    pub attention: Arc<[Attention]>,
    /// What CPUID tells, and which features exist.
    pub cpuid: Arc<CpuidModel>,
    /// The machine's time.
    pub clock: Arc<dyn Clock>,
    /// The machine's randomness (RDRAND, RDSEED).
    pub entropy: Arc<dyn Entropy>,
    /// The state to start from.
    pub state: CpuState,
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// HLT (or MWAIT): the vCPU waits for an interrupt. Run it again when its attention word is not
    /// empty.
    Halted,
    /// The attention word holds a [`Reason`] that is the machine's business: one of
    /// [`Reason::MACHINE`].
    Attention,
    /// The vCPU shut down on a triple fault; its state is that of the instruction that caused the
    /// last fault.
    TripleFault,
    /// The number of instructions asked for was executed.
    Budget,
}

/// Counters of a vCPU, by name: for a machine's statistics and the tests. An engine has the same
/// ones, in the same order, for every vCPU, and each is of this vCPU alone, so that their sum is
/// the machine's.
pub type Counters = Vec<(&'static str, u64)>;

/// One virtual processor. It is run by one thread at a time, which may change between runs.
pub trait Vcpu: Send {
    /// Runs until an exit, or until `budget` instructions have been executed if it is given. An
    /// instruction with a repeat prefix counts once per iteration or as one; a delivered event
    /// counts as none.
    fn run(&mut self, budget: Option<u64>) -> Exit;

    /// The complete architectural state.
    fn state(&mut self) -> &CpuState;

    /// Replaces the state; everything cached from the old one is dropped.
    fn set_state(&mut self, state: CpuState);

    /// What the vCPU counted since it was made.
    fn counters(&self) -> Counters;
}

/// A way of running guest code.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// The name as the command line gives it.
    fn name(&self) -> &'static str;

    /// Makes a vCPU.
    ///
    /// # Errors
    /// What the host refuses.
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError>;
}

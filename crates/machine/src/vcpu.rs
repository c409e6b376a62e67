//! The thread of one vCPU.

use crate::halt::HaltPolling;
use crate::lifecycle::{Lifecycle, Next, Unwinding};
use crate::power_on::PowerOn;
use crate::statistics::{Ledger, VcpuStatistics};
use crate::{Crash, Outcome};
use belljar_engine::{Attention, Exit, Reason, Vcpu, VcpuId};
use belljar_x86::bits::rflags;
use belljar_x86::reset;
use belljar_x86::state::Activity;
use std::sync::Arc;

/// A vCPU and what its thread needs to drive it.
pub(crate) struct VcpuThread {
    pub id: VcpuId,
    pub vcpu: Box<dyn Vcpu>,
    pub attention: Arc<[Attention]>,
    pub lifecycle: Arc<Lifecycle>,
    pub power_on: Arc<PowerOn>,
    pub ledger: Arc<Ledger>,
    /// What EDX holds after INIT.
    pub signature: u32,
    pub halt_polling: HaltPolling,
}

impl VcpuThread {
    /// Runs the vCPU through the machine's stages to its end.
    pub fn run(mut self) {
        let lifecycle = Arc::clone(&self.lifecycle);
        let _guard = Unwinding::of_vcpu(&lifecycle, self.id);
        loop {
            let statistics = self.statistics();
            self.ledger.rest(self.id, statistics);
            match lifecycle.park(self.id as usize, || self.power_on.reset()) {
                Next::End => break,
                Next::Run(Some(state)) => self.vcpu.set_state(*state),
                Next::Run(None) => {}
            }
            self.ledger.go_on(self.id);
            self.run_until_called_in();
        }
        tracing::info!(vcpu = self.id, counters = ?self.vcpu.counters(), "ended");
    }

    fn attention(&self) -> &Attention {
        &self.attention[self.id as usize]
    }

    /// Runs guest code until the machine wants the thread back.
    fn run_until_called_in(&mut self) {
        while !self.attention().has(Reason::STOP) {
            if self.attention().clear(Reason::STATISTICS) {
                let statistics = self.statistics();
                self.ledger.answer(self.id, statistics);
            }
            match self.vcpu.state().activity {
                Activity::Running | Activity::Halted => self.run_guest(),
                Activity::WaitForSipi => {
                    self.attention().wait(Reason::MACHINE, None);
                    self.serve_ipis();
                }
                Activity::Shutdown => {
                    self.attention()
                        .wait(Reason::STOP | Reason::STATISTICS, None);
                }
            }
        }
    }

    /// What the vCPU has counted, and what its thread, which is the one that calls this, has used.
    fn statistics(&mut self) -> VcpuStatistics {
        VcpuStatistics::of_this_thread(self.vcpu.state().activity, self.vcpu.counters())
    }

    fn run_guest(&mut self) {
        match self.vcpu.run(None) {
            Exit::Halted => self.sleep(),
            Exit::Attention => self.serve_ipis(),
            Exit::Budget => {}
            Exit::TripleFault => {
                let state = self.vcpu.state().clone();
                let vcpu = self.id;
                let crash = Outcome::Crashed(Box::new(Crash { vcpu, state }));
                self.lifecycle.end(crash);
            }
        }
    }

    /// Sleeps until there is something that ends HLT: what is masked does not, however long it
    /// waits.
    fn sleep(&mut self) {
        let cpu = self.vcpu.state();
        let mut reasons = Reason::MACHINE | Reason::ENGINE;
        if cpu.rflags & rflags::IF != 0 {
            reasons = reasons | Reason::INTERRUPT;
        }
        if !cpu.nmi_blocked {
            reasons = reasons | Reason::NMI;
        }
        let attention = &self.attention[self.id as usize];
        self.halt_polling.wait(attention, reasons);
    }

    /// INIT and start-up IPIs. SDM 3A, 8.4.
    fn serve_ipis(&mut self) {
        if self.attention().clear(Reason::INIT) {
            self.init();
        }
        if self.attention().clear(Reason::SIPI) {
            let mut state = self.vcpu.state().clone();
            if reset::start_up(&mut state, self.attention().sipi_vector()) {
                self.vcpu.set_state(state);
            }
        }
    }

    /// INIT, which has reset the local APIC already, sends the bootstrap processor to the firmware,
    /// which on this board is the machine's reset.
    fn init(&mut self) {
        if self.id == 0 {
            self.lifecycle.guest_reset();
            return;
        }
        let mut state = self.vcpu.state().clone();
        reset::init(&mut state, self.signature, false);
        self.attention().clear(Reason::NMI);
        self.vcpu.set_state(state);
    }
}

//! An engine with a fault.

#![allow(dead_code, reason = "each test program uses a part")]

use belljar_engine::{Counters, Engine, EngineError, Exit, Vcpu, VcpuSetup};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::bits::rflags;
use belljar_x86::{CpuState, Gpr};
use std::sync::Arc;

/// What goes wrong, and after how many instructions.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// RBX changes.
    Register { after: u64 },
    /// A byte of RAM changes.
    Memory { after: u64, at: u64 },
    /// The carry flag changes.
    Flags { after: u64 },
    /// RBX changes, unless the engine runs one instruction at a time.
    Unstepped { after: u64 },
}

impl Fault {
    const fn after(self) -> u64 {
        match self {
            Self::Register { after }
            | Self::Memory { after, .. }
            | Self::Flags { after }
            | Self::Unstepped { after } => after,
        }
    }
}

/// A sound engine with a [`Fault`].
#[derive(Debug)]
pub struct Broken {
    sound: Arc<dyn Engine>,
    fault: Fault,
}

impl Broken {
    pub fn new(sound: Arc<dyn Engine>, fault: Fault) -> Self {
        Self { sound, fault }
    }
}

impl Engine for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(BrokenVcpu {
            memory: setup.memory.clone(),
            sound: self.sound.create_vcpu(setup)?,
            fault: self.fault,
            executed: 0,
        }))
    }
}

struct BrokenVcpu {
    sound: Box<dyn Vcpu>,
    memory: GuestMemory,
    fault: Fault,
    executed: u64,
}

impl BrokenVcpu {
    fn run_soundly(&mut self, budget: u64) -> Exit {
        self.executed += budget;
        self.sound.run(Some(budget))
    }

    fn go_wrong(&mut self) {
        if let Fault::Memory { at, .. } = self.fault {
            self.memory.write(GuestPhysAddr(at), &[1]).unwrap();
            return;
        }
        let mut state = self.sound.state().clone();
        if matches!(self.fault, Fault::Flags { .. }) {
            state.rflags ^= rflags::CF;
        } else {
            state.gpr[Gpr::Rbx as usize] ^= 1 << 40;
        }
        self.sound.set_state(state);
    }
}

impl Vcpu for BrokenVcpu {
    fn run(&mut self, budget: Option<u64>) -> Exit {
        let budget = budget.expect("a pair gives a budget");
        let left = self.fault.after().wrapping_sub(self.executed);
        let hides = matches!(self.fault, Fault::Unstepped { .. }) && budget == 1;
        if left == 0 || left > budget || hides {
            return self.run_soundly(budget);
        }
        let exit = self.run_soundly(left);
        self.go_wrong();
        if budget == left || exit != Exit::Budget {
            return exit;
        }
        self.run_soundly(budget - left)
    }

    fn state(&mut self) -> &CpuState {
        self.sound.state()
    }

    fn set_state(&mut self, state: CpuState) {
        self.sound.set_state(state);
    }

    fn counters(&self) -> Counters {
        self.sound.counters()
    }
}

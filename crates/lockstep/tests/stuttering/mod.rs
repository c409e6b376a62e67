//! An engine that stops every few instructions.

use belljar_engine::{Counters, Engine, EngineError, Exit, Vcpu, VcpuSetup};
use belljar_x86::CpuState;
use std::sync::Arc;

/// The most instructions that it runs in one go.
const MOST: u64 = 37;

/// Another engine, which runs a few instructions at a time and cuts its blocks accordingly.
#[derive(Debug)]
pub struct Stuttering(pub Arc<dyn Engine>);

impl Engine for Stuttering {
    fn name(&self) -> &'static str {
        "stuttering"
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(StutteringVcpu {
            smooth: self.0.create_vcpu(setup)?,
            next: 1,
        }))
    }
}

struct StutteringVcpu {
    smooth: Box<dyn Vcpu>,
    /// Instructions to run next.
    next: u64,
}

impl Vcpu for StutteringVcpu {
    fn run(&mut self, budget: Option<u64>) -> Exit {
        let mut left = budget.expect("a pair gives a budget");
        loop {
            let now = self.next.min(left);
            let exit = self.smooth.run(Some(now));
            self.next = self.next % MOST + 1;
            left -= now;
            if left == 0 || exit != Exit::Budget {
                return exit;
            }
        }
    }

    fn state(&mut self) -> &CpuState {
        self.smooth.state()
    }

    fn set_state(&mut self, state: CpuState) {
        self.smooth.set_state(state);
    }

    fn counters(&self) -> Counters {
        self.smooth.counters()
    }
}

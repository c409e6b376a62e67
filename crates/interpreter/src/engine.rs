//! The engine: it makes the vCPUs and knows which belong together.

use crate::processor::Core;
use crate::shared::{Group, Member};
use crate::vcpu::InterpreterVcpu;
use belljar_engine::{Engine, EngineError, Vcpu, VcpuSetup};
use belljar_passthrough::Stubs;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The engine's name.
const NAME: &str = "interpreter";
/// Code memory for the compiled instructions of one vCPU, in bytes.
const CODE_MEMORY: usize = 8 << 20;

/// The reference engine.
#[derive(Debug, Default)]
pub struct Interpreter {
    groups: Mutex<Vec<Weak<Group>>>,
}

impl Interpreter {
    /// The engine. One can serve any number of machines.
    pub fn new() -> Self {
        Self::default()
    }

    /// The group of vCPUs to which one made from `setup` belongs.
    fn group(&self, setup: &VcpuSetup) -> Arc<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        let known = groups
            .iter()
            .filter_map(Weak::upgrade)
            .find(|group| group.is_of(&setup.attention));
        known.unwrap_or_else(|| {
            let group = Arc::new(Group::new(Arc::clone(&setup.attention)));
            groups.push(Arc::downgrade(&group));
            group
        })
    }
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(self.create(setup)?))
    }
}

impl Interpreter {
    /// Makes a vCPU, as [`Engine::create_vcpu`] does.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn create(&self, setup: VcpuSetup) -> Result<InterpreterVcpu, EngineError> {
        let stubs = Stubs::new(CODE_MEMORY).map_err(|error| EngineError::Unavailable {
            engine: NAME,
            reason: error.to_string(),
        })?;
        let member = Member::join(&self.group(&setup), setup.id);
        let core = Core::new(setup, stubs, member);
        Ok(InterpreterVcpu::new(core))
    }
}

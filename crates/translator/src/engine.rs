//! The engine.

use crate::vcpu::TranslatorVcpu;
use belljar_engine::{Engine, EngineError, Vcpu, VcpuSetup};
use belljar_interpreter::Interpreter;

/// The engine's name.
pub const NAME: &str = "translator";
/// Code memory of one vCPU, in bytes.
const CODE_MEMORY: usize = 96 << 20;

/// The translating engine.
#[derive(Debug, Default)]
pub struct Translator {
    interpreter: Interpreter,
}

impl Translator {
    /// The engine. One can serve any number of machines.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        let processor = self.interpreter.create(setup)?;
        Ok(Box::new(TranslatorVcpu::new(processor, CODE_MEMORY)?))
    }
}

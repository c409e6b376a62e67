//! The engine.

use crate::tuning::Tuning;
use crate::vcpu::TranslatorVcpu;
use belljar_engine::{Engine, EngineError, Vcpu, VcpuSetup};
use belljar_interpreter::Interpreter;

/// The engine's name.
pub const NAME: &str = "translator";

/// The translating engine.
#[derive(Debug, Default)]
pub struct Translator {
    interpreter: Interpreter,
    tuning: Tuning,
}

impl Translator {
    /// The engine. One can serve any number of machines.
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine, set up in another way. A size of `tuning` that is out of its range is brought
    /// into it.
    pub fn with_tuning(tuning: Tuning) -> Self {
        Self {
            tuning,
            ..Self::default()
        }
    }
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        let processor = self.interpreter.create(setup)?;
        Ok(Box::new(TranslatorVcpu::new(processor, self.tuning)?))
    }
}

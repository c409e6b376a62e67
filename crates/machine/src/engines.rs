//! Which engine runs a machine.

use crate::{EngineChoice, MachineError};
use belljar_engine::{Engine, EngineError};
use std::sync::Arc;

type Probe = fn() -> Result<Arc<dyn Engine>, EngineError>;

/// The engines of this version, the best first, each with what finds out whether this host can run
/// it.
const ENGINES: &[(EngineChoice, Probe)] = &[
    (EngineChoice::Translator, translator),
    (EngineChoice::Interpreter, interpreter),
];

#[expect(
    clippy::unnecessary_wraps,
    reason = "the probes of other engines can fail"
)]
fn translator() -> Result<Arc<dyn Engine>, EngineError> {
    Ok(Arc::new(belljar_translator::Translator::new()))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the probes of other engines can fail"
)]
fn interpreter() -> Result<Arc<dyn Engine>, EngineError> {
    Ok(Arc::new(belljar_interpreter::Interpreter::new()))
}

/// Makes the engine that `choice` asks for; `auto` is the first that this host can run.
///
/// # Errors
/// [`MachineError::EngineMissing`] for an engine that this version does not have; the engine's own
/// error if the host cannot run it.
pub fn choose(choice: EngineChoice) -> Result<Arc<dyn Engine>, MachineError> {
    choose_from(ENGINES, choice)
}

fn choose_from(
    engines: &[(EngineChoice, Probe)],
    choice: EngineChoice,
) -> Result<Arc<dyn Engine>, MachineError> {
    let mut result = Err(MachineError::EngineMissing(choice));
    for (engine, probe) in engines {
        if choice == EngineChoice::Auto || choice == *engine {
            result = probe().map_err(MachineError::from);
            match &result {
                Ok(_) => break,
                Err(error) => tracing::info!(engine = engine.name(), %error, "engine passed over"),
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> Result<Arc<dyn Engine>, EngineError> {
        Err(EngineError::Unavailable {
            engine: "kvm",
            reason: "no /dev/kvm".to_owned(),
        })
    }

    const TWO: &[(EngineChoice, Probe)] = &[
        (EngineChoice::Kvm, unavailable),
        (EngineChoice::Interpreter, interpreter),
    ];

    #[test]
    fn auto_takes_the_first_engine_that_the_host_can_run() {
        let engine = choose_from(TWO, EngineChoice::Auto).unwrap();
        assert_eq!(engine.name(), "interpreter");
    }

    #[test]
    fn an_engine_that_was_asked_for_is_not_replaced_by_another() {
        assert!(matches!(
            choose_from(TWO, EngineChoice::Kvm),
            Err(MachineError::Engine(EngineError::Unavailable { .. }))
        ));
        assert!(matches!(
            choose_from(TWO, EngineChoice::Translator),
            Err(MachineError::EngineMissing(EngineChoice::Translator))
        ));
    }
}

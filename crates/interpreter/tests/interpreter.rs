//! The engines' test suite under the interpreter.

mod suite;

use belljar_engine::Engine;
use std::sync::Arc;

/// Whether the suite's machines count their instructions.
fn counted() -> bool {
    true
}

/// The engine of the suite's machines.
fn engine() -> Arc<dyn Engine> {
    Arc::new(belljar_interpreter::Interpreter::new())
}

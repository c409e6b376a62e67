//! What CPUID tells: a model of a processor built from what the host has.

/// The identification of every vCPU of a machine.
#[derive(Clone, Debug)]
pub struct CpuidModel {}

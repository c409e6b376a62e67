//! What can go wrong outside of the guest.

use thiserror::Error;

/// Why the crate cannot work on this host.
#[derive(Debug, Error)]
pub enum Error {
    /// The capacity asked for is not possible.
    #[error("code memory of {0} bytes is not possible (64 KiB to 1 GiB)")]
    BadCapacity(usize),
    /// The host gave no memory for code.
    #[error("the host gave no code memory of {size} bytes")]
    CodeMemory {
        /// Bytes asked for.
        size: usize,
        /// What the host said.
        #[source]
        source: rustix::io::Errno,
    },
    /// The handlers of the signals that faults become could not be installed.
    #[error("the fault handler could not be installed for signal {signal}")]
    Handler {
        /// The signal's number.
        signal: i32,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The code that faults continue at has no encoding.
    #[error("the recovery code could not be encoded")]
    Recovery,
    /// More code memories are in use at once than the fault handler can know.
    #[error("more than {0} code memories are in use")]
    TooMany(usize),
}

/// Why an instruction got no stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    /// The instruction is control flow, sensitive, on the stack, a string's or atomic: the engine's
    /// own business.
    #[error("the instruction is not innocuous")]
    NotInnocuous,
    /// The host's processor lacks the instruction: to the guest, which is shown no more than the
    /// host has, it is #UD.
    #[error("the host's processor does not have the instruction")]
    NotOnHost,
    /// Code memory is full: drop all stubs, call [`Stubs::reset`](crate::Stubs::reset) and compile
    /// again.
    #[error("code memory is full")]
    Full,
}

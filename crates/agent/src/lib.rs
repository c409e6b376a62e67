//! What `belljar exec` and the agent in the guest say to each other.
//!
//! The agent is the program `belljar-agent` in the guest. It listens at a port of the guest's
//! virtual socket device (vsock) and takes connections from the host alone. Each connection is a
//! *session*: one command, from its start to its exit status. What is said comes in frames of a
//! kind, a length and a content; see [`ToGuest`] and [`ToHost`].
//!
//! ```text
//!  host                                   guest
//!   │ Start(arguments, environment, tty)    │
//!   │ ────────────────────────────────────► │ starts the command
//!   │ ◄──────────────────────────── Started │
//!   │ Input, InputEnd, Resize, Signal       │
//!   │ ────────────────────────────────────► │
//!   │ ◄─────────────── Output, Errors, Taken│
//!   │ ◄───────────────────── Exited, Killed │
//! ```
//!
//! The command's input has a window of its own ([`WINDOW`]), so that a command that does not read
//! holds up neither signals nor changes of the terminal's size.

#![forbid(unsafe_code)]

mod protocol;

pub use protocol::{
    BadFrame, LONGEST_FRAME, PORT, Start, TerminalSize, ToGuest, ToHost, WINDOW, read, write,
};

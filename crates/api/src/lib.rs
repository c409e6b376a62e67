//! What can be asked of a running machine: one [`Action`] in, one [`Answer`] out.
//!
//! Floor 5 of the house. Every running machine has a directory of its own in the user's
//! [`Runtime`] directory, and a control socket in it. A [`Client`] connects to the socket and sends
//! an action; the [`Server`] in the machine's process checks who it is, lets what is
//! [`Controlled`] perform the action, and sends the answer back. Some actions turn the connection
//! into a stream afterwards, for example to the console.
//!
//! ```text
//!  belljar stop NAME                         belljar run / start
//!  ┌────────┐  {"version":1,"action":…}\n   ┌────────┐   Action   ┌────────────┐
//!  │ Client │ ────────────────────────────► │ Server │ ─────────► │ Controlled │
//!  │        │ ◄──────────────────────────── │        │ ◄───────── │ (machine)  │
//!  └────────┘      {"answer":…}\n           └────────┘   Answer   └────────────┘
//! ```
//!
//! This crate knows neither machines nor engines, only their names for things.

#![forbid(unsafe_code)]

mod action;
mod client;
mod error;
mod names;
mod runtime;
mod server;
mod wire;

pub use action::{
    Action, Answer, Ended, MemoryStatistics, Request, State, Statistics, Status, VERSION,
    VcpuStatistics,
};
pub use client::Client;
pub use error::ApiError;
pub use names::{generated as generated_name, is_valid as is_valid_name};
pub use runtime::{Claim, Condition, DIRECTORY_VARIABLE, Place, Record, Runtime};
pub use server::{Controlled, Performed, Server, Stream};
pub use wire::{Connection, Direction, LONGEST_ANSWER, LONGEST_REQUEST};

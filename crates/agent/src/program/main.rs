//! The agent: listens at its port of the virtual socket device and runs commands for the host.
//!
//! Only the host is served: other processes of the guest could otherwise run commands with the
//! agent's rights. Each session has threads of its own, and their number is bounded.

#![forbid(unsafe_code)]

mod command;
mod session;
mod signals;

use belljar_agent::PORT;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, sleep};
use std::time::Duration;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

/// Sessions at a time.
const MOST_SESSIONS: usize = 128;
/// How often it is tried to listen while the guest's kernel has no virtual sockets yet.
const TRIES: u32 = 600;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

static SESSIONS: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == command::CHILD) {
        return command::become_command(arguments);
    }
    match listen() {
        Ok(listener) => serve(&listener),
        Err(error) => {
            eprintln!("belljar-agent: no virtual sockets: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Listens; the device's driver may come later than the agent.
fn listen() -> std::io::Result<VsockListener> {
    let mut tries = 0;
    loop {
        match VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT) {
            Err(_) if tries < TRIES => tries += 1,
            result => return result,
        }
        sleep(PAUSE);
    }
}

fn serve(listener: &VsockListener) -> ExitCode {
    loop {
        match listener.accept() {
            Ok((stream, peer)) if peer.cid() == VMADDR_CID_HOST => begin(stream),
            Ok(_) => {}
            // Most likely there are no file descriptors left; that takes a while.
            Err(_) => sleep(PAUSE),
        }
    }
}

/// Starts the thread of a session, if there is room for it; else the host finds it closed.
fn begin(stream: VsockStream) {
    if SESSIONS.fetch_add(1, Ordering::AcqRel) >= MOST_SESSIONS {
        SESSIONS.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let body = move || {
        if let Err(error) = session::serve(&stream) {
            eprintln!("belljar-agent: a session failed: {error}");
        }
        SESSIONS.fetch_sub(1, Ordering::AcqRel);
    };
    if Builder::new().spawn(body).is_err() {
        SESSIONS.fetch_sub(1, Ordering::AcqRel);
    }
}

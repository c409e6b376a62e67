//! The machine in which an image is configured: one of ours, whose console is only listened to.

use belljar_image::{Job, Runner};
use belljar_machine::{
    ConsoleOutput, DiskConfig, DiskFormat, Machine, MachineConfig, Outcome, Size,
};
use std::collections::VecDeque;
use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a machine may print nothing. Configuring a package takes seconds, even without hardware
/// virtualization on a busy host.
const SILENCE: Duration = Duration::from_mins(15);

/// The disk in a raw file, whatever its name and contents.
pub fn raw_disk(file: PathBuf) -> DiskConfig {
    DiskConfig {
        format: Some(DiskFormat::Raw),
        ..DiskConfig::new(file)
    }
}

/// Runs machines with the best engine that the host has.
#[derive(Debug)]
pub struct MachineRunner;

impl Runner for MachineRunner {
    fn run(
        &self,
        job: &Job,
        console: &mut (dyn FnMut(&[u8]) -> bool + Send),
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let config = MachineConfig {
            kernel: Some(job.kernel.clone()),
            initrd: Some(job.initrd.clone()),
            cmdline: Some(job.cmdline.clone()),
            memory: Size::mib((job.memory >> 20) as u32),
            cpus: job.cpus,
            no_reboot: true,
            disk: vec![raw_disk(job.disk.clone())],
            ..MachineConfig::default()
        };
        let heard = Arc::new(Heard::default());
        let machine = Machine::new(&config, Arc::<Heard>::clone(&heard))?;
        let handle = machine.handle();
        handle.resume();
        let ender = Arc::clone(&heard);
        std::thread::scope(|scope| {
            let listener = scope.spawn(move || {
                while let Some(bytes) = heard.next(SILENCE) {
                    if !console(&bytes) {
                        break;
                    }
                }
                // After its end this does nothing.
                handle.stop();
            });
            let outcome = machine.wait();
            ender.end();
            let _ = listener.join();
            match outcome {
                Outcome::PoweredOff => Ok(()),
                Outcome::Crashed(crash) => Err(format!("the guest crashed: {crash}").into()),
                Outcome::Failed(error) => Err(error.into()),
                Outcome::Stopped => Err("it printed nothing for too long".into()),
                Outcome::Reset | Outcome::DebugExit(_) => Err("the guest was reset".into()),
            }
        })
    }
}

/// What the machine has printed and nobody has read yet.
#[derive(Debug, Default)]
struct Heard {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was printed since the last call; `None` after the end, or after `limit` without a word.
    fn next(&self, limit: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while state.bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Some(state.bytes.drain(..).collect())
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

impl ConsoleOutput for Heard {
    fn write(&self, bytes: &[u8]) {
        self.lock().bytes.extend(bytes);
        self.changed.notify_all();
    }

    /// The listener is fast, and what a serial port prints is little.
    fn pace(&self, _: Option<Duration>) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_heard_before_the_end_and_after_it() {
        let heard = Heard::default();
        heard.write(b"one ");
        heard.write(b"two");
        heard.end();
        assert_eq!(heard.next(SILENCE).unwrap(), b"one two");
        assert_eq!(heard.next(SILENCE), None);
    }

    #[test]
    fn silence_ends_the_listening() {
        assert_eq!(Heard::default().next(Duration::from_millis(5)), None);
    }
}

//! A machine, from its configuration to its end.

use crate::board::MachineBoard;
use crate::console::{ConsoleInput, ConsoleOutput};
use crate::halt::HaltPolling;
use crate::lifecycle::{Lifecycle, Unwinding};
use crate::power_on::PowerOn;
use crate::statistics::{BalloonStatistics, Ledger, Statistics};
use crate::vcpu::VcpuThread;
use crate::wiring::Wiring;
use crate::{MachineConfig, MachineError, Outcome, engines};
use belljar_clock::{Clock, Entropy, HostClock, HostEntropy};
use belljar_devices::timers::Timers;
use belljar_devices::virtio::balloon::BalloonHost;
use belljar_devices::virtio::vsock::Greetings;
use belljar_engine::{Engine, VcpuSetup};
use belljar_x86::CpuState;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// The name of the thread that serves the devices' deadlines.
const TIMER_THREAD: &str = "timers";
/// How long the guest may take to tell of its memory.
const GUEST_LIMIT: Duration = Duration::from_millis(500);

/// A virtual machine. It is made paused; [`MachineHandle::resume`] starts it, [`wait`](Self::wait)
/// comes back when it has ended. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    engine: &'static str,
    handle: MachineHandle,
    input: ConsoleInput,
    vcpus: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Makes the machine of `config`, whose console prints to `output`, with its kernel in
    /// memory.
    ///
    /// # Errors
    /// A [`MachineError`]: what the host refuses, what the configuration gets wrong, a kernel that
    /// cannot be booted.
    pub fn new(
        config: &MachineConfig,
        output: Arc<dyn ConsoleOutput>,
    ) -> Result<Self, MachineError> {
        config.validate()?;
        let engine = engines::choose(config.engine)?;
        Self::with_engine(config, &*engine, output)
    }

    /// The same with an engine that the configuration does not name: `engine`, and not the one of
    /// `config`, runs the machine.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_engine(
        config: &MachineConfig,
        engine: &dyn Engine,
        output: Arc<dyn ConsoleOutput>,
    ) -> Result<Self, MachineError> {
        config.validate()?;
        let entropy: Arc<dyn Entropy> =
            Arc::new(HostEntropy::new().map_err(MachineError::Entropy)?);
        let clock: Arc<dyn Clock> = Arc::new(HostClock::new());
        clock.pause();
        let wiring = Wiring::new(config, clock, Some(Arc::clone(&entropy)), output)?;
        let states = wiring.power_on.reset()?;
        let setup = wiring.setup(entropy);
        let (lifecycle, power_on) = (wiring.lifecycle, wiring.power_on);
        let mut machine = Self {
            engine: engine.name(),
            input: wiring.board.console_input(),
            handle: MachineHandle(Arc::new(Inner {
                name: config.name.clone().unwrap_or_default(),
                lifecycle: Arc::clone(&lifecycle),
                clock: wiring.clock,
                timers: wiring.timers,
                board: wiring.board,
                power_on: Arc::clone(&power_on),
                ledger: Arc::new(Ledger::new(wiring.attention)),
                timer_thread: Mutex::new(None),
            })),
            vcpus: Vec::new(),
        };
        machine.start_vcpus(engine, &setup, states, &lifecycle, &power_on)?;
        Ok(machine)
    }

    /// Makes a vCPU for each of `states` and starts the threads, which wait for the machine to be
    /// resumed.
    fn start_vcpus(
        &mut self,
        engine: &dyn Engine,
        setup: &VcpuSetup,
        states: Vec<CpuState>,
        lifecycle: &Arc<Lifecycle>,
        power_on: &Arc<PowerOn>,
    ) -> Result<(), MachineError> {
        let mut threads = Vec::new();
        for (id, state) in (0..).zip(states) {
            let vcpu = engine.create_vcpu(VcpuSetup {
                id,
                state,
                ..setup.clone()
            })?;
            threads.push(VcpuThread {
                id,
                vcpu,
                attention: Arc::clone(&setup.attention),
                lifecycle: Arc::clone(lifecycle),
                power_on: Arc::clone(power_on),
                ledger: Arc::clone(&self.handle.0.ledger),
                signature: setup.cpuid.signature(),
                halt_polling: HaltPolling::default(),
            });
        }
        lifecycle.expect(threads.len());
        for thread in threads {
            let name = format!("vcpu {}", thread.id);
            match spawn(name, move || thread.run()) {
                Ok(handle) => self.vcpus.push(handle),
                Err(error) => {
                    lifecycle.expect(self.vcpus.len());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The name of the engine that runs the machine.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// What controls the machine from other threads.
    pub fn handle(&self) -> MachineHandle {
        self.handle.clone()
    }

    /// The input of the console.
    pub fn console_input(&self) -> ConsoleInput {
        self.input.clone()
    }

    /// Waits until the machine has ended, and tells how. None of its threads is left then.
    pub fn wait(mut self) -> Outcome {
        self.join();
        self.handle.0.lifecycle.take_outcome()
    }

    fn join(&mut self) {
        let inner = &self.handle.0;
        inner.lifecycle.wait_for_end();
        for thread in self.vcpus.drain(..) {
            // The thread of a vCPU that panicked has ended the machine itself, and said so.
            let _ = thread.join();
        }
        inner.stop_timers();
        inner.board.pause();
        self.input.close();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.handle.stop();
        self.join();
    }
}

/// Controls a machine. It can be cloned and used from any thread, also after the machine's end.
#[derive(Clone, Debug)]
pub struct MachineHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    lifecycle: Arc<Lifecycle>,
    clock: Arc<dyn Clock>,
    timers: Arc<Timers>,
    board: Arc<MachineBoard>,
    power_on: Arc<PowerOn>,
    ledger: Arc<Ledger>,
    /// The thread that serves the devices' deadlines while the machine runs. Held while pausing and
    /// resuming, so that these do not overlap.
    timer_thread: Mutex<Option<JoinHandle<()>>>,
}

impl MachineHandle {
    /// Lets the machine run. It does nothing to one that runs or has ended.
    pub fn resume(&self) {
        let inner = &self.0;
        let mut timer_thread = inner.lock_timer_thread();
        if timer_thread.is_some() || !inner.lifecycle.is_paused() {
            return;
        }
        let (timers, sources) = (Arc::clone(&inner.timers), inner.board.timed());
        let lifecycle = Arc::clone(&inner.lifecycle);
        let body = move || {
            let _guard = Unwinding::of_helper(&lifecycle, TIMER_THREAD);
            timers.run(&sources);
        };
        match spawn(TIMER_THREAD.to_owned(), body) {
            Ok(thread) => *timer_thread = Some(thread),
            Err(error) => {
                inner.lifecycle.end(Outcome::Failed(error));
                return;
            }
        }
        inner.clock.resume();
        inner.board.resume();
        tracing::debug!(name = inner.name, "running");
        inner.lifecycle.resume();
    }

    /// Stops all vCPUs and machine time; comes back when they stand still.
    pub fn pause(&self) {
        let inner = &self.0;
        let mut timer_thread = inner.lock_timer_thread();
        if timer_thread.is_none() {
            return;
        }
        inner.lifecycle.pause();
        inner.board.pause();
        inner.clock.pause();
        inner.stop(&mut timer_thread);
        tracing::debug!(name = inner.name, "paused");
    }

    /// Whether the vCPUs and machine time stand still, or are about to.
    pub fn is_paused(&self) -> bool {
        self.0.lifecycle.is_paused()
    }

    /// Whether the machine has ended.
    pub fn is_ended(&self) -> bool {
        self.0.lifecycle.is_ended()
    }

    /// Machine time since power-on: without pauses.
    pub fn uptime(&self) -> Duration {
        Duration::from_nanos(self.0.clock.now().0)
    }

    /// Connects `stream` with port `port` of the guest's socket device, as
    /// [`VsockHost::connect`] says.
    ///
    /// # Errors
    /// What the host says against a stream that does not block; [`Unsupported`] for a machine
    /// without the device.
    ///
    /// [`Unsupported`]: std::io::ErrorKind::Unsupported
    /// [`VsockHost::connect`]: belljar_devices::virtio::vsock::VsockHost::connect
    pub fn connect(
        &self,
        port: u32,
        stream: UnixStream,
        greetings: Greetings,
    ) -> std::io::Result<()> {
        let vsock = self.0.board.vsock();
        let vsock = vsock.ok_or(std::io::ErrorKind::Unsupported)?;
        vsock.connect(port, stream, greetings)
    }

    /// Tells the guest that it goes on as a copy of what it was: by another identifier of the
    /// machine's generation, and the notification of its device. Its system then makes new random
    /// numbers. The identifier is another one already while the guest is paused; a reset keeps it.
    ///
    /// # Errors
    /// [`MachineError::Memory`] if there is no RAM for it, which no machine's memory leads to.
    pub fn renew_generation(&self) -> Result<(), MachineError> {
        self.0.power_on.renew_generation()
    }

    /// Presses the power button, which asks the guest to shut down. It may not listen.
    pub fn press_power_button(&self) {
        self.0.board.press_power_button();
    }

    /// Resets the machine as its reset button would.
    pub fn reset(&self) {
        self.0.lifecycle.request_reset();
    }

    /// Asks the guest to make its balloon as large as `bytes`, so that the host has as much more
    /// memory for others; see [`BalloonHost::set_target`].
    ///
    /// # Errors
    /// [`Unsupported`](std::io::ErrorKind::Unsupported) for a machine without a balloon.
    pub fn set_balloon(&self, bytes: u64) -> std::io::Result<()> {
        let balloon = self.0.board.balloon();
        let balloon = balloon.ok_or(std::io::ErrorKind::Unsupported)?;
        balloon.set_target(bytes);
        Ok(())
    }

    /// Tells the guest the size of the terminal that shows its console. A serial port cannot say that,
    /// so a guest whose console is one does not learn it.
    pub fn set_console_size(&self, columns: u16, rows: u16) {
        if let Some(console) = self.0.board.console() {
            console.set_size(columns, rows);
        }
    }

    /// What the vCPUs have counted so far, whatever the guest does: each looks up for some
    /// microseconds to tell; and what the guest's driver of the balloon tells of its memory within
    /// half a second. The vCPUs may take `limit` at most, after which a vCPU that has not answered,
    /// for example because it waits for a slow reader of the console, is not
    /// [current](crate::VcpuStatistics::current). It is not for the vCPUs' own threads.
    pub fn statistics(&self, limit: Duration) -> Statistics {
        let vcpus = self.0.ledger.collect(limit);
        let of_guest = |balloon: &BalloonHost| BalloonStatistics {
            guest: balloon.statistics(GUEST_LIMIT.min(limit)),
            size: balloon.size(),
        };
        Statistics {
            uptime: self.uptime(),
            vcpus,
            balloon: self.0.board.balloon().map(of_guest),
        }
    }

    /// Ends the machine, whatever the guest does: [`Outcome::Stopped`].
    pub fn stop(&self) {
        self.0.lifecycle.end(Outcome::Stopped);
    }
}

impl Inner {
    fn lock_timer_thread(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.timer_thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_timers(&self) {
        self.stop(&mut self.lock_timer_thread());
    }

    fn stop(&self, timer_thread: &mut Option<JoinHandle<()>>) {
        if let Some(thread) = timer_thread.take() {
            self.timers.stop();
            // A panic there was printed and has ended the machine.
            let _ = thread.join();
        }
    }
}

fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, MachineError> {
    Builder::new()
        .name(name.clone())
        .spawn(body)
        .map_err(|source| MachineError::Thread { name, source })
}

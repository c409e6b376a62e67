//! When a device works: from the driver's readiness to its reset, while the machine runs and the
//! function is a bus master.
//!
//! A function that is no bus master must not reach memory (PCI 3.0, 6.2.2). So its worker is stopped,
//! which means that nothing is in flight, and goes on from there when the guest makes the function a
//! bus master again. The vCPU that takes the right away does not wait for that: messages are held back
//! at once, and until the rest has ended, device status tells of transactions that are pending.

use super::{Inner, Transport};
use crate::timers::lock;
use crate::virtio::queue::Queue;
use crate::virtio::{Activation, FEATURE_EVENT_IDX, Running, VirtioDevice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether a worker runs.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is none.
    Idle,
    /// The driver is ready, and it runs as soon as the function is a bus master.
    Waiting,
    /// It runs.
    Running(Box<dyn Running>),
    /// It runs again when the machine does.
    Paused,
    /// It is being stopped by another thread. Then comes the driver's reset, or it goes on if it may.
    Stopping {
        /// Whether the driver wants a reset.
        reset: bool,
    },
}

impl Transport {
    /// Takes a worker that runs, to be stopped when the lock is released.
    fn take_running(&mut self, reset: bool) -> Option<Box<dyn Running>> {
        match std::mem::replace(&mut self.phase, Phase::Stopping { reset }) {
            Phase::Running(running) => Some(running),
            other => {
                self.phase = other;
                None
            }
        }
    }
}

impl<D: VirtioDevice> Inner<D> {
    pub(super) fn wait_while_stopping<'a>(
        &'a self,
        mut transport: MutexGuard<'a, Transport>,
    ) -> MutexGuard<'a, Transport> {
        while matches!(transport.phase, Phase::Stopping { .. }) {
            transport = self
                .stopped
                .wait(transport)
                .unwrap_or_else(PoisonError::into_inner);
        }
        transport
    }

    /// Stops the worker if there is one, with the lock released while waiting; `after` is the
    /// phase then.
    pub(super) fn stop_worker<'a>(
        &'a self,
        mut transport: MutexGuard<'a, Transport>,
        after: Phase,
    ) -> MutexGuard<'a, Transport> {
        let Some(running) = transport.take_running(false) else {
            return transport;
        };
        drop(transport);
        let queues = running.stop();
        transport = self.lock();
        self.keep_progress(&mut transport, &queues);
        transport.phase = after;
        self.stopped.notify_all();
        transport
    }

    /// Remembers how far a worker has come that was stopped.
    fn keep_progress(&self, transport: &mut Transport, queues: &[Queue]) {
        let setups = &mut transport.negotiated.queues;
        for (setup, queue) in setups.iter_mut().zip(queues) {
            (setup.next_available, setup.next_used) = queue.progress();
        }
        if queues.len() < setups.len() {
            self.signals.needs_reset();
        }
    }

    /// Starts a worker on the queues as the driver set them up, or when the function is a bus master.
    pub(super) fn start(&self, transport: &mut Transport) {
        if !lock(&self.configuration).bus_master() {
            transport.phase = Phase::Waiting;
            return;
        }
        transport.phase = Phase::Idle;
        if let Err(error) = self.try_start(transport) {
            let kind = self.device.kind();
            tracing::warn!(?kind, error = &*error, "cannot start a virtio device");
            self.signals.needs_reset();
        }
    }

    fn try_start(
        &self,
        transport: &mut Transport,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let features = transport.negotiated.features;
        let event_idx = features & FEATURE_EVENT_IDX != 0;
        let setups = (0..).zip(&transport.negotiated.queues);
        let queues: Result<Vec<_>, _> = setups
            .map(|(i, setup)| Queue::new(i, setup, event_idx, &self.memory, &self.signals))
            .collect();
        let running = self.device.start(Activation {
            memory: Arc::clone(&self.memory),
            queues: queues?,
            features,
            signals: Arc::clone(&self.signals),
        })?;
        transport.phase = Phase::Running(running);
        for bell in &self.bells {
            bell.ring();
        }
        Ok(())
    }

    /// Starts or stops the worker if the guest has changed whether the function is a bus master.
    pub(super) fn follow_bus_master(self: &Arc<Self>) {
        let mut transport = self.lock();
        // Looked at with the lock held: of two that write, the last one here sees what counts.
        let is_master = lock(&self.configuration).bus_master();
        match transport.phase {
            Phase::Waiting if is_master => self.start(&mut transport),
            Phase::Running(_) if !is_master => self.stop_in_background(transport, false),
            _ => {}
        }
    }

    /// Shows in configuration space whether a worker is being stopped.
    pub(super) fn show_what_ends(&self) {
        let transport = self.lock();
        let ends = matches!(transport.phase, Phase::Stopping { .. });
        lock(&self.configuration).set_transactions_pending(ends);
    }

    /// Begins the driver's reset: the status is 0 when nothing is in flight any more, which the
    /// driver waits for (4.1.4.3.2). The vCPU does not.
    pub(super) fn driver_reset(self: &Arc<Self>, mut transport: MutexGuard<'_, Transport>) {
        match &mut transport.phase {
            Phase::Stopping { reset } => *reset = true,
            Phase::Idle | Phase::Waiting | Phase::Paused => {
                transport.phase = Phase::Idle;
                self.finish_reset(&mut transport);
            }
            Phase::Running(_) => self.stop_in_background(transport, true),
        }
    }

    /// The driver's reset is complete: as after power-on, apart from PCI's part.
    pub(super) fn finish_reset(&self, transport: &mut Transport) {
        self.device.reset();
        self.signals.reset();
        transport.negotiated.reset();
    }

    /// Has another thread stop the worker.
    fn stop_in_background(self: &Arc<Self>, mut transport: MutexGuard<'_, Transport>, reset: bool) {
        let Some(running) = transport.take_running(reset) else {
            return;
        };
        drop(transport);
        let running = Arc::new(Mutex::new(Some(running)));
        let (this, handed_over) = (Arc::clone(self), Arc::clone(&running));
        let thread = std::thread::Builder::new().name("device stop".to_owned());
        if let Err(error) = thread.spawn(move || this.finish_stop(&handed_over)) {
            tracing::warn!(%error, "no thread to stop a device, so a vCPU waits for it");
            self.finish_stop(&running);
        }
    }

    /// The slow part of stopping the worker, and what follows it.
    fn finish_stop(&self, running: &Mutex<Option<Box<dyn Running>>>) {
        let running = lock(running).take();
        let queues = running.map(Running::stop).unwrap_or_default();
        let mut transport = self.lock();
        if matches!(transport.phase, Phase::Stopping { reset: true }) {
            self.finish_reset(&mut transport);
            transport.phase = Phase::Idle;
        } else {
            self.keep_progress(&mut transport, &queues);
            self.start(&mut transport);
        }
        self.stopped.notify_all();
    }
}

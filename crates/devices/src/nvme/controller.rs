//! The worker: registers' wishes, submission queues, and completions.

use super::command::{Command, Status};
use super::queues::{Completion, CompletionQueue, SubmissionQueue};
use super::registers::{Registers, Wanted};
use super::{RING_QUEUES, admin};
use crate::disk::{Disk, Done, Operation, Request};
use crate::in_flight::InFlight;
use crate::pci::{Configuration, LineInput, Msi, Msix};
use crate::timers::lock;
use crate::virtio::Doorbell;
use belljar_memory::DmaMemory;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

/// What only the worker changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Controller {
    pub(super) submissions: Vec<Option<SubmissionQueue>>,
    /// Event requests that are held.
    pub(super) events: u8,
    /// Whether writes may stay in the host's cache until a flush.
    pub(super) write_cache: bool,
    /// What features were set to that have no effect, by number.
    pub(super) features: [u32; 16],
}

impl Controller {
    pub(super) fn new(queues: usize) -> Self {
        Self {
            submissions: vec![None; queues],
            events: 0,
            write_cache: true,
            features: [0; 16],
        }
    }

    /// The state for a controller of `queues` queues, whatever it was saved with.
    pub(super) fn with_queues(mut self, queues: usize) -> Self {
        self.submissions.resize(queues, None);
        for slot in &mut self.submissions {
            let possible = |q: &SubmissionQueue| {
                q.size >= 2 && q.head < q.size && usize::from(q.completions) < queues
            };
            *slot = slot.take().filter(possible);
        }
        self
    }
}

/// A controller, as its worker, the disks' threads and the vCPUs share it.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) serial: String,
    /// Pairs of I/O queues.
    pub(super) queues: u16,
    pub(super) disks: Vec<Arc<dyn Disk>>,
    pub(super) memory: Arc<DmaMemory>,
    pub(super) msix: Msix,
    pub(super) msi: Msi,
    pub(super) line: Mutex<LineInput>,
    pub(super) configuration: Mutex<Configuration>,
    /// Where the two have their capabilities.
    pub(super) msix_at: usize,
    pub(super) msi_at: usize,
    pub(super) registers: Mutex<Registers>,
    /// The submission queues' tails as doorbells say, and heads as completions tell.
    pub(super) tails: Box<[AtomicU32]>,
    pub(super) heads: Box<[AtomicU32]>,
    /// The worker waits for an entry of a completion queue.
    pub(super) starved: AtomicBool,
    pub(super) doorbell: Arc<Doorbell>,
    pub(super) controller: Mutex<Controller>,
    pub(super) completions: Box<[Mutex<Option<CompletionQueue>>]>,
    pub(super) in_flight: InFlight,
}

/// Which command a completion is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) submission: u16,
    pub(super) completions: u16,
    pub(super) id: u16,
}

/// Work of disks, done one after the other: the namespace's index and what is to be done.
pub(super) type Steps = VecDeque<(usize, Request)>;

/// The most commands whose work is submitted together.
const BATCH: usize = 64;

/// First steps of commands, to be submitted together: each with its namespace's index.
type Begun = Vec<(usize, (Request, Done))>;

impl Inner {
    /// The worker's thread.
    pub(super) fn run(self: &Arc<Self>) {
        let mut more = false;
        loop {
            let rung = self.doorbell.take_between(more);
            let mut controller = lock(&self.controller);
            if rung & Doorbell::STOP != 0 {
                self.drain();
                return;
            }
            while let Some(wanted) = { lock(&self.registers).wanted() } {
                self.carry_out(&mut controller, wanted);
            }
            more = self.serve_some(&mut controller);
        }
    }

    /// Takes some commands and begins them; `false` if there was none to take.
    fn serve_some(self: &Arc<Self>, controller: &mut Controller) -> bool {
        let (mut any, mut begun) = (false, Begun::new());
        while begun.len() < BATCH && self.take_commands(controller, &mut begun) {
            any = true;
        }
        self.submit(&mut begun);
        any
    }

    /// Hands all of `begun` to the disks.
    fn submit(&self, begun: &mut Begun) {
        while let Some(&(index, _)) = begun.first() {
            let (of_this, others): (Vec<_>, Vec<_>) = std::mem::take(begun)
                .into_iter()
                .partition(|job| job.0 == index);
            *begun = others;
            if let Some(disk) = self.disks.get(index) {
                disk.submit_all(of_this.into_iter().map(|(_, job)| job).collect());
            }
        }
    }

    fn carry_out(&self, controller: &mut Controller, wanted: Wanted) {
        match wanted {
            Wanted::Reset => {
                self.drain();
                self.clear(controller);
                lock(&self.registers).reset_done();
                self.update_line();
            }
            Wanted::Enable {
                submission,
                submission_size,
                completion,
                completion_size,
            } => {
                let mut registers = lock(&self.registers);
                if !registers.can_enable() {
                    registers.fail();
                    return;
                }
                controller.submissions[0] = Some(SubmissionQueue {
                    base: submission,
                    size: submission_size,
                    head: 0,
                    completions: 0,
                });
                let queue = CompletionQueue::new(completion, completion_size, 0, true);
                *lock(&self.completions[0]) = Some(queue);
                registers.set_ready();
            }
            Wanted::Shutdown => {
                self.drain();
                self.flush_all();
                lock(&self.registers).shut_down();
            }
        }
    }

    /// Flushes every disk and waits for it.
    fn flush_all(&self) {
        let flush = || Request {
            operation: Operation::Flush,
            offset: 0,
        };
        for disk in &self.disks {
            let (sender, receiver) = std::sync::mpsc::channel();
            let done = move |result: io::Result<()>| drop(sender.send(result));
            disk.submit(flush(), Box::new(done));
            if let Ok(Err(error)) = receiver.recv() {
                tracing::warn!(%error, "a disk could not be flushed when the guest shut down");
            }
        }
    }

    /// Forgets all queues.
    fn clear(&self, controller: &mut Controller) {
        *controller = Controller::new(controller.submissions.len());
        for queue in &self.completions {
            *lock(queue) = None;
        }
        for number in self.tails.iter().chain(&self.heads) {
            number.store(0, Ordering::SeqCst);
        }
    }

    /// Power-on reset, while no worker runs.
    pub(super) fn reset(&self) {
        self.clear(&mut lock(&self.controller));
        *lock(&self.registers) = Registers::default();
        self.msix.reset();
        self.msi.reset();
        lock(&self.configuration).reset();
        self.update_line();
    }

    /// Waits until no command is under way.
    pub(super) fn drain(&self) {
        self.in_flight.drain();
    }

    /// Whether the controller may reach memory. If not, it takes no commands; those under way end.
    fn is_bus_master(&self) -> bool {
        lock(&self.configuration).bus_master()
    }

    /// Shows in configuration space whether a controller that is no bus master any more still has
    /// commands under way.
    pub(super) fn show_what_ends(&self) {
        // The worker holds its state while it takes commands.
        let busy = match self.controller.try_lock() {
            Err(TryLockError::WouldBlock) => true,
            _idle => self.in_flight.count() > 0,
        };
        let mut space = lock(&self.configuration);
        let pending = busy && !space.bus_master();
        space.set_transactions_pending(pending);
    }

    /// Takes a command from each submission queue; `false` if there was none to take.
    fn take_commands(self: &Arc<Self>, controller: &mut Controller, begun: &mut Begun) -> bool {
        let mut any = false;
        for number in 0..controller.submissions.len() {
            any |= self.take_command(controller, number, begun);
        }
        any
    }

    fn take_command(
        self: &Arc<Self>,
        controller: &mut Controller,
        number: usize,
        begun: &mut Begun,
    ) -> bool {
        let Some(queue) = &mut controller.submissions[number] else {
            return false;
        };
        let tail = self.tails[number].load(Ordering::Acquire);
        if tail == queue.head || !self.is_bus_master() || !self.promise(queue.completions) {
            return false;
        }
        let completions = queue.completions;
        let Some(command) = queue.take(&self.memory, tail) else {
            self.release(completions);
            return false;
        };
        self.heads[number].store(queue.head, Ordering::SeqCst);
        let ticket = Ticket {
            submission: number as u16,
            completions,
            id: command.id(),
        };
        self.begin(controller, ticket, &command, begun);
        true
    }

    fn begin(
        self: &Arc<Self>,
        controller: &mut Controller,
        ticket: Ticket,
        command: &Command,
        begun: &mut Begun,
    ) {
        if ticket.submission == 0 {
            // It may wait for commands that were taken before.
            self.submit(begun);
            match admin::execute(self, controller, command) {
                Ok(admin::Outcome::Done(result)) => self.complete(ticket, result, Status::OK),
                Ok(admin::Outcome::Held) => self.release(ticket.completions),
                Err(status) => self.complete(ticket, 0, status),
            }
            return;
        }
        match self.steps(command, controller.write_cache) {
            Ok(steps) => {
                self.in_flight.begin();
                begun.extend(Arc::clone(self).step(steps, ticket));
            }
            Err(status) => self.complete(ticket, 0, status),
        }
    }

    /// The first of `steps`, after which the others follow; `None` if the command is done.
    fn step(self: Arc<Self>, mut steps: Steps, ticket: Ticket) -> Option<(usize, (Request, Done))> {
        let Some((index, request)) = steps.pop_front() else {
            self.end(ticket, Status::OK);
            return None;
        };
        let failure = match request.operation {
            Operation::Read(_) => Status::READ_ERROR,
            Operation::Flush => Status::INTERNAL,
            // Deallocation is a hint.
            Operation::Discard(_) => Status::OK,
            Operation::Write(_) | Operation::WriteZeroes { .. } => Status::WRITE_FAULT,
        };
        if index >= self.disks.len() {
            self.end(ticket, Status::INVALID_NAMESPACE);
            return None;
        }
        let done = move |result: io::Result<()>| match result {
            Err(_) if failure != Status::OK => self.end(ticket, failure),
            _ => self.next_step(steps, ticket),
        };
        Some((index, (request, Box::new(done))))
    }

    /// Submits the next of `steps`.
    fn next_step(self: Arc<Self>, steps: Steps, ticket: Ticket) {
        if let Some((index, (request, done))) = Arc::clone(&self).step(steps, ticket)
            && let Some(disk) = self.disks.get(index)
        {
            disk.submit(request, done);
        }
    }

    /// A command of a namespace is done.
    fn end(&self, ticket: Ticket, status: Status) {
        self.complete(ticket, 0, status);
        self.in_flight.end();
    }

    /// Writes the completion of a command and tells the driver.
    fn complete(&self, ticket: Ticket, result: u32, status: Status) {
        let head = self.heads[usize::from(ticket.submission)].load(Ordering::SeqCst);
        let completion = Completion {
            result,
            submission_head: head,
            submission: ticket.submission,
            id: ticket.id,
            status,
        };
        let mut slot = lock(&self.completions[usize::from(ticket.completions)]);
        let Some(queue) = slot.as_mut() else {
            return;
        };
        queue.post(&self.memory, &completion);
        let (vector, interrupts) = (queue.vector, queue.interrupts);
        drop(slot);
        if interrupts {
            self.tell(vector);
        }
    }

    /// Tells the driver of a completion, by what it has enabled: MSI-X, MSI, or else the line. The last
    /// two can be masked by register (3.1.3).
    fn tell(&self, vector: u16) {
        if self.msix.signal(vector) {
            return;
        }
        if !self.msi.enabled() {
            self.update_line();
        } else if !lock(&self.registers).masks(vector) {
            self.msi.signal(vector);
        }
    }

    /// The driver has changed the mask: tells of what has come while its vector was in it.
    pub(super) fn unmasked(&self, vectors: u32) {
        for queue in &self.completions {
            let of_vector =
                |q: &CompletionQueue| vectors & 1_u32.unbounded_shl(q.vector.into()) != 0;
            let waits = lock(queue)
                .as_ref()
                .filter(|q| q.interrupts && q.has_news() && of_vector(q))
                .map(|q| q.vector);
            if let Some(vector) = waits
                && !self.msix.enabled()
            {
                self.tell(vector);
            }
        }
    }

    /// Whether the driver is told by messages and not by the line.
    fn sends_messages(&self) -> bool {
        self.msix.enabled() || self.msi.enabled()
    }

    /// Has completion queue `number` promise an entry. If it has none, the worker is woken when
    /// the driver has freed one.
    fn promise(&self, number: u16) -> bool {
        let promise = || {
            let mut slot = lock(&self.completions[usize::from(number)]);
            slot.as_mut().is_some_and(CompletionQueue::promise)
        };
        if promise() {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        // The driver may have freed one just before it could see that the worker waits.
        promise()
    }

    fn release(&self, number: u16) {
        if let Some(queue) = lock(&self.completions[usize::from(number)]).as_mut() {
            queue.release();
        }
    }

    /// A doorbell was written: `offset` from the first. NVMe 1.4, 3.1.24 and 3.1.25.
    pub(super) fn write_doorbell(&self, offset: u64, data: &[u8]) {
        let &[a, b, c, d] = data else {
            return;
        };
        let value = u32::from_le_bytes([a, b, c, d]) & 0xffff;
        let (number, is_completion) = ((offset / 8) as usize, offset % 8 == 4);
        if number >= self.tails.len() || !offset.is_multiple_of(4) {
            return;
        }
        if !is_completion {
            self.tails[number].store(value, Ordering::Release);
            self.doorbell.ring(RING_QUEUES);
            return;
        }
        if let Some(queue) = lock(&self.completions[number]).as_mut() {
            queue.set_head(value);
        }
        if self.starved.swap(false, Ordering::SeqCst) {
            self.doorbell.ring(RING_QUEUES);
        }
        if !self.sends_messages() {
            self.update_line();
        }
    }

    /// Sets the line as the completion queues, the mask and configuration space have it.
    pub(super) fn update_line(&self) {
        // One at a time, so that the last to look is the last to set.
        let line = lock(&self.line);
        let wants = |queue: &Mutex<Option<CompletionQueue>>| {
            let slot = lock(queue);
            slot.as_ref().is_some_and(|q| q.interrupts && q.has_news())
        };
        let masked = self.sends_messages() || lock(&self.registers).masks(0);
        let wanted = !masked && self.completions.iter().any(wants);
        let allowed = {
            let mut space = lock(&self.configuration);
            space.set_interrupt_status(wanted);
            space.intx_allowed()
        };
        line.set(wanted && allowed);
    }
}

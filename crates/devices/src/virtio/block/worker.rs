//! The worker: takes requests, submits them, and gives their chains back when they are done.

use super::SERIAL;
use super::request::{Status, Wanted, parse, status_byte};
use crate::buffers::Buffers;
use crate::disk::{Disk, Done, Operation, Request};
use crate::in_flight::InFlight;
use crate::timers::lock;
use crate::virtio::{Doorbell, Queue, Running, WorkerThread};
use std::io;
use std::sync::{Arc, Mutex};

/// The most requests that are submitted together.
const BATCH: usize = 64;

/// What the worker's thread and the backend's share.
#[derive(Debug)]
pub(super) struct Service {
    disk: Arc<dyn Disk>,
    serial: [u8; SERIAL],
    /// The driver does not know flushes: what it has written must be stable when it is told.
    write_through: bool,
    /// The queues, until the worker ends.
    queues: Vec<Mutex<Option<Queue>>>,
    in_flight: InFlight,
}

/// A request that is being served.
#[derive(Debug)]
struct Serving {
    queue: usize,
    head: u16,
    status: Buffers,
    /// Bytes of data that a success writes.
    writes: u32,
}

impl Service {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        serial: [u8; SERIAL],
        write_through: bool,
        queues: Vec<Queue>,
    ) -> Arc<Self> {
        Arc::new(Self {
            disk,
            serial,
            write_through,
            queues: queues.into_iter().map(|q| Mutex::new(Some(q))).collect(),
            in_flight: InFlight::default(),
        })
    }

    fn with_queue<R>(&self, index: usize, act: impl FnOnce(&mut Queue) -> R) -> Option<R> {
        lock(self.queues.get(index)?).as_mut().map(act)
    }

    /// Serves some requests of a queue; `false` if there are no more. A backend may do its work in this
    /// very thread, and the driver make new requests meanwhile: so queues are served in turn.
    fn serve(self: &Arc<Self>, index: usize) -> bool {
        self.with_queue(index, Queue::disable_notifications);
        if self.serve_some(index) {
            return true;
        }
        let more = self.with_queue(index, |queue| {
            queue.signal();
            queue.enable_notifications()
        });
        more == Some(true)
    }

    /// Begins the next requests of a queue; `false` if there were no more.
    fn serve_some(self: &Arc<Self>, index: usize) -> bool {
        let begun = self.with_queue(index, |queue| {
            let mut requests = Vec::new();
            for _ in 0..BATCH {
                if !self.take(index, queue, &mut requests) {
                    break;
                }
            }
            requests
        });
        let Some(begun) = begun.filter(|begun| !begun.is_empty()) else {
            return false;
        };
        let requests = begun
            .into_iter()
            .map(|(request, serving)| self.job(request, serving));
        // Outside of any lock.
        self.disk.submit_all(requests.collect());
        true
    }

    /// Takes the next request of a queue, and finishes it at once if it needs no disk; `false` if there
    /// is none.
    fn take(
        &self,
        index: usize,
        queue: &mut Queue,
        requests: &mut Vec<(Request, Serving)>,
    ) -> bool {
        let Some(chain) = queue.pop() else {
            return false;
        };
        let memory = Arc::clone(queue.memory());
        let request = status_byte(&chain)
            .and_then(|status| Ok((status, parse(&chain, &memory, &*self.disk)?)));
        let (status, wanted) = match request {
            Ok(request) => request,
            Err(error) => {
                queue.fail(&error);
                return false;
            }
        };
        let serving = Serving {
            queue: index,
            head: chain.head,
            status,
            writes: 0,
        };
        match wanted {
            Wanted::Disk(request, writes) => {
                requests.push((request, Serving { writes, ..serving }));
            }
            Wanted::Nothing(status) => finish(queue, &serving, status),
            Wanted::Serial => {
                let written = chain.writable.write(&memory, 0, &self.serial);
                let writes = SERIAL as u32;
                let status = written.map_or(Status::IoError, |()| Status::Ok);
                finish(queue, &Serving { writes, ..serving }, status);
            }
        }
        true
    }

    /// A request as the backend takes it, from now on under way.
    fn job(self: &Arc<Self>, request: Request, serving: Serving) -> (Request, Done) {
        self.in_flight.begin();
        let changes = !matches!(request.operation, Operation::Read(_) | Operation::Flush);
        let this = Arc::clone(self);
        let done = move |result: io::Result<()>| {
            if result.is_ok() && changes && this.write_through {
                this.flush_then_finish(serving);
            } else {
                this.done(&serving, result);
            }
        };
        (request, Box::new(done))
    }

    fn flush_then_finish(self: Arc<Self>, serving: Serving) {
        let flush = Request {
            operation: Operation::Flush,
            offset: 0,
        };
        let disk = Arc::clone(&self.disk);
        disk.submit(flush, Box::new(move |result| self.done(&serving, result)));
    }

    /// Gives the chain of a request back and tells the driver.
    fn done(&self, serving: &Serving, result: io::Result<()>) {
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
            Err(error) => {
                tracing::debug!(%error, "a disk's request failed");
                Status::IoError
            }
        };
        self.with_queue(serving.queue, |queue| {
            finish(queue, serving, status);
            queue.signal();
        });
        self.in_flight.end();
    }

    /// Waits until nothing is in flight, and takes the queues back.
    fn end(&self) -> Vec<Queue> {
        self.in_flight.drain();
        self.queues
            .iter()
            .filter_map(|queue| lock(queue).take())
            .collect()
    }
}

/// Writes the status and gives the chain back.
fn finish(queue: &mut Queue, serving: &Serving, status: Status) {
    let memory = Arc::clone(queue.memory());
    // The buffer was RAM when the chain was taken, and RAM stays RAM.
    let told = serving.status.write(&memory, 0, &[status as u8]);
    let data = if status == Status::Ok {
        serving.writes
    } else {
        0
    };
    queue.complete(serving.head, if told.is_ok() { data + 1 } else { 0 });
}

/// Starts the worker's thread.
pub(super) fn start(
    doorbell: &Arc<Doorbell>,
    service: Arc<Service>,
) -> io::Result<Box<dyn Running>> {
    let bell = Arc::clone(doorbell);
    WorkerThread::spawn("virtio-blk", doorbell, move || {
        // Bits of the queues that may have requests.
        let mut waiting = 0;
        let all = (1 << service.queues.len()) - 1;
        loop {
            let rung = bell.take_between(waiting != 0);
            if rung & Doorbell::STOP != 0 {
                return service.end();
            }
            waiting |= rung & all;
            for index in 0..service.queues.len() {
                if waiting & 1 << index != 0 && !service.serve(index) {
                    waiting &= !(1 << index);
                }
            }
        }
    })
}

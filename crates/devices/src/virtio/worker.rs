//! The thread of a device's worker.

use super::{Doorbell, Queue, Running};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// A [`Running`] worker that is one thread with one [`Doorbell`].
#[derive(Debug)]
pub struct WorkerThread {
    doorbell: Arc<Doorbell>,
    thread: JoinHandle<Vec<Queue>>,
}

impl WorkerThread {
    /// Starts a thread that runs `body`, which must come back with all queues soon after
    /// [`Doorbell::STOP`] was rung.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn spawn(
        name: &str,
        doorbell: &Arc<Doorbell>,
        body: impl FnOnce() -> Vec<Queue> + Send + 'static,
    ) -> std::io::Result<Box<dyn Running>> {
        // What was rung for an earlier worker that is gone must not stop this one.
        doorbell.take();
        let thread = Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Box::new(Self {
            doorbell: Arc::clone(doorbell),
            thread,
        }))
    }

    /// Starts a thread that calls `serve` with the queues and the bells that were rung, until the
    /// worker is stopped. `serve` returns when the queues are empty.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn serve(
        name: &str,
        doorbell: &Arc<Doorbell>,
        mut queues: Vec<Queue>,
        mut serve: impl FnMut(&mut [Queue], u64) + Send + 'static,
    ) -> std::io::Result<Box<dyn Running>> {
        let bell = Arc::clone(doorbell);
        Self::spawn(name, doorbell, move || {
            loop {
                let rung = bell.wait();
                if rung & Doorbell::STOP != 0 {
                    return queues;
                }
                serve(&mut queues, rung);
            }
        })
    }
}

impl Running for WorkerThread {
    fn stop(self: Box<Self>) -> Vec<Queue> {
        self.doorbell.ring(Doorbell::STOP);
        self.thread.join().unwrap_or_else(|_| {
            tracing::error!("the worker of a device panicked; this is a fault of Belljar");
            Vec::new()
        })
    }
}

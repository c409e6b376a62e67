//! Runs cases on the host's own processor, in a child process that can do nothing else.
//!
//! The child maps code and data at the addresses that the cases use, takes cases from memory that it shares with its parent,
//! loads the registers and jumps to the code. Every case ends in a signal, whose frame holds the complete state. A case that
//! kills the child or does not end costs the child: a new one takes up the work behind it.

mod child;
mod enter;
mod image;
mod sandbox;
mod shared;

use crate::case::{Case, Failure, Outcome};
use child::Child;
use image::ImageLayout;
use shared::{BATCH, Shared};
use std::io;
use std::time::Duration;
use thiserror::Error;

/// How long a batch of cases may take before its present case counts as hung.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why cases cannot be run on the host.
#[derive(Debug, Error)]
pub enum HostError {
    /// The host's processor or kernel lacks something.
    #[error("the host lacks {0}, without which it cannot be the oracle")]
    Lacks(&'static str),
    /// The host refused something.
    #[error("the host refused {what}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The system call filter could not be made.
    #[error("the filter of system calls could not be made")]
    Filter(#[from] seccompiler::BackendError),
}

impl HostError {
    /// The error of the system call that has just failed.
    fn last(what: &'static str) -> Self {
        Self::Refused {
            what,
            source: io::Error::last_os_error(),
        }
    }
}

/// The host's processor as a runner of cases.
#[derive(Debug)]
pub struct Host {
    layout: ImageLayout,
    shared: Shared,
    child: Option<Child>,
}

impl Host {
    /// Prepares the memory and starts the child.
    ///
    /// # Errors
    /// [`HostError`] if the host lacks what is needed or refuses it.
    pub fn new() -> Result<Self, HostError> {
        let layout = ImageLayout::of_host()?;
        let shared = Shared::new()?;
        let child = Some(Child::start(&shared, layout.features())?);
        Ok(Self {
            layout,
            shared,
            child,
        })
    }

    /// The XSAVE components that the host saves and cases start with: bits of XCR0.
    pub fn xcr0(&self) -> u64 {
        self.layout.features()
    }

    /// Runs `cases` and tells how each one ended.
    ///
    /// # Errors
    /// [`HostError`] if a child cannot be started any more.
    pub fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome, Failure>>, HostError> {
        let mut outcomes = Vec::with_capacity(cases.len());
        for batch in cases.chunks(BATCH) {
            let mut rest = batch;
            while !rest.is_empty() {
                let done = self.batch(rest, &mut outcomes)?;
                rest = &rest[done..];
            }
        }
        Ok(outcomes)
    }

    /// Runs the first of `cases`, all of them unless one costs the child; tells how many.
    fn batch(
        &mut self,
        cases: &[Case],
        outcomes: &mut Vec<Result<Outcome, Failure>>,
    ) -> Result<usize, HostError> {
        let child = match self.child.take() {
            Some(child) => child,
            None => Child::start(&self.shared, self.layout.features())?,
        };
        for (number, case) in cases.iter().enumerate() {
            self.shared.put(number, case, &self.layout);
        }
        self.shared.set_count(cases.len());
        let failure = child.run(PATIENCE).err();
        let done = match failure {
            None => cases.len(),
            Some(_) => self.shared.current().min(cases.len() - 1),
        };
        for number in 0..done {
            outcomes.push(Ok(self.shared.take(number, &self.layout)));
        }
        match failure {
            None => {
                self.child = Some(child);
                Ok(done)
            }
            Some(failure) => {
                outcomes.push(Err(failure));
                Ok(done + 1)
            }
        }
    }
}

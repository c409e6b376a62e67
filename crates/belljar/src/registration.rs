//! A machine's entry in the runtime directory, from its start to its end.

use crate::control::{Control, Facts};
use crate::log::{RotatingLog, take_standard_error};
use crate::terminal::message;
use anyhow::{Context, Result};
use belljar_api::{ApiError, Claim, Ended, Place, Record, Runtime, Server};
use belljar_machine::MachineConfig;
use std::sync::Arc;

/// The entry, and the server of the control socket in it. Dropping it removes it.
#[derive(Debug)]
pub struct Registration {
    claim: Option<Claim>,
    server: Option<Server>,
}

impl Registration {
    /// Takes the name that `config` gives, or one that is free. A machine in the foreground can do
    /// without an entry if there is no directory for it, unless it was given a name; the user is
    /// told.
    pub fn enter(config: &MachineConfig, detached: bool) -> Result<Option<Self>> {
        let claimed = Runtime::of_user().and_then(|runtime| {
            runtime.sweep()?;
            match &config.name {
                Some(name) => runtime.claim(name),
                None => runtime.claim_generated(seed()),
            }
        });
        match claimed {
            Ok(claim) => Ok(Some(Self {
                claim: Some(claim),
                server: None,
            })),
            Err(error @ (ApiError::File { .. } | ApiError::Untrusted { .. }))
                if !detached && config.name.is_none() =>
            {
                let error = anyhow::Error::from(error);
                message(&format!(
                    "other commands cannot reach this machine: {error:#}"
                ));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn place(&self) -> Option<&Place> {
        self.claim.as_ref().map(Claim::place)
    }

    /// The machine's name.
    pub fn name(&self) -> String {
        self.place()
            .map(|place| place.name().to_owned())
            .unwrap_or_default()
    }

    /// The log of the console, new.
    pub fn console_log(&self) -> Result<Option<RotatingLog>> {
        let Some(place) = self.place() else {
            return Ok(None);
        };
        RotatingLog::create(place.console_log(), place.old_console_log())
            .with_context(|| {
                format!(
                    "cannot make the console's log {}",
                    place.console_log().display()
                )
            })
            .map(Some)
    }

    /// Makes standard error the log of a detached machine's messages.
    pub fn take_messages(&self) -> Result<()> {
        let Some(place) = self.place() else {
            return Ok(());
        };
        take_standard_error(place.messages(), place.old_messages())
            .with_context(|| format!("cannot write {}", place.messages().display()))
    }

    /// Writes down what the machine is, and serves the control socket.
    pub fn serve(&mut self, facts: &Facts, control: Arc<Control>) -> Result<()> {
        let Some(claim) = &self.claim else {
            return Ok(());
        };
        claim.write_record(&Claim::started_now(Record {
            pid: std::process::id(),
            cpus: facts.cpus,
            memory: facts.memory,
            source: facts.source.clone(),
            detached: facts.detached,
            started: 0,
            ended: None,
        }))?;
        let server = Server::start(claim.listen()?, control)
            .context("cannot start the thread of the control socket")?;
        self.server = Some(server);
        Ok(())
    }

    /// Serves nobody any more, and writes down how the machine ended.
    pub fn leave(mut self, ended: Ended) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.finish();
        }
        match self.claim.take() {
            Some(claim) => Ok(claim.release(ended)?),
            None => Ok(()),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        drop(self.server.take());
        if let Some(claim) = self.claim.take() {
            // What is left is removed by the next machine's start.
            let _ = claim.remove();
        }
    }
}

/// Something that differs from one machine to the next.
fn seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = since.map_or(0, |since| u64::from(since.subsec_nanos()));
    (nanos / 1000) ^ u64::from(std::process::id())
}

//! `belljar stop`, `pause` and `resume`.

use crate::terminal::message;
use anyhow::{Result, bail};
use belljar_api::{Action, Answer, ApiError, Client, Condition, Place, Runtime};
use clap::Args;
use std::time::{Duration, Instant};

/// How long a machine may take to end that was told to, whatever the guest does.
const END: Duration = Duration::from_secs(15);
/// The pause between two looks at whether a machine's process is gone.
const PAUSE: Duration = Duration::from_millis(5);

/// The machines that a command is about.
#[derive(Debug, Args)]
pub struct Names {
    /// Names of machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// The flags of `belljar stop`.
#[derive(Debug, Args)]
pub struct StopOptions {
    #[command(flatten)]
    machines: Names,
    /// Seconds that the guest may take to shut down; afterwards the machine is ended
    #[arg(long, short, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// End the machine at once, as pulling the plug would
    #[arg(long, short)]
    force: bool,
}

/// Does something with each of the machines; an error with one does not keep the others from it.
fn each(names: &Names, act: impl Fn(&Place) -> Result<()>) -> Result<()> {
    let runtime = Runtime::of_user()?;
    let mut failed = 0;
    for name in &names.names {
        let result = runtime
            .place(name)
            .map_err(anyhow::Error::from)
            .and_then(|place| act(&place));
        if let Err(error) = result {
            if names.names.len() == 1 {
                return Err(error);
            }
            message(&format!("{name}: {error:#}"));
            failed += 1;
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} machines: it did not work",
            names.names.len()
        );
    }
    Ok(())
}

/// Asks the machine to do something that has no other answer than that it is done.
fn ask(place: &Place, action: Action) -> Result<()> {
    match place.connect()?.call(action)? {
        Answer::Done => Ok(()),
        _ => Err(ApiError::WrongAnswer.into()),
    }
}

/// `belljar pause`.
pub fn pause(names: &Names) -> Result<()> {
    each(names, |place| ask(place, Action::Pause))
}

/// `belljar resume`.
pub fn resume(names: &Names) -> Result<()> {
    each(names, |place| ask(place, Action::Resume))
}

/// `belljar stop`.
pub fn stop(options: &StopOptions) -> Result<()> {
    each(&options.machines, |place| {
        let mut waiting = place.connect()?;
        waiting.ask(Action::Wait)?;
        let timeout = Duration::from_secs(options.timeout);
        let ended = !options.force && shuts_down(place, &mut waiting, timeout)?;
        if !ended {
            pull_the_plug(place, &mut waiting)?;
        }
        wait_until_gone(place)
    })
}

/// Presses the power button, and tells whether the machine ended within `timeout`.
fn shuts_down(place: &Place, waiting: &mut Client, timeout: Duration) -> Result<bool> {
    // A machine that ends at this moment has no use for the button.
    match ask(place, Action::PowerButton) {
        Err(error) if !is_over(&error) => message(&format!(
            "{}: its power button cannot be pressed: {error:#}",
            place.name()
        )),
        _ => {}
    }
    match waiting.answer(Some(timeout)) {
        Ok(_) | Err(ApiError::Closed | ApiError::Connection(_)) => Ok(true),
        Err(ApiError::Timeout(seconds)) => {
            message(&format!(
                "{}: the guest has not shut down within {seconds} s; the machine is ended",
                place.name()
            ));
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether an error says that the machine is ending or has ended.
fn is_over(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ApiError::Closed | ApiError::NotRunning(_) | ApiError::NoMachine(_))
    )
}

/// Ends the machine.
fn pull_the_plug(place: &Place, waiting: &mut Client) -> Result<()> {
    match ask(place, Action::Stop) {
        Err(error) if !is_over(&error) => return Err(error),
        _ => {}
    }
    match waiting.answer(Some(END)) {
        Ok(_) | Err(ApiError::Closed | ApiError::Connection(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the machine's process has left, so that its name and its files are free.
fn wait_until_gone(place: &Place) -> Result<()> {
    let limit = Instant::now() + END;
    while Instant::now() < limit {
        match place.condition() {
            Ok(Condition::Ended(_)) | Err(ApiError::NoMachine(_)) => return Ok(()),
            _ => std::thread::sleep(PAUSE),
        }
    }
    bail!("the machine has ended, but not its process")
}

//! The stages of a machine's life, and how its vCPU threads move from one to the next together.
//!
//! Every vCPU thread is either running guest code or *parked* in [`Lifecycle::park`]. Whoever wants
//! something of the whole machine sets the goal and raises [`Reason::STOP`] for every vCPU; the
//! threads park. What needs all of them to stand still (a pause that is complete, a reset) happens
//! when the last one has parked. So pause, reset and stop are one mechanism.

use crate::{MachineError, Outcome};
use belljar_engine::{Attention, Reason, VcpuId};
use belljar_x86::CpuState;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the machine is to do.
#[derive(Debug)]
enum Goal {
    Run,
    Pause,
    End(Outcome),
}

#[derive(Debug)]
struct Stage {
    goal: Goal,
    /// A reset comes before the goal.
    reset_due: bool,
    /// A thread is carrying out a reset.
    resetting: bool,
    /// How many vCPU threads there are, and how many of them are parked.
    threads: usize,
    parked: usize,
    /// States that a reset gave and that the vCPUs' threads have yet to take.
    states: Vec<Option<Box<CpuState>>>,
}

impl Stage {
    fn stands_still(&self) -> bool {
        self.parked == self.threads && !self.reset_due && !self.resetting
    }

    /// Takes over what a reset gave.
    fn install(&mut self, states: Result<Vec<CpuState>, MachineError>) {
        match states {
            Ok(states) => {
                self.states = states.into_iter().map(|s| Some(Box::new(s))).collect();
            }
            Err(error) => self.end(Outcome::Failed(error)),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if !matches!(self.goal, Goal::End(_)) {
            self.goal = Goal::End(outcome);
        }
    }
}

/// Where a machine is in its life. See the [module](self).
#[derive(Debug)]
pub(crate) struct Lifecycle {
    stage: Mutex<Stage>,
    changed: Condvar,
    attention: Arc<[Attention]>,
    /// A reset that the guest asks for ends the machine.
    no_reboot: bool,
}

/// What a vCPU thread does after it was parked.
#[derive(Debug)]
pub(crate) enum Next {
    /// Run guest code, from another state than before if there is one.
    Run(Option<Box<CpuState>>),
    /// End.
    End,
}

impl Lifecycle {
    /// A machine that is paused and has no vCPU threads yet.
    pub fn new(attention: Arc<[Attention]>, no_reboot: bool) -> Self {
        Self {
            stage: Mutex::new(Stage {
                goal: Goal::Pause,
                reset_due: false,
                resetting: false,
                threads: 0,
                parked: 0,
                states: vec![None; attention.len()],
            }),
            changed: Condvar::new(),
            attention,
            no_reboot,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the stage and calls all vCPU threads in to look at it.
    fn call_in(&self, change: impl FnOnce(&mut Stage)) {
        let mut stage = self.lock();
        change(&mut stage);
        for attention in self.attention.iter() {
            attention.raise(Reason::STOP);
        }
        self.changed.notify_all();
    }

    /// Says that there will be `threads` vCPU threads.
    pub fn expect(&self, threads: usize) {
        self.lock().threads = threads;
        self.changed.notify_all();
    }

    /// Whether the vCPUs are to stand still.
    pub fn is_paused(&self) -> bool {
        matches!(self.lock().goal, Goal::Pause)
    }

    /// Whether the machine has ended.
    pub fn is_ended(&self) -> bool {
        matches!(self.lock().goal, Goal::End(_))
    }

    /// Lets the vCPUs run. An ended machine stays ended.
    pub fn resume(&self) {
        let mut stage = self.lock();
        if matches!(stage.goal, Goal::Pause) {
            stage.goal = Goal::Run;
            self.changed.notify_all();
        }
    }

    /// Stops the vCPUs and comes back when all stand still, or the machine has ended.
    pub fn pause(&self) {
        self.call_in(|stage| {
            if matches!(stage.goal, Goal::Run) {
                stage.goal = Goal::Pause;
            }
        });
        let mut stage = self.lock();
        while matches!(stage.goal, Goal::Pause) && !stage.stands_still() {
            stage = self.wait(stage);
        }
    }

    /// Resets the machine at the next moment at which all vCPUs stand still.
    pub fn request_reset(&self) {
        self.call_in(|stage| stage.reset_due = true);
    }

    /// A reset that the guest asked for: with `no_reboot` it ends the machine.
    pub fn guest_reset(&self) {
        if self.no_reboot {
            self.end(Outcome::Reset);
        } else {
            self.request_reset();
        }
    }

    /// Ends the machine. The first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        self.call_in(|stage| stage.end(outcome));
    }

    /// Comes back when the machine has ended and every vCPU thread is parked for good.
    pub fn wait_for_end(&self) {
        let mut stage = self.lock();
        while !matches!(stage.goal, Goal::End(_)) || stage.parked < stage.threads {
            stage = self.wait(stage);
        }
    }

    /// The outcome of an ended machine.
    pub fn take_outcome(&self) -> Outcome {
        let mut stage = self.lock();
        match std::mem::replace(&mut stage.goal, Goal::End(Outcome::Stopped)) {
            Goal::End(outcome) => outcome,
            Goal::Run | Goal::Pause => Outcome::Stopped,
        }
    }

    fn wait<'a>(&self, stage: MutexGuard<'a, Stage>) -> MutexGuard<'a, Stage> {
        self.changed
            .wait(stage)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Parks the thread of vCPU `id` until it is to run or to end. The last thread to park
    /// carries out a reset that is due: `reset` gives the states from which the vCPUs start anew.
    pub fn park(&self, id: usize, reset: impl Fn() -> Result<Vec<CpuState>, MachineError>) -> Next {
        let mut stage = self.lock();
        stage.parked += 1;
        self.changed.notify_all();
        loop {
            if matches!(stage.goal, Goal::End(_)) {
                return Next::End;
            }
            if stage.reset_due && stage.parked == stage.threads {
                stage.reset_due = false;
                stage.resetting = true;
                drop(stage);
                let states = reset();
                stage = self.lock();
                stage.resetting = false;
                stage.install(states);
                self.changed.notify_all();
            } else if stage.reset_due || stage.resetting || matches!(stage.goal, Goal::Pause) {
                stage = self.wait(stage);
            } else {
                stage.parked -= 1;
                self.attention[id].clear(Reason::STOP);
                return Next::Run(stage.states.get_mut(id).and_then(Option::take));
            }
        }
    }

    /// Counts the thread of a vCPU, which did not reach [`park`](Self::park), as parked for good.
    fn lose_vcpu(&self) {
        self.lock().parked += 1;
        self.changed.notify_all();
    }
}

/// Ends the machine if the thread that holds this unwinds, so that nobody waits for it in vain.
#[derive(Debug)]
pub(crate) struct Unwinding<'a> {
    lifecycle: &'a Lifecycle,
    thread: String,
    is_vcpu: bool,
}

impl<'a> Unwinding<'a> {
    /// For the thread of vCPU `id`.
    pub fn of_vcpu(lifecycle: &'a Lifecycle, id: VcpuId) -> Self {
        Self {
            lifecycle,
            thread: format!("vcpu {id}"),
            is_vcpu: true,
        }
    }

    /// For the thread `name` of another kind, which does not park.
    pub fn of_helper(lifecycle: &'a Lifecycle, name: &str) -> Self {
        Self {
            lifecycle,
            thread: name.to_owned(),
            is_vcpu: false,
        }
    }
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let error = MachineError::ThreadPanicked(std::mem::take(&mut self.thread));
        self.lifecycle.end(Outcome::Failed(error));
        if self.is_vcpu {
            self.lifecycle.lose_vcpu();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_timer_thread_ends_the_machine_with_its_name() {
        let lifecycle = Arc::new(Lifecycle::new(Arc::new([Attention::new()]), false));
        lifecycle.resume();
        let held = Arc::clone(&lifecycle);
        let thread = std::thread::spawn(move || {
            let _guard = Unwinding::of_helper(&held, "timers");
            panic!("as a test");
        });
        assert!(thread.join().is_err());
        lifecycle.wait_for_end();
        let outcome = lifecycle.take_outcome();
        let Outcome::Failed(error @ MachineError::ThreadPanicked(_)) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(error.to_string().starts_with("the thread timers failed"));
    }
}

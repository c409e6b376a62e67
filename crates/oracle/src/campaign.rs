//! Many cases, and what came of them.

use crate::case::{Case, Failure, Outcome, Unit};
use crate::compare::{Difference, Rules, differences};
use crate::encode::decode;
use crate::generate::Generator;
use crate::machine::{Machine, MachineError};
use crate::native::{Host, HostError};
use crate::report::{describe, failures};
use iced_x86::Code;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use thiserror::Error;

/// Cases that a worker takes at once.
const SHARE: u64 = 256;
/// How often a case that differs is thinned out: what is left out later may have been what needed something earlier.
const PASSES: u32 = 2;

/// What runs cases: the host, or a machine with an engine.
pub trait Runner: Send {
    /// Runs `cases` and tells how each one ended.
    ///
    /// # Errors
    /// [`CampaignError`] if no more cases can be run.
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome, Failure>>, CampaignError>;
}

/// Why a campaign came to an end before its time.
#[derive(Debug, Error)]
pub enum CampaignError {
    /// The host runs no more cases.
    #[error("the oracle failed")]
    Host(#[from] HostError),
    /// The engine runs no more cases.
    #[error("the machine failed")]
    Machine(#[from] MachineError),
    /// The translator has no tuning of that name.
    #[error("the translator has no tuning of that name")]
    NoTuning,
    /// There is no such engine here.
    #[error("the engine cannot be had")]
    Engine(#[from] belljar_machine::MachineError),
}

impl Runner for Host {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome, Failure>>, CampaignError> {
        Ok(Self::run(self, cases)?)
    }
}

impl Runner for Machine {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Result<Outcome, Failure>>, CampaignError> {
        let outcomes: Result<_, MachineError> = cases.iter().map(|c| Self::run(self, c)).collect();
        Ok(outcomes?)
    }
}

/// A case whose outcomes differ.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The case, as short as it could be made.
    pub case: Case,
    /// In what they differ.
    pub differences: Vec<Difference>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&describe(&self.case, &self.differences))
    }
}

/// What came of the cases about one instruction.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many were run.
    pub cases: u64,
    /// How many differed.
    pub failed: u64,
    /// The first few of those.
    pub examples: Vec<Mismatch>,
}

/// What came of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// By the decoder's name of the instruction: of the one that the case is about, and for sequences of the one at which
    /// the outcomes part.
    pub tallies: BTreeMap<String, Tally>,
    /// Cases for which no encoding was found.
    pub skipped: u64,
}

impl Summary {
    /// Cases that were run.
    pub fn cases(&self) -> u64 {
        self.tallies.values().map(|t| t.cases).sum()
    }

    /// Cases that differed.
    pub fn failed(&self) -> u64 {
        self.tallies.values().map(|t| t.failed).sum()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, tally) in &self.tallies {
            for mismatch in &tally.examples {
                writeln!(f, "{mismatch}")?;
            }
            if tally.failed > 0 {
                writeln!(
                    f,
                    "{name}: {} of {} cases differ\n",
                    tally.failed, tally.cases
                )?;
            }
        }
        let bad = self.tallies.values().filter(|t| t.failed > 0);
        for (name, tally) in self.tallies.iter().filter(|t| t.1.failed > 0) {
            writeln!(f, "{:>8} of {:>8}  {name}", tally.failed, tally.cases)?;
        }
        write!(
            f,
            "{} cases, {} differ, of {} of {} instructions; {} cases without an encoding",
            self.cases(),
            self.failed(),
            bad.count(),
            self.tallies.len(),
            self.skipped
        )
    }
}

/// What to run and how to judge it.
#[derive(Debug)]
pub struct Campaign {
    /// Makes the cases.
    pub generator: Generator,
    /// How many.
    pub cases: u64,
    /// How outcomes are judged.
    pub rules: Rules,
    /// How many mismatches of each instruction to keep.
    pub examples: usize,
    /// Threads.
    pub jobs: usize,
}

impl Campaign {
    /// Runs the campaign against what `engine` makes, one for each thread.
    ///
    /// # Errors
    /// The first [`CampaignError`] of any thread.
    pub fn run(
        &self,
        engine: &(dyn Fn() -> Result<Box<dyn Runner>, CampaignError> + Sync),
    ) -> Result<Summary, CampaignError> {
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let summary = Mutex::new(Summary::default());
        let work = || -> Result<(), CampaignError> {
            let mut pair = Pair {
                host: Host::new()?,
                engine: engine()?,
                rules: self.rules,
            };
            while !stop.load(Ordering::Relaxed) {
                let first = next.fetch_add(SHARE, Ordering::Relaxed);
                if first >= self.cases {
                    break;
                }
                let share = first..self.cases.min(first + SHARE);
                self.share(share, &mut pair, &summary)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs.max(1))
                .map(|_| {
                    scope.spawn(|| work().inspect_err(|_| stop.store(true, Ordering::Relaxed)))
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| match worker.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })?;
        Ok(summary.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs some cases and enters what came of them into the summary.
    fn share(
        &self,
        numbers: std::ops::Range<u64>,
        pair: &mut Pair,
        summary: &Mutex<Summary>,
    ) -> Result<(), CampaignError> {
        let catalogue = self.generator.catalogue();
        let wanted = numbers.end - numbers.start;
        let cases: Vec<Case> = numbers
            .filter_map(|n| self.generator.case(catalogue.index(n)))
            .collect();
        let host = pair.host.run(&cases)?;
        let engine = pair.engine.run(&cases)?;
        let lock = || summary.lock().unwrap_or_else(PoisonError::into_inner);
        lock().skipped += wanted - cases.len() as u64;
        for ((case, host), engine) in cases.into_iter().zip(host).zip(engine) {
            let found = judge(&case, &host, &engine, self.rules);
            if found.is_empty() {
                lock().tallies.entry(self.name(&case)).or_default().cases += 1;
                continue;
            }
            let mismatch = pair.minimise(Mismatch {
                case,
                differences: found,
            })?;
            let mut summary = lock();
            let tally = summary
                .tallies
                .entry(self.name(&mismatch.case))
                .or_default();
            tally.cases += 1;
            tally.failed += 1;
            if tally.examples.len() < self.examples {
                tally.examples.push(mismatch);
            }
        }
        Ok(())
    }

    /// The decoder's name of the instruction that `case` is entered under: of its last one, but of the one that it is about
    /// if it is a block, whose last one means nothing.
    fn name(&self, case: &Case) -> String {
        if case.is_block() {
            return format!("{:?}", self.generator.catalogue().code(case.index));
        }
        let last = case.instructions.last().and_then(|bytes| decode(bytes));
        let code = last.map_or(Code::INVALID, |e| e.instruction.code());
        format!("{code:?}")
    }

    /// Runs case `index` alone. `None` if there is no such case, and no differences if the outcomes are the same.
    ///
    /// # Errors
    /// [`CampaignError`]
    pub fn again(
        &self,
        index: u64,
        engine: Box<dyn Runner>,
    ) -> Result<Option<Mismatch>, CampaignError> {
        let Some(case) = self.generator.case(index) else {
            return Ok(None);
        };
        let mut pair = Pair {
            host: Host::new()?,
            engine,
            rules: self.rules,
        };
        let differences = pair.run(&case)?;
        Ok(Some(Mismatch { case, differences }))
    }
}

fn judge(
    case: &Case,
    host: &Result<Outcome, Failure>,
    engine: &Result<Outcome, Failure>,
    rules: Rules,
) -> Vec<Difference> {
    match (host, engine) {
        (Ok(host), Ok(engine)) => differences(case, host, engine, rules),
        _ => failures(host, engine),
    }
}

/// The oracle and what is to be judged.
struct Pair {
    host: Host,
    engine: Box<dyn Runner>,
    rules: Rules,
}

impl Pair {
    /// The differences that `case` makes.
    fn run(&mut self, case: &Case) -> Result<Vec<Difference>, CampaignError> {
        let cases = std::slice::from_ref(case);
        let host = self.host.run(cases)?;
        let engine = self.engine.run(cases)?;
        let judged = host.iter().zip(&engine);
        Ok(judged
            .flat_map(|(h, e)| judge(case, h, e, self.rules))
            .collect())
    }

    /// Makes a case that differs shorter: cuts off its end, then turns what is not needed into NOPs.
    fn minimise(&mut self, mut mismatch: Mismatch) -> Result<Mismatch, CampaignError> {
        if mismatch.case.units.is_empty() {
            mismatch.case.units = vec![Unit::ALONE; mismatch.case.instructions.len()];
        }
        if self.run(&mismatch.case)?.is_empty() {
            mismatch.differences.push(Difference {
                what: "when it is run again, without the cases before it".into(),
                host: "no differences".into(),
                engine: "no differences".into(),
            });
            return Ok(mismatch);
        }
        let mut least = self.cut(mismatch)?;
        for _ in 0..PASSES {
            least = self.thin_out(least)?;
        }
        Ok(least)
    }

    /// Cuts off the end of a case that differs.
    fn cut(&mut self, mismatch: Mismatch) -> Result<Mismatch, CampaignError> {
        let whole = &mismatch.case;
        for kept in 1..whole.units.len() {
            let ended: Vec<bool> = (0..whole.units.len()).map(|unit| unit >= kept).collect();
            let mut case = whole.without(&ended);
            case.units.truncate(kept);
            let length = case.units.iter().map(|unit| unit.length).sum();
            case.instructions.truncate(length);
            if let Some(found) = self.still_differs(case)? {
                return Ok(found);
            }
        }
        Ok(mismatch)
    }

    /// Turns what a case that differs does not need into NOPs.
    fn thin_out(&mut self, mismatch: Mismatch) -> Result<Mismatch, CampaignError> {
        let mut least = mismatch;
        // The instruction after which the outcomes part is what a sequence is entered under.
        let count = least.case.units.len() - usize::from(!least.case.is_block());
        for number in 0..count {
            if least.case.units[number].needed {
                continue;
            }
            let only: Vec<bool> = (0..count).map(|unit| unit == number).collect();
            let case = least.case.without(&only);
            if case.instructions != least.case.instructions
                && let Some(found) = self.still_differs(case)?
            {
                least = found;
            }
        }
        Ok(least)
    }

    /// `case` as a mismatch, if it is one.
    fn still_differs(&mut self, case: Case) -> Result<Option<Mismatch>, CampaignError> {
        let differences = self.run(&case)?;
        Ok((!differences.is_empty()).then_some(Mismatch { case, differences }))
    }
}

//! The oracle on its own: the host gives the same answers twice, and they are the ones that the
//! manual gives. Then the interpreter against it.

use belljar_machine::{EngineChoice, choose_engine};
use belljar_oracle::{
    Campaign, CampaignError, Case, Catalogue, Failure, Flags, Generator, Host, Machine, Outcome,
    Rules, Runner, Shape, Summary, differences, host_cpuid,
};
use belljar_translator::{Translator, Tuning};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use std::sync::Arc;
use std::time::Instant;

const BREAKPOINT: u64 = 3;
const SEED: u64 = 0x0be1_17a5;

fn generator(shape: Shape, only: &[&str]) -> Generator {
    let mut catalogue = Catalogue::new(&host_cpuid, &|_| true);
    if !only.is_empty() {
        let names: Vec<String> = only.iter().map(|&name| name.into()).collect();
        catalogue.retain(&names);
    }
    Generator::new(SEED, shape, u64::MAX, catalogue)
}

fn cases(generator: &Generator, count: u64) -> Vec<Case> {
    (0..count)
        .filter_map(|n| generator.case(generator.catalogue().index(n)))
        .collect()
}

#[test]
fn the_host_gives_the_same_outcome_twice() {
    for shape in [Shape::Single, Shape::Sequence(16), Shape::Block(64)] {
        let campaign = Campaign {
            generator: generator(shape, &[]),
            cases: 4000,
            rules: Rules {
                undefined: Flags::Compare,
                ..Rules::default()
            },
            examples: 1,
            jobs: 1,
        };
        let summary = campaign.run(&|| Ok(Box::new(Host::new()?))).unwrap();
        assert_eq!(summary.failed(), 0, "{summary}");
        assert!(summary.cases() > 3900, "{summary}");
    }
}

#[test]
fn most_cases_run_to_their_end() {
    let cases = cases(&generator(Shape::Single, &[]), 4000);
    let outcomes = Host::new().unwrap().run(&cases).unwrap();
    let ended = cases.iter().zip(&outcomes).filter(|(case, outcome)| {
        let end = case.registers.rip + case.code().len() as u64 + 1;
        outcome
            .as_ref()
            .is_ok_and(|o| o.fault.vector == BREAKPOINT && o.registers.rip == end)
    });
    let ended = ended.count();
    assert!(ended * 10 > cases.len() * 6, "{ended} of {}", cases.len());
}

#[test]
fn an_addition_is_what_the_manual_says() {
    let generator = generator(Shape::Single, &["Add_rm64_r64"]);
    let mut host = Host::new().unwrap();
    let mut seen = 0;
    for mut case in cases(&generator, 50) {
        // ADD RAX, RCX
        case.instructions = vec![vec![0x48, 0x01, 0xc8]];
        let [rax, rcx] = [case.registers.gpr[0], case.registers.gpr[1]];
        let outcomes = host.run(std::slice::from_ref(&case)).unwrap();
        let Ok(outcome) = &outcomes[0] else {
            panic!("{outcomes:?}");
        };
        if outcome.fault.vector != BREAKPOINT {
            continue;
        }
        seen += 1;
        let (sum, carry) = rax.overflowing_add(rcx);
        assert_eq!(outcome.registers.gpr[0], sum);
        assert_eq!(outcome.registers.rflags & 1 != 0, carry);
        assert!(outcome.data == case.data);
    }
    assert!(seen > 30);
}

#[test]
fn a_difference_in_any_part_of_the_state_is_told() {
    let case = cases(&generator(Shape::Single, &["Nop_rm64"]), 1).remove(0);
    let outcomes = Host::new()
        .unwrap()
        .run(std::slice::from_ref(&case))
        .unwrap();
    let outcome = outcomes[0].clone().unwrap();
    let tells = |change: &dyn Fn(&mut Outcome)| {
        let mut changed = outcome.clone();
        change(&mut changed);
        differences(&case, &outcome, &changed, Rules::default()).len() == 1
    };
    assert!(!tells(&|_| {}));
    assert!(tells(&|o| o.registers.gpr[13] ^= 1));
    assert!(tells(&|o| o.registers.rflags ^= 1 << 11));
    assert!(tells(&|o| o.registers.rip ^= 1));
    assert!(tells(&|o| o.fault.error ^= 2));
    assert!(tells(&|o| o.vector.zmm[31][7] ^= 1));
    assert!(tells(&|o| o.vector.k[7] ^= 1));
    assert!(tells(&|o| o.vector.x87.mxcsr ^= 1));
    assert!(tells(&|o| o.vector.x87.st[7][1] ^= 1));
    assert!(tells(&|o| o.data[5000] ^= 1));
}

#[test]
fn status_flags_at_a_fault_may_be_left_out() {
    let case = cases(&generator(Shape::Single, &["Nop_rm64"]), 1).remove(0);
    let outcomes = Host::new()
        .unwrap()
        .run(std::slice::from_ref(&case))
        .unwrap();
    let mut outcome = outcomes[0].clone().unwrap();
    let lenient = Rules {
        at_fault: Flags::Ignore,
        ..Rules::default()
    };
    for (vector, flag, rules, found) in [
        (14, 1, Rules::default(), 1),
        (14, 1, lenient, 0),
        (13, 1 << 11, lenient, 0),
        (19, 1, lenient, 0),
        // Not a status flag; not a fault.
        (14, 1 << 10, lenient, 1),
        (BREAKPOINT, 1, lenient, 1),
    ] {
        outcome.fault.vector = vector;
        let mut other = outcome.clone();
        other.registers.rflags ^= flag;
        assert_eq!(differences(&case, &outcome, &other, rules).len(), found);
    }
}

#[test]
fn a_case_that_does_not_end_costs_the_child_but_not_the_campaign() {
    let mut cases = cases(&generator(Shape::Single, &["Nop_rm64"]), 3);
    // JMP to itself, then a system call that the sandbox forbids.
    cases[0].instructions = vec![vec![0xeb, 0xfe]];
    cases[1].instructions = vec![vec![0xb8, 39, 0, 0, 0], vec![0x0f, 0x05]];
    for case in &mut cases {
        case.registers.rip = 0x1000_1900;
    }
    let outcomes = Host::new().unwrap().run(&cases).unwrap();
    assert_eq!(outcomes[0].as_ref().err(), Some(&Failure::Hung));
    assert!(matches!(outcomes[1], Err(Failure::Died(_))));
    assert_eq!(outcomes[2].as_ref().err(), None);
}

/// The share of `cases` in percent of which `holds`.
fn percent(cases: &[(Case, Outcome)], holds: impl Fn(&Case, &Outcome) -> bool) -> usize {
    let count = cases.iter().filter(|(case, outcome)| holds(case, outcome));
    100 * count.count() / cases.len()
}

#[test]
fn blocks_end_turn_back_and_change_themselves() {
    let mut host = Host::new().unwrap();
    let cases = cases(&generator(Shape::Block(64), &[]), 2000);
    let outcomes = host.run(&cases).unwrap();
    let run: Vec<(Case, Outcome)> = cases
        .into_iter()
        .zip(outcomes)
        .map(|(case, outcome)| (case, outcome.expect("every block ends")))
        .collect();

    let to_the_end = percent(&run, |_, outcome| outcome.fault.vector == BREAKPOINT);
    let changed = percent(&run, |case, outcome| {
        let pages = outcome.block.as_ref().unwrap();
        !pages[case.code_offset()..].starts_with(&case.code())
    });
    // What is stored must matter for more than the bytes themselves. (That some stores use registers adds to it.)
    let still: Vec<Case> = run
        .iter()
        .map(|(case, _)| {
            let stores = case.units.iter().map(|unit| unit.patches.is_some());
            case.without(&stores.collect::<Vec<_>>())
        })
        .collect();
    let others = host.run(&still).unwrap();
    let others = std::cell::RefCell::new(others.into_iter());
    let matters = percent(&run, |case, outcome| {
        let Some(Ok(mut other)) = others.borrow_mut().next() else {
            return true;
        };
        other.block.clone_from(&outcome.block);
        !differences(case, outcome, &other, Rules::default()).is_empty()
    });
    println!("to the end {to_the_end} %, changed {changed} %, matters {matters} %");
    assert!(to_the_end > 40 && changed > 60 && matters > 20);
}

/// A number of the environment, decimal or with `0x`.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.unwrap_or_else(|e| panic!("{name}={text}: {e}"))
}

/// How an engine is compared.
struct Engine {
    choice: EngineChoice,
    /// Whether it counts instructions.
    budget: bool,
    /// The translator's tuning, if it is not the usual one.
    tuning: Option<&'static str>,
    rules: Rules,
}

impl Engine {
    /// The translator as machines run it.
    fn uncounted(tuning: Option<&'static str>) -> Self {
        Self {
            choice: EngineChoice::Translator,
            budget: false,
            tuning,
            rules: Rules {
                at_fault: Flags::Ignore,
                ..Rules::default()
            },
        }
    }

    fn exact(choice: EngineChoice) -> Self {
        Self {
            choice,
            budget: true,
            tuning: None,
            rules: Rules::default(),
        }
    }
}

/// Cases of `shape` on the host and in `engine`.
fn compare(engine: &Engine, seed: u64, count: u64, shape: Shape, avx512: bool) -> Summary {
    let model = Arc::new(CpuidModel::new(&CpuidConfig {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        avx512,
    }));
    let xcr0 = Host::new().unwrap().xcr0() & model.xcr0_mask();
    let catalogue = Catalogue::new(&host_cpuid, &|features| model.allows(features));
    let campaign = Campaign {
        generator: Generator::new(seed, shape, xcr0, catalogue),
        cases: count,
        rules: engine.rules,
        examples: 1,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let runner = || -> Result<Box<dyn Runner>, CampaignError> {
        let chosen = match engine.tuning.and_then(Tuning::stressed) {
            Some(tuning) => Arc::new(Translator::with_tuning(tuning)),
            None => choose_engine(engine.choice)?,
        };
        let machine = Machine::new(chosen, Arc::clone(&model), xcr0)?;
        Ok(Box::new(if engine.budget {
            machine
        } else {
            machine.without_budget()?
        }))
    };
    campaign.run(&runner).unwrap()
}

/// `BELLJAR_ORACLE_CASES` says how many cases, `BELLJAR_ORACLE_SEED` which ones.
fn ends_every_case_as_the_host_does(engine: &Engine) {
    let seed = setting("BELLJAR_ORACLE_SEED", SEED);
    let count = setting("BELLJAR_ORACLE_CASES", 20_000);
    let start = Instant::now();
    // Single instructions reach the corners; sequences what one leaves behind for the next; blocks what depends on the way
    // there, and code that changes.
    let shares = [
        (Shape::Single, false, 6),
        (Shape::Single, true, 5),
        (Shape::Sequence(16), false, 1),
        (Shape::Sequence(16), true, 1),
        (Shape::Block(64), false, 2),
        (Shape::Block(64), true, 1),
    ];
    for (shape, avx512, sixteenths) in shares {
        // Code that does not count may be wrong in flags once, when a page first changes itself.
        if !engine.budget && matches!(shape, Shape::Block(_)) {
            continue;
        }
        let summary = compare(engine, seed, count * sixteenths / 16, shape, avx512);
        let name = engine.choice;
        println!("{name}, {shape}, AVX-512 {avx512}: {summary}");
        assert_eq!(summary.failed(), 0, "seed {seed:#x}\n{summary}");
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = count as f64 / seconds;
    println!("seed {seed:#x}: {count} cases in {seconds:.1} s, {rate:.0} a second");
}

#[test]
fn the_interpreter_ends_every_case_as_the_host_does() {
    ends_every_case_as_the_host_does(&Engine::exact(EngineChoice::Interpreter));
}

#[test]
fn the_translator_that_counts_ends_every_case_as_the_host_does() {
    ends_every_case_as_the_host_does(&Engine::exact(EngineChoice::Translator));
}

#[test]
fn the_translator_ends_every_case_as_the_host_does() {
    ends_every_case_as_the_host_does(&Engine::uncounted(None));
}

#[test]
fn the_translator_with_windows_ends_every_case_as_the_host_does() {
    assert!(Tuning::stressed("windows").is_some());
    ends_every_case_as_the_host_does(&Engine::uncounted(Some("windows")));
}

//! The oracle on its own: the host gives the same answers twice, and they are the ones that the
//! manual gives. Then the interpreter against it.

use belljar_interpreter::Interpreter;
use belljar_oracle::{
    Campaign, CampaignError, Case, Catalogue, Failure, Generator, Host, Machine, Runner, Summary,
    Undefined, differences, host_cpuid,
};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use std::sync::Arc;
use std::time::Instant;

const BREAKPOINT: u64 = 3;
const SEED: u64 = 0x0be1_17a5;

fn generator(length: usize, only: &[&str]) -> Generator {
    let mut catalogue = Catalogue::new(&host_cpuid, &|_| true);
    if !only.is_empty() {
        let names: Vec<String> = only.iter().map(|&name| name.into()).collect();
        catalogue.retain(&names);
    }
    Generator::new(SEED, length, u64::MAX, catalogue)
}

fn cases(generator: &Generator, count: u64) -> Vec<Case> {
    (0..count)
        .filter_map(|n| generator.case(generator.catalogue().index(n)))
        .collect()
}

#[test]
fn the_host_gives_the_same_outcome_twice() {
    for length in [1, 16] {
        let campaign = Campaign {
            generator: generator(length, &[]),
            cases: 4000,
            undefined: Undefined::Compare,
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
    let cases = cases(&generator(1, &[]), 4000);
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
    let generator = generator(1, &["Add_rm64_r64"]);
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
    let case = cases(&generator(1, &["Nop_rm64"]), 1).remove(0);
    let outcomes = Host::new()
        .unwrap()
        .run(std::slice::from_ref(&case))
        .unwrap();
    let outcome = outcomes[0].clone().unwrap();
    let tells = |change: &dyn Fn(&mut belljar_oracle::Outcome)| {
        let mut changed = outcome.clone();
        change(&mut changed);
        differences(&case, &outcome, &changed, Undefined::Ignore).len() == 1
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
fn a_case_that_does_not_end_costs_the_child_but_not_the_campaign() {
    let mut cases = cases(&generator(1, &["Nop_rm64"]), 3);
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

/// Cases of up to `length` instructions on the host and in the interpreter.
fn compare_interpreter(seed: u64, count: u64, length: usize, avx512: bool) -> Summary {
    let model = Arc::new(CpuidModel::new(&CpuidConfig {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        avx512,
    }));
    let xcr0 = Host::new().unwrap().xcr0() & model.xcr0_mask();
    let catalogue = Catalogue::new(&host_cpuid, &|features| model.allows(features));
    let campaign = Campaign {
        generator: Generator::new(seed, length, xcr0, catalogue),
        cases: count,
        undefined: Undefined::Ignore,
        examples: 1,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let interpreter = || -> Result<Box<dyn Runner>, CampaignError> {
        let engine = Arc::new(Interpreter::new());
        Ok(Box::new(Machine::new(engine, Arc::clone(&model), xcr0)?))
    };
    campaign.run(&interpreter).unwrap()
}

/// `BELLJAR_ORACLE_CASES` says how many cases, `BELLJAR_ORACLE_SEED` which ones.
#[test]
fn the_interpreter_ends_every_case_as_the_host_does() {
    let seed = setting("BELLJAR_ORACLE_SEED", SEED);
    let count = setting("BELLJAR_ORACLE_CASES", 20_000);
    let start = Instant::now();
    // Single instructions reach the corners; sequences what one leaves behind for the next.
    let shares = [(1, false, 3), (1, true, 3), (16, false, 1), (16, true, 1)];
    for (length, avx512, eighths) in shares {
        let summary = compare_interpreter(seed, count * eighths / 8, length, avx512);
        println!("up to {length} instructions, AVX-512 {avx512}: {summary}");
        assert_eq!(summary.failed(), 0, "seed {seed:#x}\n{summary}");
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = count as f64 / seconds;
    println!("seed {seed:#x}: {count} cases in {seconds:.1} s, {rate:.0} a second");
}

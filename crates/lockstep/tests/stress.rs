//! A stock kernel under the translator, tuned so that rare events happen all the time.
//!
//! The ordinary tests run the beginning of a boot in lockstep with the interpreter. Whole boots, in
//! lockstep and on two vCPUs that run freely, are the command `cargo xtask stress`.

use belljar_lockstep::{Console, End, Lockstep, Script, Settings, Sides};
use belljar_machine::{EngineChoice, Machine, MachineConfig, Size, choose_engine};
use belljar_translator::{Translator, Tuning};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What the shell of the default guest prints when it is ready.
const PROMPT: &str = "# \u{1b}[6n";
/// Instructions of a boot's beginning: the kernel unpacks itself and sets up memory.
const BEGINNING: u64 = 100_000_000;
/// What a run takes at most. A vCPU that hangs cannot be ended, but the process can.
const LIMIT: Duration = Duration::from_mins(20);

/// Ends the process if the test has not ended by then.
struct Watchdog {
    _alive: Arc<()>,
}

impl Watchdog {
    fn new(name: &'static str) -> Self {
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        thread::spawn(move || {
            let deadline = Instant::now() + LIMIT;
            while watched.strong_count() > 0 {
                if Instant::now() > deadline {
                    eprintln!("{name} hangs");
                    std::process::abort();
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        Self { _alive: alive }
    }
}

fn translator(name: &str) -> Translator {
    let tuning = Tuning::stressed(name).unwrap_or_else(|| panic!("no tuning {name}"));
    Translator::with_tuning(tuning)
}

fn config() -> MachineConfig {
    let guest = belljar_image::default_guest(None).unwrap();
    MachineConfig {
        kernel: Some(guest.kernel),
        initrd: Some(guest.initrd),
        cmdline: Some(guest.cmdline),
        memory: Size::mib(256),
        ..MachineConfig::default()
    }
}

/// Runs the default guest in lockstep with the interpreter, for `most` instructions or to the
/// prompt.
fn in_lockstep(name: &'static str, most: u64) {
    let _watchdog = Watchdog::new(name);
    let sides = Sides {
        script: Script {
            prompt: Some(PROMPT.to_owned()),
            lines: Vec::new(),
        },
        exact_flags: false,
        config: config(),
        left: choose_engine(EngineChoice::Interpreter).unwrap(),
        right: Arc::new(translator(name)),
    };
    let settings = Settings {
        most,
        memory_every: 500,
        ..Settings::default()
    };
    let end = Lockstep::new(sides, settings).run().unwrap();
    assert!(
        matches!(end, End::Executed(_) if most < u64::MAX) || matches!(end, End::Finished(_)),
        "{name}: {end}"
    );
    println!("{name}: {end}");
}

/// Boots the default guest on two vCPUs and powers it off.
fn freely(name: &'static str) {
    let _watchdog = Watchdog::new(name);
    let console = Arc::new(Console::new(false));
    let config = MachineConfig {
        cpus: 2,
        ..config()
    };
    let output = Arc::<Console>::clone(&console);
    let machine = Machine::with_engine(&config, &translator(name), output).unwrap();
    let started = Instant::now();
    machine.handle().resume();
    let mut told = started;
    while console.find(PROMPT, 0).is_none() {
        assert!(started.elapsed() < LIMIT / 2, "{name}: {}", console.text());
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            let text = console.text();
            println!("{name}: {}", text.lines().next_back().unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(20));
    }
    println!("{name}: the prompt after {:.1?}", started.elapsed());
    assert!(machine.console_input().send(b"poweroff\n"), "{name}");
    let outcome = machine.wait();
    let text = console.text();
    assert_eq!(format!("{outcome:?}"), "PoweredOff", "{name}: {text}");
    for wrong in ["BUG:", "WARNING:", "Oops", "Call Trace", "segfault"] {
        assert!(!text.contains(wrong), "{name}: {text}");
    }
}

macro_rules! stress {
    ($($module:ident: $name:literal;)*) => {
        $(
            mod $module {
                #[test]
                fn begins_as_in_the_interpreter() {
                    super::in_lockstep($name, super::BEGINNING);
                }

                #[test]
                #[ignore = "a command of its own: cargo xtask stress"]
                fn boots_in_lockstep() {
                    super::in_lockstep($name, u64::MAX);
                }

                #[test]
                #[ignore = "a command of its own: cargo xtask stress"]
                fn boots_freely() {
                    super::freely($name);
                }
            }
        )*
    };
}

stress! {
    tiny_code: "tiny-code";
    tiny_tlb: "tiny-tlb";
    single: "single";
    flush: "flush";
    evict: "evict";
    exit: "exit";
    windows: "windows";
    everything: "everything";
}

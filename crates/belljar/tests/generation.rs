//! The machine's generation in a real guest: its device, and the event that tells of a new one.

use belljar_machine::{ConsoleOutput, Machine, MachineConfig, Outcome, Size};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// The longest that any step may take.
const LIMIT: Duration = Duration::from_mins(4);
/// The end of the default guest's prompt.
const PROMPT: &str = "# \u{1b}[6n";

/// What the guest has printed and nobody has looked at yet.
#[derive(Debug, Default)]
struct Printed {
    text: Mutex<String>,
    changed: Condvar,
}

impl Printed {
    /// Waits until `text` was printed; what came before it.
    fn wait_for(&self, text: &str) -> String {
        let printed = self.text.lock().unwrap();
        let missing = |printed: &mut String| !printed.contains(text);
        let (mut printed, _) = self
            .changed
            .wait_timeout_while(printed, LIMIT, missing)
            .unwrap();
        let at = printed
            .find(text)
            .unwrap_or_else(|| panic!("no {text:?} on the console; its end:\n{printed}"));
        let before = printed[..at].to_owned();
        printed.drain(..at + text.len());
        before
    }
}

impl ConsoleOutput for Printed {
    fn write(&self, bytes: &[u8]) {
        let mut printed = self.text.lock().unwrap();
        printed.push_str(&String::from_utf8_lossy(bytes));
        self.changed.notify_all();
    }

    fn pace(&self, _: Option<Duration>) -> bool {
        true
    }
}

/// A machine with the default guest of `suite`, at its prompt.
struct Guest {
    machine: Machine,
    printed: Arc<Printed>,
}

impl Guest {
    fn start(suite: &str) -> Self {
        let files = belljar_image::default_guest(Some(suite)).unwrap();
        let config = MachineConfig {
            kernel: Some(files.kernel),
            initrd: Some(files.initrd),
            cmdline: Some(files.cmdline),
            memory: Size::mib(512),
            ..MachineConfig::default()
        };
        let printed = Arc::new(Printed::default());
        let machine = Machine::new(&config, Arc::<Printed>::clone(&printed) as _).unwrap();
        machine.handle().resume();
        printed.wait_for(PROMPT);
        Self { machine, printed }
    }

    /// Types a command; what it printed.
    fn run(&self, command: &str) -> String {
        assert!(
            self.machine
                .console_input()
                .send(format!("{command}\n").as_bytes())
        );
        let printed = self.printed.wait_for(PROMPT).replace('\r', "");
        let lines: Vec<&str> = printed.lines().skip(1).collect();
        lines[..lines.len().saturating_sub(1)].join("\n")
    }

    /// How often the guest has seen the event of the generation.
    fn events(&self) -> u64 {
        let text = self.run("cat /sys/firmware/acpi/interrupts/gpe00");
        // A message of the kernel may have come between the prompt and the command.
        let line = text.lines().last().unwrap_or_default();
        let count = line.split_whitespace().next().map(str::parse);
        count
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("no count in {text:?}"))
    }

    fn power_off(self) {
        let input = self.machine.console_input();
        assert!(input.send(b"poweroff\n"));
        assert!(matches!(self.machine.wait(), Outcome::PoweredOff));
    }
}

#[test]
fn a_stock_kernel_finds_the_generation_and_sees_a_new_one() {
    for suite in ["bookworm", "trixie"] {
        let guest = Guest::start(suite);
        let path = guest.run("cat /sys/bus/acpi/devices/BLJR0001:00/path");
        assert_eq!(path, "\\_SB_.VGEN", "{suite}");
        let complaints = guest.run("dmesg -r | grep '^<[0-4]>' | grep -i 'vmgen\\|gpe\\|aml'");
        assert_eq!(complaints, "", "{suite}");
        assert_eq!(guest.events(), 0, "{suite}");
        let driver = guest.run("ls /sys/bus/acpi/drivers");
        guest.machine.handle().renew_generation().unwrap();
        if driver.contains("vmgenid") {
            // The driver tells this only if it has read another identifier.
            guest
                .printed
                .wait_for("reseeded due to virtual machine fork");
        }
        assert_eq!(guest.events(), 1, "{suite}: {driver}");
        guest.power_off();
    }
}

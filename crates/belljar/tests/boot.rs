//! Boots of Debian's stock kernels, as a user sees them: through the program's standard streams.

mod command;
mod debian;

use debian::{Guest, PROMPT};

/// Kernel messages of level "warning" and above that the same kernel prints on a real PC.
const EXPECTED_WARNINGS: &[&str] = &[
    // A recent AMD processor whose firmware offers no collaborative frequency control.
    "amd_pstate: The CPPC feature is supported but currently disabled by the BIOS",
    "Please enable it if your BIOS has the CPPC option",
    "amd_pstate: the _CPC object is not present in SBIOS or ACPI disabled",
];

/// Boots a suite's kernel and checks it as a user would.
fn boots(suite: &str, release: &str, cpus: u32) {
    let cpus_flag = cpus.to_string();
    let machine = ["--suite", suite, "--cpus", &cpus_flag];
    let mut guest = Guest::start(&[&["--engine", "interpreter"][..], &machine].concat());
    guest.wait_for(PROMPT);

    assert!(
        guest.run("uname -r").starts_with(release),
        "not the kernel of {suite}"
    );
    assert_eq!(guest.run("nproc").trim(), cpus.to_string());
    let warnings = guest.run("dmesg -r | grep '^<[0-4]>'");
    let unexpected: Vec<&str> = warnings
        .lines()
        .filter(|line| {
            !EXPECTED_WARNINGS
                .iter()
                .any(|expected| line.contains(expected))
        })
        .collect();
    assert!(
        unexpected.is_empty(),
        "warnings of the kernel: {unexpected:#?}"
    );
    // The clock is a good one, not a fallback.
    guest.run("cd /sys/devices/system/clocksource/clocksource0");
    let source = guest.run("cat current_clocksource");
    assert!(
        ["tsc", "kvm-clock"].contains(&source.as_str()),
        "clock source {source:?}"
    );
    // The processes of the guest compute.
    assert_eq!(
        guest.run("seq 1 1000 | md5sum").trim(),
        "53d025127ae99ab79e8502aae2d9bea6  -"
    );

    assert_eq!(guest.power_off().code(), Some(0));
}

#[test]
fn debian_12_boots_with_one_cpu() {
    boots("bookworm", "6.1.", 1);
}

#[test]
fn debian_12_boots_with_two_cpus() {
    boots("bookworm", "6.1.", 2);
}

#[test]
fn debian_13_boots_with_one_cpu() {
    boots("trixie", "6.12.", 1);
}

#[test]
fn debian_13_boots_with_two_cpus() {
    boots("trixie", "6.12.", 2);
}

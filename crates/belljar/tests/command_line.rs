//! What `belljar` answers to a command line: statuses, messages, and that standard output is the
//! guest's alone.

mod command;
mod kernel;

use kernel::{POWER_OFF, file_of, kernel, printing};
use std::path::Path;
use std::process::Output;
use tempfile::NamedTempFile;

fn belljar(arguments: &[&str]) -> Output {
    command::belljar().args(arguments).output().unwrap()
}

/// Runs, checks the status, and gives standard error.
fn expect(status: i32, arguments: &[&str]) -> String {
    let output = belljar(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{arguments:?}: {errors}"
    );
    errors
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_and_version_are_on_standard_output() {
    for (arguments, text) in [
        (&["--help"][..], "Usage: belljar"),
        (&["run", "--help"], "--debug-exit"),
        (&["run", "--help"], "SIGUSR1"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = belljar(arguments);
        assert_eq!(output.status.code(), Some(0));
        let text_found = String::from_utf8(output.stdout).unwrap();
        assert!(text_found.contains(text), "{text_found}");
    }
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["run", "--colour", "red"],
        &["run", "--memory", "much"],
        &["run", "--cpus", "0"],
        &["run", "--cpus", "256"],
        &["run", "--engine", "warp"],
        &["run", "--console", "file="],
        &["run", "--initrd", "x"],
        &["run", "--kernel", "x", "--suite", "trixie"],
    ] {
        expect(2, arguments);
    }
}

#[test]
fn a_configuration_with_an_unknown_key_is_wrong_usage() {
    let config = file_of(b"kernel = \"x\"\ncolour = \"red\"\n");
    let errors = expect(2, &["run", "--config", name(config.path())]);
    assert!(errors.contains("colour"), "{errors}");
}

#[test]
fn files_that_are_missing_are_named() {
    let errors = expect(1, &["run", "--kernel", "/nowhere/vmlinuz"]);
    assert!(errors.contains("/nowhere/vmlinuz"), "{errors}");
    let errors = expect(1, &["run", "--config", "/nowhere/machine.toml"]);
    assert!(errors.contains("/nowhere/machine.toml"), "{errors}");
    let errors = expect(1, &["run", "--kernel", "/"]);
    assert!(
        errors.starts_with("belljar: cannot read the kernel /: "),
        "{errors}"
    );
}

#[test]
fn a_file_that_is_no_kernel_is_told() {
    for bytes in [&b""[..], b"#!/bin/sh\necho hello\n", &[0; 4096], b"\x7fELF"] {
        let file = file_of(bytes);
        let errors = expect(1, &["run", "--kernel", name(file.path())]);
        assert!(errors.starts_with("belljar: cannot boot "), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[test]
fn an_engine_that_does_not_exist_yet_is_told() {
    let file = kernel(&POWER_OFF);
    let errors = expect(
        1,
        &["run", "--engine", "kvm", "--kernel", name(file.path())],
    );
    assert!(errors.contains("--engine interpreter"), "{errors}");
}

#[test]
fn standard_output_is_what_the_guest_printed() {
    let mut code = printing("hello\n");
    code.extend(POWER_OFF);
    let file = kernel(&code);
    let output = belljar(&["run", "--memory", "16M", "--kernel", name(file.path())]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"hello\n");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("engine: translator"), "{errors}");
}

#[test]
fn a_crash_is_status_3_with_a_register_dump() {
    // lidt of a limit of 0, at the zeros below the code; ud2.
    let file = kernel(&[0x0f, 0x01, 0x1d, 0x00, 0x00, 0x02, 0x00, 0x0f, 0x0b]);
    let errors = expect(
        3,
        &["run", "--memory", "16M", "--kernel", name(file.path())],
    );
    assert!(errors.contains("triple fault"), "{errors}");
    assert!(errors.contains("cr3"), "{errors}");
}

#[test]
fn the_debug_exit_port_chooses_the_status() {
    // mov al, 5; out 0xf4, al; hlt; jmp back to hlt
    let file = kernel(&[0xb0, 0x05, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd]);
    let path = name(file.path());
    expect(
        11,
        &["run", "--memory", "16M", "--debug-exit", "--kernel", path],
    );
}

#[test]
fn a_reset_with_no_reboot_is_status_0() {
    // mov dx, 0xcf9; mov al, 6; out dx, al; hlt; jmp back to hlt
    let file = kernel(&[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd]);
    let path = name(file.path());
    expect(
        0,
        &["run", "--memory", "16M", "--no-reboot", "--kernel", path],
    );
}

#[test]
fn a_console_in_a_file_has_everything() {
    let mut code = printing(&"0123456789abcdef".repeat(64));
    code.extend(POWER_OFF);
    let file = kernel(&code);
    let log = NamedTempFile::new().unwrap();
    let console = format!("file={}", name(log.path()));
    let arguments = ["run", "--memory", "16M", "--console", &console, "--kernel"];
    let output = belljar(&[&arguments[..], &[name(file.path())]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty());
    let printed = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(printed, "0123456789abcdef".repeat(64));
}

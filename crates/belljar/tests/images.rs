//! Images from their building to their use. Each test builds and boots a whole Debian, which takes
//! minutes: they run with `cargo xtask test-images` only.

mod command;
mod debian;

use debian::Guest;
use std::process::{Command, Output};

/// Settings for one test: a cache and a data directory of its own.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        vec![
            ("XDG_CACHE_HOME", path("cache")),
            ("XDG_DATA_HOME", path("data")),
            ("BELLJAR_RUNTIME_DIR", path("run")),
        ]
    }

    fn image(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_belljar"))
            .arg("image")
            .args(arguments)
            .envs(self.variables())
            .output()
            .unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A Debian with a shell at its console.
struct Debian(Guest);

impl Debian {
    /// Runs the image and logs in.
    fn boot(home: &Home, arguments: &[&str]) -> Self {
        let mut guest = Guest::start_with(arguments, &home.variables());
        guest.wait_for("login: ");
        guest.type_line("root");
        guest.wait_for(":~# ");
        // A shell that edits no lines, so that only output is on the console.
        guest.type_line("exec dash");
        guest.wait_for("# ");
        Self(guest)
    }

    /// What a command prints; it must succeed.
    fn run(&mut self, command: &str) -> String {
        // The echo of the line that is typed does not have the word.
        self.0.type_line(&format!("{command}; echo en''d:$?"));
        self.0.wait_for("\r\n");
        let printed = self.0.wait_for("end:");
        let status = self.0.wait_for("\r\n");
        // Typed before the prompt, the next line's echo would not be what comes first.
        self.0.wait_for("# ");
        assert_eq!(status, "0", "{command}: {printed}");
        printed.replace('\r', "").trim_end().to_owned()
    }

    /// Checks that the whole system has started.
    fn is_sound(&mut self) {
        // Older versions of systemctl end what they write to a terminal with an escape sequence.
        let state = self.run("systemctl is-system-running --wait || true");
        let failed = self.run("systemctl --failed --plain --no-legend | cat");
        assert_eq!((state.as_str(), failed.as_str()), ("running", ""));
        assert_eq!(self.run("dpkg --audit"), "");
        assert_eq!(self.run("dpkg --verify"), "");
    }

    fn power_off(self) {
        assert_eq!(self.0.power_off().code(), Some(0));
    }
}

/// Builds the image of a suite, boots it with its root on either interface, and looks around.
fn works(suite: &str, release: &str, arguments: &[&str]) {
    let home = Home::new();
    let image = format!("debian:{suite}");
    let build = [&["build", &image], arguments].concat();
    let built = home.image(&build);
    assert!(built.status.success(), "{}", text(&built.stderr));
    let again = home.image(&build);
    let said = text(&again.stderr);
    assert!(
        again.status.success() && !said.contains("unpacking"),
        "{said}"
    );
    let listed = text(&home.image(&["list"]).stdout);
    assert!(listed.contains(&image), "{listed}");

    for (boot, interface) in ["virtio", "nvme", "virtio"].iter().enumerate() {
        let machine = [image.as_str(), "--cpus", "2", "--root-interface", interface];
        let mut debian = Debian::boot(&home, &machine);
        debian.is_sound();
        let kernel = debian.run("uname -r");
        assert!(kernel.starts_with(release), "{kernel}");
        assert_eq!(debian.run("cat /etc/hostname"), suite);
        assert_eq!(debian.run("nproc"), "2");
        let root = debian.run("findmnt --noheadings --output SOURCE /");
        let expected = match *interface {
            "nvme" => "/dev/nvme0n1p1",
            _ => "/dev/vda1",
        };
        assert_eq!(root, expected);
        // What every boot before has written.
        let written = debian.run("cat /root/file 2> /dev/null || true");
        assert_eq!(written.lines().count(), boot);
        debian.run(&format!("echo {interface} >> /root/file"));
        if boot == 0 {
            installs_a_package(&mut debian);
        }
        assert_eq!(debian.run("hello"), "Hello, world!");
        debian.power_off();
        println!("debian:{suite} (Linux {kernel}), root on {root}: running");
    }
}

/// Installs a package over the user-mode network.
fn installs_a_package(debian: &mut Debian) {
    for step in ["update", "install hello"] {
        debian.run(&format!(
            "apt-get -qq -o Acquire::Check-Valid-Until=false {step} > /root/log 2>&1 || {{ cat /root/log; false; }}"
        ));
    }
}

#[test]
#[ignore = "builds and boots a whole Debian: cargo xtask test-images"]
fn debian_13_is_built_and_boots() {
    works("trixie", "6.12.", &[]);
}

#[test]
#[ignore = "builds and boots a whole Debian: cargo xtask test-images"]
fn debian_12_is_built_and_boots() {
    works("bookworm", "6.1.", &[]);
}

#[test]
#[ignore = "builds and boots a whole Debian: cargo xtask test-images"]
fn debian_11_is_built_and_boots() {
    works("bullseye", "5.10.", &["--no-updates"]);
}

#[test]
#[ignore = "builds and boots a whole Debian: cargo xtask test-images"]
fn sid_is_built_and_boots() {
    works("sid", "", &[]);
}

#[test]
fn names_that_are_no_images_are_refused_with_an_example() {
    let home = Home::new();
    let output = home.image(&["build", "fedora:41"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("debian:trixie"));
    let output = home.image(&["inspect", "debian:trixie"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("belljar image list"));
    let output = home.image(&["list", "--json"]);
    assert_eq!(text(&output.stdout), "[]\n");
}

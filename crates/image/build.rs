//! Builds the guest's agent, which goes into every guest that Belljar makes: the program
//! `belljar-agent`, linked statically so that it runs in any of them.
//!
//! Another flag for the compiler is needed for that than for everything else, hence a build of its
//! own, with a target directory of its own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let path = |name| PathBuf::from(env::var_os(name).expect("cargo sets it for build scripts"));
    let workspace = path("CARGO_MANIFEST_DIR").join("../..");
    let target = path("OUT_DIR").join("agent");
    for watched in ["src", "Cargo.toml"] {
        let watched = workspace.join("crates/agent").join(watched);
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let mut cargo = Command::new(path("CARGO"));
    cargo
        .current_dir(&workspace)
        .args(["build", "--quiet", "--locked", "--package", "belljar-agent"])
        .args(["--bin", "belljar-agent", "--profile", "agent"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // What is meant for the outer build: wrappers of lints, its flags and its target.
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo runs");
    assert!(
        status.success(),
        "the guest's agent cannot be built ({status})"
    );
    let program = target.join(TARGET).join("agent/belljar-agent");
    println!("cargo::rustc-env=BELLJAR_AGENT={}", program.display());
}

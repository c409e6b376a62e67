//! The root that the programs run in, natively and in guests: a directory and the same as an initrd.

use super::recipes::{Contents, PROGRAMS, Program, SHELL_PACKAGE, matches};
use super::source;
use crate::{root as workspace, run};
use anyhow::{Context, Result, ensure};
use belljar_image::{Tree, cache, packages};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the programs; the first process in a guest.
const RUNNER: &str = "runner.c";
/// Directories that are empty in the root: what is mounted there comes from the kernel.
const EMPTY: [&str; 4] = ["dev", "proc", "sys", "tmp"];
/// Part of a root's name in the cache. Raise it when roots are made otherwise of the same things.
const FORMAT: u32 = 1;
/// How C programs are compiled. They are static, since the root may have another C library.
const FLAGS: [&str; 4] = ["-O2", "-static", "-Wall", "-Wextra"];

/// A root in the user's cache.
#[derive(Clone, Debug)]
pub struct Root {
    /// It as a directory.
    pub directory: PathBuf,
    /// It as an initial RAM filesystem.
    pub initrd: PathBuf,
    /// The program that runs the others in it.
    pub runner: PathBuf,
}

/// The root for `programs`, made of the packages of `suite` if it is not in the cache.
pub fn make(suite: Option<&str>, programs: &[Program]) -> Result<Root> {
    // All packages at once: another choice of programs fetches nothing.
    let mut names: Vec<&str> = PROGRAMS.iter().flat_map(|p| p.packages).copied().collect();
    names.push(SHELL_PACKAGE);
    names.sort_unstable();
    names.dedup();
    let debs = packages(&cache::user_directory("packages")?, suite, &names)?;

    let directory = cache::user_directory("programs")?;
    fs::create_dir_all(&directory).context("cannot make the cache's directory")?;
    let _lock = cache::lock(&directory.join("lock"), "the programs' root")?;
    let bench = compile_all(&directory, programs)?;
    let home = directory.join(format!("{:016x}", key(&debs, programs, &bench)));
    cache::make_whole(&home, |contents, _| {
        eprintln!("xtask: unpacking the packages");
        fill(contents, &debs, programs, &bench)
    })?;
    Ok(Root {
        directory: home.join("root"),
        initrd: home.join("initrd.cpio"),
        runner: home.join("root/init"),
    })
}

/// A file of the root, ready to be added.
#[derive(Debug, Hash)]
struct Ready {
    path: String,
    executable: bool,
    bytes: Vec<u8>,
}

/// The runner and the files of `bench`.
fn compile_all(directory: &Path, programs: &[Program]) -> Result<Vec<Ready>> {
    let mut ready = vec![Ready {
        path: "init".to_owned(),
        executable: true,
        bytes: compile(directory, RUNNER)?,
    }];
    for file in programs.iter().flat_map(|p| p.files) {
        ready.push(Ready {
            path: format!("bench/{}", file.name),
            executable: file.executable,
            bytes: match file.contents {
                Contents::Text(text) => text.as_bytes().to_vec(),
                Contents::Compiled(source) => compile(directory, source)?,
                Contents::Generated => source::generate().into_bytes(),
            },
        });
    }
    Ok(ready)
}

/// The program that the host's compiler makes of a file in `xtask/programs`.
fn compile(directory: &Path, source: &str) -> Result<Vec<u8>> {
    let program = directory.join("compiled");
    let mut command = Command::new("gcc");
    command.args(FLAGS).arg("-o").arg(&program);
    run(command.arg(workspace().join("xtask/programs").join(source)))?;
    let bytes = fs::read(&program).context("the compiler left no program")?;
    fs::remove_file(&program).context("cannot remove the compiled program")?;
    Ok(bytes)
}

/// Names the root after all that it is made of. A package's file has its version in its name.
fn key(debs: &[PathBuf], programs: &[Program], bench: &[Ready]) -> u64 {
    let names: Vec<_> = debs.iter().map(|deb| deb.file_name()).collect();
    let mut hasher = DefaultHasher::new();
    (FORMAT, names, programs, bench).hash(&mut hasher);
    hasher.finish()
}

fn fill(contents: &Path, debs: &[PathBuf], programs: &[Program], bench: &[Ready]) -> Result<()> {
    let patterns: Vec<&str> = programs.iter().flat_map(|p| p.keep).copied().collect();
    // Programs and libraries too, since scripts name their interpreters and programs their libraries.
    let is_wanted = |path: &str| {
        let is_program = path.starts_with("usr/bin/") || path.starts_with("usr/lib64/");
        let is_library = path.starts_with("usr/lib/x86_64-linux-gnu/") && path.contains(".so");
        is_program || is_library || patterns.iter().any(|p| matches(p, path))
    };
    let mut tree = Tree::of_packages(debs, is_wanted)?;
    for pattern in &patterns {
        ensure!(
            tree.has(|path| matches(pattern, path)),
            "no package has a file {pattern}"
        );
    }
    for file in bench {
        tree.file(&file.path, file.executable, &file.bytes)?;
    }
    tree.keep(|path| {
        let is_own = bench.iter().any(|file| file.path == path);
        is_own || path == "usr/bin/sh" || patterns.iter().any(|p| matches(p, path))
    })?;
    for directory in EMPTY {
        tree.directory(directory)?;
    }
    tree.write_to(&contents.join("root"))?;
    let mut archive = tree.archive()?;
    // The kernel opens the console for the first process before that can mount /dev.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    cache::write_through(&contents.join("initrd.cpio"), &archive.finish())?;
    Ok(())
}

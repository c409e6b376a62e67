//! The host's apt on a private state: it fetches and checks, and never installs.
//!
//! All that apt writes goes below one directory of ours, so an ordinary user can do it and the
//! host's own state stays as it is. apt's configuration of proxies and the like remains in force;
//! what would weaken its checks of signatures is put back.

use crate::ImageError;
use crate::progress::Progress;
use crate::sources::Selection;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Settings that do not depend on a path. Hooks of the host are for its own package state.
const CONFIGURATION: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture \"amd64\";
APT::Architectures { \"amd64\"; };
APT::Default-Release \"\";
APT::Update::Error-Mode \"any\";
APT::Sandbox::User \"root\";
APT::Get::AllowUnauthenticated \"false\";
Acquire::AllowInsecureRepositories \"false\";
Acquire::AllowWeakRepositories \"false\";
Acquire::AllowDowngradeToInsecureRepositories \"false\";
Acquire::Languages \"none\";
Dir::Cache::pkgcache \"\";
Dir::Cache::srcpkgcache \"\";
Dir::Etc::sourcelist \"/dev/null\";
Dir::Etc::preferences \"/dev/null\";
Dir::Etc::preferencesparts \"/dev/null\";
";

/// An apt with its own state.
#[derive(Debug)]
pub(crate) struct Apt<'a> {
    root: PathBuf,
    suite: String,
    progress: &'a Progress,
}

/// A package that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its version.
    pub(crate) version: String,
    /// What it depends on, in its order, without versions.
    pub(crate) depends: Vec<String>,
}

impl<'a> Apt<'a> {
    /// An apt that knows nothing yet, with its state in the new directory `root`.
    pub(crate) fn new(
        root: PathBuf,
        sources: &Selection,
        progress: &'a Progress,
    ) -> Result<Self, ImageError> {
        for directory in ["lists/partial", "archives/partial", "sources", "packages"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(ImageError::io("create", path))?;
        }
        for (file, contents) in [
            ("sources/belljar.sources", sources.text.as_str()),
            ("apt.conf", CONFIGURATION),
            ("status", ""),
        ] {
            let path = root.join(file);
            fs::write(&path, contents).map_err(ImageError::io("write", path))?;
        }
        Ok(Self {
            root,
            suite: sources.suite.clone(),
            progress,
        })
    }

    /// Fetches the package index and checks its signature.
    pub(crate) fn update(&self) -> Result<(), ImageError> {
        let mut command = self.command("apt-get");
        command.args(["-qq", "-o", "APT::Status-Fd=1", "update"]);
        self.run_with_progress(command, "apt-get update")
    }

    /// What the suite has of `package`.
    pub(crate) fn candidate(&self, package: &str) -> Result<Candidate, ImageError> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", package]);
        let output = command
            .stdout(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .map_err(no_apt("apt-cache"))?;
        parse_candidate(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
            ImageError::NoPackage {
                suite: self.suite.clone(),
                package: package.to_owned(),
            }
        })
    }

    /// Fetches a package and checks it against the index. Returns its file.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf, ImageError> {
        let directory = self.root.join("packages");
        let mut command = self.command("apt-get");
        command.current_dir(&directory);
        command.args(["-qq", "-o", "APT::Status-Fd=1", "download", package]);
        self.run_with_progress(command, "apt-get download")?;
        let prefix = format!("{package}_");
        fs::read_dir(&directory)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(ImageError::io("list", &directory))?
            .iter()
            .find(|f| f.file_name().to_string_lossy().starts_with(&prefix))
            .map(fs::DirEntry::path)
            .ok_or_else(|| ImageError::Apt {
                command: "apt-get download".to_owned(),
                suite: self.suite.clone(),
                message: format!("it left no file of {package}"),
            })
    }

    /// Goes through the package index, stanza by stanza.
    pub(crate) fn each_available(&self, mut each: impl FnMut(&str)) -> Result<(), ImageError> {
        let mut command = self.command("apt-cache");
        let mut child = command
            .arg("dumpavail")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(no_apt("apt-cache"))?;
        if let Some(output) = child.stdout.take() {
            let mut stanza = String::new();
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if line.is_empty() {
                    each(&stanza);
                    stanza.clear();
                } else {
                    stanza.push_str(&String::from_utf8_lossy(&line));
                    stanza.push('\n');
                }
            }
            each(&stanza);
        }
        let status = child.wait().map_err(no_apt("apt-cache"))?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failure("apt-cache dumpavail", status, &read_log(&self.log())))
        }
    }

    /// The names of the files of packages and of all that they depend on, in apt's order.
    pub(crate) fn files_of(&self, packages: &[String]) -> Result<Vec<String>, ImageError> {
        // In an empty directory nothing is there yet, so apt tells all.
        let empty = self.root.join("empty");
        let partial = empty.join("partial");
        fs::create_dir_all(&partial).map_err(ImageError::io("create", &partial))?;
        let mut setting = OsString::from("Dir::Cache::archives=");
        setting.push(&empty);
        let mut command = self.command("apt-get");
        command.arg("-o").arg(setting);
        command.args(["-qq", "install", "--print-uris"]);
        command.args(["--no-install-recommends", "--yes", "--"]);
        let output = command
            .args(packages)
            .stdout(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .map_err(no_apt("apt-get"))?;
        let messages = read_log(&self.log());
        if !output.status.success() {
            return Err(self.failure("apt-get install --print-uris", output.status, &messages));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter_map(parse_uri_line).collect())
    }

    /// Fetches packages with all that they depend on, and checks them against the index. Returns
    /// the directory with their files.
    pub(crate) fn download_all(
        &self,
        packages: &[impl AsRef<OsStr>],
    ) -> Result<PathBuf, ImageError> {
        let mut command = self.command("apt-get");
        // The status file has no package, so nothing counts as installed.
        command.args(["-qq", "-o", "APT::Status-Fd=1", "install"]);
        command.args(["--download-only", "--no-install-recommends", "--yes", "--"]);
        command.args(packages);
        self.run_with_progress(command, "apt-get install --download-only")?;
        Ok(self.root.join("archives"))
    }

    /// A command of apt on our state, whose messages are in English and go to our log.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command.arg("-c").arg(self.root.join("apt.conf"));
        for (option, path) in [
            ("Dir::State", ""),
            ("Dir::State::status", "status"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", ""),
            ("Dir::Cache::archives", "archives"),
            ("Dir::Etc::sourceparts", "sources"),
            ("Dir::Log", ""),
        ] {
            let mut setting = OsString::from(format!("{option}="));
            setting.push(self.root.join(path));
            command.arg("-o").arg(setting);
        }
        match File::create(self.log()) {
            Ok(log) => command.stderr(log),
            Err(_) => command.stderr(Stdio::null()),
        };
        command
    }

    fn log(&self) -> PathBuf {
        self.root.join("messages")
    }

    /// Runs a command of apt-get that reports its progress on its standard output.
    fn run_with_progress(&self, mut command: Command, name: &str) -> Result<(), ImageError> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(no_apt("apt-get"))?;
        if let Some(output) = child.stdout.take() {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if let Some(percent) = parse_progress(&String::from_utf8_lossy(&line)) {
                    self.progress.percent(percent);
                }
            }
        }
        let status = child.wait().map_err(no_apt("apt-get"))?;
        let messages = read_log(&self.log());
        tracing::debug!(name, %status, messages, "apt ended");
        if status.success() {
            Ok(())
        } else {
            Err(self.failure(name, status, &messages))
        }
    }

    fn failure(&self, command: &str, status: ExitStatus, messages: &str) -> ImageError {
        let keys = missing_keys(messages);
        if !keys.is_empty() {
            return ImageError::UnknownKey {
                suite: self.suite.clone(),
                keys: keys.join(", "),
            };
        }
        let errors: Vec<&str> = messages
            .lines()
            .filter_map(|line| line.strip_prefix("E: "))
            .collect();
        if let Some(file) = errors.iter().find_map(|error| missing_package(error)) {
            return ImageError::Gone {
                suite: self.suite.clone(),
                file: file.to_owned(),
            };
        }
        ImageError::Apt {
            command: command.to_owned(),
            suite: self.suite.clone(),
            message: if errors.is_empty() {
                status.to_string()
            } else {
                errors.join("; ")
            },
        }
    }
}

fn no_apt(program: &'static str) -> impl FnOnce(std::io::Error) -> ImageError {
    move |source| ImageError::NoApt { program, source }
}

/// What apt said; nothing if its messages could not be kept.
fn read_log(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The name of the file in a line `'uri' file size hash`.
fn parse_uri_line(line: &str) -> Option<String> {
    let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
    let name = rest.split(' ').next()?;
    let is_deb = Path::new(name).extension().is_some_and(|e| e == "deb");
    (is_deb && !name.contains('/')).then(|| name.to_owned())
}

/// The percentage of a line `dlstatus:item:percentage:text`.
fn parse_progress(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?
        .split(':')
        .nth(1)?
        .parse()
        .ok()
}

/// The keys that apt says it lacks, each once.
fn missing_keys(messages: &str) -> Vec<&str> {
    let mut keys = Vec::new();
    for rest in messages.split("NO_PUBKEY ").skip(1) {
        let key = rest
            .split(|c: char| !c.is_ascii_hexdigit())
            .next()
            .unwrap_or_default();
        if !key.is_empty() && !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The address of a package that apt says the mirror does not have. The security archive of an old
/// suite drops packages and leaves them in its index.
fn missing_package(error: &str) -> Option<&str> {
    let (address, why) = error
        .strip_prefix("Failed to fetch ")?
        .split_once(char::is_whitespace)?;
    let is_deb = Path::new(address).extension().is_some_and(|e| e == "deb");
    (is_deb && why.trim_start().starts_with("404 ")).then_some(address)
}

/// Version and dependencies of a package's stanza in the index.
fn parse_candidate(stanza: &str) -> Option<Candidate> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            (key == name).then_some(value)
        })
    };
    let name_of = |dependency: &str| {
        dependency
            .split(['|', '(', ':'])
            .next()
            .map(|name| name.trim().to_owned())
    };
    Some(Candidate {
        version: field("Version")?.to_owned(),
        depends: field("Depends")
            .unwrap_or_default()
            .split(',')
            .filter_map(name_of)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_apts_status_lines() {
        let line = "dlstatus:3:14.4774:Retrieving file 3 of 3";
        assert_eq!(parse_progress(line), Some(14.4774));
        assert_eq!(parse_progress("pmstatus:a:1:b"), None);
        assert_eq!(parse_progress("dlstatus:3"), None);
    }

    #[test]
    fn files_are_read_from_lines_of_uris() {
        let line = "'http://mirror.example/a%2bb_1%3a2_all.deb' a+b_1%3a2_all.deb 12 SHA256:00";
        assert_eq!(parse_uri_line(line).as_deref(), Some("a+b_1%3a2_all.deb"));
        for line in ["", "'x' ../y.deb 1", "'x' y.dsc 1", "x y.deb"] {
            assert_eq!(parse_uri_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn each_missing_key_is_named_once() {
        let messages = "W: GPG error: … NO_PUBKEY 6ED0E7B82643E131 NO_PUBKEY 78DBA3BC47EF2265\n\
                        W: again: NO_PUBKEY 6ED0E7B82643E131\nE: The repository is not signed.";
        assert_eq!(
            missing_keys(messages),
            ["6ED0E7B82643E131", "78DBA3BC47EF2265"]
        );
    }

    #[test]
    fn a_package_that_the_mirror_dropped_is_told_from_other_failures() {
        let failed = |rest: &str| format!("Failed to fetch http://mirror.example/pool/{rest}");
        assert_eq!(
            missing_package(&failed("a_1.deb  404  Not Found [IP: 192.0.2.1 80]")),
            Some("http://mirror.example/pool/a_1.deb")
        );
        for other in [
            "a_1.deb  500  Internal Error",
            "Packages.xz  404  Not Found",
            "a_1.deb",
        ] {
            assert_eq!(missing_package(&failed(other)), None, "{other}");
        }
        let progress = Progress::new();
        let apt = Apt {
            root: PathBuf::new(),
            suite: "bullseye".to_owned(),
            progress: &progress,
        };
        let messages = format!("W: x\nE: {}\n", failed("a_1.deb  404  Not Found"));
        let error = apt.failure("apt-get install", ExitStatus::default(), &messages);
        assert!(error.to_string().contains("debian:bullseye --no-updates"));
    }

    #[test]
    fn a_candidate_has_version_and_dependencies() {
        let stanza = "Package: linux-image-cloud-amd64\nVersion: 6.1.176-1\n\
                      Depends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1), a | b, c:any\n";
        let candidate = parse_candidate(stanza).unwrap();
        assert_eq!(candidate.version, "6.1.176-1");
        assert_eq!(
            candidate.depends,
            ["linux-image-6.1.0-50-cloud-amd64", "a", "c"]
        );
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn a_failure_tells_apts_errors_without_its_warnings() {
        let progress = Progress::new();
        let apt = Apt {
            root: PathBuf::new(),
            suite: "sid".to_owned(),
            progress: &progress,
        };
        let error = apt.failure(
            "apt-get update",
            ExitStatus::default(),
            "W: x\nE: a\nE: b\n",
        );
        let text = error.to_string();
        assert!(text.contains("sid: a; b;"), "{text}");
        assert!(
            text.contains("--kernel") && text.contains("--initrd"),
            "{text}"
        );
    }
}

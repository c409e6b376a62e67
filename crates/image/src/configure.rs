//! Configuring an image's packages in a machine: what the machine is told, and what it says.

use crate::ImageError;
use crate::progress::Progress;
use crate::runner::{Job, Runner};
use std::collections::BTreeSet;

/// The script that is the machine's first process.
const SCRIPT: &str = include_str!("guest/configure.sh");
/// Where the script and its files lie; `configure` names the directory in the script.
pub(crate) const DIRECTORY: &str = "var/lib/belljar/configure";
/// The script's path, as the kernel's command line names it.
pub(crate) const INIT: &str = "/var/lib/belljar/configure.sh";
/// The part of the console's output that is kept to show after a failure.
const TAIL: usize = 4096;
/// The longest line that means something.
const LONGEST_LINE: usize = 4096;

/// The script, whose lines begin with `token`.
pub(crate) fn script(token: &str) -> String {
    SCRIPT.replace("@TOKEN@", token)
}

/// How the configuration has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    Done,
    Failed(String),
}

/// Reads what the machine prints.
#[derive(Debug)]
struct Listener<'a> {
    token: &'a str,
    progress: &'a Progress,
    packages: usize,
    configured: BTreeSet<String>,
    line: Vec<u8>,
    tail: Vec<u8>,
    ending: Option<Ending>,
}

impl<'a> Listener<'a> {
    fn new(token: &'a str, packages: usize, progress: &'a Progress) -> Self {
        Self {
            token,
            progress,
            packages,
            configured: BTreeSet::new(),
            line: Vec::new(),
            tail: Vec::new(),
            ending: None,
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.line_ended(String::from_utf8_lossy(&line).trim_end());
                }
                _ if self.line.len() < LONGEST_LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn line_ended(&mut self, line: &str) {
        if let Some(said) = line.strip_prefix(self.token) {
            tracing::debug!(said, "configuration");
            match said.trim().split_once(' ').unwrap_or((said.trim(), "")) {
                ("done", _) => self.ending = Some(Ending::Done),
                ("failed", why) => {
                    // The first failure is the cause of others.
                    self.ending.get_or_insert(Ending::Failed(why.to_owned()));
                }
                _ => {}
            }
        } else if let Some(package) = line
            .strip_prefix("status: ")
            .and_then(|status| status.strip_suffix(": installed"))
        {
            self.configured.insert(package.to_owned());
            let share = self.configured.len() as f64 / self.packages.max(1) as f64;
            self.progress.percent(100.0 * share);
        }
    }
}

/// Runs the machine of `job`, in which `packages` packages are configured by the script with
/// `token`.
///
/// # Errors
/// [`ImageError::NotConfigured`] with the end of the console's output; [`ImageError::Machine`].
pub(crate) fn run(
    runner: &dyn Runner,
    job: &Job,
    token: &str,
    packages: usize,
    progress: &Progress,
) -> Result<(), ImageError> {
    let mut listener = Listener::new(token, packages, progress);
    let result = runner.run(job, &mut |bytes| {
        listener.hear(bytes);
        true
    });
    let console = String::from_utf8_lossy(&listener.tail).into_owned();
    let problem = match listener.ending {
        Some(Ending::Done) => return Ok(()),
        Some(Ending::Failed(why)) => why,
        None => match result {
            Err(source) => return Err(ImageError::Machine { source }),
            Ok(()) => "the machine ended early".to_owned(),
        },
    };
    Err(ImageError::NotConfigured { problem, console })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard(pieces: &[&[u8]]) -> (Option<Ending>, usize) {
        let progress = Progress::new();
        let mut listener = Listener::new("token7", 2, &progress);
        for piece in pieces {
            listener.hear(piece);
        }
        (listener.ending, listener.configured.len())
    }

    #[test]
    fn the_end_is_heard_in_pieces_and_among_other_lines() {
        let (ending, configured) = heard(&[
            b"status: libc6:amd64: half-configured\r\nstatus: libc6:amd64: insta",
            b"lled\r\nstatus: dash: installed\r\nstatus: dash: installed\r\ntok",
            b"en7 done\r\n",
        ]);
        assert_eq!((ending, configured), (Some(Ending::Done), 2));
    }

    #[test]
    fn the_first_failure_counts_and_a_word_without_the_token_does_not() {
        let (ending, _) = heard(&[b"done\r\ntoken8 done\r\n"]);
        assert_eq!(ending, None);
        let (ending, _) = heard(&[b"token7 failed a b\ntoken7 failed c\n"]);
        assert_eq!(ending, Some(Ending::Failed("a b".to_owned())));
    }

    #[test]
    fn the_script_has_the_token_in_its_lines() {
        let script = script("token7");
        assert!(script.contains("echo \"token7 $*\""));
        assert!(script.contains(DIRECTORY));
        assert!(!script.contains("@TOKEN@"));
    }

    proptest! {
        #[test]
        fn any_output_is_bounded(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8),
        ) {
            let progress = Progress::new();
            let mut listener = Listener::new("token7", 2, &progress);
            for piece in &pieces {
                listener.hear(piece);
            }
            prop_assert!(listener.tail.len() <= TAIL && listener.line.len() <= LONGEST_LINE);
        }
    }
}

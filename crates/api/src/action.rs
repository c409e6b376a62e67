//! Actions and answers: what the lines on the control socket say, in JSON.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the protocol. A server refuses requests of another one, and says which it speaks.
pub const VERSION: u32 = 1;

/// The one line that a client sends first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The version of the protocol that the client speaks, [`VERSION`].
    pub version: u32,
    /// What it asks for.
    pub action: Action,
}

/// What can be asked of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Tell what the machine is and does: [`Answer::Status`].
    Status,
    /// Stop all vCPUs and machine time: [`Answer::Done`] when they stand still.
    Pause,
    /// Let a paused machine go on: [`Answer::Done`].
    Resume,
    /// Press the power button, which asks the guest to shut down; a paused machine is resumed
    /// first. [`Answer::Done`] when it is pressed.
    PowerButton,
    /// End the machine at once, whatever the guest does: [`Answer::Done`].
    Stop,
    /// Tell where the machine's time has gone: [`Answer::Statistics`].
    Statistics,
    /// Ask the guest to inflate its balloon, or to deflate it: [`Answer::Done`] when it is asked.
    Balloon {
        /// The size that it is to have, in bytes.
        size: u64,
    },
    /// Wait for the machine's end: [`Answer::Ended`] then, however late.
    Wait,
    /// Attach to the console: [`Answer::Attached`], after which the connection carries what
    /// the guest prints, and to the guest what is written.
    Console {
        /// Whether the client wants to type; one client at a time can.
        input: bool,
        /// Whether what was printed lately comes first.
        scrollback: bool,
    },
    /// Tell the guest the size of the terminal that shows its console: [`Answer::Done`], whether or not
    /// its console is a device that can say so.
    ConsoleSize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// Connect with a port of the guest's socket device: [`Answer::Connected`], after which the
    /// connection is a stream to whoever listens there.
    Connect {
        /// The port.
        port: u32,
    },
}

/// What a machine answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It was not done.
    Refused {
        /// Why, as a sentence without a full stop.
        reason: String,
    },
    /// To [`Action::Status`].
    Status(Status),
    /// To [`Action::Statistics`].
    Statistics(Statistics),
    /// To [`Action::Wait`].
    Ended(Ended),
    /// To [`Action::Console`]: from here on the connection is the console's.
    Attached {
        /// Whether what the client writes reaches the guest.
        input: bool,
    },
    /// To [`Action::Connect`]: from here on the connection is the guest's.
    Connected,
}

/// What a machine does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs and its time stand still.
    Paused,
    /// It has ended, and its process is about to.
    Ended,
}

/// What a machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: State,
    /// The process that runs it.
    pub pid: u32,
    /// The number of its vCPUs.
    pub cpus: u32,
    /// The size of its RAM in bytes.
    pub memory: u64,
    /// The engine that runs it.
    pub engine: String,
    /// Machine time since power-on, without pauses, in milliseconds.
    pub uptime_ms: u64,
    /// What it was started from: the kernel or the image.
    pub source: String,
    /// Whether it was started without a terminal (`belljar start`).
    pub detached: bool,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The exit status that `belljar run` gives for it; none if its process was killed.
    pub status: Option<u8>,
    /// In words, for example "powered off".
    pub reason: String,
}

/// Where a machine's time has gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// The engine that runs it.
    pub engine: String,
    /// Machine time since power-on, without pauses, in milliseconds.
    pub uptime_ms: u64,
    /// Those of each vCPU, by its number.
    pub vcpus: Vec<VcpuStatistics>,
    /// Those of its memory; an older Belljar does not tell them.
    #[serde(default)]
    pub memory: Option<MemoryStatistics>,
}

/// How a machine uses its memory. All sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatistics {
    /// The size of its RAM.
    pub size: u64,
    /// How large its balloon is, by what the guest says, and how large it is to be.
    pub balloon: u64,
    /// The size that the balloon is to have.
    pub balloon_target: u64,
    /// What the guest tells of its memory, by name; nothing if it has no driver of the balloon.
    pub guest: BTreeMap<String, u64>,
}

/// Where a vCPU's time has gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStatistics {
    /// Whether it answered in time; if not, the figures are those of its last answer.
    pub current: bool,
    /// What it was doing: running, halted, wait-for-SIPI, shutdown.
    pub state: String,
    /// Processor time that its thread has used, in microseconds.
    pub cpu_us: u64,
    /// The names of what the engine counts, in the engine's order.
    pub order: Vec<String>,
    /// What the engine has counted, by name.
    pub counters: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_readable_line() {
        let request = Request {
            version: 1,
            action: Action::Console {
                input: true,
                scrollback: false,
            },
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"action":{"type":"console","input":true,"scrollback":false}}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for text in [
            r#"{"version":1,"action":{"type":"explode"}}"#,
            r#"{"version":1,"action":{"type":"console","input":true}}"#,
            r#"{"version":1,"action":{"type":"stop"},"more":1}"#,
            r#"{"action":{"type":"stop"}}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}

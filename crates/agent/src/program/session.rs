//! A session: one command for the host, from its start to its exit status.

use crate::command::{self, Failure, Started};
use belljar_agent::{ToGuest, ToHost, read, write};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::mpsc::{self, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use vsock::VsockStream;

/// Bytes of output in a frame.
const CHUNK: usize = 16 << 10;
/// How long the output of an ended command is waited for: processes that it has left behind may
/// hold it open for ever.
const GRACE: Duration = Duration::from_millis(500);

/// A connection with the host, which several threads use.
pub trait Link: Sync {
    /// Reads some bytes.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes some bytes.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends it in both directions.
    fn end(&self);
}

impl Link for VsockStream {
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut stream = self;
        stream.read(bytes)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self;
        stream.write(bytes)
    }

    fn end(&self) {
        // It may have ended already.
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// One direction of a connection.
struct Side<'a>(&'a dyn Link);

impl Read for Side<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.receive(bytes)
    }
}

impl Write for Side<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The host's end of a session, for several threads.
struct Host<'a>(Mutex<Side<'a>>);

impl Host<'_> {
    fn say(&self, message: &ToHost) -> io::Result<()> {
        write(&mut *lock(&self.0), message)
    }
}

/// The command's processes, as long as they can be signalled without meaning others.
struct Group(Mutex<Option<Pid>>);

impl Group {
    fn signal(&self, number: u8) {
        let signal = Signal::from_named_raw(i32::from(number));
        if let (Some(group), Some(signal)) = (*lock(&self.0), signal) {
            // It may have ended meanwhile.
            let _ = kill_process_group(group, signal);
        }
    }
}

/// How many of the command's outputs are still open.
#[derive(Default)]
struct Outputs {
    open: Mutex<usize>,
    closed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the session of a connection.
pub fn serve(link: &dyn Link) -> io::Result<()> {
    let Some(ToGuest::Start(start)) = read(&mut Side(link))? else {
        return Err(ErrorKind::InvalidData.into());
    };
    let host = Host(Mutex::new(Side(link)));
    match command::start(start) {
        Ok(started) => run(link, &host, started),
        Err(Failure { status, why }) => host.say(&ToHost::Failed(status, why)),
    }
}

fn run(link: &dyn Link, host: &Host<'_>, started: Started) -> io::Result<()> {
    let pid = i32::try_from(started.child.id())
        .ok()
        .and_then(Pid::from_raw);
    let group = Group(Mutex::new(pid));
    let outputs = Outputs::default();
    host.say(&ToHost::Started)?;
    thread::scope(|scope| {
        let (typed, input) = mpsc::channel();
        *lock(&outputs.open) += usize::from(started.output.is_some());
        *lock(&outputs.open) += usize::from(started.errors.is_some());
        let outputs = &outputs;
        if let Some(file) = started.output {
            scope.spawn(move || forward(file, host, outputs, ToHost::Output));
        }
        if let Some(file) = started.errors {
            scope.spawn(move || forward(file, host, outputs, ToHost::Errors));
        }
        let is_terminal = started.terminal.is_some();
        if let Some(file) = started.input {
            scope.spawn(move || feed(file, &input, host, is_terminal));
        }
        let (child, group) = (started.child, &group);
        scope.spawn(move || {
            finish(child, group, outputs, host);
            // The threads that wait for the host, or for more output, end now.
            link.end();
        });
        listen(link, &typed, group, started.terminal.as_ref());
    });
    Ok(())
}

/// Hears the host until it has no more to say. If it leaves before the command has ended, the
/// command is told as if its terminal had gone away.
fn listen(
    link: &dyn Link,
    typed: &Sender<Option<Vec<u8>>>,
    group: &Group,
    terminal: Option<&OwnedFd>,
) {
    let mut from = Side(link);
    loop {
        // What the command does not take any more is dropped.
        match read(&mut from) {
            Ok(Some(ToGuest::Input(bytes))) => drop(typed.send(Some(bytes))),
            Ok(Some(ToGuest::InputEnd)) => drop(typed.send(None)),
            Ok(Some(ToGuest::Resize(size))) => {
                if let Some(terminal) = terminal {
                    // A terminal that is gone has no size.
                    let _ = command::resize(terminal, size);
                }
            }
            Ok(Some(ToGuest::Signal(number))) => group.signal(number),
            Ok(Some(ToGuest::Start(_)) | None) | Err(_) => {
                group.signal(Signal::HUP.as_raw() as u8);
                return;
            }
        }
    }
}

/// Sends to the host what the command prints.
fn forward(file: OwnedFd, host: &Host<'_>, outputs: &Outputs, kind: fn(Vec<u8>) -> ToHost) {
    let mut file = File::from(file);
    let mut bytes = vec![0; CHUNK];
    loop {
        match file.read(&mut bytes) {
            // A terminal that no process has open any more gives an error.
            Ok(0) => break,
            Ok(count) => {
                let content = bytes.get(..count).unwrap_or_default().to_vec();
                if host.say(&kind(content)).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *lock(&outputs.open) -= 1;
    outputs.closed.notify_all();
}

/// Hands to the command what the host sends.
fn feed(
    file: OwnedFd,
    input: &mpsc::Receiver<Option<Vec<u8>>>,
    host: &Host<'_>,
    is_terminal: bool,
) {
    /// What ends the input of a terminal: Ctrl-D.
    const END: u8 = 4;
    let mut file = File::from(file);
    let mut is_open = true;
    for bytes in input {
        let Some(bytes) = bytes else {
            if !is_terminal {
                return;
            }
            is_open &= file.write_all(&[END]).is_ok();
            continue;
        };
        // A command that reads no more loses the rest, and the host may send it.
        is_open = is_open && file.write_all(&bytes).is_ok();
        let taken = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if host.say(&ToHost::Taken(taken)).is_err() {
            return;
        }
    }
}

/// Waits for the command's end, and tells it.
fn finish(mut child: Child, group: &Group, outputs: &Outputs, host: &Host<'_>) {
    let pid = *lock(&group.0);
    if let Some(pid) = pid {
        // The process stays to be waited for, so that nobody else gets its number meanwhile.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
    }
    *lock(&group.0) = None;
    let status = child.wait();
    let open = lock(&outputs.open);
    drop(
        outputs
            .closed
            .wait_timeout_while(open, GRACE, |open| *open > 0),
    );
    let last = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => ToHost::Exited(code as u8),
            (None, Some(signal)) => ToHost::Killed(signal as u8),
            (None, None) => ToHost::Failed(126, "it ended in an unknown way".to_owned()),
        },
        Err(error) => ToHost::Failed(126, error.to_string()),
    };
    // A host that has left does not want to know.
    let _ = host.say(&last);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals;
    use belljar_agent::{Start, TerminalSize};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    impl Link for UnixStream {
        fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
            let mut stream = self;
            stream.read(bytes)
        }

        fn send(&self, bytes: &[u8]) -> io::Result<usize> {
            let mut stream = self;
            stream.write(bytes)
        }

        fn end(&self) {
            let _ = self.shutdown(Shutdown::Both);
        }
    }

    fn shell(script: &str, terminal: Option<TerminalSize>) -> Start {
        let words = ["/bin/sh", "-c", script];
        Start {
            arguments: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
            environment: vec![b"WORD=hello".to_vec()],
            directory: b"/".to_vec(),
            terminal,
        }
    }

    /// Runs a session in which the host says `said` after the start; gives the standard output, the
    /// standard error, and the last word.
    fn session(start: Start, said: &[ToGuest]) -> (String, String, ToHost) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || serve(&theirs));
        write(&mut ours, &ToGuest::Start(start)).unwrap();
        for message in said {
            write(&mut ours, message).unwrap();
        }
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let last = loop {
            match read(&mut ours).unwrap().unwrap() {
                ToHost::Started | ToHost::Taken(_) => {}
                ToHost::Output(bytes) => output.extend(bytes),
                ToHost::Errors(bytes) => errors.extend(bytes),
                last => break last,
            }
        };
        agent.join().unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output), text(errors), last)
    }

    #[test]
    fn streams_status_environment_and_directory() {
        let start = shell("echo $WORD; pwd; echo no >&2; exit 7", None);
        let (output, errors, last) = session(start, &[]);
        assert_eq!(output, "hello\n/\n");
        assert_eq!(errors, "no\n");
        assert_eq!(last, ToHost::Exited(7));
    }

    #[test]
    fn input_reaches_the_command_and_ends() {
        let said = [ToGuest::Input(b"some words".to_vec()), ToGuest::InputEnd];
        let (output, _, last) = session(shell("wc -c", None), &said);
        assert_eq!(output.trim(), "10");
        assert_eq!(last, ToHost::Exited(0));
    }

    #[test]
    fn a_signal_ends_the_command_and_what_it_has_started() {
        let script = "trap 'echo caught; exit 3' TERM; (echo ready; exec sleep 100) & wait";
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || serve(&theirs));
        write(&mut ours, &ToGuest::Start(shell(script, None))).unwrap();
        let mut output = Vec::new();
        loop {
            match read(&mut ours).unwrap().unwrap() {
                ToHost::Output(bytes) => {
                    output.extend(bytes);
                    if output == b"ready\n" {
                        write(&mut ours, &ToGuest::Signal(15)).unwrap();
                    }
                }
                ToHost::Exited(status) => {
                    assert_eq!(status, 3);
                    break;
                }
                _ => {}
            }
        }
        assert!(output.ends_with(b"caught\n"));
        agent.join().unwrap().unwrap();
    }

    #[test]
    fn a_command_that_a_signal_kills_is_told_as_such() {
        let (_, _, last) = session(shell("kill -9 $$", None), &[]);
        assert_eq!(last, ToHost::Killed(9));
    }

    #[test]
    fn a_program_that_does_not_exist_is_told() {
        let mut start = shell("", None);
        start.arguments = vec![b"no-such-program".to_vec()];
        let (_, _, last) = session(start, &[]);
        assert!(matches!(last, ToHost::Failed(127, _)), "{last:?}");
    }

    #[test]
    fn a_host_that_leaves_hangs_up_on_the_command() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || serve(&theirs));
        write(&mut ours, &ToGuest::Start(shell("sleep 1000", None))).unwrap();
        assert_eq!(read(&mut ours).unwrap(), Some(ToHost::Started));
        drop(ours);
        agent.join().unwrap().unwrap();
    }

    #[test]
    fn a_command_begins_with_no_signal_ignored_or_blocked() {
        let script = "exec sed -n 's/^Sig\\(Ign\\|Blk\\)://p' /proc/self/status";
        let (output, _, _) = session(shell(script, None), &[]);
        let mask = |line: &str| u64::from_str_radix(line.trim(), 16).unwrap();
        let [blocked, ignored] = output.lines().map(mask).collect::<Vec<_>>()[..] else {
            panic!("two lines, not {output:?}");
        };
        assert_eq!(blocked, 0);
        // What no program can catch stays as it was here.
        let stays = signals::STAY
            .iter()
            .fold(0, |mask, signal| mask | 1 << (signal - 1));
        assert_eq!(ignored & !stays, 0, "{ignored:#x}");
    }

    /// Runs the tests above that depend on signals where somebody ignores these.
    #[test]
    fn what_the_agents_parent_ignores_its_commands_do_not() {
        let limit = Duration::from_secs(30);
        let tests = std::env::current_exe().unwrap();
        let mut again = Command::new("sh")
            .args(["-c", "trap '' HUP INT QUIT USR1 TERM 64; exec \"$@\"", "sh"])
            .arg(tests)
            .args([
                "--exact",
                "session::tests::a_host_that_leaves_hangs_up_on_the_command",
            ])
            .arg("session::tests::a_command_begins_with_no_signal_ignored_or_blocked")
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = again.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                again.kill().unwrap();
                panic!("a command ignores what it should not");
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
    }
}

//! The user's runtime directory: one directory for each machine, which holds its control socket, its
//! lock, its logs, and what it leaves when it has ended.
//!
//! ```text
//! $XDG_RUNTIME_DIR/belljar/     0700, the user's
//! └── NAME/                     0700
//!     ├── lock                  locked as long as the machine's process lives
//!     ├── control               the socket, 0600
//!     ├── console.log(.1)       what the guest printed
//!     ├── belljar.log(.1)       messages of a detached machine
//!     └── record.json           what the machine is, and how it ended
//! ```
//!
//! The kernel drops the lock however the process ends, so a directory whose lock is free is left
//! over, whatever else is in it, and only who holds the lock changes or removes what is there.

use crate::{ApiError, Client, Ended, names};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::getuid;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The environment variable that names the runtime directory, before all others.
pub const DIRECTORY_VARIABLE: &str = "BELLJAR_RUNTIME_DIR";

/// Ended machines whose logs are kept.
const MOST_ENDED: usize = 16;
/// How often a claim is tried while others look at the lock for a moment.
const TRIES: u32 = 10;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The runtime directory.
#[derive(Clone, Debug)]
pub struct Runtime {
    directory: PathBuf,
}

/// What is written down of a machine when it starts, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process that runs it.
    pub pid: u32,
    /// The number of its vCPUs.
    pub cpus: u32,
    /// The size of its RAM in bytes.
    pub memory: u64,
    /// What it was started from.
    pub source: String,
    /// Whether it was started without a terminal; if so, its logs stay when it has ended.
    pub detached: bool,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// How and when it ended.
    pub ended: Option<(u64, Ended)>,
}

/// What is found at a machine's place.
#[derive(Debug)]
pub enum Condition {
    /// Its control socket answers connections.
    Running(Client),
    /// Its process lives but has no socket: it is starting, or about to end.
    Between,
    /// Its process is gone; what it left, if it came so far.
    Ended(Option<Record>),
}

/// Seconds since 1970, for records.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Runtime {
    /// The user's: [`DIRECTORY_VARIABLE`] if that is set, else `belljar` in `XDG_RUNTIME_DIR` or
    /// `/run/user/UID`, else `/tmp/belljar-UID`. It is made if it is not there.
    ///
    /// # Errors
    /// [`ApiError::Untrusted`] if it belongs to somebody else or others can look into it;
    /// [`ApiError::File`].
    pub fn of_user() -> Result<Self, ApiError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(directory) = set(DIRECTORY_VARIABLE) {
            return Self::at(PathBuf::from(directory));
        }
        let user = getuid().as_raw();
        let candidates = [
            set("XDG_RUNTIME_DIR").map(PathBuf::from),
            Some(PathBuf::from(format!("/run/user/{user}"))),
        ];
        let found = candidates.into_iter().flatten().find(|path| path.is_dir());
        match found {
            Some(directory) => Self::at(directory.join("belljar")),
            None => Self::at(PathBuf::from(format!("/tmp/belljar-{user}"))),
        }
    }

    /// The runtime directory `directory`, made if it is not there.
    ///
    /// # Errors
    /// As for [`of_user`](Self::of_user).
    pub fn at(directory: PathBuf) -> Result<Self, ApiError> {
        make_private(&directory)?;
        Ok(Self { directory })
    }

    /// The place of the machine `name`, which need not exist.
    ///
    /// # Errors
    /// [`ApiError::BadName`].
    pub fn place(&self, name: &str) -> Result<Place, ApiError> {
        if !names::is_valid(name) {
            return Err(ApiError::BadName(name.to_owned()));
        }
        Ok(Place {
            name: name.to_owned(),
            directory: self.directory.join(name),
        })
    }

    /// The places of all machines that run or have left something, by name.
    ///
    /// # Errors
    /// [`ApiError::File`].
    pub fn places(&self) -> Result<Vec<Place>, ApiError> {
        let failed = ApiError::file("list", &self.directory);
        let mut places = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            if let Some(place) = name.to_str().and_then(|name| self.place(name).ok()) {
                places.push(place);
            }
        }
        places.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(places)
    }

    /// Takes the name `name` for a machine of this process. What an ended machine of the name has
    /// left is removed.
    ///
    /// # Errors
    /// [`ApiError::NameTaken`], [`ApiError::BadName`], [`ApiError::Untrusted`], [`ApiError::File`].
    pub fn claim(&self, name: &str) -> Result<Claim, ApiError> {
        let claim = self.place(name)?.claim()?;
        for file in claim.place.files() {
            remove_if_there(&file)?;
        }
        Ok(claim)
    }

    /// Takes a name that no machine has, nor has left something under.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    pub fn claim_generated(&self, seed: u64) -> Result<Claim, ApiError> {
        let mut seed = seed % 1024;
        loop {
            let name = names::generated(seed);
            let is_free = !self.directory.join(&name).exists();
            match is_free.then(|| self.claim(&name)) {
                None | Some(Err(ApiError::NameTaken(_))) if seed < 1 << 20 => seed += 1,
                Some(result) => return result,
                None => return Err(ApiError::NameTaken(name)),
            }
        }
    }

    /// Removes what killed processes have left, but for the newest logs of detached machines.
    ///
    /// # Errors
    /// [`ApiError::File`].
    pub fn sweep(&self) -> Result<(), ApiError> {
        let mut ended = Vec::new();
        for place in self.places()? {
            // Who is there has the lock; who is not leaves it to us.
            let Ok(Some(claim)) = place.try_claim() else {
                continue;
            };
            match claim.place.record() {
                Some(record) if record.detached => {
                    let record = claim.settle(record)?;
                    ended.push((record.ended.map(|(at, _)| at), claim));
                }
                _ => claim.remove()?,
            }
        }
        ended.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (_, claim) in ended.into_iter().skip(MOST_ENDED) {
            claim.remove()?;
        }
        Ok(())
    }
}

/// The directory of one machine.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    directory: PathBuf,
}

impl Place {
    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// What the guest printed lately.
    pub fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// What the guest printed before that.
    pub fn old_console_log(&self) -> PathBuf {
        self.directory.join("console.log.1")
    }

    /// The messages of a detached machine.
    pub fn messages(&self) -> PathBuf {
        self.directory.join("belljar.log")
    }

    /// Its messages before those.
    pub fn old_messages(&self) -> PathBuf {
        self.directory.join("belljar.log.1")
    }

    fn record_file(&self) -> PathBuf {
        self.directory.join("record.json")
    }

    fn lock_file(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// All files but the lock.
    fn files(&self) -> [PathBuf; 6] {
        [
            self.socket(),
            self.console_log(),
            self.old_console_log(),
            self.messages(),
            self.old_messages(),
            self.record_file(),
        ]
    }

    /// What the machine has written down of itself, if anything.
    pub fn record(&self) -> Option<Record> {
        let text = fs::read(self.record_file()).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What is found here.
    ///
    /// # Errors
    /// [`ApiError::NoMachine`] if nothing is; [`ApiError::Connection`], [`ApiError::File`].
    pub fn condition(&self) -> Result<Condition, ApiError> {
        if let Some(client) = Client::connect(&self.socket())? {
            return Ok(Condition::Running(client));
        }
        let lock = match File::open(self.lock_file()) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ApiError::NoMachine(self.name.clone()));
            }
            Err(error) => return Err(ApiError::file("open", &self.lock_file())(error)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Condition::Ended(self.record())),
            Err(Errno::WOULDBLOCK) => Ok(Condition::Between),
            Err(error) => Err(ApiError::file("lock", &self.lock_file())(error.into())),
        }
    }

    /// Connects to the machine.
    ///
    /// # Errors
    /// [`ApiError::NoMachine`], [`ApiError::NotRunning`], and those of
    /// [`condition`](Self::condition).
    pub fn connect(&self) -> Result<Client, ApiError> {
        match self.condition()? {
            Condition::Running(client) => Ok(client),
            Condition::Between | Condition::Ended(_) => {
                Err(ApiError::NotRunning(self.name.clone()))
            }
        }
    }

    fn claim(&self) -> Result<Claim, ApiError> {
        for _ in 0..TRIES {
            if let Some(claim) = self.try_claim()? {
                return Ok(claim);
            }
            std::thread::sleep(PAUSE);
        }
        Err(ApiError::NameTaken(self.name.clone()))
    }

    /// The claim, or `None` if somebody has the lock at the moment.
    fn try_claim(&self) -> Result<Option<Claim>, ApiError> {
        loop {
            make_private(&self.directory)?;
            let path = self.lock_file();
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
                .open(&path);
            let lock = match opened {
                // The directory was removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                opened => opened.map_err(ApiError::file("open", &path))?,
            };
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(ApiError::file("lock", &path)(error.into())),
            }
            // The lock counts only while its file is the one that others find.
            let ours = lock.metadata().map_err(ApiError::file("examine", &path))?;
            let is_found = fs::symlink_metadata(&path)
                .is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()));
            if is_found {
                return Ok(Some(Claim {
                    place: self.clone(),
                    _lock: lock,
                }));
            }
        }
    }
}

/// The right to a name: nobody else can take it while this lives.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    _lock: File,
}

impl Claim {
    /// The place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Listens at the control socket.
    ///
    /// # Errors
    /// [`ApiError::File`].
    pub fn listen(&self) -> Result<UnixListener, ApiError> {
        let path = self.place.socket();
        remove_if_there(&path)?;
        let listener = UnixListener::bind(&path).map_err(ApiError::file("listen at", &path))?;
        // Nobody else could connect before: the directory is closed to others.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(ApiError::file("protect", &path))?;
        Ok(listener)
    }

    /// Writes down what the machine is, or how it ended.
    ///
    /// # Errors
    /// [`ApiError::File`].
    pub fn write_record(&self, record: &Record) -> Result<(), ApiError> {
        let path = self.place.record_file();
        let aside = self.place.directory.join("record.new");
        let text = serde_json::to_vec(record).map_err(ApiError::Syntax)?;
        fs::write(&aside, text).map_err(ApiError::file("write", &aside))?;
        fs::rename(&aside, &path).map_err(ApiError::file("rename", &aside))
    }

    /// The record of a machine that has started now.
    pub fn started_now(record: Record) -> Record {
        Record {
            started: now(),
            ..record
        }
    }

    /// Gives the name back: a detached machine's logs stay, with how it ended; of others nothing.
    ///
    /// # Errors
    /// [`ApiError::File`].
    pub fn release(self, ended: Ended) -> Result<(), ApiError> {
        match self.place.record() {
            Some(record) if record.detached => {
                remove_if_there(&self.place.socket())?;
                self.write_record(&Record {
                    ended: Some((now(), ended)),
                    ..record
                })
            }
            _ => self.remove(),
        }
    }

    /// Writes down of a machine whose process has not done so itself that it has ended.
    fn settle(&self, record: Record) -> Result<Record, ApiError> {
        if record.ended.is_some() {
            return Ok(record);
        }
        remove_if_there(&self.place.socket())?;
        let ended = Ended {
            status: None,
            reason: "its process was killed".to_owned(),
        };
        let record = Record {
            ended: Some((now(), ended)),
            ..record
        };
        self.write_record(&record)?;
        Ok(record)
    }

    /// Removes the machine's directory.
    ///
    /// # Errors
    /// [`ApiError::File`].
    pub fn remove(self) -> Result<(), ApiError> {
        let directory = &self.place.directory;
        fs::remove_dir_all(directory).map_err(ApiError::file("remove", directory))
    }
}

fn remove_if_there(path: &Path) -> Result<(), ApiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(ApiError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the directory `path`, unless it is there, and checks that it is the user's alone.
fn make_private(path: &Path) -> Result<(), ApiError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(ApiError::file("make the directory", path)(error));
        }
        _ => {}
    }
    let found = match fs::symlink_metadata(path) {
        // It was removed meanwhile; whoever needs it will find out.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(ApiError::file("examine", path))?,
    };
    let why = if !found.is_dir() {
        "it is no directory"
    } else if found.uid() != getuid().as_raw() {
        "it belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "others have rights to it (chmod 700 takes them away)"
    } else {
        return Ok(());
    };
    Err(ApiError::Untrusted {
        path: path.to_owned(),
        why,
    })
}

#[cfg(test)]
mod tests;

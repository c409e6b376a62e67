//! A pseudo-terminal as the guest's console.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A pseudo-terminal in raw mode.
#[derive(Debug)]
pub struct Pty {
    master: Arc<OwnedFd>,
    /// Held open, so that the master stays usable while nobody else has the terminal open.
    _terminal: OwnedFd,
    path: String,
}

impl Pty {
    /// Makes a new one.
    pub fn open() -> Result<Self> {
        Self::try_open().context("cannot make a pseudo-terminal")
    }

    fn try_open() -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?.into_string()?;
        let terminal = open(
            path.as_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut settings = tcgetattr(&terminal)?;
        settings.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &settings)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self {
            master: Arc::new(master),
            _terminal: terminal,
            path,
        })
    }

    /// The machine's end.
    pub fn master(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.master)
    }

    /// The user's end, for example `/dev/pts/3`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

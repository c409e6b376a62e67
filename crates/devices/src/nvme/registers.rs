//! The controller's registers. NVM Express 1.4, 3.1.

use serde::{Deserialize, Serialize};

/// Entries of the largest queue.
pub(super) const MOST_ENTRIES: u32 = 1024;
/// Controller capabilities: the entries of queues less one; queues are contiguous; what takes long
/// takes 60 s at most (in units of 500 ms); the NVM command set.
const CAPABILITIES: u64 = (MOST_ENTRIES as u64 - 1) | 1 << 16 | 120 << 24 | 1 << 37;

const VERSION: u64 = 0x08;
const MASK_SET: u64 = 0x0c;
const MASK_CLEAR: u64 = 0x10;
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const ADMIN_SIZES: u64 = 0x24;
const ADMIN_SUBMISSION: u64 = 0x28;
const ADMIN_COMPLETION: u64 = 0x30;
const END: u64 = 0x38;

/// Controller configuration: enable; fields that have one allowed value (I/O command set, page
/// size, arbitration); shutdown notification.
const ENABLE: u32 = 1;
const ONE_VALUE: u32 = 0x3ff0;
const SHUTDOWN: u32 = 3 << 14;
/// Controller status: ready, fatal, shutdown complete.
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
const SHUTDOWN_UNDER_WAY: u32 = 1 << 2;
const SHUTDOWN_COMPLETE: u32 = 2 << 2;
const SHUTDOWN_STATUS: u32 = 3 << 2;

/// What the registers ask the worker for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Stop and forget everything.
    Reset,
    /// Begin: the admin queues' addresses and sizes.
    Enable {
        submission: u64,
        submission_size: u32,
        completion: u64,
        completion_size: u32,
    },
    /// Make everything stable, because the power may go.
    Shutdown,
}

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    mask: u32,
    configuration: u32,
    status: u32,
    admin_sizes: u32,
    submission: u64,
    completion: u64,
    reset_due: bool,
}

impl Registers {
    /// Reads registers from `offset` on, as wide as the guest likes.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let (value, first): (u64, u64) = match at {
                0..VERSION => (CAPABILITIES, 0),
                VERSION..MASK_SET => (super::VERSION.into(), VERSION),
                MASK_SET..MASK_CLEAR => (self.mask.into(), MASK_SET),
                MASK_CLEAR..CONFIGURATION => (self.mask.into(), MASK_CLEAR),
                CONFIGURATION..0x18 => (self.configuration.into(), CONFIGURATION),
                STATUS..0x20 => (self.status.into(), STATUS),
                ADMIN_SIZES..ADMIN_SUBMISSION => (self.admin_sizes.into(), ADMIN_SIZES),
                ADMIN_SUBMISSION..ADMIN_COMPLETION => (self.submission, ADMIN_SUBMISSION),
                ADMIN_COMPLETION..END => (self.completion, ADMIN_COMPLETION),
                _ => (0, at),
            };
            *byte = (value >> (8 * (at - first))) as u8;
        }
    }

    /// Writes registers: aligned words of 32 or 64 bits. Tells whether the worker is to look.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        match *data {
            [a, b, c, d] if offset.is_multiple_of(4) => {
                self.write_word(offset, u32::from_le_bytes([a, b, c, d]))
            }
            [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => {
                let low = self.write_word(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_word(offset + 4, u32::from_le_bytes([e, f, g, h])) || low
            }
            _ => false,
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) -> bool {
        let low = |old: u64| old >> 32 << 32 | u64::from(value & !0xfff);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            MASK_SET => self.mask |= value,
            MASK_CLEAR => self.mask &= !value,
            ADMIN_SIZES => self.admin_sizes = value & 0x0fff_0fff,
            ADMIN_SUBMISSION => self.submission = low(self.submission),
            0x2c => self.submission = high(self.submission),
            ADMIN_COMPLETION => self.completion = low(self.completion),
            0x34 => self.completion = high(self.completion),
            CONFIGURATION => {
                let stops = self.configuration & !value & ENABLE != 0;
                self.reset_due |= stops;
                self.configuration = value & 0x00ff_fff1;
                self.notice_shutdown();
                return true;
            }
            _ => {}
        }
        false
    }

    /// Takes note of the shutdown notification. One that is withdrawn ends the status that it led
    /// to: that of a controller that is not enabled would otherwise last, as no reset ends it.
    fn notice_shutdown(&mut self) {
        let asked = self.configuration & SHUTDOWN != 0;
        match self.status & SHUTDOWN_STATUS {
            0 if asked => self.status |= SHUTDOWN_UNDER_WAY,
            SHUTDOWN_COMPLETE if !asked => self.status &= !SHUTDOWN_STATUS,
            _ => {}
        }
    }

    /// What the worker is to do next; `None` if nothing.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        let enabled = self.configuration & ENABLE != 0;
        if self.reset_due {
            Some(Wanted::Reset)
        } else if self.status & SHUTDOWN_STATUS == SHUTDOWN_UNDER_WAY {
            Some(Wanted::Shutdown)
        } else if enabled && self.status & (READY | FATAL) == 0 {
            Some(Wanted::Enable {
                submission: self.submission,
                submission_size: (self.admin_sizes & 0xfff) + 1,
                completion: self.completion,
                completion_size: (self.admin_sizes >> 16) + 1,
            })
        } else {
            None
        }
    }

    /// Whether the configuration is one that the controller can be enabled with.
    pub(super) fn can_enable(&self) -> bool {
        let sizes = |bits: u32| (self.admin_sizes >> bits & 0xfff) >= 1;
        self.configuration & ONE_VALUE == 0 && sizes(0) && sizes(16)
    }

    pub(super) fn set_ready(&mut self) {
        self.status |= READY;
    }

    pub(super) fn fail(&mut self) {
        self.status |= FATAL;
    }

    /// The worker has stopped.
    pub(super) fn reset_done(&mut self) {
        self.reset_due = false;
        self.status = 0;
        self.mask = 0;
        self.notice_shutdown();
    }

    /// Everything is stable.
    pub(super) fn shut_down(&mut self) {
        self.status = self.status & !SHUTDOWN_STATUS | SHUTDOWN_COMPLETE;
        self.notice_shutdown();
    }

    /// Whether a vector of MSI is masked, or for vector 0 the line.
    pub(super) fn masks(&self, vector: u16) -> bool {
        self.mask & 1_u32.unbounded_shl(vector.into()) != 0
    }

    /// The vectors that are masked.
    pub(super) fn mask(&self) -> u32 {
        self.mask
    }
}

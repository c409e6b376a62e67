//! Commands, completions and status codes. NVM Express 1.4, 4.2 to 4.6.

/// Bytes of a submission queue's entry.
pub(super) const SUBMISSION: u64 = 64;
/// Bytes of a completion queue's entry.
pub(super) const COMPLETION: u64 = 16;

/// How a command ended: status code type in bits 10:8, status code in bits 7:0, and "do not
/// retry" in bit 14 of those that are the driver's fault. NVMe 1.4, 4.6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(pub(super) u16);

impl Status {
    pub(super) const OK: Self = Self(0);
    pub(super) const INVALID_OPCODE: Self = Self(0x4001);
    pub(super) const INVALID_FIELD: Self = Self(0x4002);
    pub(super) const DATA_TRANSFER: Self = Self(0x4004);
    pub(super) const INTERNAL: Self = Self(0x0006);
    pub(super) const INVALID_NAMESPACE: Self = Self(0x400b);
    pub(super) const INVALID_PRP: Self = Self(0x4013);
    pub(super) const READ_ONLY: Self = Self(0x4020);
    pub(super) const OUT_OF_RANGE: Self = Self(0x4080);
    pub(super) const INVALID_CQ: Self = Self(0x4100);
    pub(super) const INVALID_QUEUE_ID: Self = Self(0x4101);
    pub(super) const INVALID_QUEUE_SIZE: Self = Self(0x4102);
    pub(super) const TOO_MANY_EVENTS: Self = Self(0x4105);
    pub(super) const INVALID_VECTOR: Self = Self(0x4108);
    pub(super) const INVALID_LOG_PAGE: Self = Self(0x4109);
    pub(super) const INVALID_QUEUE_DELETION: Self = Self(0x410c);
    pub(super) const NOT_SAVEABLE: Self = Self(0x410d);
    pub(super) const WRITE_FAULT: Self = Self(0x0280);
    pub(super) const READ_ERROR: Self = Self(0x0281);
}

/// A submission queue's entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command([u8; SUBMISSION as usize]);

impl Command {
    pub(super) const fn new(bytes: [u8; SUBMISSION as usize]) -> Self {
        Self(bytes)
    }

    pub(super) fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Whether the command is a plain one: not fused, and its data by PRPs.
    pub(super) fn is_plain(&self) -> bool {
        self.0[1] == 0
    }

    pub(super) fn id(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// Double word `number` of the command.
    pub(super) fn word(&self, number: usize) -> u32 {
        let at = 4 * (number & 15);
        let bytes = [self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]];
        u32::from_le_bytes(bytes)
    }

    /// Double words `number` (low) and the next.
    pub(super) fn wide(&self, number: usize) -> u64 {
        u64::from(self.word(number)) | u64::from(self.word(number + 1)) << 32
    }

    pub(super) fn namespace(&self) -> u32 {
        self.word(1)
    }

    /// The two PRP entries.
    pub(super) fn prps(&self) -> (u64, u64) {
        (self.wide(6), self.wide(8))
    }
}

//! Exceptions and interrupts.

use serde::{Deserialize, Serialize};

/// The architecture's exception vectors. SDM 3A, table 6-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87 = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    Simd = 19,
}

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Which.
    pub vector: Vector,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// What delivery puts into CR2 (page faults), or the bits that it sets in DR6 (debug
    /// exceptions).
    pub payload: u64,
}

impl Exception {
    const fn plain(vector: Vector) -> Self {
        Self {
            vector,
            error: None,
            payload: 0,
        }
    }

    const fn coded(vector: Vector, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            payload: 0,
        }
    }

    /// #DE
    pub const fn divide_error() -> Self {
        Self::plain(Vector::DivideError)
    }

    /// #DB, which sets `dr6` in DR6 when it is delivered.
    pub const fn debug(dr6: u64) -> Self {
        Self {
            vector: Vector::Debug,
            error: None,
            payload: dr6,
        }
    }

    /// #UD
    pub const fn invalid_opcode() -> Self {
        Self::plain(Vector::InvalidOpcode)
    }

    /// #NM
    pub const fn device_not_available() -> Self {
        Self::plain(Vector::DeviceNotAvailable)
    }

    /// #BR
    pub const fn bound_range() -> Self {
        Self::plain(Vector::BoundRange)
    }

    /// #MF
    pub const fn x87() -> Self {
        Self::plain(Vector::X87)
    }

    /// #XM
    pub const fn simd() -> Self {
        Self::plain(Vector::Simd)
    }

    /// #DF
    pub const fn double_fault() -> Self {
        Self::coded(Vector::DoubleFault, 0)
    }

    /// #GP
    pub const fn general_protection(error: u32) -> Self {
        Self::coded(Vector::GeneralProtection, error)
    }

    /// #SS
    pub const fn stack_fault(error: u32) -> Self {
        Self::coded(Vector::StackFault, error)
    }

    /// #TS
    pub const fn invalid_tss(error: u32) -> Self {
        Self::coded(Vector::InvalidTss, error)
    }

    /// #NP
    pub const fn segment_not_present(error: u32) -> Self {
        Self::coded(Vector::SegmentNotPresent, error)
    }

    /// #AC
    pub const fn alignment_check() -> Self {
        Self::coded(Vector::AlignmentCheck, 0)
    }

    /// #PF at linear address `address`. The bits of `error` are in SDM 3A, 4.7.
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self {
            vector: Vector::PageFault,
            error: Some(error),
            payload: address,
        }
    }
}

/// Something to be delivered through the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A fault, or the trap #DB. The saved instruction pointer is `CpuState::rip` as it stands.
    Exception(Exception),
    /// INT n, INT3 or INTO: subject to the gate's DPL. `CpuState::rip` is already past the
    /// instruction; a fault during delivery is reported at the instruction itself, whose length in
    /// bytes is `length`.
    Software {
        /// The vector.
        vector: u8,
        /// Length of the instruction in bytes.
        length: u8,
    },
    /// INT1: like a hardware exception #DB, but `CpuState::rip` is past the instruction.
    Icebp,
    /// An external interrupt.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
}

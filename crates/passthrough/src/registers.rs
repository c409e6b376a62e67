//! Which registers an instruction uses and where its stub keeps them.

use crate::class;
use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind, Register,
};

/// Holds the guest's state while a stub runs.
pub(crate) const STATE: Register = Register::RDI;
/// Holds the host's address of the memory operand.
pub(crate) const OPERAND: Register = Register::RSI;
/// Holds the address of the [`Context`](crate::stubs::Context).
pub(crate) const CONTEXT: Register = Register::R9;

/// Host registers that can stand for the guest's. All belong to the callee by the System V ABI.
/// Those that can only be renamed to come first; RAX, RCX and RDX are also implied by instructions
/// and stand for themselves if the guest uses them.
const POOL: [u8; 6] = [8, 10, 11, 0, 1, 2];
/// The same for instructions that name AH to BH, in which no other register may need a REX prefix.
const LEGACY_POOL: [u8; 3] = [0, 1, 2];

/// How a register is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) read: bool,
    pub(crate) written: bool,
}

impl Use {
    fn add(&mut self, access: OpAccess) {
        use OpAccess as A;
        // A register that is perhaps not written must be there to keep its value.
        self.read |= !matches!(access, A::None | A::NoMemAccess | A::Write);
        self.written |= matches!(
            access,
            A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite
        );
    }

    pub(crate) const fn any(self) -> bool {
        self.read | self.written
    }
}

/// The registers that an instruction uses, its address left aside.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) gpr: [Use; 16],
    pub(crate) k: [Use; 8],
    pub(crate) vector: [Use; 32],
    /// Bytes of the widest vector register that the instruction names; 0 if it names none.
    pub(crate) width: usize,
}

impl Usage {
    /// Finds out about `instruction`, whose memory operand has neither base nor index.
    pub(crate) fn new(instruction: &Instruction) -> Self {
        let mut usage = Self::default();
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        for used in info.used_registers() {
            let register = used.register();
            let slot = if register.is_gpr() {
                &mut usage.gpr[register.full_register().number() & 15]
            } else if register.is_k() {
                &mut usage.k[register.number() & 7]
            } else if register.is_vector_register() {
                &mut usage.vector[register.number() & 31]
            } else {
                continue;
            };
            slot.add(used.access());
        }
        usage.width = explicit(instruction)
            .filter(|register| register.is_vector_register())
            .map(Register::size)
            .max()
            .unwrap_or(0);
        if usage.width == 0 && usage.vector.iter().any(|each| each.any()) {
            usage.width = 16;
        }
        usage
    }

    /// Whether the instruction writes any register.
    pub(crate) fn writes(&self) -> bool {
        let mut all = self.gpr.iter().chain(&self.k).chain(&self.vector);
        all.any(|each| each.written)
    }
}

/// The registers that the instruction names.
fn explicit(instruction: &Instruction) -> impl Iterator<Item = Register> {
    (0..instruction.op_count())
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map(|operand| instruction.op_register(operand))
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// Which host register stands for each of the guest's general-purpose registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renaming([u8; 16]);

impl Renaming {
    /// Finds a place for every register of `usage`; nothing if there is none.
    pub(crate) fn new(instruction: &Instruction, usage: &Usage) -> Option<Self> {
        let pool: &[u8] = if explicit(instruction).any(is_high_byte) {
            &LEGACY_POOL
        } else {
            &POOL
        };
        let mut places = [u8::MAX; 16];
        let mut free: Vec<u8> = Vec::with_capacity(pool.len());
        for &host in pool {
            if usage.gpr[usize::from(host)].any() {
                places[usize::from(host)] = host;
            } else {
                free.push(host);
            }
        }
        let mut free = free.into_iter();
        for (guest, place) in places.iter_mut().enumerate() {
            if usage.gpr[guest].any() && *place == u8::MAX {
                *place = free.next()?;
            }
        }
        Some(Self(places))
    }

    /// The 64-bit host register that stands for the guest's register number `guest`.
    pub(crate) fn full(&self, guest: usize) -> Register {
        Register::RAX + u32::from(self.0[guest & 15])
    }

    fn rename(&self, register: Register) -> Register {
        let place = u32::from(self.0[register.full_register().number() & 15]);
        if is_high_byte(register) {
            Register::AH + place
        } else if register.is_gpr8() {
            match place {
                0..4 => Register::AL + place,
                4..8 => Register::SPL + (place - 4),
                _ => Register::R8L + (place - 8),
            }
        } else if register.is_gpr16() {
            Register::AX + place
        } else if register.is_gpr32() {
            Register::EAX + place
        } else {
            Register::RAX + place
        }
    }

    /// Renames the registers that `instruction` names, and puts its memory operand at [`OPERAND`].
    pub(crate) fn apply(&self, instruction: &mut Instruction) {
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) != OpKind::Register {
                continue;
            }
            let register = instruction.op_register(operand);
            if register.is_gpr() {
                instruction.set_op_register(operand, self.rename(register));
            }
        }
        if class::has_memory(instruction) {
            instruction.set_memory_base(OPERAND);
        }
    }
}

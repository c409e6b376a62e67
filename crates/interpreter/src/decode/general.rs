//! Which handler executes a general-purpose instruction.

use super::Choice;
use super::lower::{AddressForm, Lowering};
use crate::handlers::{
    alu, atomics, bits, branches, decimal, flag_control, moves, multiply, shifts, stack, strings,
};
use crate::op::{Base, Flexible, Handler, Indexed};
use belljar_x86::Gpr;
use iced_x86::{Code, ConditionCode, Mnemonic, OpKind, Register};

/// The instance of a generic handler for an operand size.
macro_rules! by_size {
    ($size:expr, $($handler:ident)::+ $(, $type:ty)*) => {
        match $size {
            1 => $($handler)::+::<$($type,)* u8> as Handler,
            2 => $($handler)::+::<$($type,)* u16>,
            4 => $($handler)::+::<$($type,)* u32>,
            _ => $($handler)::+::<$($type,)* u64>,
        }
    };
}
pub(super) use by_size;

/// The instance of a generic handler for an address form and an operand size.
macro_rules! by_form {
    ($lowering:expr, $size:expr, $($handler:ident)::+ $(, $type:ty)*) => {
        match $lowering.form {
            AddressForm::Base => by_size!($size, $($handler)::+ $(, $type)*, Base),
            AddressForm::Indexed => by_size!($size, $($handler)::+ $(, $type)*, Indexed),
            AddressForm::Flexible => by_size!($size, $($handler)::+ $(, $type)*, Flexible),
        }
    };
}

/// The instance of a handler that is generic over a constant and an operand size.
macro_rules! by_size_const {
    ($size:expr, $($handler:ident)::+, $constant:expr) => {
        match $size {
            1 => $($handler)::+::<{ $constant }, u8> as Handler,
            2 => $($handler)::+::<{ $constant }, u16>,
            4 => $($handler)::+::<{ $constant }, u32>,
            _ => $($handler)::+::<{ $constant }, u64>,
        }
    };
}
pub(super) use by_size_const;

/// Calls macro `$with` with the condition code as a literal.
macro_rules! by_condition {
    ($code:expr, $with:ident) => {
        match $code {
            0 => $with!(0),
            1 => $with!(1),
            2 => $with!(2),
            3 => $with!(3),
            4 => $with!(4),
            5 => $with!(5),
            6 => $with!(6),
            7 => $with!(7),
            8 => $with!(8),
            9 => $with!(9),
            10 => $with!(10),
            11 => $with!(11),
            12 => $with!(12),
            13 => $with!(13),
            14 => $with!(14),
            _ => $with!(15),
        }
    };
}

/// The handler of a general-purpose instruction, or `None` if it is not one that is written by
/// hand.
pub fn choose(l: &mut Lowering) -> Option<Choice> {
    l.set_operands();
    let handler = arithmetic(l)
        .or_else(|| shift(l))
        .or_else(|| movement(l))
        .or_else(|| bit(l))
        .or_else(|| stack_operation(l))
        .or_else(|| rest(l))
        .or_else(|| string(l));
    handler
        .map(Choice::Inner)
        .or_else(|| conditional(l))
        .or_else(|| branch(l))
}

fn arithmetic(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Add => binary::<alu::Add>(l),
        Mnemonic::Or => binary::<alu::Or>(l),
        Mnemonic::Adc => binary::<alu::Adc>(l),
        Mnemonic::Sbb => binary::<alu::Sbb>(l),
        Mnemonic::And => binary::<alu::And>(l),
        Mnemonic::Sub => binary::<alu::Sub>(l),
        Mnemonic::Xor => binary::<alu::Xor>(l),
        Mnemonic::Cmp => binary::<alu::Cmp>(l),
        Mnemonic::Test => binary::<alu::Test>(l),
        Mnemonic::Inc => by_size!(l.size(0), alu::inc),
        Mnemonic::Dec => by_size!(l.size(0), alu::dec),
        Mnemonic::Neg => by_size!(l.size(0), alu::neg),
        Mnemonic::Not => by_size!(l.size(0), alu::not),
        Mnemonic::Mul => one_operand(l, by_size!(l.size(0), multiply::mul)),
        Mnemonic::Div => one_operand(l, by_size!(l.size(0), multiply::div)),
        Mnemonic::Idiv => one_operand(l, by_size!(l.size(0), multiply::idiv)),
        Mnemonic::Imul => match l.ins.op_count() {
            1 => one_operand(l, by_size!(l.size(0), multiply::imul)),
            2 => by_size!(l.size(0), multiply::imul_two),
            _ => {
                l.op.imm = l.ins.immediate(2);
                by_size!(l.size(0), multiply::imul_three)
            }
        },
        _ => return None,
    })
}

/// The only operand is a source.
fn one_operand(l: &mut Lowering, handler: Handler) -> Handler {
    l.op.src = l.op.dst;
    handler
}

fn binary<O: alu::Binary>(l: &mut Lowering) -> Handler {
    let size = l.size(0);
    let locked = l.ins.has_lock_prefix();
    match (l.ins.op0_kind(), l.ins.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_size!(size, alu::rr, O),
        (OpKind::Register, OpKind::Memory) => by_form!(l, size, alu::rm, O),
        (_, OpKind::Register) if locked => by_size!(size, alu::locked_mr, O),
        (_, OpKind::Register) => by_form!(l, size, alu::mr, O),
        (kind, _) => {
            l.op.imm = l.ins.immediate(1);
            if kind == OpKind::Register {
                by_size!(size, alu::ri, O)
            } else if locked {
                by_size!(size, alu::locked_mi, O)
            } else {
                by_form!(l, size, alu::mi, O)
            }
        }
    }
}

fn shift(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift_by::<shifts::Shl>(l),
        Mnemonic::Shr => shift_by::<shifts::Shr>(l),
        Mnemonic::Sar => shift_by::<shifts::Sar>(l),
        Mnemonic::Rol => shift_by::<shifts::Rol>(l),
        Mnemonic::Ror => shift_by::<shifts::Ror>(l),
        Mnemonic::Rcl => shift_by::<shifts::Rcl>(l),
        Mnemonic::Rcr => shift_by::<shifts::Rcr>(l),
        Mnemonic::Shld => double_shift::<true>(l),
        Mnemonic::Shrd => double_shift::<false>(l),
        _ => return None,
    })
}

fn shift_by<S: shifts::Shift>(l: &mut Lowering) -> Handler {
    if l.is_register(1) {
        return by_size!(l.size(0), shifts::by_cl, S);
    }
    l.op.imm = l.ins.immediate(1);
    by_size!(l.size(0), shifts::immediate, S)
}

fn double_shift<const LEFT: bool>(l: &mut Lowering) -> Handler {
    if l.is_register(2) {
        return by_size_const!(l.size(0), shifts::double_by_cl, LEFT);
    }
    l.op.imm = l.ins.immediate(2);
    by_size_const!(l.size(0), shifts::double_immediate, LEFT)
}

fn movement(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Mov => return mov(l),
        Mnemonic::Movzx => zero_extension(l),
        Mnemonic::Movsx | Mnemonic::Movsxd => sign_extension(l),
        Mnemonic::Lea => match l.form {
            AddressForm::Base => by_size!(l.size(0), moves::lea_base),
            AddressForm::Indexed => by_size!(l.size(0), moves::lea_indexed),
            AddressForm::Flexible => by_size!(l.size(0), moves::lea),
        },
        Mnemonic::Xchg if l.is_memory(0) => by_size!(l.size(1), atomics::xchg),
        Mnemonic::Xchg if l.is_memory(1) => {
            l.op.src = l.op.dst;
            by_size!(l.size(0), atomics::xchg)
        }
        Mnemonic::Xchg => by_size!(l.size(0), moves::xchg_rr),
        // With REX.B the opcode 90h is XCHG R8, whatever prefixes precede it. SDM 2, NOP and PAUSE.
        Mnemonic::Pause if l.rex() & 1 != 0 => {
            (l.op.dst, l.op.src) = (Gpr::R8 as u8, Gpr::Rax as u8);
            if l.is_wide() {
                moves::xchg_rr::<u64>
            } else if l.has_operand_prefix() {
                moves::xchg_rr::<u16>
            } else {
                moves::xchg_rr::<u32>
            }
        }
        Mnemonic::Bswap => by_size!(l.size(0), moves::bswap),
        Mnemonic::Movbe if l.is_memory(1) => by_size!(l.size(0), moves::movbe_load),
        Mnemonic::Movbe => by_size!(l.size(1), moves::movbe_store),
        Mnemonic::Cbw => moves::extend_accumulator::<u8, u16>,
        Mnemonic::Cwde => moves::extend_accumulator::<u16, u32>,
        Mnemonic::Cdqe => moves::extend_accumulator::<u32, u64>,
        Mnemonic::Cwd => moves::sign_into_rdx::<u16>,
        Mnemonic::Cdq => moves::sign_into_rdx::<u32>,
        Mnemonic::Cqo => moves::sign_into_rdx::<u64>,
        Mnemonic::Xlatb => moves::xlat,
        Mnemonic::Nop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Reservednop
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => moves::nop,
        _ => return None,
    })
}

fn mov(l: &mut Lowering) -> Option<Handler> {
    let special = |r: Register| r.is_cr() || r.is_dr() || r.is_tr() || r.is_segment_register();
    if special(l.ins.op0_register()) || special(l.ins.op1_register()) {
        return None;
    }
    match l.ins.code() {
        Code::Mov_AL_moffs8
        | Code::Mov_AX_moffs16
        | Code::Mov_EAX_moffs32
        | Code::Mov_RAX_moffs64 => {
            l.op.imm = l.ins.memory_displacement64();
            return Some(by_size!(l.size(0), moves::load_absolute));
        }
        Code::Mov_moffs8_AL
        | Code::Mov_moffs16_AX
        | Code::Mov_moffs32_EAX
        | Code::Mov_moffs64_RAX => {
            l.op.imm = l.ins.memory_displacement64();
            return Some(by_size!(l.size(1), moves::store_absolute));
        }
        _ => {}
    }
    let size = l.size(0);
    Some(match (l.ins.op0_kind(), l.ins.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_size!(size, moves::mov_rr),
        (OpKind::Register, OpKind::Memory) => by_form!(l, size, moves::load),
        (_, OpKind::Register) => by_form!(l, size, moves::store),
        (kind, _) => {
            l.op.imm = l.ins.immediate(1);
            if kind == OpKind::Register {
                by_size!(size, moves::mov_ri)
            } else {
                by_form!(l, size, moves::store_immediate)
            }
        }
    })
}

fn zero_extension(l: &Lowering) -> Handler {
    let size = l.size(0);
    match (l.is_memory(1), l.size(1)) {
        (false, 1) => by_size!(size, moves::movzx_rr, u8),
        (false, _) => by_size!(size, moves::movzx_rr, u16),
        (true, 1) => by_form!(l, size, moves::movzx_rm, u8),
        (true, _) => by_form!(l, size, moves::movzx_rm, u16),
    }
}

fn sign_extension(l: &Lowering) -> Handler {
    let size = l.size(0);
    match (l.is_memory(1), l.size(1)) {
        (false, 1) => by_size!(size, moves::movsx_rr, u8),
        (false, 2) => by_size!(size, moves::movsx_rr, u16),
        (false, _) => by_size!(size, moves::movsx_rr, u32),
        (true, 1) => by_form!(l, size, moves::movsx_rm, u8),
        // Of MOVSXD to 16 bits AMD's processors read the 32 bits that the other forms have.
        (true, 2) if !(l.amd && l.ins.mnemonic() == Mnemonic::Movsxd) => {
            by_form!(l, size, moves::movsx_rm, u16)
        }
        (true, _) => by_form!(l, size, moves::movsx_rm, u32),
    }
}

fn bit(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Bt => bit_test::<bits::Bt>(l),
        Mnemonic::Bts => bit_test::<bits::Bts>(l),
        Mnemonic::Btr => bit_test::<bits::Btr>(l),
        Mnemonic::Btc => bit_test::<bits::Btc>(l),
        Mnemonic::Bsf => by_size_const!(l.size(0), bits::scan, true),
        Mnemonic::Bsr => by_size_const!(l.size(0), bits::scan, false),
        Mnemonic::Tzcnt => by_size_const!(l.size(0), bits::count_zeros, true),
        Mnemonic::Lzcnt => by_size_const!(l.size(0), bits::count_zeros, false),
        Mnemonic::Popcnt => by_size!(l.size(0), bits::popcnt),
        _ => return None,
    })
}

fn bit_test<C: bits::BitChange>(l: &mut Lowering) -> Handler {
    if !l.is_register(1) {
        l.op.imm = l.ins.immediate(1);
        return by_size!(l.size(0), bits::immediate, C);
    }
    if l.is_memory(0) {
        return by_size!(l.size(1), bits::mr, C);
    }
    by_size!(l.size(0), bits::rr, C)
}

fn stack_operation(l: &mut Lowering) -> Option<Handler> {
    let size = l.stack_size();
    let register = l.ins.op0_register();
    if register.is_segment_register() {
        return None;
    }
    Some(match l.ins.mnemonic() {
        Mnemonic::Push if register != Register::None => {
            one_operand(l, by_size!(size, stack::push_register))
        }
        Mnemonic::Push if l.is_memory(0) => by_size!(size, stack::push_memory),
        Mnemonic::Push => {
            l.op.imm = l.ins.immediate(0);
            by_size!(size, stack::push_immediate)
        }
        Mnemonic::Pop if register != Register::None => by_size!(size, stack::pop_register),
        Mnemonic::Pop => by_size!(size, stack::pop_memory),
        Mnemonic::Pusha => stack::push_all::<u16>,
        Mnemonic::Pushad => stack::push_all::<u32>,
        Mnemonic::Popa => stack::pop_all::<u16>,
        Mnemonic::Popad => stack::pop_all::<u32>,
        Mnemonic::Leave => match l.ins.code() {
            Code::Leavew => stack::leave::<u16>,
            Code::Leaved => stack::leave::<u32>,
            _ => stack::leave::<u64>,
        },
        Mnemonic::Enter => {
            let level = u64::from(l.ins.immediate8_2nd());
            l.op.imm = u64::from(l.ins.immediate16()) | level << 16;
            match l.ins.code() {
                Code::Enterw_imm16_imm8 => stack::enter::<u16>,
                Code::Enterd_imm16_imm8 => stack::enter::<u32>,
                _ => stack::enter::<u64>,
            }
        }
        Mnemonic::Bound => by_size!(l.size(0), stack::bound),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            by_size!(size, flag_control::pushf)
        }
        _ => return None,
    })
}

fn rest(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Xadd => by_size!(l.size(1), atomics::xadd),
        Mnemonic::Cmpxchg => by_size!(l.size(1), atomics::cmpxchg),
        Mnemonic::Cmpxchg8b => atomics::cmpxchg8b,
        Mnemonic::Cmpxchg16b => atomics::cmpxchg16b,
        Mnemonic::Clc => flag_control::set_carry::<false>,
        Mnemonic::Stc => flag_control::set_carry::<true>,
        Mnemonic::Cmc => flag_control::complement_carry,
        Mnemonic::Salc => flag_control::salc,
        Mnemonic::Cld => flag_control::cld,
        Mnemonic::Std => flag_control::std,
        Mnemonic::Cli => flag_control::cli,
        Mnemonic::Lahf => flag_control::lahf,
        Mnemonic::Sahf => flag_control::sahf,
        Mnemonic::Popf => flag_control::popf::<u16>,
        Mnemonic::Popfd => flag_control::popf::<u32>,
        Mnemonic::Popfq => flag_control::popf::<u64>,
        Mnemonic::Clac => flag_control::set_ac::<false>,
        Mnemonic::Stac => flag_control::set_ac::<true>,
        Mnemonic::Aaa => decimal::ascii_adjust::<true>,
        Mnemonic::Aas => decimal::ascii_adjust::<false>,
        Mnemonic::Daa => decimal::decimal_adjust::<true>,
        Mnemonic::Das => decimal::decimal_adjust::<false>,
        Mnemonic::Aam | Mnemonic::Aad => {
            l.op.imm = l.ins.immediate(0);
            if l.ins.mnemonic() == Mnemonic::Aam {
                decimal::aam
            } else {
                decimal::aad
            }
        }
        _ => return None,
    })
}

fn string(l: &mut Lowering) -> Option<Handler> {
    if !l.ins.is_string_instruction() {
        return None;
    }
    let prefix = if l.ins.has_repne_prefix() {
        strings::REPEAT_UNEQUAL
    } else if l.ins.has_rep_prefix() {
        strings::REPEAT
    } else {
        strings::ONCE
    };
    l.op.imm = u64::from(prefix);
    let size = l.ins.memory_size().size();
    Some(match l.ins.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            by_size!(size, strings::string, strings::Movs)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            by_size!(size, strings::string, strings::Stos)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            by_size!(size, strings::string, strings::Lods)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            by_size!(size, strings::string, strings::Scas)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            by_size!(size, strings::string, strings::Cmps)
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            by_size!(size, strings::string, strings::Ins)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            by_size!(size, strings::string, strings::Outs)
        }
        _ => return None,
    })
}

fn target(l: &Lowering) -> Option<(u64, u8)> {
    Some(match l.ins.op0_kind() {
        OpKind::NearBranch16 => (u64::from(l.ins.near_branch16()), 2),
        OpKind::NearBranch32 => (u64::from(l.ins.near_branch32()), 4),
        OpKind::NearBranch64 => (l.ins.near_branch64(), 8),
        _ => return None,
    })
}

/// Jcc, SETcc, CMOVcc.
fn conditional(l: &mut Lowering) -> Option<Choice> {
    let condition = l.ins.condition_code();
    if condition == ConditionCode::None {
        return None;
    }
    let code = condition as u8 - 1;
    if l.ins.is_jcc_short_or_near() {
        let (target, _) = target(l)?;
        l.op.imm = target;
        macro_rules! checked {
            ($code:literal) => {
                branches::jcc::<$code, true> as Handler
            };
        }
        macro_rules! unchecked {
            ($code:literal) => {
                branches::jcc::<$code, false> as Handler
            };
        }
        return Some(Choice::Inner(if must_check(l, target) {
            by_condition!(code, checked)
        } else {
            by_condition!(code, unchecked)
        }));
    }
    macro_rules! set {
        ($code:literal) => {
            moves::set::<$code> as Handler
        };
    }
    macro_rules! cmov {
        ($code:literal) => {
            match l.size(0) {
                2 => moves::cmov::<$code, u16> as Handler,
                4 => moves::cmov::<$code, u32>,
                _ => moves::cmov::<$code, u64>,
            }
        };
    }
    let is_set = l.ins.op_count() == 1 && target(l).is_none();
    let is_cmov = l.ins.op_count() == 2 && l.ins.op0_register().is_gpr();
    if is_set {
        Some(Choice::Inner(by_condition!(code, set)))
    } else if is_cmov {
        Some(Choice::Inner(by_condition!(code, cmov)))
    } else {
        None
    }
}

/// Whether a direct target must be checked when it is taken.
fn must_check(l: &Lowering, target: u64) -> bool {
    l.bits != 64 || !belljar_x86::paging::is_canonical(target)
}

/// Near branches other than Jcc.
fn branch(l: &mut Lowering) -> Option<Choice> {
    if let Some((target, size)) = target(l) {
        l.op.imm = target;
        return direct_branch(l, target, size);
    }
    let size = l.size(0);
    let handler: Handler = match l.ins.mnemonic() {
        Mnemonic::Jmp if l.ins.is_jmp_near_indirect() => {
            one_operand(l, by_size!(size, branches::jmp_indirect))
        }
        Mnemonic::Call if l.ins.is_call_near_indirect() => {
            one_operand(l, by_size!(size, branches::call_indirect))
        }
        Mnemonic::Ret => {
            l.op.imm = if l.ins.op_count() > 0 {
                l.ins.immediate(0)
            } else {
                0
            };
            match l.ins.code() {
                Code::Retnw | Code::Retnw_imm16 => branches::ret::<u16>,
                Code::Retnd | Code::Retnd_imm16 => branches::ret::<u32>,
                _ => branches::ret::<u64>,
            }
        }
        _ => return None,
    };
    Some(Choice::Last(handler))
}

fn direct_branch(l: &Lowering, target: u64, size: u8) -> Option<Choice> {
    let check = must_check(l, target);
    let handler: Handler = match l.ins.mnemonic() {
        Mnemonic::Jmp if check => branches::jmp::<true>,
        Mnemonic::Jmp => branches::jmp::<false>,
        Mnemonic::Call if check => by_size_const!(size, branches::call, true),
        Mnemonic::Call => by_size_const!(size, branches::call, false),
        Mnemonic::Loop => return Some(Choice::Inner(branches::loop_near::<0>)),
        Mnemonic::Loope => return Some(Choice::Inner(branches::loop_near::<1>)),
        Mnemonic::Loopne => return Some(Choice::Inner(branches::loop_near::<2>)),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            return Some(Choice::Inner(branches::jump_if_count_zero));
        }
        _ => return None,
    };
    Some(Choice::Last(handler))
}

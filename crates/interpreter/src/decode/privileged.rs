//! Which handler executes an instruction that touches the system, segments, ports or extended
//! state.

use super::Choice;
use super::general::{by_size, by_size_const};
use super::lower::{Lowering, number};
use crate::handlers::{branches, extended, flag_control, io, segments, system};
use crate::op::Handler;
use belljar_x86::Seg;
use iced_x86::{Code, Mnemonic, OpKind, Register};

/// The handler of such an instruction.
pub fn choose(l: &mut Lowering) -> Option<Choice> {
    if let Some(handler) = segment(l).or_else(|| query(l)).or_else(|| state(l)) {
        return Some(Choice::Inner(handler));
    }
    let handler = register(l)
        .or_else(|| transfer(l))
        .or_else(|| interrupt(l))
        .or_else(|| port(l))
        .or_else(|| ending(l))?;
    Some(Choice::Last(handler))
}

fn is_segment(register: Register) -> bool {
    register.is_segment_register()
}

/// What loads or stores segment registers and leaves the block going.
fn segment(l: &mut Lowering) -> Option<Handler> {
    let (first, second) = (l.ins.op0_register(), l.ins.op1_register());
    Some(match l.ins.mnemonic() {
        Mnemonic::Mov if is_segment(second) => by_size!(l.size(0), segments::mov_from),
        Mnemonic::Push if is_segment(first) => {
            l.op.src = number(first);
            by_size!(l.stack_size(), segments::push)
        }
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => {
            l.op.src = base_of(l.ins.mnemonic() == Mnemonic::Rdfsbase);
            by_size!(l.size(0), segments::read_base)
        }
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
            l.op.src = l.op.dst;
            l.op.dst = base_of(l.ins.mnemonic() == Mnemonic::Wrfsbase);
            by_size!(l.size(0), segments::write_base)
        }
        Mnemonic::Swapgs => segments::swapgs,
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            l.op.imm = u64::from(l.ins.mnemonic() == Mnemonic::Lidt);
            if matches!(l.ins.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
                segments::load_table::<u16>
            } else {
                segments::load_table::<u32>
            }
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            l.op.imm = u64::from(l.ins.mnemonic() == Mnemonic::Sidt);
            segments::store_table
        }
        _ => return None,
    })
}

const fn base_of(fs: bool) -> u8 {
    if fs { Seg::Fs as u8 } else { Seg::Gs as u8 }
}

/// What asks and leaves the block going.
fn query(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Sldt | Mnemonic::Str => {
            l.op.imm = u64::from(l.ins.mnemonic() == Mnemonic::Str);
            by_size!(l.size(0), segments::store_system)
        }
        Mnemonic::Lar => by_size_const!(l.size(0), segments::query, true),
        Mnemonic::Lsl => by_size_const!(l.size(0), segments::query, false),
        Mnemonic::Verr | Mnemonic::Verw => {
            l.op.src = l.op.dst;
            if l.ins.mnemonic() == Mnemonic::Verw {
                segments::verify::<true>
            } else {
                segments::verify::<false>
            }
        }
        Mnemonic::Arpl => segments::arpl,
        Mnemonic::Smsw => by_size!(l.size(0), system::smsw),
        Mnemonic::Rdtsc => system::rdtsc,
        Mnemonic::Rdtscp => system::rdtscp,
        Mnemonic::Rdpid => system::rdpid,
        Mnemonic::Rdpmc => system::rdpmc,
        Mnemonic::Rdrand | Mnemonic::Rdseed => by_size!(l.size(0), system::random),
        Mnemonic::Rdmsr => system::rdmsr,
        Mnemonic::Xgetbv => system::xgetbv,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => system::hypercall,
        Mnemonic::Pause => system::pause,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => system::fence,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => system::cache_line,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => system::cache_control,
        _ => return None,
    })
}

/// FXSAVE and the XSAVE family.
fn state(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Fxsave => extended::fxsave::<false>,
        Mnemonic::Fxsave64 => extended::fxsave::<true>,
        Mnemonic::Fxrstor => extended::fxrstor::<false>,
        Mnemonic::Fxrstor64 => extended::fxrstor::<true>,
        Mnemonic::Xsave => extended::xsave::<false>,
        Mnemonic::Xsave64 => extended::xsave::<true>,
        Mnemonic::Xsaveopt => extended::xsaveopt::<false>,
        Mnemonic::Xsaveopt64 => extended::xsaveopt::<true>,
        Mnemonic::Xsavec => extended::xsavec::<false>,
        Mnemonic::Xsavec64 => extended::xsavec::<true>,
        Mnemonic::Xsaves => extended::xsaves::<false>,
        Mnemonic::Xsaves64 => extended::xsaves::<true>,
        Mnemonic::Xrstor => extended::xrstor::<false>,
        Mnemonic::Xrstor64 => extended::xrstor::<true>,
        Mnemonic::Xrstors => extended::xrstors::<false>,
        Mnemonic::Xrstors64 => extended::xrstors::<true>,
        _ => return None,
    })
}

/// Control, debug, segment and table registers, where the block ends.
fn register(l: &mut Lowering) -> Option<Handler> {
    let (first, second) = (l.ins.op0_register(), l.ins.op1_register());
    Some(match l.ins.mnemonic() {
        Mnemonic::Mov if first.is_cr() => system::mov_to_cr,
        Mnemonic::Mov if second.is_cr() => system::mov_from_cr,
        Mnemonic::Mov if first.is_dr() => system::mov_to_dr,
        Mnemonic::Mov if second.is_dr() => system::mov_from_dr,
        Mnemonic::Mov if is_segment(first) => segments::mov_to,
        Mnemonic::Pop if is_segment(first) => {
            l.op.dst = number(first);
            by_size!(l.stack_size(), segments::pop)
        }
        Mnemonic::Les | Mnemonic::Lds | Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => {
            l.op.src = match l.ins.mnemonic() {
                Mnemonic::Les => Seg::Es,
                Mnemonic::Lss => Seg::Ss,
                Mnemonic::Lfs => Seg::Fs,
                Mnemonic::Lgs => Seg::Gs,
                _ => Seg::Ds,
            } as u8;
            by_size!(l.size(0), branches::load_far_pointer)
        }
        Mnemonic::Lldt | Mnemonic::Ltr => {
            l.op.src = l.op.dst;
            l.op.imm = u64::from(l.ins.mnemonic() == Mnemonic::Ltr);
            segments::load_system
        }
        Mnemonic::Lmsw => {
            l.op.src = l.op.dst;
            system::lmsw
        }
        _ => return None,
    })
}

fn transfer(l: &mut Lowering) -> Option<Handler> {
    let release = if l.ins.op0_kind() == OpKind::Immediate16 {
        u64::from(l.ins.immediate16())
    } else {
        0
    };
    Some(match l.ins.code() {
        Code::Jmp_m1616 => branches::far_memory::<false, u16>,
        Code::Jmp_m1632 => branches::far_memory::<false, u32>,
        Code::Jmp_m1664 => branches::far_memory::<false, u64>,
        Code::Call_m1616 => branches::far_memory::<true, u16>,
        Code::Call_m1632 => branches::far_memory::<true, u32>,
        Code::Call_m1664 => branches::far_memory::<true, u64>,
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 | Code::Call_ptr1616 | Code::Call_ptr1632 => {
            let offset = if l.ins.op0_kind() == OpKind::FarBranch16 {
                u64::from(l.ins.far_branch16())
            } else {
                u64::from(l.ins.far_branch32())
            };
            l.op.imm = offset | u64::from(l.ins.far_branch_selector()) << 32;
            match l.ins.code() {
                Code::Jmp_ptr1616 => branches::far_immediate::<false, u16>,
                Code::Jmp_ptr1632 => branches::far_immediate::<false, u32>,
                Code::Call_ptr1616 => branches::far_immediate::<true, u16>,
                _ => branches::far_immediate::<true, u32>,
            }
        }
        Code::Retfw | Code::Retfw_imm16 => {
            l.op.imm = release;
            branches::far_return::<u16>
        }
        Code::Retfd | Code::Retfd_imm16 => {
            l.op.imm = release;
            branches::far_return::<u32>
        }
        Code::Retfq | Code::Retfq_imm16 => {
            l.op.imm = release;
            branches::far_return::<u64>
        }
        Code::Iretw => branches::iret::<u16>,
        Code::Iretd => branches::iret::<u32>,
        Code::Iretq => branches::iret::<u64>,
        _ => return None,
    })
}

fn interrupt(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Int => {
            l.op.imm = l.ins.immediate(0);
            branches::int
        }
        Mnemonic::Int3 => {
            l.op.imm = 3;
            branches::int3
        }
        Mnemonic::Into => {
            l.op.imm = 4;
            branches::into
        }
        Mnemonic::Int1 => branches::icebp,
        Mnemonic::Syscall => system::syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            if l.is_wide() {
                system::sysret::<true>
            } else {
                system::sysret::<false>
            }
        }
        Mnemonic::Sysenter => system::sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            if l.is_wide() {
                system::sysexit::<true>
            } else {
                system::sysexit::<false>
            }
        }
        _ => return None,
    })
}

fn port(l: &mut Lowering) -> Option<Handler> {
    let port = match l.ins.mnemonic() {
        Mnemonic::In => 1,
        Mnemonic::Out => 0,
        _ => return None,
    };
    let size = l.size(1 - port);
    let immediate = l.ins.op_kind(port) != OpKind::Register;
    if immediate {
        l.op.imm = l.ins.immediate(port);
    }
    Some(match (port, immediate) {
        (1, true) => by_size_const!(size, io::input, true),
        (1, false) => by_size_const!(size, io::input, false),
        (_, true) => by_size_const!(size, io::output, true),
        (_, false) => by_size_const!(size, io::output, false),
    })
}

/// The rest, after which the block ends.
fn ending(l: &mut Lowering) -> Option<Handler> {
    Some(match l.ins.mnemonic() {
        Mnemonic::Sti => flag_control::sti,
        Mnemonic::Hlt => system::hlt,
        Mnemonic::Cpuid => system::cpuid,
        Mnemonic::Wrmsr => system::wrmsr,
        Mnemonic::Xsetbv => system::xsetbv,
        Mnemonic::Clts => system::clts,
        Mnemonic::Invlpg => system::invlpg,
        Mnemonic::Invpcid => system::invpcid,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => system::undefined,
        _ => return None,
    })
}

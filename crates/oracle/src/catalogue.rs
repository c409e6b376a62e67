//! Which instructions the oracle runs: those that user mode may run and that mean the same on the host and in a machine.

use crate::features::{Cpuid, has};
use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, Register};

/// The instructions of a campaign, in the decoder's order.
#[derive(Clone, Debug)]
pub struct Catalogue {
    codes: Vec<Code>,
    /// Those that hardly ever fault.
    calm: Vec<Code>,
    /// Positions in `codes` that the campaign runs.
    chosen: Vec<usize>,
}

impl Catalogue {
    /// All instructions whose features the host has, and which `machine` says that the machine has as well.
    pub fn new(host: Cpuid<'_>, machine: &dyn Fn(&[CpuidFeature]) -> bool) -> Self {
        let codes: Vec<Code> = Code::values()
            .filter(|&code| is_comparable(code))
            .filter(|&code| {
                let features = code.cpuid_features();
                features.iter().all(|&f| has(host, f)) && machine(features)
            })
            .collect();
        let chosen = (0..codes.len()).collect();
        let calm = codes.iter().copied().filter(|&c| is_calm(c)).collect();
        Self {
            codes,
            calm,
            chosen,
        }
    }

    /// Keeps those whose mnemonic or encoding is one of `names` (as the decoder spells them, in any case).
    pub fn retain(&mut self, names: &[String]) {
        let codes = &self.codes;
        self.chosen.retain(|&at| {
            let code = format!("{:?}", codes[at]);
            let mnemonic = format!("{:?}", codes[at].mnemonic());
            names
                .iter()
                .any(|n| n.eq_ignore_ascii_case(&code) || n.eq_ignore_ascii_case(&mnemonic))
        });
    }

    /// The instructions of this catalogue.
    pub fn codes(&self) -> &[Code] {
        &self.codes
    }

    /// Those of them that hardly ever fault while their memory operands are good.
    pub fn calm(&self) -> &[Code] {
        &self.calm
    }

    /// How many of them the campaign runs.
    pub fn chosen(&self) -> usize {
        self.chosen.len()
    }

    /// The index of the `n`th case that the campaign runs. A case's index alone decides what it is, whatever was chosen.
    pub fn index(&self, n: u64) -> u64 {
        let per_round = self.chosen.len() as u64;
        let (round, at) = (n / per_round, (n % per_round) as usize);
        round * self.codes.len() as u64 + self.chosen[at] as u64
    }

    /// The instruction that case `index` is about.
    pub fn code(&self, index: u64) -> Code {
        self.codes[(index % self.codes.len() as u64) as usize]
    }
}

/// Whether `code` is an instruction of 64-bit user mode with a meaning that does not depend on the machine around it.
fn is_comparable(code: Code) -> bool {
    let info = code.op_code();
    let encoded = matches!(
        info.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX | EncodingKind::EVEX
    );
    encoded
        && info.is_instruction()
        && info.mode64()
        && info.intel_decoder64()
        && info.decoder_option() == 0
        && !info.fwait()
        && !info.is_privileged()
        && !info.is_input_output()
        && !is_far(code)
        && !loads_segment(code)
        // Makers differ in whether it reads 16 or 32 bits.
        && code != Code::Movsxd_r16_rm16
        && !is_sensitive(code.mnemonic())
}

/// Whether `code` is a plain integer instruction.
fn is_calm(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let old = code.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::CMOV
                | F::X64
                | F::POPCNT
                | F::LZCNT
                | F::BMI1
                | F::BMI2
                | F::CX8
        )
    });
    let stops = matches!(
        code.mnemonic(),
        M::Div | M::Idiv | M::Popf | M::Popfd | M::Popfq
    );
    old && !stops && code.flow_control() == FlowControl::Next
}

/// Far transfers need descriptors, which the host's and the machine's tables do not share.
fn is_far(code: Code) -> bool {
    use Mnemonic as M;
    let far_operand = matches!(
        code,
        Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
    );
    let far_return = matches!(code.mnemonic(), M::Retf | M::Iret | M::Iretd | M::Iretq);
    far_operand || far_return
}

fn loads_segment(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::Lfs | M::Lgs | M::Lss)
        || matches!(
            code,
            Code::Mov_Sreg_rm16
                | Code::Mov_Sreg_r32m16
                | Code::Mov_Sreg_r64m16
                | Code::Popw_FS
                | Code::Popq_FS
                | Code::Popw_GS
                | Code::Popq_GS
        )
}

/// What tells of the machine rather than of the instruction: tables, time, identity, the host's system calls.
fn is_sensitive(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Int
            | M::Int1
            | M::Syscall
            | M::Sysenter
            | M::Cpuid
            | M::Cli
            | M::Sti
    )
}

/// Whether `code` may go on elsewhere than at the next instruction.
pub fn is_branch(code: Code) -> bool {
    !matches!(
        code.flow_control(),
        FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt
    )
}

/// Number of a general-purpose register in whatever width, or `None` for other registers.
pub fn gpr_number(register: Register) -> Option<usize> {
    register
        .is_gpr()
        .then(|| register.full_register() as usize - Register::RAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::host_cpuid;

    fn everything() -> Catalogue {
        let all = |_, _| [u32::MAX; 4];
        Catalogue::new(&all, &|_| true)
    }

    #[test]
    fn the_instructions_of_user_mode_are_there_and_no_others() {
        let catalogue = everything();
        let has = |code| catalogue.codes().contains(&code);
        for code in [
            Code::Add_rm64_r64,
            Code::Retnq,
            Code::Fadd_st0_sti,
            Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32,
            Code::Popfq,
        ] {
            assert!(has(code), "{code:?}");
        }
        for code in [
            Code::Hlt,
            Code::Syscall,
            Code::In_AL_DX,
            Code::Mov_cr_r64,
            Code::Cpuid,
            Code::Retfq,
            Code::Vmcall,
        ] {
            assert!(!has(code), "{code:?}");
        }
    }

    #[test]
    fn a_choice_keeps_the_meaning_of_an_index() {
        let mut catalogue = Catalogue::new(&host_cpuid, &|_| true);
        catalogue.retain(&["add".into()]);
        assert!(catalogue.chosen() >= 10);
        for n in 0..100 {
            let code = catalogue.code(catalogue.index(n));
            assert_eq!(code.mnemonic(), Mnemonic::Add);
        }
    }
}

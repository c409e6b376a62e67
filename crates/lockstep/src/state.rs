//! All of a processor's state, field by field.

use belljar_x86::state::{Msrs, TableRegister, X87};
use belljar_x86::{CpuState, Segment, VectorState};
use std::fmt::Debug;

/// Names of the general-purpose registers, indexed by [`Gpr`](belljar_x86::Gpr).
const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// Names of the segment registers, indexed by [`Seg`](belljar_x86::Seg).
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// A part of the state in which the sides differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value on the left.
    pub left: String,
    /// Its value on the right.
    pub right: String,
}

/// Collects what differs.
#[derive(Debug, Default)]
struct Fields(Vec<Field>);

impl Fields {
    fn add<T: PartialEq + Debug>(&mut self, name: &str, left: &T, right: &T) {
        if left != right {
            self.0.push(Field {
                name: name.to_owned(),
                left: format!("{left:#x?}").replace('\n', " "),
                right: format!("{right:#x?}").replace('\n', " "),
            });
        }
    }

    fn number(&mut self, name: &str, left: u64, right: u64) {
        if left != right {
            self.0.push(Field {
                name: name.to_owned(),
                left: format!("{left:#018x}"),
                right: format!("{right:#018x}"),
            });
        }
    }

    fn numbers(&mut self, name: &str, left: &[u64], right: &[u64]) {
        for (n, (left, right)) in left.iter().zip(right).enumerate() {
            self.number(&format!("{name}{n}"), *left, *right);
        }
    }

    fn segment(&mut self, name: &str, left: &Segment, right: &Segment) {
        let text = |segment: &Segment| {
            format!(
                "{:04x} base {:x} limit {:x} rights {:x}{}",
                segment.selector,
                segment.base,
                segment.limit,
                segment.rights,
                if segment.usable { "" } else { " unusable" }
            )
        };
        if left != right {
            self.0.push(Field {
                name: name.to_owned(),
                left: text(left),
                right: text(right),
            });
        }
    }

    fn table(&mut self, name: &str, left: &TableRegister, right: &TableRegister) {
        self.number(&format!("{name} base"), left.base, right.base);
        self.number(
            &format!("{name} limit"),
            left.limit.into(),
            right.limit.into(),
        );
    }

    fn vector(&mut self, left: &VectorState, right: &VectorState) {
        let VectorState { zmm, k, x87 } = left;
        for (n, (left, right)) in zmm.iter().zip(&right.zmm).enumerate() {
            for (word, (left, right)) in left.iter().zip(right).enumerate() {
                let bit = 64 * word;
                self.number(&format!("zmm{n}[{}:{bit}]", bit + 63), *left, *right);
            }
        }
        self.numbers("k", k, &right.k);
        self.x87(x87, &right.x87);
    }

    fn x87(&mut self, left: &X87, right: &X87) {
        let words = |x: &X87| {
            let X87 {
                fcw,
                fsw,
                ftw,
                reserved: _,
                fop,
                fip,
                fdp,
                mxcsr,
                mxcsr_mask,
                st: _,
            } = *x;
            [
                u64::from(fcw),
                u64::from(fsw),
                u64::from(ftw),
                u64::from(fop),
                fip,
                fdp,
                u64::from(mxcsr),
                u64::from(mxcsr_mask),
            ]
        };
        let names = [
            "fcw",
            "fsw",
            "ftw",
            "fop",
            "fip",
            "fdp",
            "mxcsr",
            "mxcsr mask",
        ];
        for ((name, left), right) in names.iter().zip(words(left)).zip(words(right)) {
            self.number(name, left, right);
        }
        for (n, (left, right)) in left.st.iter().zip(&right.st).enumerate() {
            self.add(&format!("st{n}"), left, right);
        }
    }

    fn msrs(&mut self, left: &Msrs, right: &Msrs) {
        let simple = |msrs: &Msrs| {
            let Msrs {
                star,
                lstar,
                cstar,
                fmask,
                kernel_gs_base,
                sysenter_cs,
                sysenter_esp,
                sysenter_eip,
                tsc_aux,
                tsc_adjust,
                pat,
                misc_enable,
                mtrr_def_type,
                mtrr_fixed: _,
                mtrr_variable: _,
                spec_ctrl,
                debugctl,
                mcg_status,
                hwcr,
                syscfg,
                de_cfg,
            } = *msrs;
            [
                ("star", star),
                ("lstar", lstar),
                ("cstar", cstar),
                ("fmask", fmask),
                ("kernel gs base", kernel_gs_base),
                ("sysenter cs", sysenter_cs),
                ("sysenter esp", sysenter_esp),
                ("sysenter eip", sysenter_eip),
                ("tsc aux", tsc_aux),
                ("tsc adjust", tsc_adjust),
                ("pat", pat),
                ("misc enable", misc_enable),
                ("mtrr def type", mtrr_def_type),
                ("spec ctrl", spec_ctrl),
                ("debugctl", debugctl),
                ("mcg status", mcg_status),
                ("hwcr", hwcr),
                ("syscfg", syscfg),
                ("de cfg", de_cfg),
            ]
        };
        for ((name, left), (_, right)) in simple(left).into_iter().zip(simple(right)) {
            self.number(name, left, right);
        }
        self.numbers("mtrr fixed ", &left.mtrr_fixed, &right.mtrr_fixed);
        self.add("mtrr variable", &left.mtrr_variable, &right.mtrr_variable);
    }

    fn system(&mut self, left: &CpuState, right: &CpuState) {
        let numbers = |cpu: &CpuState| {
            [
                ("cr0", cpu.cr0),
                ("cr2", cpu.cr2),
                ("cr3", cpu.cr3),
                ("cr4", cpu.cr4),
                ("efer", cpu.efer),
                ("xcr0", cpu.xcr0),
                ("xss", cpu.xss),
                ("dr6", cpu.dr6),
                ("dr7", cpu.dr7),
                ("cpl", cpu.cpl.into()),
                ("nmi blocked", cpu.nmi_blocked.into()),
                ("pending debug", cpu.pending_debug),
            ]
        };
        for ((name, left), (_, right)) in numbers(left).into_iter().zip(numbers(right)) {
            self.number(name, left, right);
        }
        self.numbers("pdpte", &left.pdpte, &right.pdpte);
        self.numbers("dr", &left.dr, &right.dr);
        self.add("shadow", &left.shadow, &right.shadow);
        self.add("activity", &left.activity, &right.activity);
        self.add("pending event", &left.pending_event, &right.pending_event);
    }
}

/// The fields in which `left` and `right` differ.
pub fn fields(left: &CpuState, right: &CpuState) -> Vec<Field> {
    let mut found = Fields::default();
    if left == right {
        return found.0;
    }
    found.number("rip", left.rip, right.rip);
    for ((name, left), right) in GPRS.iter().zip(left.gpr).zip(right.gpr) {
        found.number(name, left, right);
    }
    found.number("rflags", left.rflags, right.rflags);
    for ((name, left), right) in SEGMENTS.iter().zip(&left.segments).zip(&right.segments) {
        found.segment(name, left, right);
    }
    found.segment("ldtr", &left.ldtr, &right.ldtr);
    found.segment("tr", &left.tr, &right.tr);
    found.table("gdtr", &left.gdtr, &right.gdtr);
    found.table("idtr", &left.idtr, &right.idtr);
    found.system(left, right);
    found.msrs(&left.msr, &right.msr);
    found.vector(&left.vector, &right.vector);
    if found.0.is_empty() {
        found.add("state", left, right);
    }
    found.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(change: impl FnOnce(&mut CpuState)) -> String {
        let left = CpuState::reset(0);
        let mut right = left.clone();
        change(&mut right);
        let mut found = fields(&left, &right);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).name
    }

    #[test]
    fn a_difference_is_told_by_its_name() {
        assert_eq!(fields(&CpuState::reset(0), &CpuState::reset(0)), []);
        assert_eq!(name_of(|cpu| cpu.gpr[13] ^= 1), "r13");
        assert_eq!(name_of(|cpu| cpu.rflags ^= 1), "rflags");
        assert_eq!(name_of(|cpu| cpu.segments[5].limit ^= 1), "gs");
        assert_eq!(name_of(|cpu| cpu.vector.zmm[31][7] ^= 1), "zmm31[511:448]");
        assert_eq!(name_of(|cpu| cpu.vector.x87.st[7][1] ^= 1), "st7");
        assert_eq!(name_of(|cpu| cpu.vector.x87.ftw ^= 1), "ftw");
        assert_eq!(name_of(|cpu| cpu.msr.mtrr_fixed[10] ^= 1), "mtrr fixed 10");
        assert_eq!(name_of(|cpu| cpu.msr.de_cfg ^= 1), "de cfg");
        assert_eq!(name_of(|cpu| cpu.nmi_blocked = true), "nmi blocked");
        assert_eq!(name_of(|cpu| cpu.gdtr.limit ^= 1), "gdtr limit");
    }

    #[test]
    fn a_difference_without_a_name_is_told_all_the_same() {
        assert_eq!(name_of(|cpu| cpu.vector.x87.reserved ^= 1), "state");
    }
}

//! Numbers of the model-specific registers.

pub const TSC: u32 = 0x10;
/// The paravirtual clock's registers in their first numbering.
pub const WALL_CLOCK_OLD: u32 = 0x11;
pub const SYSTEM_TIME_OLD: u32 = 0x12;
pub const PLATFORM_ID: u32 = 0x17;
pub const APIC_BASE: u32 = 0x1b;
/// EBL_CR_POWERON.
pub const POWER_ON: u32 = 0x2a;
pub const SMI_COUNT: u32 = 0x34;
pub const FEATURE_CONTROL: u32 = 0x3a;
pub const TSC_ADJUST: u32 = 0x3b;
pub const SPEC_CTRL: u32 = 0x48;
pub const PRED_CMD: u32 = 0x49;
/// BIOS_SIGN_ID (Intel) and PATCH_LEVEL (AMD).
pub const MICROCODE_REVISION: u32 = 0x8b;
pub const PLATFORM_INFO: u32 = 0xce;
pub const MTRR_CAP: u32 = 0xfe;
pub const ARCH_CAPABILITIES: u32 = 0x10a;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MCG_CAP: u32 = 0x179;
pub const MCG_STATUS: u32 = 0x17a;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const DEBUGCTL: u32 = 0x1d9;
/// Base of the first variable range; its mask and the other ranges follow.
pub const MTRR_PHYS_BASE_0: u32 = 0x200;
/// Mask of the last variable range.
pub const MTRR_PHYS_MASK_7: u32 = 0x20f;
pub const MTRR_FIX_64K: u32 = 0x250;
pub const MTRR_FIX_16K_80000: u32 = 0x258;
pub const MTRR_FIX_16K_A0000: u32 = 0x259;
/// The first of the eight of 4 KiB.
pub const MTRR_FIX_4K_FIRST: u32 = 0x268;
pub const MTRR_FIX_4K_LAST: u32 = 0x26f;
pub const PAT: u32 = 0x277;
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8ff;
pub const XSS: u32 = 0xda0;
pub const PARAVIRTUAL_FIRST: u32 = 0x4b56_4d00;
pub const PARAVIRTUAL_LAST: u32 = 0x4b56_4dff;
pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const FMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;
/// The first of the four event selectors that all of AMD's processors have; their counters follow.
pub const EVENT_SELECT_0: u32 = 0xc001_0000;
pub const EVENT_COUNTER_3: u32 = 0xc001_0007;
pub const SYSCFG: u32 = 0xc001_0010;
pub const HWCR: u32 = 0xc001_0015;
pub const TOP_MEM: u32 = 0xc001_001a;
pub const TOP_MEM2: u32 = 0xc001_001d;
pub const NB_CFG: u32 = 0xc001_001f;
pub const INTERRUPT_PENDING: u32 = 0xc001_0055;
pub const MMIO_CONFIG: u32 = 0xc001_0058;
pub const SMM_TSEG_ADDRESS: u32 = 0xc001_0112;
pub const SMM_TSEG_MASK: u32 = 0xc001_0113;
pub const LS_CFG: u32 = 0xc001_1020;
pub const IC_CFG: u32 = 0xc001_1021;
pub const DC_CFG: u32 = 0xc001_1022;
pub const TW_CFG: u32 = 0xc001_1023;
pub const FP_CFG: u32 = 0xc001_1028;
pub const DE_CFG: u32 = 0xc001_1029;
pub const BU_CFG2: u32 = 0xc001_102a;

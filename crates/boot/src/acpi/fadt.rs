//! The FADT: fixed hardware. ACPI 6.5, 5.2.9.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::Platform;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// IA-PC boot flags: there are devices of the ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;
/// IA-PC boot flags: there is a keyboard controller.
const KEYBOARD_CONTROLLER: u16 = 1 << 1;
/// IA-PC boot flags: do not look for a VGA.
const NO_VGA: u16 = 1 << 2;
/// A latency beyond this means that the C2 state does not exist (and C3 above 1000).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// Lengths of the register blocks in bytes.
const PM1_EVENT_LEN: u8 = 4;
const PM1_CONTROL_LEN: u8 = 2;
const TIMER_LEN: u8 = 4;
const GENERAL_LEN: u8 = 4;

/// The table for `platform`, with the addresses of the other two.
///
/// There is no SMI command port, which says that the machine is in ACPI mode from the start.
pub(super) fn build(platform: &Platform, facs: u64, dsdt: u64) -> FADT {
    let power = &platform.power;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    if power.timer_is_32_bit {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    if !power.power_button {
        fadt = fadt.flag(Flags::PwrButton);
    }
    // Both tables lie below 4 GiB; of each pair of fields, a kernel of ACPI 2.0 takes the second.
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(power.sci).into();
    fadt.pm1a_evt_blk = u32::from(power.pm1a_event).into();
    fadt.pm1a_cnt_blk = u32::from(power.pm1a_control).into();
    fadt.pm_tmr_blk = u32::from(power.timer).into();
    fadt.gpe0_blk = u32::from(power.general_events).into();
    fadt.gpe0_blk_len = GENERAL_LEN;
    fadt.pm1_evt_len = PM1_EVENT_LEN;
    fadt.pm1_cnt_len = PM1_CONTROL_LEN;
    fadt.pm_tmr_len = TIMER_LEN;
    fadt.x_pm1a_evt_blk = io(power.pm1a_event, PM1_EVENT_LEN, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(power.pm1a_control, PM1_CONTROL_LEN, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(power.timer, TIMER_LEN, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = io(power.general_events, GENERAL_LEN, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = platform.rtc.century;
    fadt.iapc_boot_arch = (LEGACY_DEVICES
        | NO_VGA
        | if platform.keyboard_controller {
            KEYBOARD_CONTROLLER
        } else {
            0
        })
    .into();
    fadt.reset_reg = io(platform.reset.port, 1, AccessSize::ByteAccess);
    fadt.reset_value = platform.reset.value;
    fadt.finalize()
}

/// A register block of `len` bytes at an I/O port.
fn io(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, port.into())
}

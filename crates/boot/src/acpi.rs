//! The ACPI tables. ACPI 6.5, chapters 5 and 20.
//!
//! All lie in the area where kernels look for the root pointer: RSDP, RSDT and XSDT (for kernels of
//! before and after ACPI 2.0), FADT, FACS, MADT, MCFG and DSDT.

mod dsdt;
mod fadt;
mod generation;
mod madt;
mod pci;

use crate::{BootError, Platform, layout};
use acpi_tables::facs::FACS;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use belljar_memory::{GuestMemory, GuestPhysAddr};

const OEM: [u8; 6] = *b"BELJAR";
const OEM_TABLE: [u8; 8] = *b"BELLJAR ";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER: u32 = 36;
/// Bytes of the root pointer.
const RSDP_SIZE: u64 = 36;
/// The FACS must lie at a multiple of this, so all tables do.
const ALIGN: u64 = 64;

/// The tables in memory's order; each begins at a multiple of [`ALIGN`] after the root pointer.
#[derive(Debug, Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table and returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = (self.bytes.len() as u64).next_multiple_of(ALIGN);
        self.bytes.resize(at as usize, 0);
        self.bytes.extend_from_slice(table);
        layout::ACPI.start + at
    }
}

/// Writes the tables that describe `platform` and returns the address of the root pointer.
///
/// # Errors
/// [`BootError::AcpiTooLarge`] if the tables do not fit into their area; [`BootError::Memory`] if
/// it is no RAM.
pub fn install(memory: &GuestMemory, platform: &Platform) -> Result<GuestPhysAddr, BootError> {
    let mut area = Area::default();
    let rsdp = area.add(&[0; RSDP_SIZE as usize]);
    let facs = area.add(&bytes_of(&FACS::new()));
    let dsdt = area.add(dsdt::build(platform).as_slice());
    let fadt = area.add(&bytes_of(&fadt::build(platform, facs, dsdt)));
    let madt = area.add(madt::build(platform).as_slice());
    let mcfg = area.add(pci::configuration_table(&platform.pci).as_slice());
    let tables = [fadt, madt, mcfg];
    let rsdt = area.add(root_table(*b"RSDT", &tables.map(|t| (t as u32).to_le_bytes())).as_slice());
    let xsdt = area.add(root_table(*b"XSDT", &tables.map(u64::to_le_bytes)).as_slice());
    area.bytes[..RSDP_SIZE as usize].copy_from_slice(&root_pointer(rsdt as u32, xsdt));

    let needed = area.bytes.len() as u64;
    let space = layout::ACPI.end - layout::ACPI.start;
    if needed > space {
        return Err(BootError::AcpiTooLarge {
            cpus: platform.cpus,
            needed,
            space,
        });
    }
    memory.write(GuestPhysAddr(layout::ACPI.start), &area.bytes)?;
    Ok(GuestPhysAddr(rsdp))
}

/// A table with our header.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

/// RSDT or XSDT: the addresses of the other tables.
fn root_table<const N: usize>(signature: [u8; 4], addresses: &[[u8; N]]) -> Sdt {
    table(signature, 1, addresses.as_flattened())
}

/// The root pointer, with one checksum for its first 20 bytes and one for all. ACPI 6.5, 5.2.5.3.
fn root_pointer(rsdt: u32, xsdt: u64) -> [u8; RSDP_SIZE as usize] {
    let mut rsdp = [0; RSDP_SIZE as usize];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(&OEM);
    rsdp[15] = 2;
    rsdp[16..20].copy_from_slice(&rsdt.to_le_bytes());
    rsdp[20..24].copy_from_slice(&(RSDP_SIZE as u32).to_le_bytes());
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// The byte that makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, b| sum.wrapping_sub(*b))
}

/// Collects what `aml` writes.
fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    struct Sink(Vec<u8>);
    impl AmlSink for Sink {
        fn byte(&mut self, byte: u8) {
            self.0.push(byte);
        }
    }
    let mut sink = Sink(Vec::new());
    aml.to_aml_bytes(&mut sink);
    sink.0
}

#[cfg(test)]
mod tests;

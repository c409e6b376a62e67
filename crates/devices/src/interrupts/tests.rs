use super::*;
use crate::timers::testing::NoWake;
use belljar_clock::ManualClock;
use proptest::prelude::*;

struct Bench {
    fabric: Arc<Interrupts>,
    attention: Arc<[Attention]>,
    clock: Arc<ManualClock>,
}

const LAPIC: u64 = layout::LAPIC_BASE;

impl Bench {
    /// A machine as firmware hands it over, with every local APIC enabled.
    fn new(cpus: u32) -> Self {
        let attention: Arc<[Attention]> = (0..cpus).map(|_| Attention::new()).collect();
        let clock = Arc::new(ManualClock::new(0));
        let fabric = Interrupts::new(
            cpus,
            Arc::clone(&attention),
            Arc::<ManualClock>::clone(&clock),
            NoWake::shared(),
        );
        fabric.firmware_handoff();
        let bench = Self {
            fabric,
            attention,
            clock,
        };
        for vcpu in 0..cpus {
            bench.write(vcpu, 0xf0, 0x1ff);
        }
        bench
    }

    fn write(&self, vcpu: VcpuId, offset: u64, value: u32) {
        let at = GuestPhysAddr(LAPIC + offset);
        assert!(self.fabric.mmio_write(vcpu, at, &value.to_le_bytes()));
    }

    fn read(&self, vcpu: VcpuId, offset: u64) -> u32 {
        let mut data = [0; 4];
        assert!(
            self.fabric
                .mmio_read(vcpu, GuestPhysAddr(LAPIC + offset), &mut data)
        );
        u32::from_le_bytes(data)
    }

    fn has(&self, vcpu: usize, reason: Reason) -> bool {
        self.attention[vcpu].has(reason)
    }

    /// Initialises the 8259As with vectors 30h and 38h, nothing masked.
    fn start_pic(&self) {
        let pic = PicPorts(Arc::clone(&self.fabric));
        for (base, vector, cascade) in [(0, 0x30, 4), (0x80, 0x38, 2)] {
            pic.write(base, &[0x11]);
            for value in [vector, cascade, 1, 0] {
                pic.write(base + 1, &[value]);
            }
        }
    }

    fn set_entry(&self, pin: u32, entry: u64) {
        let page = IoApicPage(Arc::clone(&self.fabric));
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            page.write(0, &(0x10 + 2 * pin + half).to_le_bytes());
            page.write(0x10, &value.to_le_bytes());
        }
    }
}

#[test]
fn the_virtual_wire_brings_the_8259s_interrupts_to_the_bootstrap_processor() {
    let b = Bench::new(2);
    b.start_pic();
    b.fabric.set_irq(4, true);
    assert!(b.has(0, Reason::INTERRUPT));
    assert!(!b.has(1, Reason::INTERRUPT));
    assert_eq!(b.fabric.acknowledge(0), Some(0x34));
    assert!(!b.has(0, Reason::INTERRUPT));
    assert_eq!(b.fabric.acknowledge(0), None);
}

#[test]
fn a_withdrawn_interrupt_is_not_acknowledged() {
    let b = Bench::new(1);
    b.start_pic();
    b.fabric.set_irq(4, true);
    b.fabric.set_irq(4, false);
    assert!(!b.has(0, Reason::INTERRUPT));
    assert_eq!(b.fabric.acknowledge(0), None);
}

#[test]
fn masking_lint0_cuts_the_virtual_wire() {
    let b = Bench::new(1);
    b.start_pic();
    b.fabric.set_irq(4, true);
    b.write(0, 0x350, 0x1_0700);
    assert!(!b.has(0, Reason::INTERRUPT));
    b.write(0, 0x350, 0x700);
    assert!(b.has(0, Reason::INTERRUPT));
}

#[test]
fn the_8259_reaches_a_processor_through_the_io_apic_too() {
    let b = Bench::new(2);
    b.start_pic();
    b.write(0, 0x350, 0x1_0700);
    b.set_entry(0, 0x0100_0000_0000_0700);
    b.fabric.set_irq(3, true);
    assert!(b.has(1, Reason::INTERRUPT) && !b.has(0, Reason::INTERRUPT));
    assert_eq!(b.fabric.acknowledge(1), Some(0x33));
    assert!(!b.has(1, Reason::INTERRUPT));
}

#[test]
fn irq_0_is_wired_to_input_2_of_the_io_apic() {
    let b = Bench::new(2);
    b.set_entry(2, 0x0100_0000_0000_0041);
    b.fabric.set_irq(0, true);
    assert_eq!(b.fabric.acknowledge(0), None);
    assert_eq!(b.fabric.acknowledge(1), Some(0x41));
}

#[test]
fn a_level_triggered_interrupt_comes_again_after_its_end() {
    let b = Bench::new(1);
    b.set_entry(9, 0x8051);
    b.fabric.set_irq(9, true);
    assert_eq!(b.fabric.acknowledge(0), Some(0x51));
    assert!(!b.has(0, Reason::INTERRUPT));
    b.write(0, 0xb0, 0);
    assert!(b.has(0, Reason::INTERRUPT));
    assert_eq!(b.fabric.acknowledge(0), Some(0x51));
    b.fabric.set_irq(9, false);
    b.write(0, 0xb0, 0);
    assert!(!b.has(0, Reason::INTERRUPT));
}

#[test]
fn the_task_priority_moves_the_attention_word() {
    let b = Bench::new(1);
    b.fabric.deliver_msi(0xfee0_0000, 0x61);
    assert!(b.has(0, Reason::INTERRUPT));
    b.fabric.set_task_priority(0, 6);
    assert!(!b.has(0, Reason::INTERRUPT));
    assert_eq!(b.fabric.acknowledge(0), None);
    assert_eq!(b.read(0, 0x80), 0x60);
    b.write(0, 0x80, 0);
    assert_eq!(b.fabric.task_priority(0), 0);
    assert_eq!(b.fabric.acknowledge(0), Some(0x61));
}

#[test]
fn another_processor_is_started_by_init_and_start_up() {
    let b = Bench::new(3);
    b.write(0, 0x310, 0x0200_0000);
    b.write(0, 0x300, 0x0000_c500);
    assert!(b.has(2, Reason::INIT) && !b.has(1, Reason::INIT));
    b.write(0, 0x300, 0x0000_8500);
    b.write(0, 0x300, 0x0000_0699);
    assert!(b.has(2, Reason::SIPI));
    assert_eq!(b.attention[2].sipi_vector(), 0x99);
    assert_eq!(b.read(2, 0xf0), 0xff, "INIT reset its local APIC");
}

#[test]
fn shorthands_reach_whom_they_name() {
    let b = Bench::new(3);
    let waiting = |reason| [0, 1, 2].map(|vcpu| b.has(vcpu, reason));
    b.write(1, 0x300, 0x000c_0400);
    assert_eq!(waiting(Reason::NMI), [true, false, true]);
    b.write(1, 0x300, 0x0004_0051);
    assert_eq!(waiting(Reason::INTERRUPT), [false, true, false]);
    b.write(1, 0x300, 0x0008_0052);
    assert_eq!(waiting(Reason::INTERRUPT), [true; 3]);
}

#[test]
fn the_lowest_priority_takes_the_interrupt_and_equals_take_turns() {
    let b = Bench::new(3);
    for vcpu in 0..3 {
        b.write(vcpu, 0xd0, 1 << (24 + vcpu));
    }
    b.fabric.set_task_priority(1, 2);
    let mut taken = [0; 3];
    for _ in 0..30 {
        // Logical destination 7, lowest priority.
        b.fabric.deliver_msi(0xfee0_700c, 0x171);
        for vcpu in 0..3 {
            if b.fabric.acknowledge(vcpu).is_some() {
                b.write(vcpu, 0xb0, 0);
                taken[vcpu as usize] += 1;
            }
        }
    }
    assert_eq!(taken.iter().sum::<u32>(), 30);
    assert!(
        taken[0] >= 10 && taken[1] == 0 && taken[2] >= 10,
        "{taken:?}"
    );
}

#[test]
fn nmi_arrives_through_lint1() {
    let b = Bench::new(2);
    b.fabric.set_nmi_line(true);
    assert!(b.has(0, Reason::NMI));
    assert!(!b.has(1, Reason::NMI), "masked there");
}

#[test]
fn timers_are_served_by_deadline() {
    let b = Bench::new(2);
    assert_eq!(b.fabric.deadline(), None);
    assert_eq!(b.fabric.msr_write(1, 0x6e0, 5, 0), Some(Ok(())));
    b.write(1, 0x320, 0x4_0080);
    b.fabric.msr_write(1, 0x6e0, 5_000, 0);
    assert_eq!(b.fabric.deadline(), Some(Nanos(5_000)));
    b.clock.advance(5_000);
    b.fabric.expire(b.clock.now());
    assert_eq!(b.fabric.deadline(), None);
    assert_eq!(b.fabric.acknowledge(1), Some(0x80));
}

#[test]
fn x2apic_goes_by_msr_and_leaves_memory() {
    let b = Bench::new(1);
    assert_eq!(b.fabric.msr_read(0, 0x802), Some(Err(MsrRefused)));
    let base = b.fabric.msr_read(0, 0x1b).unwrap().unwrap();
    assert_eq!(base, LAPIC | 0x900);
    assert_eq!(b.fabric.msr_write(0, 0x1b, base | 0x400, 0), Some(Ok(())));
    assert!(!b.fabric.mmio_read(0, GuestPhysAddr(LAPIC), &mut [0; 4]));
    assert_eq!(b.fabric.msr_read(0, 0x803), Some(Ok(0x5_0014)));
    assert_eq!(b.fabric.msr_write(0, 0x83f, 0x99, 0), Some(Ok(())));
    assert_eq!(b.fabric.acknowledge(0), Some(0x99));
    assert_eq!(b.fabric.msr_read(0, 0x10), None);
}

#[test]
fn a_relocated_page_answers_at_its_new_place() {
    let b = Bench::new(1);
    b.fabric.msr_write(0, 0x1b, 0x1000_0900, 0);
    assert!(
        !b.fabric
            .mmio_read(0, GuestPhysAddr(LAPIC + 0x20), &mut [0; 4])
    );
    let mut data = [0; 4];
    assert!(b.fabric.mmio_read(0, GuestPhysAddr(0x1000_0030), &mut data));
    assert_eq!(u32::from_le_bytes(data), 0x5_0014);
}

#[test]
fn a_restored_fabric_shows_what_waited() {
    let b = Bench::new(2);
    b.fabric.deliver_msi(0xfee0_1000, 0x61);
    let attention: Arc<[Attention]> = (0..2).map(|_| Attention::new()).collect();
    let clock = Arc::<ManualClock>::clone(&b.clock);
    let again = Interrupts::restore(
        b.fabric.save(),
        Arc::clone(&attention),
        clock,
        NoWake::shared(),
    );
    assert!(attention[1].has(Reason::INTERRUPT) && !attention[0].has(Reason::INTERRUPT));
    assert_eq!(again.save(), b.fabric.save());
    assert_eq!(again.acknowledge(1), Some(0x61));
}

#[test]
fn a_reset_silences_everything() {
    let b = Bench::new(2);
    b.start_pic();
    b.fabric.set_irq(4, true);
    b.fabric.deliver_msi(0xfee0_1000, 0x61);
    b.fabric.reset();
    for vcpu in 0..2 {
        assert!(!b.has(vcpu, Reason::INTERRUPT));
        assert_eq!(b.fabric.acknowledge(vcpu as VcpuId), None);
    }
}

#[test]
fn threads_that_interrupt_each_other_never_stop() {
    let b = Arc::new(Bench::new(4));
    b.start_pic();
    b.set_entry(9, 0xffu64 << 56 | 0x8051);
    let threads: Vec<_> = (0..4u32)
        .map(|vcpu| {
            let b = Arc::clone(&b);
            std::thread::spawn(move || {
                for i in 0..2_000u32 {
                    b.write(vcpu, 0x300, 0x000c_0040 | (i & 0x3f));
                    b.fabric.set_irq(9, i & 1 == 0);
                    b.fabric.set_irq(4, i & 2 == 0);
                    if b.fabric.acknowledge(vcpu).is_some() {
                        b.write(vcpu, 0xb0, 0);
                        PicPorts(Arc::clone(&b.fabric)).write(0, &[0x20]);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

proptest! {
    #[test]
    fn the_attention_word_always_tells_what_can_be_acknowledged(
        steps in proptest::collection::vec((0u8..9, 0u32..3, any::<u64>(), any::<u32>()), 0..200)
    ) {
        let b = Bench::new(3);
        b.start_pic();
        let pic = PicPorts(Arc::clone(&b.fabric));
        let ioapic = IoApicPage(Arc::clone(&b.fabric));
        for (what, vcpu, offset, value) in steps {
            let at = GuestPhysAddr(LAPIC + (offset & 0x3f) * 16);
            match what {
                0 => { b.fabric.mmio_write(vcpu, at, &value.to_le_bytes()); }
                1 => {
                    let at = GuestPhysAddr(LAPIC + (offset & 0xfff));
                    b.fabric.mmio_read(vcpu, at, &mut [0; 8]);
                }
                2 => {
                    let index = 0x800 + (offset & 0x3f) as u32;
                    let _ = b.fabric.msr_write(vcpu, index, u64::from(value), 0);
                }
                3 => b.fabric.set_irq(value as u8 & 31, value & 256 != 0),
                4 => pic.write([0, 1, 0x80, 0x81][offset as usize & 3], &[value as u8]),
                5 => ioapic.write(offset & 0x10, &value.to_le_bytes()),
                6 => b.fabric.deliver_msi(0xfee0_0000 | offset & 0xf_ffff, value),
                7 => b.fabric.set_task_priority(vcpu, value as u8 & 15),
                _ => { b.fabric.acknowledge(vcpu); }
            }
            for (vcpu, slot) in b.fabric.slots.iter().enumerate() {
                let pending = lock(&slot.lapic).interrupt_pending();
                prop_assert_eq!(pending, b.has(vcpu, Reason::INTERRUPT));
            }
        }
        for vcpu in 0..3 {
            let told = b.has(vcpu as usize, Reason::INTERRUPT);
            let taken = b.fabric.acknowledge(vcpu).is_some();
            // A message of mode ExtINT may outlive the interrupt that it announced.
            prop_assert!(!taken || told);
        }
    }
}

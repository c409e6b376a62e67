//! Messages between interrupt controllers: what travels from I/O APICs, devices (MSI) and local
//! APICs to local APICs.

/// What a message asks of its receiver. SDM 3A, 11.5.1 and 11.6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// An interrupt for every processor of the destination.
    Fixed,
    /// An interrupt for the one processor of the destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt: this board has no system management mode and drops it.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT: reset of the processor, which then waits for a start-up message.
    Init,
    /// Start-up: the processor begins at page `vector`.
    StartUp,
    /// An interrupt whose vector the 8259A supplies.
    ExtInt,
}

impl DeliveryMode {
    /// The mode that the three bits `bits` encode; `None` for the reserved one.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// A message to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC ID or logical destination; [`BROADCAST`](Self::BROADCAST) for all.
    pub destination: u32,
    /// Whether `destination` is logical.
    pub logical: bool,
    /// What is asked.
    pub mode: DeliveryMode,
    /// The interrupt's vector.
    pub vector: u8,
    /// Whether the interrupt is level triggered, so that its end is told to the I/O APICs.
    pub level: bool,
}

impl Message {
    /// The destination of messages to every local APIC.
    pub const BROADCAST: u32 = u32::MAX;

    /// A destination of 8 bits as the wider field has it: physical 0xff is the broadcast.
    pub const fn destination8(destination: u8, logical: bool) -> u32 {
        if destination == 0xff && !logical {
            Self::BROADCAST
        } else {
            destination as u32
        }
    }

    /// The message that a message-signalled interrupt is: a write of `data` to `address`. SDM 3A,
    /// 11.11. `None` if the write is not one, or its delivery mode is reserved.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        // Redirection hint and destination mode: logical only if both are set.
        let logical = address & 0xc == 0xc;
        Some(Self {
            destination: Self::destination8((address >> 12) as u8, logical),
            logical,
            mode: DeliveryMode::from_bits(data >> 8)?,
            vector: data as u8,
            level: data & 1 << 15 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_msi_write_is_decoded() {
        assert_eq!(
            Message::from_msi(0xfee0_3000, 0x0131),
            Some(Message {
                destination: 3,
                logical: false,
                mode: DeliveryMode::LowestPriority,
                vector: 0x31,
                level: false
            })
        );
        assert_eq!(Message::from_msi(0xfec0_0000, 0x31), None);
        assert_eq!(Message::from_msi(0xfee0_0000, 0x331), None);
    }

    #[test]
    fn physical_ff_is_the_broadcast() {
        let all = Message::from_msi(0xfeef_f000, 0x31).unwrap();
        assert_eq!(all.destination, Message::BROADCAST);
        let logical = Message::from_msi(0xfeef_f00c, 0x31).unwrap();
        assert_eq!((logical.destination, logical.logical), (0xff, true));
    }
}

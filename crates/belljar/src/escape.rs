//! The keys that Belljar keeps for itself when the console is the terminal.

/// The prefix: Ctrl-A.
const PREFIX: u8 = 1;

/// What one more byte from the terminal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Nothing yet.
    Wait,
    /// This byte is the guest's.
    Byte(u8),
    /// This byte after a Ctrl-A was no command: both are the guest's.
    Both(u8),
    /// Ctrl-A x: end the machine.
    Quit,
    /// Ctrl-A d: leave the console, while the machine goes on.
    Detach,
    /// Ctrl-A h: show the keys.
    Help,
}

/// Picks the commands out of what is typed.
#[derive(Debug, Default)]
pub struct Escape {
    prefixed: bool,
}

impl Escape {
    /// The byte that a Ctrl-A stands for when it is not a command's.
    pub const PREFIX: u8 = PREFIX;

    /// Takes the next byte.
    pub fn feed(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.prefixed) {
            if byte == PREFIX {
                self.prefixed = true;
                return Key::Wait;
            }
            return Key::Byte(byte);
        }
        match byte {
            b'x' | b'X' => Key::Quit,
            b'd' | b'D' => Key::Detach,
            b'h' | b'H' | b'?' => Key::Help,
            b'a' | b'A' | PREFIX => Key::Byte(PREFIX),
            other => Key::Both(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed_all(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes.iter().map(|b| escape.feed(*b)).collect()
    }

    #[test]
    fn commands_follow_the_prefix_only() {
        assert_eq!(
            feed_all(b"x\x01x\x01h\x01d"),
            [
                Key::Byte(b'x'),
                Key::Wait,
                Key::Quit,
                Key::Wait,
                Key::Help,
                Key::Wait,
                Key::Detach
            ]
        );
    }

    #[test]
    fn the_prefix_can_be_sent_in_two_ways() {
        assert_eq!(feed_all(b"\x01a"), [Key::Wait, Key::Byte(1)]);
        assert_eq!(
            feed_all(b"\x01\x01x"),
            [Key::Wait, Key::Byte(1), Key::Byte(b'x')]
        );
    }

    #[test]
    fn what_is_no_command_reaches_the_guest_with_its_prefix() {
        assert_eq!(feed_all(b"\x01k"), [Key::Wait, Key::Both(b'k')]);
    }

    #[test]
    fn ctrl_c_is_the_guests() {
        assert_eq!(feed_all(b"\x03"), [Key::Byte(3)]);
    }
}

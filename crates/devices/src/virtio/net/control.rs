//! The control queue. Virtio 1.2, 5.1.6.5.
//!
//! The card hands its guest every frame that the network has, so there is nothing to filter: what the
//! driver says about receive modes and addresses is accepted and changes nothing.

use super::super::{Chain, Queue};

/// Classes of commands.
const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
/// The command of [`CLASS_MAC`] that sets the table of addresses to receive.
const MAC_TABLE_SET: u8 = 0;
/// The last command of [`CLASS_RX`].
const RX_NOBCAST: u8 = 5;
/// Answers.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Answers all commands in the queue.
pub(super) fn serve(queue: &mut Queue) {
    loop {
        queue.disable_notifications();
        while let Some(chain) = queue.pop() {
            let written = answer(queue, &chain);
            queue.complete(chain.head, written);
        }
        if !queue.enable_notifications() {
            break;
        }
    }
    queue.signal();
}

/// Answers one command; how many bytes that took.
fn answer(queue: &Queue, chain: &Chain) -> u32 {
    let mut command = [0; 2];
    let answer = match chain.readable.read(queue.memory(), 0, &mut command) {
        Ok(()) if is_accepted(command) => OK,
        _ => ERROR,
    };
    match chain.writable.write(queue.memory(), 0, &[answer]) {
        Ok(()) => 1,
        Err(_) => 0,
    }
}

fn is_accepted([class, command]: [u8; 2]) -> bool {
    match class {
        CLASS_RX => command <= RX_NOBCAST,
        CLASS_MAC => command == MAC_TABLE_SET,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_nothing_is_accepted_and_what_is_not_offered_is_not() {
        for command in [[0, 0], [0, 5], [1, 0]] {
            assert!(is_accepted(command), "{command:?}");
        }
        // Setting the address, VLANs, several queues.
        for command in [[0, 6], [1, 1], [2, 0], [4, 0], [0xff, 0xff]] {
            assert!(!is_accepted(command), "{command:?}");
        }
    }
}

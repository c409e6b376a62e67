//! From what is said of a card to the network itself.

use crate::config::{Attachment, CardConfig};
use crate::switch::{self, SwitchError, SwitchPort};
use crate::tap::{TapError, TapPort};
use crate::user::{Resolvers, UserError, UserNetwork};
use crate::{Backend, Mac};
use belljar_clock::{Clock, Entropy};
use std::sync::Arc;
use thiserror::Error;

/// A card that is attached to its network.
#[derive(Debug)]
pub struct Card {
    /// The card's address.
    pub mac: Mac,
    /// The most bits a second, in each direction.
    pub rate: Option<u64>,
    /// The network.
    pub network: Box<dyn Backend>,
}

/// Why a card cannot be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The user-mode network.
    #[error(transparent)]
    User(#[from] UserError),
    /// The tap device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The switch.
    #[error(transparent)]
    Switch(#[from] SwitchError),
}

/// Attaches the card number `index` of a machine to the network that `config` names.
///
/// # Errors
/// [`AttachError`], when the host refuses what the network needs.
pub fn attach(
    config: &CardConfig,
    index: u8,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> Result<Card, AttachError> {
    let mac = config.mac.unwrap_or_else(|| match config.attachment {
        // Each machine has such a network for itself.
        Attachment::User(_) => Mac([0x52, 0x54, 0x00, 0x12, 0x34, 0x56_u8.wrapping_add(index)]),
        Attachment::Tap(_) | Attachment::Switch(_) => {
            let [a, b, c, ..] = entropy.next_u64().to_le_bytes();
            Mac([0x52, 0x54, 0x00, a, b, c])
        }
    });
    let network: Box<dyn Backend> = match &config.attachment {
        Attachment::User(options) => Box::new(UserNetwork::new(
            options,
            Resolvers::Host,
            mac,
            Arc::clone(clock),
            Arc::clone(entropy),
        )?),
        Attachment::Tap(name) => Box::new(TapPort::attach(name)?),
        Attachment::Switch(name) => Box::new(SwitchPort::join(
            &switch::directory(name)?,
            Arc::clone(clock),
            &**entropy,
        )?),
    };
    Ok(Card {
        mac,
        rate: config.rate,
        network,
    })
}

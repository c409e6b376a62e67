//! Networks that a guest's card can be attached to.
//!
//! Floor 3 of the house, beside the devices. A network is a [`Backend`]: the card's own thread hands
//! it the frames that the guest sends, and lets it deliver frames to the [`Guest`]. Nothing here has
//! a thread or a lock of its own, and nothing knows of virtio but the header that travels with a
//! frame ([`VnetHeader`]).
//!
//! - [`user`] is TCP/IP without privileges: it ends the guest's connections itself and carries their
//!   bytes over sockets of the host. It has a DHCP server, forwards DNS queries and ports, and says
//!   in [`policy`] what a guest may reach.
//! - [`tap`] is a tap device of the host, [`switch`] a switch between machines of one user.
//! - [`config`] is what the command line and the configuration file say of a card, and [`attach()`]
//!   makes the network of it.
//! - [`rate`] limits what goes through a card.
//! - [`wire`] has the formats of packets; everything that a guest sends is parsed there.
//!
//! The guest is hostile: lengths are checked where they are parsed, every table has a bound, and
//! what exceeds it is refused or dropped.

#![forbid(unsafe_code)]

pub mod attach;
pub mod backend;
pub mod config;
pub mod policy;
pub mod rate;
mod ring;
mod segment;
mod slab;
pub mod switch;
pub mod tap;
pub mod user;
pub mod vnet;
pub mod wire;

pub use attach::{AttachError, Card, attach};
pub use backend::{Backend, Guest, GuestOffloads, Progress, Transmit};
pub use config::{Attachment, BadNet, CardConfig, Forward, Transport, UserOptions};
pub use vnet::{Gso, GsoKind, PartialChecksum, VnetHeader};
pub use wire::Mac;

//! Packages unpacked as dpkg does it, with its database: every one is then "unpacked", and dpkg
//! itself configures it in the system.
//!
//! What dpkg --unpack does beyond this is run the packages' preinst scripts, which need the system
//! to run in. They run there before the first package is configured.

mod control;
mod unpack;

pub(crate) use control::{Control, closure};
pub(crate) use unpack::{Found, Unpacker, each_data};

//! Trying whether a network carries what it should.

mod ping;
mod tcp;
mod wire;

pub use ping::{Echo, ping};
pub use tcp::{Payload, Server, Transfer, transfer};
pub use wire::{Capture, Seen, VXLAN_PORT};

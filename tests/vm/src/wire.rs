//! The virtual wire between the machines: what one sends, all others receive.
//!
//! Each network card is a UDP socket on loopback that sends its frames here, one a
//! datagram. Every frame is counted once, so that the wire itself says what was
//! on it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use viaduct_lab::Seen;

use crate::image::Plug;

/// The wire's first loopback port; a card's own is [`CARDS`] higher.
const FIRST: u16 = 20_000;
const CARDS: u16 = 1_000;

/// A wire that runs until this program ends.
#[derive(Debug)]
pub(crate) struct Wire {
    seen: Arc<Mutex<Seen>>,
}

/// The plug with this number, counted from 1.
pub(crate) fn plug(number: u8) -> Plug {
    let wire = FIRST + u16::from(number);
    Plug {
        number,
        wire,
        card: wire + CARDS,
    }
}

impl Wire {
    /// Lays a wire with plugs 1 to `plugs`.
    pub(crate) fn lay(plugs: u8) -> Result<Self> {
        let mut ends = Vec::new();
        for number in 1..=plugs {
            let plug = plug(number);
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, plug.wire))
                .context("the wire's loopback socket")?;
            ends.push((socket, SocketAddr::from((Ipv4Addr::LOCALHOST, plug.card))));
        }
        let (ends, seen) = (Arc::new(ends), Arc::<Mutex<Seen>>::default());
        for mine in 0..ends.len() {
            let (ends, seen) = (Arc::clone(&ends), Arc::clone(&seen));
            std::thread::spawn(move || carry(mine, &ends, &seen));
        }
        Ok(Self { seen })
    }

    /// What was on the wire since this was asked before.
    pub(crate) fn seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn carry(mine: usize, ends: &[(UdpSocket, SocketAddr)], seen: &Mutex<Seen>) {
    let mut frame = [0; 65_536];
    loop {
        // An error is about a machine that is off: its port was unreachable.
        let Ok(length) = ends[mine].0.recv(&mut frame) else {
            continue;
        };
        let frame = &frame[..length];
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(frame);
        for (other, (socket, card)) in ends.iter().enumerate() {
            if other != mine {
                // A frame to a machine that is off is lost, as on any wire.
                let _ = socket.send_to(frame, card);
            }
        }
    }
}

//! The virtual wire between the machines: what one sends, all others receive.
//!
//! Each network card is a TCP connection on loopback that carries frames behind their
//! lengths, so that a busy host delays a frame and never loses one: loss is netem's.
//! Every frame is counted once, so that the wire itself says what was on it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use viaduct_lab::Seen;

use crate::image::Plug;

/// The wire's first loopback port.
const FIRST: u16 = 20_000;

/// Longer than any frame can be.
const FRAME_MAX: usize = 65_536 + 1_024;

/// A wire that runs until this program ends.
#[derive(Debug)]
pub(crate) struct Wire {
    seen: Arc<Mutex<Seen>>,
}

/// The ends of the wire: the card in each plug, if its machine is on.
type Cards = Arc<Vec<Mutex<Option<TcpStream>>>>;

/// The plug with this number, counted from 1.
pub(crate) fn plug(number: u8) -> Plug {
    Plug {
        number,
        port: FIRST + u16::from(number),
    }
}

impl Wire {
    /// Lays a wire with plugs 1 to `plugs`.
    pub(crate) fn lay(plugs: u8) -> Result<Self> {
        let cards: Cards = Arc::new((0..plugs).map(|_| Mutex::default()).collect());
        let seen = Arc::<Mutex<Seen>>::default();
        for number in 1..=plugs {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, plug(number).port))
                .context("the wire's loopback socket")?;
            let (cards, seen) = (Arc::clone(&cards), Arc::clone(&seen));
            std::thread::spawn(move || {
                // One card at a time: the next is that of a machine switched on again.
                for card in listener.incoming().flatten() {
                    // An error is the end of a machine, and of nothing else.
                    let _ = carry(card, usize::from(number) - 1, &cards, &seen);
                }
            });
        }
        Ok(Self { seen })
    }

    /// What was on the wire since this was asked before.
    pub(crate) fn seen(&self) -> Seen {
        std::mem::take(&mut *locked(&self.seen))
    }
}

/// Hands on what a card sends until its machine is off.
fn carry(mut card: TcpStream, mine: usize, cards: &Cards, seen: &Mutex<Seen>) -> Result<()> {
    card.set_nodelay(true)?;
    *locked(&cards[mine]) = Some(card.try_clone()?);
    let mut buffer = vec![0; 4 + FRAME_MAX];
    loop {
        card.read_exact(&mut buffer[..4])?;
        let length = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
        let end = 4 + usize::try_from(length)?;
        let frame = buffer.get_mut(4..end).context("a frame that is too long")?;
        card.read_exact(frame)?;
        locked(seen).count(frame);
        for (_, other) in cards.iter().enumerate().filter(|(at, _)| *at != mine) {
            let mut other = locked(other);
            let sent = other.as_mut().map(|card| card.write_all(&buffer[..end]));
            if matches!(sent, Some(Err(_))) {
                // Its machine is off: frames to it are lost, as on any wire.
                *other = None;
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

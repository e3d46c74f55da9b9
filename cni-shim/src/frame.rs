//! Frames on the agent's socket: a length of four bytes in network order, then
//! that many bytes of JSON. Descriptors travel with the first byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame's payload in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// The length of the header in bytes.
pub const HEADER: usize = 4;

/// The most descriptors that a frame carries.
pub const MAX_DESCRIPTORS: usize = 2;

/// Why a frame cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is too long: at most {MAX_FRAME}")]
    TooLong(usize),
    /// The payload is not the message that is expected.
    #[error("the frame is not a message of this protocol: {0}")]
    Message(#[source] serde_json::Error),
    /// More or other ancillary data came than descriptors that are allowed.
    #[error("the frame brought more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// The bytes of a frame, header included.
///
/// # Errors
/// When the message is too long or cannot be printed.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Message)?;
    let length = frame.len() - HEADER;
    match u32::try_from(length) {
        Ok(n) if length <= MAX_FRAME => frame[..HEADER].copy_from_slice(&n.to_be_bytes()),
        _ => return Err(FrameError::TooLong(length)),
    }
    Ok(frame)
}

/// The message in a frame's payload.
///
/// # Errors
/// When it is not the message that is expected.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(FrameError::Message)
}

/// The payload's length that a header announces.
///
/// # Errors
/// When it is over [`MAX_FRAME`].
pub fn payload_length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    Ok(length)
}

/// Sends the first part of `bytes` together with the descriptors, and says how
/// many bytes went.
///
/// # Errors
/// As the socket's.
pub fn send_with_descriptors(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives into `buffer`, appending descriptors to `descriptors`, and says how
/// many bytes came; 0 is the end. Received descriptors are closed on exec.
///
/// # Errors
/// As the socket's, and when more descriptors came than are allowed (those that
/// did come are closed).
pub fn receive_with_descriptors(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, FrameError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(io::Error::from)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if descriptors.len() > MAX_DESCRIPTORS || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(FrameError::TooManyDescriptors);
    }
    Ok(received.bytes)
}

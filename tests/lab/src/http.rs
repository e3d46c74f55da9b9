//! The least of HTTP that reading health and metrics takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Gets `path` from a server that is reached from the namespace `netns`.
///
/// # Errors
/// When there is no answer; an unwelcome status is an answer.
pub fn get(netns: &Path, server: SocketAddr, path: &str) -> Result<Answer> {
    crate::netns::within(netns, || get_here(server, path))
}

/// As [`get`], from the namespace that the lab itself is in.
///
/// # Errors
/// As [`get`].
pub fn get_here(server: SocketAddr, path: &str) -> Result<Answer> {
    let timeout = crate::environment::scaled(Duration::from_secs(2));
    let mut stream = TcpStream::connect_timeout(&server, timeout)
        .with_context(|| format!("http://{server}{path}"))?;
    stream.set_read_timeout(Some(timeout))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .with_context(|| format!("http://{server}{path}"))?;
    parse(&String::from_utf8_lossy(&bytes))
        .with_context(|| format!("http://{server}{path} answers no HTTP"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let chunked = head.lines().any(|l| {
        l.to_ascii_lowercase()
            .starts_with("transfer-encoding: chunked")
    });
    Some(Answer {
        status,
        body: if chunked {
            unchunk(body)?
        } else {
            body.to_owned()
        },
    })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_bodies_are_read() {
        let plain = parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno");
        assert_eq!(plain.map(|a| (a.status, a.body)), Some((503, "no".into())));
        let chunked = parse(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
        );
        assert_eq!(chunked.map(|a| a.body), Some("abcd".into()));
        assert_eq!(parse("SSH-2.0"), None);
    }
}

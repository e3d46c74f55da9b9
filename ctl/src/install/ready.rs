//! Asking the agent whether it is ready: one GET on the loopback, which is no reason for
//! an HTTP library.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest that the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the agent says that it is ready, or why that is not known or not so.
pub(super) async fn ask(agent: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, get(agent)).await {
        Ok(Ok(answer)) => judge(&answer),
        Ok(Err(error)) => Err(format!("the agent does not answer on {agent}: {error}")),
        Err(_) => Err(format!(
            "the agent does not answer on {agent} within {PATIENCE:?}"
        )),
    }
}

async fn get(agent: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(agent).await?;
    stream
        .write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    // Whatever answers there, it does not fill the memory.
    stream.take(64 * 1024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn judge(answer: &str) -> Result<(), String> {
    let status = answer.split_whitespace().nth(1);
    if status == Some("200") {
        return Ok(());
    }
    let said = answer
        .split_once("\r\n\r\n")
        .and_then(|(_, body)| body.lines().find(|line| !line.trim().is_empty()))
        .unwrap_or("it does not say why");
    Err(format!("the agent is not ready: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_what_answers_200_and_the_rest_is_told() {
        assert_eq!(judge("HTTP/1.0 200 OK\r\n\r\nready\n"), Ok(()));
        let refused = judge("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n\nno block yet\n");
        assert_eq!(refused, Err("the agent is not ready: no block yet".into()));
        assert!(judge("").is_err());
    }
}

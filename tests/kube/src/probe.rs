//! What the probe (go/probe) prints, and how it is asked.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// What came of one question.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Answer {
    /// The URL or name that was asked.
    pub(crate) to: String,
    /// Which pod answered, if it was a probe.
    #[serde(default)]
    pub(crate) pod: String,
    /// The asker's address as the answering pod saw it.
    #[serde(default)]
    pub(crate) saw: String,
    /// The address of its own that the answering pod was asked at.
    #[serde(default)]
    pub(crate) at: String,
    /// The status of HTTP.
    #[serde(default)]
    pub(crate) status: u16,
    /// A name's addresses.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    /// Why there is no answer.
    #[serde(default)]
    error: String,
}

/// What came of a stream of numbered packets.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Loss {
    /// Packets that were sent.
    pub(crate) sent: u64,
    /// Packets that came back.
    pub(crate) received: u64,
    /// The longest time without one.
    pub(crate) gap: String,
}

/// Reads the answers; a question that got none is an error that names it.
///
/// # Errors
/// Names the first that has no answer.
pub(crate) fn answers(printed: &str) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for line in printed.lines() {
        let answer: Answer = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if !answer.error.is_empty() {
            bail!("{}: {}", answer.to, answer.error);
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// The one answer that there should be.
///
/// # Errors
/// When there is none or more than one.
pub(crate) fn only(answers: Vec<Answer>) -> Result<Answer> {
    ensure!(answers.len() == 1, "{} answers", answers.len());
    answers.into_iter().next().context("no answer")
}

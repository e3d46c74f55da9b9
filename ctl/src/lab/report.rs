//! What the demo found, as tables for people. Pure.

use viaduct_lab::Matrix;
use viaduct_lab::matrix::Verdict;

/// The tables of a matrix, and what stands below them.
pub(crate) fn tables(matrix: &Matrix) -> String {
    let mark = |verdict: &Verdict| if verdict.is_ok() { "ok" } else { "FAILED" };
    let mut text = String::new();
    for pair in &matrix.pods {
        text.push_str(&format!(
            "{} {} -> {} {} ping {} mtu {} +1 {} tcp {} source {} wire {:?}\n",
            pair.from.name,
            pair.from.ip,
            pair.to.name,
            pair.to.ip,
            mark(&pair.ping),
            mark(&pair.whole),
            mark(&pair.too_long),
            mark(&pair.tcp),
            mark(&pair.source),
            pair.on_wire,
        ));
    }
    text
}

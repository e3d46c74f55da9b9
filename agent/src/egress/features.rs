//! What the kernel must be able to for a table to be made: asked when it was refused,
//! so that what is missing is one clear sentence and not "No such file or directory".
//!
//! Called by the table's keeper. Nothing is made: each question is a transaction
//! that the kernel checks and does not carry out.

use serde_json::{Value, json};

use super::ruleset::{TABLE, TableFamily};
use super::tool::{Firewall, ToolError};

/// Its rules are asked about in a table of this name, beside whatever there is.
const PROBE: &str = "viaduct-probe";

/// Something that a kernel may lack.
struct Feature {
    /// What it is needed for.
    what: &'static str,
    /// The module that has it.
    module: &'static str,
    /// Only who has it accepts these, after those of the features before.
    commands: Vec<Value>,
}

/// Says what is missing for the table, if that is why it was refused.
pub(super) async fn missing<F: Firewall>(firewall: &mut F) -> Option<ToolError> {
    let mut commands = Vec::new();
    for feature in features() {
        commands.extend(feature.commands);
        let text = json!({"nftables": commands}).to_string();
        let Err(ToolError::Refused(said)) = firewall.check(text).await else {
            continue;
        };
        return Some(ToolError::Lacks {
            what: feature.what,
            remedy: remedy(feature.module),
            said,
        });
    }
    None
}

fn remedy(module: &str) -> String {
    format!(
        "it needs the kernel module {module}, which this kernel has not loaded: load it with \
         `modprobe {module}`, and at each boot by a line {module} in \
         /etc/modules-load.d/{TABLE}.conf"
    )
}

fn features() -> [Feature; 3] {
    let family = TableFamily::Inet.name();
    [
        Feature {
            what: "has no nftables",
            module: "nf_tables",
            commands: vec![json!({"add": {"table": {"family": family, "name": PROBE}}})],
        },
        Feature {
            what: "translates no addresses",
            module: "nft_chain_nat",
            commands: vec![json!({"add": {"chain": {
                "family": family, "table": PROBE, "name": "probe",
                "type": "nat", "hook": "postrouting", "prio": 0,
            }}})],
        },
        Feature {
            what: "cannot masquerade",
            module: "nft_masq",
            commands: vec![json!({"add": {"rule": {
                "family": family, "table": PROBE, "chain": "probe",
                "expr": [{"masquerade": null}],
            }}})],
        },
    ]
}

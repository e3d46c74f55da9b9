//! What the kernel must be able to for a table to be made: asked when it was refused,
//! so that what is missing is one clear sentence and not "No such file or directory".
//!
//! Called by the keeper of a table. Nothing is made: each question is a transaction
//! that the kernel checks and does not carry out.

use serde_json::{Value, json};

use super::ruleset::{SPOOFED, TABLE, TableFamily};
use super::tool::{Firewall, ToolError};

/// Its rules are asked about in a table of this name, beside whatever there is.
const PROBE: &str = "viaduct-probe";

/// A device that every network namespace has.
const LOOPBACK: &str = "lo";

/// Something that a kernel may lack.
struct Feature {
    /// What it is needed for.
    what: &'static str,
    /// The module that has it.
    module: &'static str,
    /// What is built into the kernel instead, and cannot be loaded.
    option: Option<&'static str>,
    /// Only who has it accepts these, after those of the features before.
    commands: Vec<Value>,
}

/// Says what is missing for this table, if that is why it was refused.
pub(super) async fn missing<F: Firewall>(
    firewall: &mut F,
    family: TableFamily,
) -> Option<ToolError> {
    let mut commands = Vec::new();
    for feature in features(family) {
        commands.extend(feature.commands);
        let text = json!({"nftables": commands}).to_string();
        let Err(ToolError::Refused(said)) = firewall.check(text).await else {
            continue;
        };
        return Some(ToolError::Lacks {
            what: feature.what,
            remedy: remedy(feature.module, feature.option),
            said,
        });
    }
    None
}

fn remedy(module: &str, option: Option<&str>) -> String {
    match option {
        Some(option) => format!(
            "it needs the kernel module {module}, built with {option}, which this kernel has not"
        ),
        None => format!(
            "it needs the kernel module {module}, which this kernel has not loaded: load it with \
             `modprobe {module}`, and at each boot by a line {module} in \
             /etc/modules-load.d/{TABLE}.conf"
        ),
    }
}

fn features(family: TableFamily) -> Vec<Feature> {
    let named = |name: &str| json!({"family": family.name(), "table": PROBE, "name": name});
    let table = Feature {
        what: "has no nftables",
        module: "nf_tables",
        option: None,
        commands: vec![json!({"add": {"table": {"family": family.name(), "name": PROBE}}})],
    };
    let chain = |r#type: &str, hook: &str, device: Option<&str>| {
        let mut body = named("probe");
        body["type"] = json!(r#type);
        body["hook"] = json!(hook);
        body["prio"] = json!(0);
        if let Some(device) = device {
            body["dev"] = json!(device);
        }
        vec![json!({"add": {"chain": body}})]
    };
    let rule = |statement: Value| {
        json!({"add": {"rule": {
            "family": family.name(), "table": PROBE, "chain": "probe", "expr": [statement],
        }}})
    };
    match family {
        TableFamily::Inet => vec![
            table,
            Feature {
                what: "translates no addresses",
                module: "nft_chain_nat",
                option: None,
                commands: chain("nat", "postrouting", None),
            },
            Feature {
                what: "cannot masquerade",
                module: "nft_masq",
                option: None,
                commands: vec![rule(json!({"masquerade": null}))],
            },
        ],
        TableFamily::Netdev => vec![
            table,
            Feature {
                what: "filters nothing at a device's ingress",
                module: "nf_tables",
                option: Some("CONFIG_NETFILTER_INGRESS and CONFIG_NF_TABLES_NETDEV"),
                commands: chain("filter", "ingress", Some(LOOPBACK)),
            },
            Feature {
                what: "counts by no named counter",
                module: "nft_objref",
                option: None,
                commands: vec![
                    json!({"add": {"counter": named(SPOOFED)}}),
                    rule(json!({"counter": SPOOFED})),
                ],
            },
        ],
    }
}

//! Reading the inventories of nodes: of this host directly, of others by the operator's own
//! way there. Nothing listens for it (docs/adr/0140).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use viaduct_agent::inventory::{self, FORM, Inventory};

use super::{ReachArgs, shell};

/// How long one node may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How many nodes are asked at once.
const AT_ONCE: usize = 16;

/// The inventory of each node, or why there is none.
pub(super) async fn gather(
    nodes: &BTreeSet<String>,
    reach: &ReachArgs,
) -> BTreeMap<String, Result<Inventory, String>> {
    let mut gathered = BTreeMap::new();
    let mut asked = JoinSet::new();
    for node in nodes {
        while asked.len() >= AT_ONCE {
            gathered.extend(asked.join_next().await.and_then(Result::ok));
        }
        let (node, line) = (node.clone(), reach.on(node, "viaductctl ipam report"));
        match line {
            Some(line) => drop(asked.spawn(async move {
                let answer = shell(&line).await.and_then(|text| parse(&text));
                (node, answer)
            })),
            None if reach.own_name().as_deref() == Some(node.as_str()) => {
                let taken = inventory::take(reach.here.run_dir()).map_err(|e| e.to_string());
                gathered.insert(node, taken);
            }
            None => {
                let why =
                    "it is not this host, and --reach does not say how to run a command there";
                gathered.insert(node, Err(why.to_owned()));
            }
        }
    }
    while let Some(joined) = asked.join_next().await {
        gathered.extend(joined);
    }
    gathered
}

fn parse(text: &str) -> Result<Inventory, String> {
    let inventory: Inventory =
        serde_json::from_str(text).map_err(|e| format!("its report cannot be read: {e}"))?;
    if inventory.form != FORM {
        return Err(format!(
            "its report has form {}, this viaductctl reads {FORM}: use one release on all nodes",
            inventory.form
        ));
    }
    Ok(inventory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_another_form_are_refused() {
        let mut inventory = Inventory::default();
        let text = |i: &Inventory| serde_json::to_string(i).unwrap();
        assert!(parse(&text(&inventory)).unwrap_err().contains("form 0"));
        inventory.form = FORM;
        assert_eq!(parse(&text(&inventory)).unwrap(), inventory);
        assert!(parse("{").unwrap_err().contains("cannot be read"));
    }
}

//! The reference CNI plugins `ptp` and `host-local`
//! (Debian: containernetworking-plugins).

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::plugin::Plugin;

/// Where distributions put them.
const DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// `ptp` with `host-local`, its files in memory as Viaduct's are.
///
/// # Errors
/// When the plugins are not installed.
pub(crate) fn plugin(data_dir: &Path) -> Result<Plugin> {
    let dir = DIRS
        .map(PathBuf::from)
        .into_iter()
        .find(|dir| dir.join("ptp").exists() && dir.join("host-local").exists());
    ensure!(
        dir.is_some(),
        "the reference plugins ptp and host-local are in none of {DIRS:?} \
         (Debian: containernetworking-plugins)"
    );
    let dir = dir.unwrap_or_default();
    Ok(Plugin {
        name: "ptp",
        program: dir.join("ptp"),
        path: dir,
        config: json!({
            "cniVersion": "1.0.0",
            "name": "reference",
            "type": "ptp",
            "ipMasq": false,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "dataDir": data_dir,
                "ranges": [[{"subnet": "10.96.0.0/20"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }),
    })
}

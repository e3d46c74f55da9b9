//! Where things of Viaduct's are on a host, as several verbs are told.
//!
//! Flattened into the arguments of verbs, which may word the help for themselves.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Clone, Args)]
pub(crate) struct RunDir {
    /// The agent's run directory
    #[arg(
        long,
        env = "VIADUCT_RUN_DIR",
        default_value = "/run/viaduct",
        value_name = "DIR"
    )]
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PluginDir {
    /// Where the container runtime looks for plugins
    #[arg(
        long,
        env = "VIADUCT_PLUGIN_DIR",
        default_value = "/opt/cni/bin",
        value_name = "DIR"
    )]
    pub(crate) plugin_dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Conflist {
    /// Where the container runtime looks for configurations
    #[arg(
        long,
        env = "VIADUCT_CONFLIST_DIR",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    conflist_dir: PathBuf,
    /// The name of the configuration there
    #[arg(
        long,
        env = "VIADUCT_CONFLIST_NAME",
        default_value = "10-viaduct.conflist",
        value_name = "NAME"
    )]
    conflist_name: String,
}

impl Conflist {
    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.conflist_dir.join(&self.conflist_name)
    }

    /// The file of that name in a directory.
    #[cfg(test)]
    pub(crate) fn at(directory: PathBuf, name: &str) -> Self {
        Self {
            conflist_dir: directory,
            conflist_name: name.to_owned(),
        }
    }
}

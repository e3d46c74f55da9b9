//! The command line flags that say which datastore, shared by all binaries.
//!
//! Flattened with `#[command(flatten)]` into the flags of controller, agent and
//! `viaductctl`, so that the three can never drift apart. Only judges what stands
//! on the command line; files that it names are read by [`open`](crate::open).

use std::path::PathBuf;

use clap::Args;
use viaduct_model::Invalid;

use crate::url::StoreOptions;

/// Which datastore, and how to reach it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Datastore")]
pub struct StoreArgs {
    /// The datastore: sqlite:/path/store.db, etcd://host:2379[,host:2379...],
    /// etcds://... (TLS) or kube (the Kubernetes API)
    // Optional to clap, since a global flag cannot be required and some commands
    // of viaductctl need no store; `options` refuses its absence.
    #[arg(long, env = "VIADUCT_DATASTORE", value_name = "URL", global = true)]
    pub datastore: Option<String>,

    /// The prefix of all keys in etcd
    #[arg(
        long,
        env = "VIADUCT_ETCD_PREFIX",
        value_name = "PREFIX",
        default_value = "/viaduct",
        global = true
    )]
    pub etcd_prefix: String,

    /// PEM file of the authority that signed etcd's certificates (etcds://)
    #[arg(long, env = "VIADUCT_ETCD_CA", value_name = "FILE", global = true)]
    pub etcd_ca: Option<PathBuf>,

    /// PEM file of our certificate for etcd; goes with --etcd-key
    #[arg(long, env = "VIADUCT_ETCD_CERT", value_name = "FILE", global = true)]
    pub etcd_cert: Option<PathBuf>,

    /// PEM file of the key to --etcd-cert
    #[arg(long, env = "VIADUCT_ETCD_KEY", value_name = "FILE", global = true)]
    pub etcd_key: Option<PathBuf>,

    /// The user that etcd knows us by; goes with --etcd-password-file
    #[arg(
        long,
        env = "VIADUCT_ETCD_USERNAME",
        value_name = "NAME",
        global = true
    )]
    pub etcd_username: Option<String>,

    /// File that holds that user's password and nothing else
    #[arg(
        long,
        env = "VIADUCT_ETCD_PASSWORD_FILE",
        value_name = "FILE",
        global = true
    )]
    pub etcd_password_file: Option<PathBuf>,

    /// The file that says where the API server is and who we are (kube) [default: in a
    /// pod, its service account]
    #[arg(long, env = "VIADUCT_KUBECONFIG", value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
}

impl StoreArgs {
    /// What [`open`](crate::open) takes.
    ///
    /// # Errors
    /// When `--datastore` is absent or malformed, or of a pair of flags one half is
    /// absent.
    pub fn options(&self) -> Result<StoreOptions, Invalid> {
        let Some(url) = self.datastore.clone().filter(|url| !url.is_empty()) else {
            return Err(Invalid::new(
                "flag",
                "--datastore",
                "",
                "sqlite:/path/store.db, etcd://host:2379[,host:2379...], etcds://... or kube",
            ));
        };
        crate::url::check(&url)?;
        both(
            ("--etcd-cert", self.etcd_cert.as_deref()),
            ("--etcd-key", self.etcd_key.as_deref()),
        )?;
        both(
            (
                "--etcd-username",
                self.etcd_username.as_deref().map(AsRef::as_ref),
            ),
            ("--etcd-password-file", self.etcd_password_file.as_deref()),
        )?;
        if url != "kube"
            && let Some(path) = &self.kubeconfig
        {
            return Err(Invalid::new(
                "flag",
                "--kubeconfig",
                path.display(),
                "it is for --datastore kube only",
            ));
        }
        Ok(StoreOptions {
            url,
            kubeconfig: self.kubeconfig.clone(),
            writer: None,
            etcd_prefix: Some(self.etcd_prefix.clone()),
            etcd_ca: self.etcd_ca.clone(),
            etcd_cert: self.etcd_cert.clone(),
            etcd_key: self.etcd_key.clone(),
            etcd_username: self.etcd_username.clone(),
            etcd_password_file: self.etcd_password_file.clone(),
        })
    }
}

/// What clap refuses, as one line that names the flag, the value and what is
/// allowed; clap itself would add usage and hints on lines of their own. Binaries
/// print it to standard error and exit with 2.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let told: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    told.join(" ")
}

type Half<'a> = (&'static str, Option<&'a std::path::Path>);

/// Refuses one flag of a pair without the other.
fn both(one: Half<'_>, two: Half<'_>) -> Result<(), Invalid> {
    for ((name, value), (partner, other)) in [(one, two), (two, one)] {
        if let (Some(value), None) = (value, other) {
            return Err(Invalid::new(
                "flag",
                name,
                value.display(),
                format!("it goes together with {partner}, which is absent"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        store: StoreArgs,
    }

    fn options(args: &[&str]) -> Result<StoreOptions, Invalid> {
        Cli::try_parse_from([&["x"], args].concat())
            .unwrap()
            .store
            .options()
    }

    #[test]
    fn the_url_is_needed_and_the_refusal_says_what_is_allowed() {
        let error = options(&[]).unwrap_err();
        assert_eq!(error.field, "--datastore");
        assert!(error.to_string().contains("sqlite:/"), "{error}");
        assert_eq!(options(&["--datastore", ""]).unwrap_err(), error);
    }

    #[test]
    fn what_clap_refuses_becomes_one_line() {
        let line = one_line(&Cli::try_parse_from(["x", "--datastor", "y"]).unwrap_err());
        assert!(
            line.contains("--datastor") && !line.contains('\n') && !line.contains("Usage"),
            "{line}"
        );
    }

    #[test]
    fn a_kubeconfig_is_for_kube_alone() {
        let kube = options(&["--datastore", "kube", "--kubeconfig", "/k"]).unwrap();
        assert_eq!(kube.kubeconfig, Some("/k".into()));
        let error = options(&["--datastore", "sqlite:/x", "--kubeconfig", "/k"]).unwrap_err();
        assert_eq!(error.field, "--kubeconfig");
    }

    #[test]
    fn halves_of_a_pair_are_refused() {
        let url = ["--datastore", "etcds://a:2379"];
        for (flag, partner) in [
            ("--etcd-cert", "--etcd-key"),
            ("--etcd-key", "--etcd-cert"),
            ("--etcd-username", "--etcd-password-file"),
            ("--etcd-password-file", "--etcd-username"),
        ] {
            let error = options(&[&url[..], &[flag, "x"]].concat()).unwrap_err();
            assert_eq!(error.field, flag);
            assert!(error.allowed.contains(partner), "{error}");
        }
        let full = options(&[&url[..], &["--etcd-cert", "c", "--etcd-key", "k"]].concat()).unwrap();
        assert_eq!(full.etcd_prefix.as_deref(), Some("/viaduct"));
    }
}

//! Datastore URLs, and opening the store that one names.

use std::path::PathBuf;

use crate::store::{SharedStore, StoreError};

/// What `--datastore` and its companions say.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// `sqlite:/path/store.db`, `etcd://h1:2379,h2:2379` or `etcds://...`.
    pub url: String,
    /// `--etcd-prefix`; `/viaduct` when absent.
    pub etcd_prefix: Option<String>,
    /// `--etcd-ca`: PEM file of the authority that signed the servers.
    pub etcd_ca: Option<PathBuf>,
    /// `--etcd-cert`: PEM file of our certificate.
    pub etcd_cert: Option<PathBuf>,
    /// `--etcd-key`: PEM file of our key.
    pub etcd_key: Option<PathBuf>,
    /// `--etcd-username`.
    pub etcd_username: Option<String>,
    /// `--etcd-password-file`.
    pub etcd_password_file: Option<PathBuf>,
}

/// Opens the store. Refuses a malformed URL or unreadable files; does not fail
/// because an etcd is not there yet.
///
/// # Errors
/// [`StoreError::Invalid`] names the flag, the value and what is allowed.
pub async fn open(options: &StoreOptions) -> Result<SharedStore, StoreError> {
    Err(StoreError::Invalid(viaduct_model::Invalid::new(
        "flag",
        "--datastore",
        &options.url,
        "no store is built in yet",
    )))
}

//! Datastore URLs, and opening the store that one names.

use std::path::PathBuf;
use std::sync::Arc;

use viaduct_model::Invalid;

use crate::etcd::EtcdStore;
use crate::kube::KubeStore;
use crate::sqlite::SqliteStore;
use crate::store::{SharedStore, StoreError};

/// What `--datastore` and its companions say.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// `sqlite:/path/store.db`, `etcd://h1:2379,h2:2379`, `etcds://...` or `kube`.
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
    /// `--kubeconfig`; the pod's service account when absent.
    pub kubeconfig: Option<PathBuf>,
    /// Who writes, for the API server's field managers: the program's name.
    pub writer: Option<String>,
}

/// Opens the store. Refuses a malformed URL or unreadable files; does not fail
/// because the store is not there yet.
///
/// # Errors
/// [`StoreError::Invalid`] names the flag, the value and what is allowed.
pub async fn open(options: &StoreOptions) -> Result<SharedStore, StoreError> {
    match parse(&options.url)? {
        Parsed::Sqlite(path) => Ok(Arc::new(SqliteStore::new(path)?)),
        Parsed::Etcd { tls, hosts } => Ok(Arc::new(EtcdStore::new(tls, hosts, options)?)),
        Parsed::Kube => Ok(Arc::new(KubeStore::new(options).await?)),
    }
}

/// What a datastore URL means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parsed {
    Sqlite(PathBuf),
    Etcd { tls: bool, hosts: Vec<String> },
    Kube,
}

const ALLOWED: &str = "sqlite:/absolute/path/store.db, etcd://host:port[,host:port...], \
                       etcds://host:port[,host:port...] (port 2379 when left out) or kube";

/// Judges a URL without opening anything.
pub(crate) fn check(url: &str) -> Result<(), Invalid> {
    parse(url).map(drop)
}

fn parse(url: &str) -> Result<Parsed, Invalid> {
    let refuse =
        |why: &str| Invalid::new("flag", "--datastore", shown(url), format!("{why}{ALLOWED}"));
    if let Some(path) = url.strip_prefix("sqlite:") {
        // `sqlite:///path` is how others write it.
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(refuse(
                "the path must be absolute and name a file; allowed are ",
            ));
        }
        return Ok(Parsed::Sqlite(PathBuf::from(path)));
    }
    if url == "kube" {
        return Ok(Parsed::Kube);
    }
    let (tls, hosts) = match url.split_once("://") {
        Some(("etcd", hosts)) => (false, hosts),
        Some(("etcds", hosts)) => (true, hosts),
        _ => return Err(refuse("allowed are ")),
    };
    if hosts.contains('@') {
        return Err(refuse(
            "a user is given with --etcd-username and --etcd-password-file; allowed are ",
        ));
    }
    let hosts = hosts
        .trim_end_matches('/')
        .split(',')
        .map(host_and_port)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| refuse("a host or port is malformed; allowed are "))?;
    Ok(Parsed::Etcd { tls, hosts })
}

/// `host:port`, the port added when it is left out; `None` when malformed.
fn host_and_port(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, rest)) => {
            v6.parse::<std::net::Ipv6Addr>().ok()?;
            (format!("[{v6}]"), rest)
        }
        None => {
            let at = text.find(':').unwrap_or(text.len());
            let (host, port) = text.split_at(at);
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if host.is_empty() || !host.chars().all(good) {
                return None;
            }
            (host.to_owned(), port)
        }
    };
    let port: u16 = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&p| p != 0)?,
        None if port.is_empty() => 2379,
        None => return None,
    };
    Some(format!("{host}:{port}"))
}

/// A URL without what may be a password.
fn shown(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, hosts))) => format!("{scheme}://...@{hosts}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(tls: bool, hosts: &[&str]) -> Parsed {
        Parsed::Etcd {
            tls,
            hosts: hosts.iter().map(|&h| h.to_owned()).collect(),
        }
    }

    #[test]
    fn urls_of_every_store_are_understood() {
        let sqlite = Parsed::Sqlite("/var/lib/viaduct/store.db".into());
        assert_eq!(parse("sqlite:/var/lib/viaduct/store.db").unwrap(), sqlite);
        assert_eq!(parse("sqlite:///var/lib/viaduct/store.db").unwrap(), sqlite);
        assert_eq!(
            parse("etcd://a:2379,10.0.0.1:1,[::1]:5").unwrap(),
            etcd(false, &["a:2379", "10.0.0.1:1", "[::1]:5"])
        );
        assert_eq!(
            parse("etcds://a,[fe80::1]/").unwrap(),
            etcd(true, &["a:2379", "[fe80::1]:2379"])
        );
        assert_eq!(parse("kube").unwrap(), Parsed::Kube);
    }

    #[test]
    fn malformed_urls_are_refused_with_what_is_allowed() {
        for url in [
            "",
            "kube:",
            "kube://host",
            "sqlite:",
            "sqlite:store.db",
            "sqlite:/dir/",
            "etcd:",
            "etcd://",
            "etcd://a:0",
            "etcd://a:70000",
            "etcd://a,,b",
            "etcd://a:1:2",
            "etcd://[zz]:1",
            "etcd://[::1]x",
            "http://a:2379",
            "etcd://a b",
            "/path",
        ] {
            let refused = parse(url).expect_err(url).to_string();
            assert!(refused.contains("--datastore"), "{refused}");
            assert!(refused.contains("sqlite:/absolute"), "{refused}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let refused = parse("etcd://root:hunter2@a:2379").unwrap_err().to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
        assert!(refused.contains("--etcd-password-file"), "{refused}");
    }
}

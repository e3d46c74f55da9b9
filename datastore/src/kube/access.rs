//! How the API server is reached: in a pod by the service account, elsewhere by a
//! kubeconfig; and the client that does it.
//!
//! One HTTP/2 connection carries everything, so that a watch costs no connection of its
//! own and pings tell within seconds that nothing passes any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::util::Either;
use tower::{BoxError, Layer, ServiceExt};
use viaduct_model::Invalid;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a connection may be silent before it is probed, and the answer wait.
const PROBE_EVERY: Duration = Duration::from_secs(8);
const PROBE_PATIENCE: Duration = Duration::from_secs(4);

/// Where the API server and our credentials are written down.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// In the pod that we run in.
    InCluster,
    /// In this file.
    Kubeconfig(PathBuf),
}

impl Access {
    /// By the flag, or the pod if there is none.
    pub(super) fn new(kubeconfig: Option<&PathBuf>) -> Result<Self, Invalid> {
        match kubeconfig {
            Some(path) => Ok(Self::Kubeconfig(path.clone())),
            None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => Ok(Self::InCluster),
            None => Err(Invalid::new(
                "flag",
                "--kubeconfig",
                "",
                "--datastore kube needs it outside of a pod: the file that says where the API server is and who we are",
            )),
        }
    }

    /// Reads the files anew: certificates and tokens are replaced in place.
    pub(super) async fn config(&self) -> Result<Config, Invalid> {
        match self {
            Self::InCluster => Config::incluster().map_err(|e| {
                Invalid::new(
                    "flag",
                    "--datastore",
                    "kube",
                    format!("the pod's service account cannot be read: {e}"),
                )
            }),
            Self::Kubeconfig(path) => {
                let refuse = |e: &dyn std::fmt::Display| {
                    Invalid::new(
                        "flag",
                        "--kubeconfig",
                        path.display(),
                        format!("a kubeconfig that can be read is needed ({e})"),
                    )
                };
                let file = Kubeconfig::read_from(path).map_err(|e| refuse(&e))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|e| refuse(&e))
            }
        }
    }
}

/// A client. Connects with its first request.
pub(super) fn client(config: Config) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT));
    http.set_keepalive(Some(PROBE_EVERY));
    http.set_nodelay(true);
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let https = hyper_rustls::HttpsConnector::from((http, Arc::new(tls)));
    let hyper: hyper_util::client::legacy::Client<_, Body> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PROBE_EVERY)
            .http2_keep_alive_timeout(PROBE_PATIENCE)
            .http2_keep_alive_while_idle(true)
            .build(https);
    let service = config.base_uri_layer().layer(hyper.map_err(BoxError::from));
    let service = match config.auth_layer()? {
        Some(auth) => Either::Left(auth.layer(service)),
        None => Either::Right(service),
    };
    let service = config.extra_headers_layer()?.layer(service);
    Ok(Client::new(service, config.default_namespace))
}

//! What only an API server of Kubernetes is asked: Nodes, and its own counters.

use std::path::Path;

use anyhow::{Context, Result};
use kube::core::Request;
use serde_json::{Value, json};

/// A connection to an API server.
#[derive(Clone)]
pub(crate) struct Api(kube::Client);

/// What an API server has been asked for so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counters {
    /// Requests that change a record of Viaduct's or a Node.
    pub writes: f64,
    /// Requests that read one or list them, watches apart.
    pub reads: f64,
    /// Changes of Viaduct's records that were told to those who watch.
    pub events: f64,
    /// The bytes of these.
    pub event_bytes: f64,
}

impl Api {
    /// A connection as the file says.
    ///
    /// # Errors
    /// A file that makes no sense.
    pub(crate) async fn connect(kubeconfig: &Path) -> Result<Self> {
        let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
        Ok(Self(kube::Client::try_from(config)?))
    }

    /// Creates a Node object.
    ///
    /// # Errors
    /// What the API server said.
    pub(crate) async fn create_node(&self, name: &str) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        let request = Request::new("/api/v1/nodes")
            .create(&Default::default(), node.to_string().into_bytes())?;
        let answer: Result<Value, _> = self.0.request(request).await;
        answer.map(drop).with_context(|| format!("Node {name}"))
    }

    /// What it has been asked for so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn counters(&self) -> Result<Counters> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = self.0.request_text(request).await;
        Ok(Counters::of(&text.context("the API server's metrics")?))
    }
}

impl Counters {
    /// From the text of `/metrics`.
    fn of(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (Some((name, _)), Ok(value)) = (series.split_once('{'), value.parse::<f64>())
            else {
                continue;
            };
            let ours = series.contains("group=\"viaduct.dev\"");
            let node = series.contains("group=\"\"") && series.contains("resource=\"nodes\"");
            let is_verb = |verbs: &[&str]| {
                let named = |verb: &&str| series.contains(&format!("verb=\"{verb}\""));
                verbs.iter().any(named)
            };
            match name {
                "apiserver_request_total" if ours || node => {
                    if is_verb(&["POST", "PUT", "PATCH", "APPLY", "DELETE"]) {
                        counters.writes += value;
                    } else if is_verb(&["GET", "LIST"]) {
                        counters.reads += value;
                    }
                }
                "apiserver_watch_events_total" if ours => counters.events += value,
                "apiserver_watch_events_sizes_sum" if ours => counters.event_bytes += value,
                _ => {}
            }
        }
        counters
    }

    /// What has been added since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            writes: self.writes - before.writes,
            reads: self.reads - before.reads,
            events: self.events - before.events,
            event_bytes: self.event_bytes - before.event_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_viaduct_is_counted() {
        let text = r#"# HELP apiserver_request_total x
apiserver_request_total{code="200",group="viaduct.dev",resource="blockclaims",verb="GET"} 7
apiserver_request_total{code="200",group="viaduct.dev",resource="blockclaims",verb="WATCH"} 70
apiserver_request_total{code="200",group="viaduct.dev",resource="blockclaims",verb="APPLY"} 3
apiserver_request_total{code="201",group="",resource="nodes",verb="POST"} 2
apiserver_request_total{code="201",group="",resource="pods",verb="POST"} 100
apiserver_request_total{code="200",group="coordination.k8s.io",resource="leases",verb="PUT"} 9
apiserver_watch_events_total{group="viaduct.dev",resource="nodenetworks",version="v1alpha1"} 4
apiserver_watch_events_sizes_sum{group="viaduct.dev",resource="nodenetworks",version="v1alpha1"} 4000
apiserver_watch_events_sizes_bucket{group="viaduct.dev",le="1024"} 4
up 1
"#;
        let before = Counters {
            writes: 1.0,
            ..Counters::default()
        };
        let expected = Counters {
            writes: 4.0,
            reads: 7.0,
            events: 4.0,
            event_bytes: 4000.0,
        };
        assert_eq!(Counters::of(text).since(before), expected);
    }
}

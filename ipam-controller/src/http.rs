//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use viaduct_datastore::Connectivity;
use viaduct_model::Invalid;

use crate::metrics::Metrics;
use crate::status::Status;

/// The loop goes round at least every few seconds; silent for this long it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// What the pages are made from.
#[derive(Debug, Clone)]
pub struct Pages {
    /// What the control loop says of itself.
    pub status: watch::Receiver<Status>,
    /// Whether the store answers.
    pub connectivity: watch::Receiver<Connectivity>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The beginning of the control loop's clock.
    pub started: Instant,
}

/// Binds the address of `--http`.
///
/// # Errors
/// Names the flag, the address and why it cannot be had.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Invalid> {
    TcpListener::bind(address).await.map_err(|error| {
        Invalid::new(
            "flag",
            "--http",
            address,
            format!("cannot listen there ({error}); a free address:port of this machine is"),
        )
    })
}

/// Serves the pages until the task is dropped.
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: TcpListener, pages: Pages) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(pages);
    axum::serve(listener, router).await
}

async fn healthz(State(pages): State<Pages>) -> impl IntoResponse {
    let beat = pages.status.borrow().beat;
    let silent = pages.started.elapsed().saturating_sub(beat);
    if silent < HANGS_AFTER {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let text = format!("the control loop is silent for {} s\n", silent.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

async fn readyz(State(pages): State<Pages>) -> impl IntoResponse {
    let status = pages.status.borrow().clone();
    let unready = status.unready(&pages.connectivity.borrow());
    let role = if status.leads {
        "leading"
    } else {
        "standing by"
    };
    let (code, head) = if unready.is_empty() {
        (StatusCode::OK, format!("ready, {role}\n"))
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready, {role}\n"),
        )
    };
    let lines = unready.into_iter().chain(status.remarks());
    (
        code,
        lines.fold(head, |text, line| text + "- " + &line + "\n"),
    )
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let text = pages
        .metrics
        .render(&pages.status.borrow(), &pages.connectivity.borrow());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text)
}

//! The stores' common suite, against a real API server of Kubernetes, and what only that
//! can suffer.
//!
//! Needs `VIADUCT_KUBE_BINS`, a directory that holds the programs `etcd` and
//! `kube-apiserver` (and `etcd`'s own client for compaction); `make test-kube-store`
//! builds them. Without it every test here fails, in one line that says so: this target
//! is run by name only, so that nothing looks tested that was not.

// No library: nothing here is reachable from outside, and a failure is a panic.
#![allow(unreachable_pub, clippy::unwrap_used)]

#[allow(dead_code, reason = "some cases need leases, which this store has not")]
#[path = "../conformance/cases.rs"]
mod cases;
#[path = "../conformance/follower.rs"]
mod follower;
#[path = "../conformance/lab.rs"]
mod lab;
#[path = "../conformance/outage.rs"]
mod outage;
#[path = "../conformance/proxy.rs"]
mod proxy;

mod api_server;
mod common;
mod costume;
mod holding;
mod schema;
mod trouble;

use lab::Lab;

//! One suite for all stores: generic cases in `cases`, run against sqlite and
//! against a real etcd that the tests start, and what only one of them can do.
//!
//! Needs the `etcd` program (Debian's etcd-server); without it the etcd half
//! fails, in one line that says so.

// No library: nothing here is reachable from outside, and a failure is a panic.
#![allow(unreachable_pub, clippy::unwrap_used)]

mod cases;
mod cases_liveness;
mod child;
mod etcd;
mod etcd_process;
mod etcd_secured;
mod etcd_trouble;
mod follower;
mod lab;
mod outage;
mod proxy;
mod sqlite;

use lab::Lab;

//! The CNI server with a real kernel: real veth pairs between network namespaces
//! that the tests make themselves. Each test runs itself again as root of a user
//! namespace, so that no privilege is needed and nothing is left behind.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod check;
mod crowd;
mod damage;
mod faults;
mod forgetting;
mod harness;
mod interfaces;
mod network;
mod verbs;
mod wire_format;
mod wishes;

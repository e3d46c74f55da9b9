//! `viaductctl ipam report`: what this host holds and knows, as JSON for `check` and `show` to
//! read.

use std::net::IpAddr;
use std::process::ExitCode;

use viaduct_agent::inventory;

use super::{HereArgs, show};
use crate::cli::{print, refuse};
use crate::output;

pub(super) fn run(address: Option<IpAddr>, here: &HereArgs) -> ExitCode {
    let Some(address) = address else {
        return match inventory::take(here.run_dir()) {
            Ok(inventory) => print(output::json(&inventory).as_bytes()),
            Err(error) => refuse(&error, 1),
        };
    };
    match show::here(address, here.run_dir()) {
        Ok(state) => print(output::json(&state).as_bytes()),
        Err(error) => refuse(&format!("{error:#}"), 1),
    }
}

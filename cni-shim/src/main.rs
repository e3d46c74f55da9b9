//! `viaduct`: the CNI plugin. A container runtime starts it as root, once per pod
//! and verb; it opens what only root can open, hands it to the agent and prints
//! the agent's answer. It decides nothing and changes nothing itself.

mod agent;
mod netns;
mod verbs;

use std::io::{Read, Write};
use std::process::ExitCode;

use viaduct_cni::CniError;
use viaduct_cni::config::{self, MAX_CONFIG, NetConf, Refused};
use viaduct_cni::invocation::{self, Command};
use viaduct_cni::result::version_result;
use viaduct_cni::version::CniVersion;

fn main() -> ExitCode {
    let command = match invocation::from_env(|name| std::env::var_os(name)) {
        Ok(Some(command)) => command,
        Ok(None) => {
            // As the reference plugins do when a person starts them.
            let _ = writeln!(
                std::io::stderr(),
                "viaduct {}: a CNI plugin, started by container runtimes (CNI_COMMAND is not set)\n\
                 CNI protocol versions supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0",
                env!("CARGO_PKG_VERSION")
            );
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // Standard input is still read, so that the error speaks its version.
            let version = read_input()
                .and_then(|input| NetConf::parse(&input))
                .map_or_else(|refused| refused.version, |conf| conf.version);
            return finish(Err(Refused { version, error }));
        }
    };
    finish(read_input().and_then(|input| run(command, &input)))
}

fn run(command: Command, input: &[u8]) -> Result<String, Refused> {
    let conf = match command {
        Command::Version => {
            return config::requested_version(input)
                .map(|requested| version_result(&requested))
                .map_err(newest);
        }
        _ => NetConf::parse(input)?,
    };
    let done = match command {
        Command::Add(attachment) => verbs::add(&conf, attachment),
        Command::Del(attachment) => verbs::del(&conf, attachment).map(|()| String::new()),
        Command::Check(attachment) => verbs::check(&conf, attachment).map(|()| String::new()),
        Command::Gc => verbs::gc(&conf).map(|()| String::new()),
        Command::Status => verbs::status(&conf).map(|()| String::new()),
        Command::Version => Ok(String::new()),
    };
    done.map_err(|error| Refused {
        version: conf.version,
        error,
    })
}

fn read_input() -> Result<Vec<u8>, Refused> {
    let mut input = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_CONFIG as u64 + 1)
        .read_to_end(&mut input)
        .map_err(|e| {
            newest(CniError::new(
                CniError::IO_FAILURE,
                format!("cannot read the network configuration from standard input: {e}"),
            ))
        })?;
    Ok(input)
}

fn newest(error: CniError) -> Refused {
    Refused {
        version: CniVersion::NEWEST,
        error,
    }
}

fn finish(outcome: Result<String, Refused>) -> ExitCode {
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(refused) => (refused.error.to_json(refused.version), ExitCode::FAILURE),
    };
    let mut out = std::io::stdout().lock();
    let printed = if text.is_empty() {
        Ok(())
    } else {
        writeln!(out, "{text}").and_then(|()| out.flush())
    };
    if printed.is_ok() {
        code
    } else {
        ExitCode::FAILURE
    }
}

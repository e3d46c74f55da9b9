//! `viaduct-vm script`: one program in one machine.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use viaduct_lab::environment;

use crate::ScriptArgs;
use crate::image::Hardware;
use crate::machine::Machine;

/// Runs it with the console as its output.
pub(crate) fn run(args: &ScriptArgs) -> Result<ExitCode> {
    let hardware = Hardware {
        name: "vm".to_owned(),
        memory: 1024,
        plug: None,
    };
    let machine = Machine::on(&args.image, &hardware, &script(&args.command), true)?;
    let code = machine.result(Duration::from_secs(args.seconds))?;
    Ok(ExitCode::from(code))
}

/// What this program's environment says to tests and is said inside too.
const TOLD: [&str; 2] = ["VIADUCT_BIN_DIR", environment::PATIENCE];

/// A shell script that runs a command in the directory and with the programs under
/// test that this program was started with.
pub(crate) fn script(command: &[String]) -> String {
    let dir = std::env::current_dir().map(|dir| dir.display().to_string());
    let mut lines = vec!["#!/bin/sh".to_owned()];
    lines.push(format!("cd {}", quoted(&dir.unwrap_or("/".to_owned()))));
    for name in TOLD {
        if let Ok(value) = std::env::var(name) {
            lines.push(format!("export {name}={}", quoted(&value)));
        }
    }
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    lines.push(format!("exec {}", words.join(" ")));
    lines.join("\n") + "\n"
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        let command = ["a b", "it's", "$x"].map(str::to_owned);
        let script = script(&command);
        assert!(script.ends_with("exec 'a b' 'it'\\''s' '$x'\n"), "{script}");
    }
}

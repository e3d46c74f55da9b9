//! `viaduct-vm script`: one program in one machine.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::ScriptArgs;
use crate::image::Hardware;
use crate::machine::Machine;

/// Runs it with the console as its output.
pub(crate) fn run(args: &ScriptArgs) -> Result<ExitCode> {
    let hardware = Hardware {
        name: "vm".to_owned(),
        cpus: 2,
        memory: 1024,
        plug: None,
    };
    let machine = Machine::on(&args.image, &hardware, &script(&args.command), true)?;
    let code = machine.result(Duration::from_secs(args.seconds))?;
    Ok(ExitCode::from(code))
}

/// A shell script that runs a command in the directory and with the programs under
/// test that this program was started with.
pub(crate) fn script(command: &[String]) -> String {
    let dir = std::env::current_dir().map(|dir| dir.display().to_string());
    let mut lines = vec!["#!/bin/sh".to_owned()];
    lines.push(format!("cd {}", quoted(&dir.unwrap_or("/".to_owned()))));
    if let Ok(dir) = std::env::var("VIADUCT_BIN_DIR") {
        lines.push(format!("export VIADUCT_BIN_DIR={}", quoted(&dir)));
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

//! `lapidary`: compiles sparse routed language models and runs them.
//!
//! stdout carries the result, stderr progress and log. Exit codes: 0 done, 1 failed, 2 usage, 3 a comparison missed, 4 the
//! target cannot do it.
#![allow(clippy::print_stdout, reason = "the command's result goes to stdout")]

mod cli;
mod commands;
mod difference;
mod engine;
mod failure;
mod limits;
#[cfg(feature = "compiler")]
mod model;
mod npy;
mod reference;
mod ui;
mod work;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Printing to a full disk ends the command with an error, and to a closed pipe quietly; `println!` would panic.
fn end_when_stdout_does() {
    let panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or_default();
        if lapidary_runtime::panic_is_contained() {
            return;
        }
        if !message.starts_with("failed printing to std") {
            return panic(info);
        }
        if !message.contains("Broken pipe") {
            let _ = writeln!(std::io::stderr(), "error: {message}");
        }
        std::process::exit(1);
    }));
}

fn main() -> ExitCode {
    end_when_stdout_does();
    let cli = cli::Cli::parse();
    let ui = ui::Ui::new(&cli.global);
    match commands::run(cli.command, &ui) {
        Ok(code) => code,
        Err(error) => {
            ui.error(&error);
            failure::exit_code(&error)
        }
    }
}

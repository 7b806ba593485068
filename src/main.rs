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

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
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

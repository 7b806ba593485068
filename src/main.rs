//! `lapidary`: compiles sparse routed language models and runs them. With an artifact appended to it, it is the program of that
//! one model.
//!
//! stdout carries the result, stderr progress and log. Exit codes: 0 done, 1 failed, 2 usage, 3 a comparison missed, 4 the
//! target cannot do it.
#![allow(clippy::print_stdout, reason = "the command's result goes to stdout")]

mod cli;
mod commands;
#[cfg(feature = "compiler")]
mod difference;
mod engine;
mod executable;
mod failure;
mod limits;
#[cfg(feature = "compiler")]
mod model;
#[cfg(feature = "compiler")]
mod reference;
#[cfg(feature = "compiler")]
mod runner;
mod tensors;
mod ui;
mod work;

use std::process::ExitCode;

use clap::Parser;

use crate::ui::Ui;

fn main() -> ExitCode {
    let (ui, result) = match executable::this() {
        Ok(None) => {
            let cli = cli::Cli::parse();
            let ui = Ui::new(&cli.global);
            let result = commands::run(cli.command, &ui);
            (ui, result)
        }
        Ok(Some(carrier)) => {
            let args = cli::Executable::from_args();
            let ui = Ui::new(&args.global);
            let result = commands::run_inside(carrier, &args, &ui);
            (ui, result)
        }
        Err(error) => (Ui::default(), Err(error)),
    };
    result.unwrap_or_else(|error| {
        ui.error(&error);
        failure::exit_code(&error)
    })
}

//! `lapidary`: compiles sparse routed language models and runs them. With an artifact appended to it, it is the program of that
//! one model.
//!
//! stdout carries the result, stderr progress and log. Exit codes: 0 done, 1 failed, 2 usage, 3 a comparison missed, 4 the
//! target cannot do it.

/// Prints to stdout. Unlike the standard library's it does not panic when nobody reads on: see [`ui::write_out`].
macro_rules! print {
    ($($arg:tt)*) => { $crate::ui::write_out(format_args!($($arg)*)) };
}

/// Prints a line to stdout, as [`print!`] does.
macro_rules! println {
    () => { $crate::ui::write_out(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::ui::write_out(format_args!("{}\n", format_args!($($arg)*))) };
}

mod cli;
mod commands;
#[cfg(feature = "compiler")]
mod difference;
#[cfg(feature = "compiler")]
mod divergence;
mod engine;
mod executable;
mod failure;
mod limits;
#[cfg(feature = "compiler")]
mod lockstep;
mod memory_picture;
#[cfg(feature = "compiler")]
mod model;
#[cfg(feature = "npu")]
mod npu;
mod npy;
#[cfg(feature = "compiler")]
mod oracle;
#[cfg(feature = "profile")]
mod profile;
#[cfg(feature = "compiler")]
mod quantized;
#[cfg(feature = "compiler")]
mod reference;
mod routing;
#[cfg(feature = "compiler")]
mod runner;
mod tensors;
mod ui;
mod work;

use std::process::ExitCode;

use clap::Parser;

use crate::ui::Ui;

/// A library's panic that is turned into an error is not told as a panic.
fn hide_contained_panics() {
    let panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !lapidary_runtime::panic_is_contained() {
            panic(info);
        }
    }));
}

fn main() -> ExitCode {
    hide_contained_panics();
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
    result.and_then(|code| ui::finish_out().map(|()| code)).unwrap_or_else(|error| {
        ui.error(&error);
        failure::exit_code(&error)
    })
}

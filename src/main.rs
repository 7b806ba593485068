//! `lapidary`: compiles sparse routed language models and runs them.
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
mod difference;
mod engine;
mod failure;
mod limits;
mod memory_picture;
#[cfg(feature = "compiler")]
mod model;
mod npy;
#[cfg(feature = "profile")]
mod profile;
mod reference;
mod routing;
mod ui;
mod work;

use std::process::ExitCode;

use clap::Parser;

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
    let cli = cli::Cli::parse();
    let ui = ui::Ui::new(&cli.global);
    match commands::run(cli.command, &ui).and_then(|code| ui::finish_out().map(|()| code)) {
        Ok(code) => code,
        Err(error) => {
            ui.error(&error);
            failure::exit_code(&error)
        }
    }
}

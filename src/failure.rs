//! Which exit code an error stands for.

use std::process::ExitCode;

/// The exit code of a comparison or a budget that was missed.
pub const MISSED: u8 = 3;

/// The exit code of wrong usage.
pub const MISUSED: u8 = 2;

/// The target, or this build, cannot do what was asked; no other input would help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// What was asked is not a way to use the command.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What was asked for is possible in kind, but misses the bound that was set.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Missed(pub String);

/// 4 for what cannot be done, 3 for a bound that is missed, 2 for wrong usage, otherwise 1.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let unsupported = error.chain().any(|e| e.is::<Unsupported>());
    let usage = error.chain().any(|e| e.is::<Usage>());
    let missed = error.chain().any(|e| e.is::<Missed>());
    ExitCode::from(if unsupported {
        4
    } else if missed {
        MISSED
    } else if usage {
        MISUSED
    } else {
        1
    })
}

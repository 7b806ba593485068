//! Which exit code an error stands for.

use std::process::ExitCode;

#[cfg(feature = "compiler")]
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

/// 4 for what cannot be done, 2 for wrong usage, otherwise 1.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let unsupported = error.chain().any(|e| e.is::<Unsupported>());
    let usage = error.chain().any(|e| e.is::<Usage>());
    ExitCode::from(if unsupported {
        4
    } else if usage {
        MISUSED
    } else {
        1
    })
}

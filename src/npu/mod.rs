//! NPUs, as the commands see them.
//!
//! * [`machine`] and [`machine_toml`]: a machine by name or file, and as text.
//! * [`program`]: an assembled program in a file. [`shapes`]: lists of matrix multiplications.
//! * [`Compiled`]: a model as programs, from an artifact or just lowered; `write` makes the artifact, [`Session`] runs it in the
//!   simulator as a host would.
//!
//! Not here: lowering (`lapidary-target-npu`), time and values (`lapidary-simulator`), what commands print.

mod compiled;
mod machine;
mod routing;
mod session;
mod shape;
mod summary;
mod timing;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use lapidary_npu_isa::Program;
use lapidary_npu_isa::container::MAGIC;

pub use compiled::Compiled;
pub use machine::{machine, set};
pub use routing::Choice;
pub use session::{Call, Session};
pub use shape::{Shape, shapes};
pub use summary::Summary;
pub use timing::{made_up_ids, predict};
pub use write::{Lowered, lower, write, write_weights};

/// Longest program: contents of DRAM are in it.
const MAX_PROGRAM_BYTES: u64 = 4 << 30;

/// Whether a file begins as assembled programs do.
fn is_program(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    // Opening a pipe would wait for its other end.
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut begin).is_ok())
        && begin == MAGIC
}

/// The assembled program in a file, if that is what the file is.
pub fn program(path: &Path) -> anyhow::Result<Option<Program>> {
    if !is_program(path) {
        return Ok(None);
    }
    let bytes = crate::npy::read_file(path, MAX_PROGRAM_BYTES)?;
    Ok(Some(Program::from_bytes(&bytes).with_context(|| path.display().to_string())?))
}

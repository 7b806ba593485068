//! NPU programs and machines, as the commands name them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use lapidary_npu_isa::container::MAGIC;
use lapidary_npu_isa::machine::PRESETS;
use lapidary_npu_isa::{Machine, Program};

use crate::failure::Usage;
use crate::ui;

/// Longest machine file.
const MAX_MACHINE_BYTES: u64 = 1 << 20;
/// Longest program: contents of DRAM are in it.
const MAX_PROGRAM_BYTES: u64 = 4 << 30;

/// A machine by its name or its file, with `key=value` overrides in order.
pub fn machine(name: &str, overrides: &[String]) -> anyhow::Result<Machine> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| anyhow::Error::new(Usage(format!("{what}: {e}")));
    let mut machine = if PRESETS.iter().any(|(preset, _)| *preset == name) {
        Machine::preset(name)?
    } else if Path::new(name).extension().is_some_and(|e| e == "toml") {
        let text = ui::read_text(Path::new(name), MAX_MACHINE_BYTES)?;
        Machine::parse(&text).map_err(|e| wrong(name, &e))?
    } else {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        bail!(Usage(format!(
            "--machine: wanted one of {}, or a machine's .toml file, found `{name}`",
            names.join(", ")
        )));
    };
    let pairs: Vec<_> = overrides
        .iter()
        .map(|text| Machine::pair(text).map_err(|e| wrong("--set", &e)))
        .collect::<anyhow::Result<_>>()?;
    machine.set_all(pairs).map_err(|e| wrong("--set", &e))?;
    Ok(machine)
}

/// Whether a file begins as assembled programs do.
pub fn is_program(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    // Opening a pipe would wait for its other end.
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut begin).is_ok())
        && begin == MAGIC
}

/// Reads an assembled program.
pub fn read_program(path: &Path) -> anyhow::Result<Program> {
    let place = || path.display().to_string();
    let bytes = crate::npy::read_file(path, MAX_PROGRAM_BYTES)?;
    Program::from_bytes(&bytes).with_context(place)
}

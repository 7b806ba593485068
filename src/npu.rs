//! NPU programs and machines, as the commands name them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use lapidary_format::Isa;
use lapidary_npu_isa::container::MAGIC;
use lapidary_npu_isa::machine::PRESETS;
use lapidary_npu_isa::{Machine, Program};

use crate::engine;
use crate::failure::Usage;
use crate::ui;

/// Longest machine file.
const MAX_MACHINE_BYTES: u64 = 1 << 20;
/// Largest M, N or K.
const MAX_DIMENSION: u32 = 1 << 20;
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

/// A matrix multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Rows.
    pub m: u32,
    /// Outputs.
    pub n: u32,
    /// Inputs.
    pub k: u32,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<&str> = text.split(',').map(str::trim).collect();
        let [m, n, k] = numbers[..] else {
            return Err(format!("wanted M,N,K, found {} numbers", numbers.len()));
        };
        let number = |name: &str, text: &str| match text.parse::<u32>() {
            Ok(number) if (1..=MAX_DIMENSION).contains(&number) => Ok(number),
            _ => Err(format!("{name}: wanted 1 to {MAX_DIMENSION}, found `{text}`")),
        };
        Ok(Shape { m: number("M", m)?, n: number("N", n)?, k: number("K", k)? })
    }
}

/// The multiplications of a list: a line each, after a header without digits if there is one; `#` begins a comment.
pub fn shapes(text: &str) -> anyhow::Result<Vec<Shape>> {
    let mut shapes = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let is_header = i == 0 && !line.contains(|c: char| c.is_ascii_digit());
        if !line.is_empty() && !is_header {
            let shape = line.parse().map_err(|e| anyhow::Error::msg(format!("line {}: {e}", i + 1)))?;
            shapes.push(shape);
        }
    }
    ensure!(!shapes.is_empty(), "wanted lines M,N,K, found none");
    Ok(shapes)
}

/// Whether a file begins as assembled programs do.
fn is_program(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    // Opening a pipe would wait for its other end.
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut begin).is_ok())
        && begin == MAGIC
}

/// The NPU program in a file: one that was assembled, or the code of an artifact. `None`: the artifact is for a CPU.
pub fn program(path: &Path) -> anyhow::Result<Option<Program>> {
    let place = || path.display().to_string();
    if is_program(path) {
        let bytes = crate::npy::read_file(path, MAX_PROGRAM_BYTES)?;
        return Ok(Some(Program::from_bytes(&bytes).with_context(place)?));
    }
    let file = engine::artifact(path)?;
    let artifact = file.artifact();
    if artifact.manifest().isa != Isa::Npu {
        return Ok(None);
    }
    let place = || format!("{}: code", path.display());
    Ok(Some(Program::from_bytes(artifact.code()).with_context(place)?))
}

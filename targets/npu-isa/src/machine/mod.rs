//! Machines: what a TOML file says about one, checked.
//!
//! ```
//! use lapidary_npu_isa::machine::Machine;
//! let mut machine = Machine::preset("edge-16").unwrap();
//! machine.set("matrix.weight_overlap", "true").unwrap();
//! assert_eq!(machine.matrix.rows, 16);
//! ```

mod dram;
mod keys;
#[cfg(feature = "std")]
mod toml_file;

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use sha2::{Digest, Sha256};

pub use dram::DramPreset;
use keys::Given;
pub use keys::{
    Accumulators, DmaEngine, Dram, Energy, KEYS, KeyKind, KeyRow, Machine, MatrixUnit, QueueUnit, RouteUnit,
    Scratchpad, Sequencer, VectorUnit, WeightBuffer,
};
#[cfg(feature = "std")]
pub use toml_file::PRESETS;

/// What is wrong with a machine: which key, what would be right, what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineError {
    /// The key, or the line of a file that is no TOML.
    pub key: String,
    /// What would be right.
    pub wanted: String,
    /// What it is.
    pub found: String,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine, {}: wanted {}, found {}", self.key, self.wanted, self.found)
    }
}

impl core::error::Error for MachineError {}

impl MachineError {
    fn new(key: &str, wanted: impl Into<String>, found: impl ToString) -> Self {
        // A key of a hostile file may be long.
        let key = key.chars().take(80).collect();
        Self { key, wanted: wanted.into(), found: found.to_string() }
    }

    fn value(row: &KeyRow, given: Given<'_>) -> Self {
        Self::new(row.name, row.kind.to_string(), given)
    }

    fn missing(row: &KeyRow) -> Self {
        Self::new(row.name, row.kind.to_string(), "nothing")
    }

    fn unknown(key: &str) -> Self {
        let key: String = key.chars().take(80).collect();
        let (section, last) = key.rsplit_once('.').unwrap_or(("", &key));
        let same_section = KEYS.iter().filter(|k| k.name.rsplit_once('.').map_or("", |(s, _)| s) == section);
        let same_name = KEYS.iter().filter(|k| k.name.rsplit_once('.').map_or(k.name, |(_, n)| n) == last);
        let near: alloc::vec::Vec<&str> = same_name.chain(same_section).map(|k| k.name).take(16).collect();
        let wanted = match near.is_empty() {
            true => "a key of ISA.md's table".into(),
            false => format!("a key such as {}", near.join(", ")),
        };
        Self::new(&key, wanted, "an unknown key")
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyKind::Number(least, most) => write!(f, "an integer from {least} to {most}"),
            KeyKind::Flag => f.write_str("true or false"),
            KeyKind::Preset => f.write_str("ideal, lpddr4, lpddr5, ddr4 or custom"),
        }
    }
}

impl Machine {
    /// What reports call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows of the accumulators.
    pub const fn accumulator_rows(&self) -> u64 {
        self.accumulators.bytes / (4 * self.matrix.cols)
    }

    /// Bytes of a bank of the scratchpad.
    pub const fn bank_bytes(&self) -> u64 {
        self.scratchpad.bytes / self.scratchpad.banks
    }

    /// Sets one key, as `--set` does: `("matrix.weight_overlap", "true")`. `dram.preset` sets all of its section. The
    /// machine stays as it was if that makes no machine.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), MachineError> {
        self.set_all([(key, value)])
    }

    /// Sets keys in order; only after the last they have to make a machine.
    pub fn set_all<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), MachineError> {
        let mut changed = self.clone();
        for (key, value) in pairs {
            changed.apply(key, value)?;
        }
        changed.check()?;
        *self = changed;
        Ok(())
    }

    /// `key=value`, as on the command line.
    pub fn pair(pair: &str) -> Result<(&str, &str), MachineError> {
        let cut = pair.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        cut.ok_or_else(|| MachineError::new(pair, "key=value", "no `=`"))
    }

    /// From the keys and values of [`Machine::settings`], every key once.
    pub fn from_settings<'a>(
        name: &str,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Machine, MachineError> {
        let mut machine = Machine::empty();
        machine.name = name.chars().take(80).collect();
        let mut values = [None; KEYS.len()];
        for (key, value) in settings {
            let place = KEYS.iter().position(|row| row.name == key).ok_or_else(|| MachineError::unknown(key))?;
            if values[place].replace(value).is_some() {
                return Err(MachineError::new(key, "one value", "two"));
            }
        }
        // In the order of the table the preset comes before what it sets.
        for (row, value) in KEYS.iter().zip(values) {
            machine.apply(row.name, value.ok_or_else(|| MachineError::missing(row))?)?;
        }
        machine.check()?;
        Ok(machine)
    }

    /// Sets one key, whatever that makes.
    fn apply(&mut self, key: &str, value: &str) -> Result<(), MachineError> {
        let row = KEYS.iter().find(|row| row.name == key).ok_or_else(|| MachineError::unknown(key))?;
        let given = match (value, value.replace('_', "").parse::<u64>()) {
            ("true", _) => Given::Flag(true),
            ("false", _) => Given::Flag(false),
            (_, Ok(n)) => Given::Number(n.into()),
            (text, Err(_)) => Given::Text(text),
        };
        self.store(row, given)?;
        if let (KeyKind::Preset, Some(values)) = (row.kind, self.dram.preset.values()) {
            self.dram = values;
        }
        Ok(())
    }

    /// SHA-256 of all keys and values, in the order of [`KEYS`], as lines `key=value`. The name is no part of it.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for (row, value) in self.settings() {
            hasher.update(row.name.as_bytes());
            hasher.update(b"=");
            hasher.update(value.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize().into()
    }

    /// What no single key's bounds say.
    fn check(&self) -> Result<(), MachineError> {
        let bank = |what| MachineError::new("scratchpad.banks", what, self.scratchpad.banks);
        if !self.scratchpad.bytes.is_multiple_of(self.scratchpad.banks) || !self.bank_bytes().is_multiple_of(32) {
            return Err(bank("a number that divides scratchpad.bytes into multiples of 32 bytes"));
        }
        let row_bytes = 4 * self.matrix.cols;
        if !self.accumulators.bytes.is_multiple_of(row_bytes) {
            let wanted = format!("a multiple of 4·matrix.cols = {row_bytes}");
            return Err(MachineError::new("accumulators.bytes", wanted, self.accumulators.bytes));
        }
        if self.weights.bytes < self.matrix.rows * self.matrix.cols {
            let wanted = format!("at least a tile, matrix.rows·matrix.cols = {}", self.matrix.rows * self.matrix.cols);
            return Err(MachineError::new("weights.bytes", wanted, self.weights.bytes));
        }
        if !self.dma.burst_bytes.is_power_of_two() {
            return Err(MachineError::new("dma.burst_bytes", "a power of two", self.dma.burst_bytes));
        }
        if !self.dram.row_bytes.is_multiple_of(self.dma.burst_bytes) {
            let wanted = format!("a multiple of dma.burst_bytes = {}", self.dma.burst_bytes);
            return Err(MachineError::new("dram.row_bytes", wanted, self.dram.row_bytes));
        }
        let (refi, rfc) = (self.dram.trefi_ps, self.dram.trfc_ps);
        // Whatever begins behind a refresh has to end before the next, or it would never happen.
        let longest = self.dram.trp_ps.max(self.dram.tras_ps)
            + self.dram.trp_ps
            + self.dram.trcd_ps
            + self.dram.tcl_ps
            + self.burst_ps();
        if refi != 0 && refi <= rfc + longest {
            let wanted = format!("0, or more than trfc_ps and the longest access together, {}", rfc + longest);
            return Err(MachineError::new("dram.trefi_ps", wanted, refi));
        }
        Ok(())
    }

    /// tB: time of a request on the data bus, in ps, rounded up.
    pub const fn burst_ps(&self) -> u64 {
        // burst_bytes · 8 bits over bus_bits lines at rate_mts · 10⁶ per second.
        (self.dma.burst_bytes * 8 * 1_000_000).div_ceil(self.dram.bus_bits * self.dram.rate_mts)
    }
}

//! Machine files.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::{Table, Value};

use super::keys::{Given, KEYS, KeyKind, Machine};
use super::{DramPreset, MachineError};

/// Names and texts of the machines that come with the crate.
pub const PRESETS: &[(&str, &str)] = &[
    ("edge-16", include_str!("../../machines/edge-16.toml")),
    ("edge-32", include_str!("../../machines/edge-32.toml")),
    ("mobile-64", include_str!("../../machines/mobile-64.toml")),
];

/// A machine file is smaller than that.
const MOST_BYTES: usize = 1 << 20;

fn given(value: &Value) -> Given<'_> {
    match value {
        Value::String(s) => Given::Text(s),
        Value::Integer(n) => Given::Number((*n).into()),
        Value::Boolean(b) => Given::Flag(*b),
        Value::Float(_) => Given::Other("a number with a fraction"),
        Value::Datetime(_) => Given::Other("a date"),
        Value::Array(_) => Given::Other("a list"),
        Value::Table(_) => Given::Other("a table"),
    }
}

impl Machine {
    /// A machine that comes with the crate.
    pub fn preset(name: &str) -> Result<Machine, MachineError> {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        let text = PRESETS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
        let text = text.ok_or_else(|| MachineError::new("preset", names.join(", "), format!("{name:?}")))?;
        Machine::parse(text)
    }

    /// From the text of a machine file.
    pub fn parse(text: &str) -> Result<Machine, MachineError> {
        if text.len() > MOST_BYTES {
            return Err(MachineError::new("file", format!("at most {MOST_BYTES} bytes"), text.len()));
        }
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let begin = e.span().map_or(0, |s| s.start.min(text.len()));
            let line = 1 + text.as_bytes()[..begin].iter().filter(|b| **b == b'\n').count();
            let message: String = e.message().chars().take(200).collect();
            MachineError::new(&format!("line {line}"), "TOML", message.replace('\n', " "))
        })?;
        let mut machine = Machine::empty();
        let mut flat: Vec<(String, &Value)> = Vec::new();
        for (name, value) in &table {
            match value {
                Value::Table(section) => flat.extend(section.iter().map(|(key, v)| (format!("{name}.{key}"), v))),
                Value::String(text) if name == "name" => machine.name = text.chars().take(80).collect(),
                other => flat.push((name.clone(), other)),
            }
        }
        if machine.name.is_empty() {
            let found =
                flat.iter().find(|(key, _)| key == "name").map_or("nothing".into(), |(_, v)| given(v).to_string());
            return Err(MachineError::new("name", "a text", found));
        }
        if let Some((key, _)) = flat.iter().find(|(key, _)| !KEYS.iter().any(|row| row.name == key)) {
            return Err(MachineError::unknown(key));
        }
        let find = |key: &str| flat.iter().find(|(k, _)| k == key).map(|(_, v)| *v);
        if let Some(row) = KEYS.iter().find(|row| row.kind == KeyKind::Preset) {
            let preset = find(row.name).ok_or_else(|| MachineError::missing(row))?;
            machine.store(row, given(preset))?;
            if let Some(values) = machine.dram.preset.values() {
                machine.dram = values;
            }
        }
        for row in KEYS {
            match find(row.name) {
                Some(value) => machine.store(row, given(value))?,
                None if row.name.starts_with("dram.") && machine.dram.preset != DramPreset::Custom => (),
                None => return Err(MachineError::missing(row)),
            }
        }
        machine.check()?;
        Ok(machine)
    }
}

//! Machines: by name, by file, and as text.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_npu_isa::Machine;
use lapidary_npu_isa::machine::PRESETS;

use crate::failure::Usage;
use crate::ui;

/// Longest machine file.
const MAX_MACHINE_BYTES: u64 = 1 << 20;

fn wrong(what: &str, error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Usage(format!("{what}: {error}")))
}

/// A machine by its name or its file, with `key=value` overrides in order; `option` is what named it.
pub fn machine(option: &str, name: &str, overrides: &[String]) -> anyhow::Result<Machine> {
    let mut machine = if PRESETS.iter().any(|(preset, _)| *preset == name) {
        Machine::preset(name)?
    } else if Path::new(name).extension().is_some_and(|e| e == "toml") {
        let text = ui::read_text(Path::new(name), MAX_MACHINE_BYTES)?;
        Machine::parse(&text).map_err(|e| wrong(name, &e))?
    } else {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        bail!(Usage(format!(
            "{option}: wanted one of {}, or a machine's .toml file, found `{name}`",
            names.join(", ")
        )));
    };
    set(&mut machine, overrides)?;
    Ok(machine)
}

/// Applies `key=value` overrides in order.
pub fn set(machine: &mut Machine, overrides: &[String]) -> anyhow::Result<()> {
    let pairs: Vec<_> = overrides
        .iter()
        .map(|text| Machine::pair(text).map_err(|e| wrong("--set", &e)))
        .collect::<anyhow::Result<_>>()?;
    machine.set_all(pairs).map_err(|e| wrong("--set", &e))
}

/// A machine file that describes exactly this machine: every key, none left to a preset.
pub fn machine_toml(machine: &Machine) -> anyhow::Result<String> {
    let mut text = format!("name = {}\n", serde_json::to_string(machine.name())?);
    let mut section = "";
    for (row, value) in machine.settings() {
        let key = match row.name.split_once('.') {
            Some((name, key)) => {
                if name != section {
                    text.push_str(&format!("\n[{name}]\n"));
                    section = name;
                }
                key
            }
            None => row.name,
        };
        let is_bare = value == "true" || value == "false" || value.bytes().all(|b| b.is_ascii_digit());
        text.push_str(&if is_bare { format!("{key} = {value}\n") } else { format!("{key} = \"{value}\"\n") });
    }
    let again = Machine::parse(&text).with_context(|| format!("machine {}: its description", machine.name()))?;
    ensure!(again == *machine, "machine {}: wanted a description of itself, found one of another", machine.name());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_describe_the_machine_whatever_was_set() {
        for (name, _) in PRESETS {
            let mut machine = Machine::preset(name).unwrap();
            assert_eq!(Machine::parse(&machine_toml(&machine).unwrap()).unwrap(), machine);
            machine.set("dram.tcl_ps", "12345").unwrap();
            machine.set("matrix.weight_overlap", "true").unwrap();
            let again = Machine::parse(&machine_toml(&machine).unwrap()).unwrap();
            assert_eq!((again.hash(), again.name()), (machine.hash(), machine.name()));
        }
    }
}

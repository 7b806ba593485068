//! What `lapidary inspect` adds of an artifact for an NPU: machine, programs, segments.

use lapidary_npu_isa::Program;
use lapidary_npu_isa::program::Segment;
use serde_json::{Map, Value, json};

use crate::npu::Compiled;
use crate::ui::{bytes, table};

/// For people.
pub fn print_text(compiled: &Compiled) {
    let machine = &compiled.machine;
    println!(
        "\nmachine: {}, {} × {} array, {} MHz, scratchpad {}, weight buffer {}, DRAM {} ({})",
        machine.name(),
        machine.matrix.rows,
        machine.matrix.cols,
        machine.clock_mhz,
        bytes(machine.scratchpad.bytes),
        bytes(machine.weights.bytes),
        bytes(machine.dram.bytes),
        machine.dram.preset.name()
    );
    let rows = compiled.programs().map(|(name, program)| {
        let ops = program.op_labels.iter().filter(|label| !label.name.is_empty()).count();
        vec![name.to_string(), program.instructions.len().to_string(), ops.to_string()]
    });
    println!("{}\n", table(&["program", ">instructions", ">op labels"], rows));
    let rows = segments(compiled).into_iter().map(|(s, programs)| {
        vec![s.name.clone(), format!("{:#x}", s.address), s.len_bytes.to_string(), s.bytes.len().to_string(), programs]
    });
    println!("{}", table(&["segment", ">address", ">bytes", ">with contents", "in"], rows));
}

/// Segments of both programs by address, and which programs have them.
fn segments(compiled: &Compiled) -> Vec<(&Segment, String)> {
    let mut all: Vec<(&Segment, String)> = Vec::new();
    for (name, program) in compiled.programs() {
        for segment in &program.segments {
            match all.iter_mut().find(|(s, _)| s.name == segment.name && s.address == segment.address) {
                Some((_, programs)) => *programs = format!("{programs}, {name}"),
                None => all.push((segment, name.to_string())),
            }
        }
    }
    all.sort_by_key(|(segment, _)| segment.address);
    all
}

/// For programs.
pub fn to_json(compiled: &Compiled) -> Value {
    let machine: Map<String, Value> = compiled
        .machine
        .settings()
        .map(|(row, value)| {
            let value = match (value.as_str(), value.parse::<u64>()) {
                ("true" | "false", _) => (value == "true").into(),
                (_, Ok(number)) => number.into(),
                (_, Err(_)) => value.into(),
            };
            (row.name.to_string(), value)
        })
        .collect();
    let program = |(name, program): (&str, &Program)| json!({ "name": name, "instructions": program.instructions.len(), "op_labels": program.op_labels.len() });
    let segments: Vec<Value> = segments(compiled)
        .into_iter()
        .map(|(s, programs)| {
            json!({ "name": s.name, "address": s.address, "bytes": s.len_bytes, "contents": s.bytes.len(), "in": programs })
        })
        .collect();
    json!({
        "machine": { "name": compiled.machine.name(), "settings": machine },
        "programs": compiled.programs().map(program).collect::<Vec<_>>(),
        "segments": segments,
    })
}

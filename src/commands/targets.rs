//! `lapidary targets`.

use std::process::ExitCode;

#[cfg(feature = "npu")]
use lapidary_npu_isa::{Machine, machine::PRESETS};
use lapidary_target_cpu::{CPU_TARGETS, CpuTarget};
use serde_json::json;

use crate::cli::{Format, ListArgs};
use crate::ui::table;

/// The machines that come with the command.
#[cfg(feature = "npu")]
fn npus() -> impl Iterator<Item = Machine> {
    PRESETS.iter().filter_map(|(name, _)| Machine::preset(name).ok())
}

#[cfg(feature = "npu")]
fn array(machine: &Machine) -> String {
    format!("{} × {} array", machine.matrix.rows, machine.matrix.cols)
}

/// Lists the targets.
pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let rows: Vec<_> = CPU_TARGETS.iter().filter_map(|row| Some((row, CpuTarget::by_name(row.name)?))).collect();
    let features = |t: &CpuTarget| t.features.iter().map(|f| f.name()).collect::<Vec<_>>();
    match args.format {
        Format::Text => {
            let rows = rows.iter().map(|(row, target)| {
                vec![
                    row.name.to_string(),
                    target.architecture.name().to_string(),
                    features(target).join(" "),
                    row.doc.to_string(),
                ]
            });
            #[cfg(feature = "npu")]
            let rows = rows.chain(npus().map(|machine| {
                vec![
                    format!("npu:{}", machine.name()),
                    "npu".into(),
                    array(&machine),
                    "see ISA.md; also npu:FILE.toml".into(),
                ]
            }));
            println!("{}", table(&["target", "architecture", "features", "what"], rows));
        }
        Format::Json => {
            let targets: Vec<_> = rows
                .iter()
                .map(|(row, target)| {
                    json!({
                        "name": row.name,
                        "architecture": target.architecture.name(),
                        "features": features(target),
                        "page_bytes": target.page_bytes,
                        "doc": row.doc,
                    })
                })
                .collect();
            #[cfg(feature = "npu")]
            let machines: Vec<_> = npus()
                .map(|machine| {
                    json!({
                        "name": format!("npu:{}", machine.name()),
                        "array": array(&machine),
                        "clock_mhz": machine.clock_mhz,
                        "scratchpad_bytes": machine.scratchpad.bytes,
                        "dram": machine.dram.preset.name(),
                    })
                })
                .collect();
            #[cfg(not(feature = "npu"))]
            let machines: Vec<serde_json::Value> = Vec::new();
            println!("{:#}", json!({ "schema": "lapidary.targets/1", "targets": targets, "npus": machines }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `lapidary targets`.

use std::process::ExitCode;

use lapidary_target_cpu::{CPU_TARGETS, CpuTarget};
use serde_json::json;

use crate::cli::{Format, ListArgs};
use crate::ui::table;

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
            println!("{:#}", json!({ "schema": "lapidary.targets/1", "targets": targets }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

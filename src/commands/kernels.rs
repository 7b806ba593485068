//! `lapidary kernels`.

use std::process::ExitCode;

use lapidary_kernels::{KernelRow, kernels};
use lapidary_runtime::Host;
use serde_json::json;

use crate::cli::{Format, ListArgs};
use crate::ui::table;

/// Lists the kernel table.
pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let here = Host::detect().features();
    let runs = |row: &KernelRow| row.function().is_some() && here.contains(row.required());
    let features = |row: &KernelRow| row.required().iter().map(|f| f.name()).collect::<Vec<_>>();
    match args.format {
        Format::Text => {
            let rows = kernels().iter().map(|row| {
                let here = if runs(row) { "yes" } else { "" };
                vec![row.name.into(), here.into(), features(row).join(" "), row.doc.into()]
            });
            println!("{}", table(&["kernel", "runs here", "features", "what"], rows));
        }
        Format::Json => {
            let rows: Vec<_> = kernels()
                .iter()
                .map(|row| {
                    json!({
                        "name": row.name,
                        "op": row.op.name(),
                        "isa": row.isa.name(),
                        "weights": row.weight.name(),
                        "mr": row.tile.mr,
                        "nr": row.tile.nr,
                        "kr": row.tile.kr,
                        "features": features(row),
                        "runs_here": runs(row),
                        "doc": row.doc,
                    })
                })
                .collect();
            println!("{:#}", json!({ "schema": "lapidary.kernels/1", "kernels": rows }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

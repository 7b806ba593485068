//! `lapidary passes`.

use std::process::ExitCode;

use lapidary_compiler::passes;
use serde_json::json;

use crate::cli::{Format, ListArgs};
use crate::ui::table;

/// Lists the pipeline in order.
pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    match args.format {
        Format::Text => {
            let rows =
                passes::passes().iter().map(|row| vec![row.name.into(), row.phase.name().into(), row.doc.into()]);
            println!("{}", table(&["pass", "phase", "what"], rows));
        }
        Format::Json => {
            let rows: Vec<_> = passes::passes()
                .iter()
                .map(|row| json!({ "name": row.name, "phase": row.phase.name(), "doc": row.doc }))
                .collect();
            println!("{:#}", json!({ "schema": "lapidary.passes/1", "passes": rows }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

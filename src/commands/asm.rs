//! `lapidary asm`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use lapidary_format::replace_file;
use lapidary_npu_isa::{asm::assemble, verify::verify};

use crate::cli::AsmArgs;
use crate::model::create_folder_of;
use crate::npu;
use crate::ui::{self, bytes};

/// Longest text.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Assembles a program, verifies it for a machine if one is named, and writes it.
pub fn run(args: &AsmArgs) -> anyhow::Result<ExitCode> {
    let source = || args.source.display().to_string();
    let text = ui::read_text(&args.source, MAX_TEXT_BYTES)?;
    let program = assemble(&text).with_context(source)?;
    let verified = match &args.machine {
        Some(name) => {
            let machine = npu::machine("--machine", name, &args.set)?;
            let verified = verify(&program, &machine).with_context(source)?;
            let (paths, iterations) = (verified.paths, verified.iterations);
            format!(
                ", verified for {}: races looked for on {paths} paths with {iterations} iterations of a loop",
                machine.name()
            )
        }
        None => String::new(),
    };
    let file = program.to_bytes()?;
    create_folder_of(&args.output)?;
    replace_file(&args.output, |out| out.write_all(&file))
        .with_context(|| format!("{}: cannot be written", args.output.display()))?;
    let (instructions, data) = (program.instructions.len(), program.segments.iter().map(|s| s.len_bytes).sum());
    println!("{instructions} instructions, {} of DRAM{verified}", bytes(data));
    Ok(ExitCode::SUCCESS)
}

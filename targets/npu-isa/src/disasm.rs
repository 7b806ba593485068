//! The disassembler: a program as text that assembles to the same bytes.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use crate::operand::Operand;
use crate::program::{Label, Program};
use crate::table::Op;

/// Bytes of contents in a line.
const LINE_BYTES: usize = 16;

/// Text of a program. With `words`, each instruction has its position and its word as a comment.
pub fn disassemble(program: &Program, words: bool) -> String {
    let mut out = String::new();
    if let Some(hash) = &program.machine_hash {
        let digits: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, ".machine {digits}");
    }
    for segment in &program.segments {
        if segment.bytes.is_empty() {
            let _ = writeln!(out, ".space {}, {}, at={}", segment.name, segment.len_bytes, segment.address);
            continue;
        }
        let _ = writeln!(out, ".data {}, at={}", segment.name, segment.address);
        contents(&mut out, &segment.bytes);
        let zeros = segment.len_bytes.saturating_sub(segment.bytes.len() as u64);
        if zeros > 0 {
            let _ = writeln!(out, ".zero {zeros}");
        }
    }
    let mut labels = program.labels.iter().peekable();
    let mut op_labels = program.op_labels.iter().peekable();
    let mut depth = 0usize;
    for (at, instruction) in program.instructions.iter().enumerate() {
        while let Some(label) = op_labels.next_if(|l| l.at as usize <= at) {
            let module = label.module.map_or(String::new(), |r| format!(", module={r}"));
            let _ = writeln!(out, ".op \"{}\"{module}", label.name);
        }
        while let Some(label) = labels.next_if(|l| l.at as usize <= at) {
            let _ = writeln!(out, "{}:", label.name);
        }
        let ends = matches!(instruction.op, Op::End(_));
        depth = depth.saturating_sub(usize::from(ends));
        let mut text = format!("{instruction}");
        if let Some(skipped) = distance(&instruction.op)
            && let Some(label) = label_at(program, at + 1 + skipped as usize)
        {
            // The distance is the last operand of branches.
            let end = text.len() - crate::operand::Distance(skipped).print().len();
            text.truncate(end);
            text += &label.name;
        }
        let _ = write!(out, "{:indent$}{text}", "", indent = 4 + 2 * depth.min(8));
        match instruction.encode() {
            Ok(word) if words => {
                let _ = writeln!(out, "  ; {at}: {word:032x}");
            }
            Ok(_) | Err(_) => out.push('\n'),
        }
        depth += usize::from(matches!(instruction.op, Op::Loop(_)));
    }
    out
}

fn label_at(program: &Program, at: usize) -> Option<&Label> {
    let first = program.labels.partition_point(|l| (l.at as usize) < at);
    program.labels.get(first).filter(|l| l.at as usize == at)
}

fn distance(op: &Op) -> Option<u32> {
    match op {
        Op::Branch(branch) => Some(branch.target.0),
        Op::SkipIfZero(skip) => Some(skip.target.0),
        _ => None,
    }
}

/// Contents as `.u8` lines, long runs of one byte as `.fill`.
fn contents(out: &mut String, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|b| *b == first).count();
        if run > LINE_BYTES {
            let _ = writeln!(out, ".fill u8, {first}, {run}");
            rest = &rest[run..];
            continue;
        }
        let (line, behind) = rest.split_at(rest.len().min(LINE_BYTES));
        let numbers: alloc::vec::Vec<String> = line.iter().map(|b| format!("{b}")).collect();
        let _ = writeln!(out, ".u8 {}", numbers.join(", "));
        rest = behind;
    }
}

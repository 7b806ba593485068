//! The part of `ISA.md` that the tables say: cost classes, machine keys, formats and instructions.

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use crate::choice::Queue;
use crate::cost::CostClass;
use crate::format::{FieldRow, OPERANDS_AT};
use crate::machine::{KEYS, KeyKind};
use crate::operand::Position;
use crate::table::{ROWS, Row};

/// The line of `ISA.md` behind which all is generated.
pub const BEGIN: &str = "### Cost classes\n";

fn syntax(row: &Row) -> String {
    let mut text = String::from(row.mnemonic);
    let mut first = true;
    for FieldRow { name, kind, position, .. } in row.fields {
        let operand = match position {
            Position::Implied => continue,
            Position::Positional => (*name).into(),
            Position::Named => format!("{name}={kind}"),
            Position::Optional if *kind == "flag" => format!("[{name}]"),
            Position::Optional => format!("[{name}={}]", kind.trim_end_matches('?')),
        };
        let _ = write!(text, "{} {operand}", if first { "" } else { "," });
        first = false;
    }
    text
}

fn bits(row: &Row) -> String {
    let mut at = OPERANDS_AT;
    let mut text = String::new();
    for FieldRow { name, bits, kind, .. } in row.fields {
        let range = if *bits == 1 { format!("{at}") } else { format!("{at}–{}", at + bits - 1) };
        let _ =
            write!(text, "{}{name} {range} ({})", if text.is_empty() { "" } else { ", " }, kind.trim_end_matches('?'));
        at += bits;
    }
    if text.is_empty() { "none".into() } else { text }
}

/// Everything from [`BEGIN`] on.
pub fn reference() -> String {
    let mut out = String::from(BEGIN);
    out += "\n| class | what | cycles |\n|---|---|---|\n";
    for class in CostClass::ALL {
        let _ = writeln!(out, "| {} | {} | {} |", class.name(), class.about().trim(), class.formula());
    }
    out += "\n## Machine files\n\nTOML. `name` and every key of this table has to be there, no other may be; of `dram`, only `preset` has to (unless \
            it is `custom`), and what is given replaces the preset's. Machines that come with the crate: \
            [edge-16](targets/npu-isa/machines/edge-16.toml), [edge-32](targets/npu-isa/machines/edge-32.toml), \
            [mobile-64](targets/npu-isa/machines/mobile-64.toml), with the source of each number. The hash of a machine is \
            SHA-256 of the lines `key=value` of this table, in its order.\n\n";
    out += "| key | what | values |\n|---|---|---|\n";
    for row in KEYS {
        let values = match row.kind {
            KeyKind::Number(least, most) => format!("{least} to {most}"),
            KeyKind::Flag => "true, false".into(),
            KeyKind::Preset => "ideal, lpddr4, lpddr5, ddr4, custom".into(),
        };
        let _ = writeln!(out, "| `{}` | {} | {values} |", row.name, row.about.trim());
    }
    out += "\nBesides: banks divide the scratchpad into multiples of 32 bytes; `accumulators.bytes` is a multiple of 4·C; the weight buffer holds a \
            tile of R·C bytes; `dma.burst_bytes` is a power of two that divides `dram.row_bytes`; between two refreshes the longest access fits.\n";
    out += OPERANDS;
    for (queue, title) in [
        (Queue::Sequencer, "Sequencer"),
        (Queue::Load, "LOAD"),
        (Queue::Store, "STORE"),
        (Queue::Matrix, "MATRIX"),
        (Queue::Vector, "VECTOR"),
        (Queue::Route, "ROUTE"),
    ] {
        let _ = writeln!(out, "\n### {title}");
        for row in ROWS.iter().filter(|r| r.queue == queue) {
            let _ = write!(
                out,
                "\n#### `{}`\n\n    {}{}\n\nOpcode {:#04x}, format {}, class {}. Bits: {}.\n\n{}\n",
                row.mnemonic,
                syntax(row),
                if row.has_tokens() { " [wait(t, t)] [post(t, t)]" } else { "" },
                row.opcode,
                row.format,
                row.class.name(),
                bits(row),
                row.about.lines().map(|l| l.trim()).collect::<alloc::vec::Vec<_>>().join("\n"),
            );
        }
    }
    out
}

const OPERANDS: &str = "
## Instructions

Positional operands come first, in order; then `name=value`, in any order; what is in brackets may be left out. `wait(…)` and
`post(…)` stand behind all operands.

| kind | text | bits |
|---|---|---|
| rd | `r1` to `r31` | 5 |
| reg | `r0` to `r31`; `r1` to `r31` where it may be left out (0) | 5 |
| sizeN | `0` to 2^N − 1: the number, top bit 0; `r1` to `r31`: its number, top bit 1 | N + 1 |
| term | an integer of 32 bits: its two's complement, top bit 0; `r0` to `r31`: its number, top bit 1 | 33 |
| imm64 | an integer of 64 bits, or `0.5f`: the pattern of an f32 | 64 |
| imm32 | 0 to 2^32 − 1 | 32 |
| sp, w | `sp[r1+64]`: base register (0: none) in the low 5 bits, then constant/32 | 20 |
| sp\\|w | the same, and 1 bit: 0 scratchpad, 1 weight buffer | 21 |
| acc | `acc[r1+4]`: base register, then the constant | 17 |
| dram | `dram[r1+64]`: base register, then constant/64 | 24 |
| type | `f32` (0, the default), `f16`, `i8`, `i32` | 2 |
| broadcast | which elements of b: `full` (0, `b[i, j]`), `row` (`b[0, j]`), `column` (`b[i, 0]`), `scalar` (`b[0, 0]`) | 2 |
| codes | `i8` (0), `i4` | 1 |
| condition | `eq` (0), `ne`, `lt`, `ge`, signed | 2 |
| queue | `sequencer` (0), `load`, `store`, `matrix`, `vector`, `route` | 3 |
| flag | its name, or nothing | 1 |
| label | a label further down, or `.+N`: instructions that are skipped | 24 |
| length | not written: instructions between `loop` and its `end` | 24 |

Counts that are left out are 1, strides dense. Strides are in bytes. Streaming operands (rule S3) are, of instructions of VECTOR: all `a`, `b`,
`src` and `dst` with one element or more per column, but not `b` with `broadcast=column` or `scalar`, not `dst` of row and column reductions, not
`dst` of `v.dot_rows` nor `a` of `v.mix_rows`; and `w` of `v.rms_norm`. Scales, gates, tables, lists and accumulators are none.
";

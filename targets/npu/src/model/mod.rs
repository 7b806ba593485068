//! Whole models: from a fused graph to programs for prefill and decode, and the image of weights that they read.
//!
//! Each op of the graph becomes instructions of its own, in the graph's order ([`ops`](self)): what an op reads and writes
//! has a home (`homes`) in the scratchpad or, where that is too small, in DRAM, from which it passes through the scratchpad
//! block by block (`stream`). Two ops that meet in memory are ordered by tokens (`order`, `flow`), and only those: weights of the
//! next op come while this one computes. `weights` and `layout` say what lies where in DRAM.

mod context;
mod flow;
mod homes;
mod layout;
mod ops;
mod order;
mod scratch;
mod stream;
mod vector;
mod weights;

use std::io::Write;

use lapidary_compiler::ir::{DType, Graph, Node, NodeId, WeightReader};
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::{Machine, Program};

use self::context::Context;
use self::flow::{Flow, Matrix, of_all_layers};
use self::homes::{Homes, Room};
use self::layout::{CALL_BYTES, Layout};
use self::order::{Area, Space};
use self::scratch::Scratch;
pub use self::weights::WeightImage;
use crate::builder::{Builder, Value};
use crate::error::LowerError;

/// How long sequences and calls may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
}

/// How many rows an output has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputRows {
    /// One per token of the call.
    Tokens,
    /// As many as the call asks for.
    OutputRows,
    /// One.
    One,
}

/// A result that the host may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOutput {
    /// The graph's name for it: `logits`.
    pub name: String,
    /// The segment in which it lies, rows dense: `out.logits`.
    pub segment: String,
    /// F32 or U8.
    pub element: DType,
    /// How many rows it has.
    pub rows: OutputRows,
    /// Elements of a row.
    pub cols: u64,
}

/// What a model takes on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSummary {
    /// Largest use of the scratchpad, in bytes.
    pub scratchpad_bytes: u64,
    /// Values that do not stay in the scratchpad between ops, in DRAM.
    pub arena_bytes: u64,
    /// State that survives between calls.
    pub state_bytes: u64,
    /// What is moved more often than once in prefill, and why.
    pub reread: Vec<String>,
    /// Rows of the array that groups of int4 weights leave idle, if any.
    pub idle: Option<String>,
}

/// A model as programs.
#[derive(Clone, Debug)]
pub struct NpuModel {
    /// What it is for.
    pub machine: Machine,
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
    /// Any number of tokens up to the chunk.
    pub prefill: Program,
    /// One token; `None`: the model cannot generate.
    pub decode: Option<Program>,
    /// What calls give.
    pub outputs: Vec<ModelOutput>,
    /// Length of the image of weights, which begins at DRAM address 0.
    pub weight_bytes: u64,
    /// What it takes.
    pub summary: ModelSummary,
    /// What the image of weights is made of.
    pub image: WeightImage,
}

impl NpuModel {
    /// Writes the image of weights; `progress` is told how many bytes are written.
    ///
    /// # Errors
    /// A weight that cannot be read, or `out` that cannot be written.
    pub fn write_weights(
        &self,
        reader: &WeightReader<'_>,
        out: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<(), LowerError> {
        self.image.write(reader, out, progress)
    }
}

/// What reports call a node.
fn label(node: &Node) -> &str {
    if node.label.is_empty() { node.op.row().name } else { &node.label }
}

/// Parts of the scratchpad for values that stay there, of 16, and whether working memory is handed out in turn: tried in this
/// order until an op's working memory suffices.
const SPLITS: &[(u64, bool)] =
    &[(13, true), (12, true), (10, true), (8, true), (6, true), (4, true), (2, true), (1, true), (0, true), (0, false)];

/// Lowers a graph that all passes have been through.
///
/// # Errors
/// An op that the NPU cannot do, a memory of the machine that is too small.
pub fn lower_model(graph: &Graph, machine: &Machine, options: &ModelOptions) -> Result<NpuModel, LowerError> {
    let (max_tokens, chunk_tokens) = (options.max_tokens, options.chunk_tokens);
    if chunk_tokens == 0 || chunk_tokens > max_tokens {
        return Err(LowerError::argument("chunk_tokens", format!("1 to max_tokens = {max_tokens}"), chunk_tokens));
    }
    let weights = WeightImage::new(graph, machine, max_tokens);
    let outputs = layout::outputs(graph);
    let layout = Layout::new(graph, &weights, &outputs, max_tokens, Room::new(chunk_tokens));
    let entries = |machine: &Machine| -> Result<(Entry, Option<Entry>), LowerError> {
        let entry = |tokens: u64| entry(graph, machine, &weights, &layout, max_tokens, tokens);
        let decode = graph.info.why_no_decode.is_none().then(|| entry(1)).transpose()?;
        Ok((entry(chunk_tokens)?, decode))
    };
    let (prefill, decode) = match entries(machine) {
        Ok(entries) => entries,
        Err(LowerError::TooSmall { what, memory: Memory::Scratchpad, .. }) => {
            let wanted = least_scratchpad(machine, |machine| entries(machine).is_ok());
            let (memory, found) = (Memory::Scratchpad, machine.scratchpad.bytes);
            return Err(LowerError::TooSmall { what, memory, wanted, found });
        }
        Err(error) => return Err(error),
    };
    let arena_bytes = prefill.arena_bytes.max(decode.as_ref().map_or(0, |d| d.arena_bytes));
    let segments = layout.segments(machine, arena_bytes)?;
    let mut reread = spilled(&prefill.homes);
    reread.extend(prefill.notes.iter().cloned());
    let scratchpad_bytes = prefill.homes.scratchpad_bytes;
    let finish = |entry: Entry| -> Result<Program, LowerError> {
        let mut builder = entry.builder;
        segments.iter().for_each(|segment| builder.segment(segment.clone()));
        builder.for_machine(machine);
        builder.finish()
    };
    let (prefill, decode) = (finish(prefill)?, decode.map(finish).transpose()?);
    Ok(NpuModel {
        machine: machine.clone(),
        max_tokens,
        chunk_tokens,
        prefill,
        decode,
        outputs,
        weight_bytes: weights.bytes(),
        summary: ModelSummary {
            scratchpad_bytes,
            arena_bytes,
            state_bytes: layout.state_bytes,
            reread,
            idle: idle_rows(graph, machine),
        },
        image: weights,
    })
}

/// A size of the scratchpad that suffices where the machine's does not: the least one, more or less.
fn least_scratchpad(machine: &Machine, suffices: impl Fn(&Machine) -> bool) -> u64 {
    // Banks are multiples of 32 bytes.
    let unit = 32 * machine.scratchpad.banks;
    let with = |units: u64| {
        let mut machine = machine.clone();
        machine.scratchpad.bytes = units * unit;
        suffices(&machine)
    };
    let (mut small, mut large) = (machine.scratchpad.bytes / unit, machine.scratchpad.bytes / unit * 2);
    while !with(large) && large * unit < 1 << 30 {
        (small, large) = (large, large * 2);
    }
    while large - small > (small / 64).max(1) {
        let middle = small + (large - small) / 2;
        match with(middle) {
            true => large = middle,
            false => small = middle,
        }
    }
    large * unit
}

/// Values that go to DRAM in prefill, the same one of all layers together.
fn spilled(homes: &Homes) -> Vec<String> {
    let mut names: Vec<(String, usize, u64)> = Vec::new();
    for (name, bytes) in &homes.spilled {
        let name = of_all_layers(name);
        match names.iter_mut().find(|(other, _, _)| *other == name) {
            Some((_, count, all)) => (*count, *all) = (*count + 1, *all + bytes),
            None => names.push((name, 1, *bytes)),
        }
    }
    let why = |(name, count, bytes): (String, usize, u64)| {
        format!("{name}: {count} of up to {} B do not stay in the scratchpad beside the rest", bytes / count as u64)
    };
    names.into_iter().map(why).collect()
}

/// What it costs that a pass never mixes groups.
fn idle_rows(graph: &Graph, machine: &Machine) -> Option<String> {
    let rows = machine.matrix.rows;
    let groups = graph.weights.iter().filter_map(|w| match weights::format_of(w.storage) {
        Some(crate::matmul::WeightFormat::Int4 { group }) if u64::from(group) % rows != 0 => Some(u64::from(group)),
        _ => None,
    });
    let group = groups.min()?;
    let used = group as f64 / (group.div_ceil(rows) * rows) as f64;
    Some(format!(
        "int4 groups of {group} use {:.0} % of an array of {rows} rows; larger groups would use more",
        100.0 * used
    ))
}

/// A program before it has its segments.
struct Entry {
    builder: Builder,
    /// What is moved more often than once.
    notes: Vec<String>,
    homes: Homes,
    arena_bytes: u64,
}

/// The program for calls of up to `tokens` tokens.
fn entry(
    graph: &Graph,
    machine: &Machine,
    weights: &WeightImage,
    layout: &Layout,
    max_tokens: u64,
    tokens: u64,
) -> Result<Entry, LowerError> {
    let room = Room::new(tokens);
    let mut least: Option<LowerError> = None;
    for (part, turns) in SPLITS {
        match attempt(graph, machine, weights, layout, max_tokens, room, *part, *turns) {
            Ok(entry) => return Ok(entry),
            Err(error @ LowerError::TooSmall { memory: Memory::Scratchpad, .. }) => least = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(least.unwrap_or(LowerError::argument("parts of the scratchpad", "one at least", 0)))
}

#[expect(clippy::too_many_arguments, reason = "what one attempt depends on")]
fn attempt(
    graph: &Graph,
    machine: &Machine,
    weights: &WeightImage,
    layout: &Layout,
    max_tokens: u64,
    room: Room,
    part: u64,
    turns: bool,
) -> Result<Entry, LowerError> {
    let output = |value| {
        let at = graph.outputs.iter().position(|o| o.value == value)?;
        Some(layout.outputs[at])
    };
    let all_bytes = machine.scratchpad.bytes;
    let homes = Homes::new(graph, room, (all_bytes / 16 * part, all_bytes), layout.arena, output)?;
    let temporaries = (layout.arena + homes.arena_bytes).next_multiple_of(weights::ALIGN);
    let scratch = Scratch::new(homes.scratchpad_bytes, machine.scratchpad.bytes, turns);
    let mut flow = Flow::new(machine, scratch)?;
    let [tokens, output_rows, position] = match room.tokens {
        1 => [Value::Const(1), Value::Const(1), call(&mut flow, layout, max_tokens, room, &[2])?[0]],
        _ => {
            let words = call(&mut flow, layout, max_tokens, room, &[0, 1, 2])?;
            [words[0], words[1], words[2]]
        }
    };
    let cx =
        Context { graph, weights, layout, homes: &homes, max_tokens, room, tokens, output_rows, position, temporaries };
    for i in 0..graph.nodes.len() {
        ops::lower(&cx, &mut flow, NodeId(i as u32))?;
    }
    let [_, last] = cx.codes_in_dram();
    let arena_bytes = last.end - layout.arena;
    let (builder, notes) = flow.finish();
    Ok(Entry { builder, notes, homes, arena_bytes })
}

/// Words of the segment `call` in registers, which stay taken.
fn call(
    flow: &mut Flow<'_>,
    layout: &Layout,
    max_tokens: u64,
    room: Room,
    words: &[u64],
) -> Result<Vec<Value>, LowerError> {
    flow.b.op_label("call", None);
    flow.scratch.begin_op("call");
    let area = flow.scratch.take(CALL_BYTES)?;
    let words_of = |area: Area| Matrix::dense(area, 1, Type::I32);
    let from = words_of(Area::new(Space::Dram, layout.call, CALL_BYTES));
    flow.load(&words_of(area), &from, Value::Const(4), Value::Const(1))?;
    words
        .iter()
        .map(|word| {
            let (what, max) = match word {
                0 => ("T", room.tokens),
                1 => ("S", room.tokens),
                _ => ("position", max_tokens - 1),
            };
            Ok(Value::Reg(flow.read_word(what, &words_of(area).row(*word), max)?))
        })
        .collect()
}

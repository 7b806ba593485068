//! From a graph to a [`Plan`]: buffers, what is computed in place, lifetimes, offsets.

use super::pack::{Interval, pack};
use super::scratch::{Request, max_rows, product, requests};
use super::{Buffer, BufferId, Place, Plan, PlanError, Region, Scratch, Views, reads_dense, title, why_whole_sequence};
use crate::ir::{Graph, Node, NodeId, Op, Operand, ValueId};

/// Operands whose place a result may take, the preferred first. Kernels allow that result and operand are the same.
const IN_PLACE: &[(Op, &[usize])] = &[
    (Op::Linear, &[2]),
    (Op::ExpertFfn, &[4]),
    (Op::RouteCombine, &[3]),
    (Op::Add, &[0, 1]),
    (Op::Mul, &[0, 1]),
    (Op::Rope, &[0]),
    (Op::Silu, &[0]),
    (Op::Gelu, &[0]),
    (Op::Scale, &[0]),
    (Op::Softmax, &[0]),
    (Op::RmsNorm, &[0]),
    (Op::L2Normalize, &[0]),
];

/// Places of the operands that an op may overwrite with its result.
pub(super) fn in_place_operands(op: Op) -> &'static [usize] {
    IN_PLACE.iter().find(|(other, _)| *other == op).map_or(&[], |(_, places)| places)
}

/// Ops that read each element of every operand right before they write that element of the result.
pub(super) const ELEMENT_BY_ELEMENT: &[Op] = &[Op::Add, Op::Mul];

/// When a value is read for the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LastRead {
    Never,
    At(usize),
    AfterAll,
}

/// A buffer before it has an offset.
struct Draft {
    name: String,
    bytes: u64,
    first: usize,
    last: usize,
    /// Values that live here and are no views.
    members: Vec<ValueId>,
}

/// Where a value that is no view lives.
#[derive(Clone, Copy)]
struct Slot {
    buffer: usize,
    first_col: u64,
    stride: u64,
}

struct Assigner<'g> {
    graph: &'g Graph,
    views: Views,
    /// By base value: itself and all views of it.
    aliases: Vec<Vec<ValueId>>,
    last_reads: Vec<LastRead>,
    drafts: Vec<Draft>,
    slots: Vec<Option<Slot>>,
    chunk_tokens: u64,
}

/// The memory plan of a graph for sequences of up to `max_tokens` tokens in calls of up to `chunk_tokens`.
///
/// # Errors
/// Lengths that the model does not allow, sizes beyond 64 bits, reads that no layout serves.
pub fn plan_memory(graph: &Graph, max_tokens: u64, chunk_tokens: u64) -> Result<Plan, PlanError> {
    check_tokens(graph, max_tokens, chunk_tokens)?;
    let mut assigner = Assigner::new(graph, chunk_tokens);
    let mut scratch = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        assigner.check_reads(node)?;
        for request in requests(graph, node, max_tokens, chunk_tokens)? {
            let buffer = (request.region == Region::Arena).then(|| assigner.scratch_buffer(i, node, &request));
            scratch.push((NodeId(i as u32), request, buffer));
        }
        if node.op != Op::Slice {
            for r in 0..node.results.len() {
                assigner.assign(i, node, r)?;
            }
        }
    }
    assigner.finish(max_tokens, scratch)
}

fn check_tokens(graph: &Graph, max_tokens: u64, chunk_tokens: u64) -> Result<(), PlanError> {
    let wrong = |what, wanted: String, found| Err(PlanError::Tokens { what, wanted, found });
    let limit = graph.info.max_position_embeddings;
    if max_tokens == 0 || (limit > 0 && max_tokens > limit) {
        return wrong("max_tokens", format!("1 to {} (max_position_embeddings)", limit.max(1)), max_tokens);
    }
    if chunk_tokens == 0 || chunk_tokens > max_tokens {
        return wrong("chunk_tokens", format!("1 to {max_tokens} (max_tokens)"), chunk_tokens);
    }
    match why_whole_sequence(graph) {
        Some(why) if chunk_tokens != max_tokens => {
            wrong("chunk_tokens", format!("{max_tokens}, the whole sequence ({why})"), chunk_tokens)
        }
        Some(_) | None => Ok(()),
    }
}

impl<'g> Assigner<'g> {
    fn new(graph: &'g Graph, chunk_tokens: u64) -> Self {
        let views = Views::new(graph);
        let mut aliases = vec![Vec::new(); graph.values.len()];
        let mut last_reads = vec![LastRead::Never; graph.values.len()];
        for v in (0..graph.values.len() as u32).map(ValueId) {
            aliases[views.base(v).0 as usize].push(v);
        }
        // A slice reads nothing: who reads the view does.
        for (i, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.op != Op::Slice) {
            for v in node.operands.iter().filter_map(|o| o.value()) {
                last_reads[v.0 as usize] = LastRead::At(i);
            }
        }
        for output in &graph.outputs {
            last_reads[output.value.0 as usize] = LastRead::AfterAll;
        }
        let slots = vec![None; graph.values.len()];
        Self { graph, views, aliases, last_reads, drafts: Vec::new(), slots, chunk_tokens }
    }

    /// Columns that a value takes in its buffer, if it is in one.
    fn columns(&self, value: ValueId) -> Option<(Slot, u64, u64)> {
        let slot = self.slots[self.views.base(value).0 as usize]?;
        let first = slot.first_col + self.views.first_col(value);
        Some((slot, first, first + self.graph.ty(value).cols()))
    }

    /// Whether a value's rows follow each other without gaps.
    fn is_dense(&self, value: ValueId) -> bool {
        self.columns(value).is_none_or(|(slot, ..)| slot.stride == self.graph.ty(value).cols())
    }

    /// A view of a graph input, or one with gaps where none may be.
    fn check_reads(&self, node: &Node) -> Result<(), PlanError> {
        let wrong = |message: String| Err(PlanError::Unplaceable { node: title(node).to_owned(), message });
        for (place, v) in node.operands.iter().enumerate().filter_map(|(p, o)| Some((p, o.value()?))) {
            if node.op == Op::Slice && self.columns(v).is_none() {
                return wrong("slice of a graph input: inputs are not in the arena".into());
            }
            if reads_dense(node.op, place) && !self.is_dense(v) {
                let name = node.op.row().operands[place].name;
                return wrong(format!("{name} of {} wants rows without gaps, found a view", node.op.row().name));
            }
        }
        Ok(())
    }

    fn scratch_buffer(&mut self, i: usize, node: &Node, request: &Request) -> usize {
        let name = format!("{} ({:?})", title(node), request.role);
        self.drafts.push(Draft { name, bytes: request.bytes, first: i, last: i, members: Vec::new() });
        self.drafts.len() - 1
    }

    /// Gives result `r` the place of an operand, or a buffer of its own.
    fn assign(&mut self, i: usize, node: &Node, r: usize) -> Result<(), PlanError> {
        let result = node.results[r];
        let slot = match in_place_operands(node.op).iter().find_map(|place| self.overwritable(i, node, *place, result))
        {
            Some(slot) => slot,
            None => {
                let ty = self.graph.ty(result);
                let rows = max_rows(self.graph, result, self.chunk_tokens)?;
                let bytes = product(title(node), &[rows, ty.cols(), ty.dtype.bytes()])?;
                let name = match node.op.row().results {
                    [_] => title(node).to_owned(),
                    names => format!("{}.{}", title(node), names[r]),
                };
                self.drafts.push(Draft { name, bytes, first: i, last: i, members: Vec::new() });
                Slot { buffer: self.drafts.len() - 1, first_col: 0, stride: ty.cols() }
            }
        };
        self.slots[result.0 as usize] = Some(slot);
        let end = self.graph.nodes.len() - 1;
        let last_read = self.aliases[result.0 as usize].iter().map(|v| self.last_reads[v.0 as usize]).max();
        let draft = &mut self.drafts[slot.buffer];
        draft.members.push(result);
        draft.last = draft.last.max(i).max(match last_read {
            Some(LastRead::At(last)) => last,
            Some(LastRead::AfterAll) => end,
            Some(LastRead::Never) | None => i,
        });
        Ok(())
    }

    /// The slot of operand `place` if `result` may be written over it: nothing reads any of those columns later, and
    /// the node itself does not read them through another operand while it writes.
    fn overwritable(&self, i: usize, node: &Node, place: usize, result: ValueId) -> Option<Slot> {
        // Products accumulate into a residual; an activation would have to come in between.
        if node.op == Op::Linear && node.attrs.word("act") != "none" {
            return None;
        }
        let operand = node.operands[place].value()?;
        let (slot, begin, end) = self.columns(operand)?;
        if self.graph.ty(operand) != self.graph.ty(result) {
            return None;
        }
        if slot.stride != self.graph.ty(result).cols() && self.must_be_dense(result) {
            return None;
        }
        for &other in self.drafts[slot.buffer].members.iter().flat_map(|m| &self.aliases[m.0 as usize]) {
            let (_, other_begin, other_end) = self.columns(other)?;
            let overlaps = other_begin < end && begin < other_end;
            let blocks = match self.last_reads[other.0 as usize] {
                LastRead::Never => false,
                LastRead::AfterAll => true,
                LastRead::At(last) if last > i => true,
                LastRead::At(last) if last < i => false,
                LastRead::At(_) => {
                    let harmless = ELEMENT_BY_ELEMENT.contains(&node.op) && (other_begin, other_end) == (begin, end);
                    let elsewhere = |(p, o): (usize, &Operand)| p != place && *o == Operand::Value(other);
                    !harmless && node.operands.iter().enumerate().any(elsewhere)
                }
            };
            if overlaps && blocks {
                return None;
            }
        }
        Some(Slot { first_col: begin, ..slot })
    }

    /// Whether a value or a view of it of the same width is read without gaps.
    fn must_be_dense(&self, value: ValueId) -> bool {
        self.graph.is_output(value)
            || self.graph.nodes.iter().any(|node| {
                node.operands.iter().enumerate().any(|(p, o)| *o == Operand::Value(value) && reads_dense(node.op, p))
            })
    }

    fn finish(self, max_tokens: u64, scratch: Vec<(NodeId, Request, Option<usize>)>) -> Result<Plan, PlanError> {
        for output in &self.graph.outputs {
            let wrong = |message: &str| {
                Err(PlanError::Unplaceable { node: format!("output {}", output.name), message: message.into() })
            };
            if self.columns(output.value).is_none() {
                return wrong("an output wants a value in the arena, found a graph input");
            }
            if !self.is_dense(output.value) {
                return wrong("an output wants rows without gaps, found a view");
            }
        }
        let interval = |d: &Draft| Interval { bytes: d.bytes, first: d.first, last: d.last };
        let (offsets, arena_bytes) = pack(&self.drafts.iter().map(interval).collect::<Vec<_>>())?;
        let place = |v: ValueId| {
            let (slot, first_col, _) = self.columns(v)?;
            let col_bytes = first_col * self.graph.ty(v).dtype.bytes();
            let buffer = BufferId(slot.buffer as u32);
            Some(Place { buffer, offset_bytes: offsets[slot.buffer] + col_bytes, row_stride: slot.stride })
        };
        let places = (0..self.graph.values.len() as u32).map(|v| place(ValueId(v))).collect();
        let mut state_bytes = 0u64;
        let mut placed = Vec::with_capacity(scratch.len());
        for (node, request, buffer) in scratch {
            let offset_bytes = match buffer {
                Some(buffer) => offsets[buffer],
                None => {
                    let offset = state_bytes;
                    state_bytes = super::pack::align(offset.saturating_add(request.bytes))?;
                    offset
                }
            };
            let Request { role, region, bytes: size_bytes } = request;
            placed.push(Scratch { node, role, region, offset_bytes, size_bytes });
        }
        let buffer = |(draft, offset): (&Draft, &u64)| Buffer {
            name: draft.name.clone(),
            offset_bytes: *offset,
            size_bytes: draft.bytes,
            first: NodeId(draft.first as u32),
            last: NodeId(draft.last as u32),
        };
        let buffers = self.drafts.iter().zip(&offsets).map(buffer).collect();
        let chunk_tokens = self.chunk_tokens;
        Ok(Plan { max_tokens, chunk_tokens, arena_bytes, state_bytes, buffers, places, scratch: placed })
    }
}

//! Holds a plan to the rules that make it right, whatever made it.

use super::assign::ELEMENT_BY_ELEMENT;
use super::scratch::{max_rows, requests};
use super::{ALIGN_BYTES, Place, Plan, PlanError, Region, Views, reads_dense, title};
use crate::ir::{Graph, NodeId, Op, Operand, ValueId};

/// Checks that every value and every piece of working memory has a place that is aligned and inside its region, that
/// what lives at the same time does not overlap, and that nothing is overwritten before its last read.
///
/// # Errors
/// [`PlanError::Broken`] with the first rule that is broken.
pub fn check(plan: &Plan, graph: &Graph) -> Result<(), PlanError> {
    let checker = Checker { plan, graph, views: Views::new(graph) };
    checker.buffers()?;
    checker.scratch()?;
    checker.values()?;
    checker.overwrites()
}

fn broken<T>(message: String) -> Result<T, PlanError> {
    Err(PlanError::Broken(message))
}

struct Checker<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
    views: Views,
}

impl Checker<'_> {
    fn buffers(&self) -> Result<(), PlanError> {
        let buffers = &self.plan.buffers;
        for (i, a) in buffers.iter().enumerate() {
            let end = a.offset_bytes.checked_add(a.size_bytes);
            if end.is_none_or(|end| end > self.plan.arena_bytes) {
                return broken(format!("buffer {i} ({}) ends beyond the arena", a.name));
            }
            if a.offset_bytes % ALIGN_BYTES != 0 {
                return broken(format!("buffer {i} ({}) at {} is not aligned", a.name, a.offset_bytes));
            }
            for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                let apart = a.offset_bytes + a.size_bytes <= b.offset_bytes
                    || b.offset_bytes.saturating_add(b.size_bytes) <= a.offset_bytes;
                if together && !apart {
                    return broken(format!("buffers {i} ({}) and {j} ({}) overlap", a.name, b.name));
                }
            }
        }
        Ok(())
    }

    fn scratch(&self) -> Result<(), PlanError> {
        let mut states: Vec<(u64, u64)> = Vec::new();
        let mut found = self.plan.scratch.iter();
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let at = NodeId(i as u32);
            for wanted in requests(self.graph, node, self.plan.max_tokens, self.plan.chunk_tokens)? {
                let piece = found.next().filter(|s| s.node == at && s.role == wanted.role && s.region == wanted.region);
                let Some(piece) = piece.filter(|s| s.size_bytes >= wanted.bytes) else {
                    return broken(format!("node {i} ({}) has no room for its {:?}", title(node), wanted.role));
                };
                if piece.offset_bytes % ALIGN_BYTES != 0 {
                    return broken(format!("{:?} of node {i} is not aligned", piece.role));
                }
                let end = piece.offset_bytes.saturating_add(piece.size_bytes);
                let inside = match piece.region {
                    Region::State => {
                        states.push((piece.offset_bytes, end));
                        end <= self.plan.state_bytes
                    }
                    Region::Arena => self.plan.buffers.iter().any(|b| {
                        b.offset_bytes == piece.offset_bytes
                            && b.size_bytes >= piece.size_bytes
                            && (b.first..=b.last).contains(&at)
                            && !self.holds_values(b.offset_bytes, b.size_bytes, at)
                    }),
                };
                if !inside {
                    return broken(format!("{:?} of node {i} is outside its region", piece.role));
                }
            }
        }
        states.sort();
        match states.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => broken(format!("pieces of the state overlap at {}", pair[1].0)),
            None => Ok(()),
        }
    }

    /// Whether a value that `at` reads or writes lies in these bytes of the arena.
    fn holds_values(&self, offset_bytes: u64, size_bytes: u64, at: NodeId) -> bool {
        let node = self.graph.node(at);
        let values = node.operands.iter().filter_map(|o| o.value()).chain(node.results.iter().copied());
        values.filter_map(|v| self.plan.places[v.0 as usize]).any(|place| {
            let buffer = &self.plan.buffers[place.buffer.0 as usize];
            buffer.offset_bytes < offset_bytes + size_bytes && offset_bytes < buffer.offset_bytes + buffer.size_bytes
        })
    }

    fn values(&self) -> Result<(), PlanError> {
        let definitions = self.graph.definitions();
        for (v, place) in self.plan.places.iter().enumerate() {
            let value = ValueId(v as u32);
            let ty = self.graph.ty(value);
            let Some(definition) = definitions[v] else { continue };
            let Some(place) = place else { return broken(format!("%{v} has no place")) };
            let Some(buffer) = self.plan.buffers.get(place.buffer.0 as usize) else {
                return broken(format!("%{v} is in no buffer"));
            };
            let rows = max_rows(self.graph, value, self.plan.chunk_tokens)?;
            let elems = rows.saturating_sub(1).saturating_mul(place.row_stride).saturating_add(ty.cols());
            let end = place.offset_bytes.saturating_add(elems.saturating_mul(ty.dtype.bytes()));
            if place.offset_bytes < buffer.offset_bytes || end > buffer.offset_bytes + buffer.size_bytes {
                return broken(format!("%{v} is outside its buffer"));
            }
            if place.row_stride < ty.cols() {
                return broken(format!("rows of %{v} overlap"));
            }
            let dense = place.row_stride == ty.cols();
            if self.graph.is_output(value) && !(dense && buffer.last.0 as usize + 1 == self.graph.nodes.len()) {
                return broken(format!("output %{v} has gaps or does not live to the end"));
            }
            if !(buffer.first..=buffer.last).contains(&definition) && self.views.base(value) == value {
                return broken(format!("%{v} is defined outside the lifetime of its buffer"));
            }
        }
        for (i, node) in self.graph.nodes.iter().enumerate().filter(|(_, n)| n.op != Op::Slice) {
            for (p, v) in node.operands.iter().enumerate().filter_map(|(p, o)| Some((p, o.value()?))) {
                let Some(place) = self.plan.places[v.0 as usize] else { continue };
                let buffer = &self.plan.buffers[place.buffer.0 as usize];
                if !(buffer.first..=buffer.last).contains(&NodeId(i as u32)) {
                    return broken(format!("node {i} reads %{} outside the lifetime of its buffer", v.0));
                }
                if reads_dense(node.op, p) && place.row_stride != self.graph.ty(v).cols() {
                    return broken(format!("node {i} reads %{} without gaps, it has some", v.0));
                }
            }
        }
        Ok(())
    }

    /// Node by node: what a result overwrites must not be read later, nor by the node itself while it writes.
    fn overwrites(&self) -> Result<(), PlanError> {
        let definitions = self.graph.definitions();
        let mut by_buffer: Vec<Vec<ValueId>> = vec![Vec::new(); self.plan.buffers.len()];
        for (v, place) in self.plan.places.iter().enumerate() {
            if let Some(place) = place {
                by_buffer[place.buffer.0 as usize].push(ValueId(v as u32));
            }
        }
        let mut last_reads: Vec<Option<usize>> = vec![None; self.graph.values.len()];
        for (i, node) in self.graph.nodes.iter().enumerate().filter(|(_, n)| n.op != Op::Slice) {
            node.operands.iter().filter_map(|o| o.value()).for_each(|v| last_reads[v.0 as usize] = Some(i));
        }
        for output in &self.graph.outputs {
            last_reads[output.value.0 as usize] = Some(usize::MAX);
        }
        for (i, node) in self.graph.nodes.iter().enumerate().filter(|(_, n)| n.op != Op::Slice) {
            for result in &node.results {
                let Some(place) = self.plan.places[result.0 as usize] else { continue };
                for &other in &by_buffer[place.buffer.0 as usize] {
                    // A view holds what its base held when that was computed.
                    let written = definitions[self.views.base(other).0 as usize].map(|id| id.0 as usize);
                    let earlier = written.is_some_and(|at| at < i) || (written == Some(i) && other != *result);
                    if !earlier || self.views.base(other) == *result || !self.overlap(*result, other, place) {
                        continue;
                    }
                    let read = last_reads[other.0 as usize];
                    if read.is_some_and(|read| read > i) {
                        return broken(format!("node {i} writes %{} over %{}, which is read later", result.0, other.0));
                    }
                    if read == Some(i) && !self.may_overwrite(i, *result, other) {
                        return broken(format!("node {i} writes %{} while it reads %{}", result.0, other.0));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether two values of one buffer share bytes. Rows of equal stride are compared by columns.
    fn overlap(&self, a: ValueId, b: ValueId, at: Place) -> bool {
        let Some(b_place) = self.plan.places[b.0 as usize] else { return false };
        let origin = self.plan.buffers[at.buffer.0 as usize].offset_bytes;
        let (a_ty, b_ty) = (self.graph.ty(a), self.graph.ty(b));
        if at.row_stride != b_place.row_stride || a_ty.dtype != b_ty.dtype {
            return true;
        }
        let first_col = |place: Place| (place.offset_bytes - origin) / a_ty.dtype.bytes() % at.row_stride;
        let (a_col, b_col) = (first_col(at), first_col(b_place));
        a_col < b_col + b_ty.cols() && b_col < a_col + a_ty.cols()
    }

    /// Whether node `i` may write `result` over its operand `other`: exactly over it, and reading it at one place, the
    /// one that the op overwrites, or element by element.
    fn may_overwrite(&self, i: usize, result: ValueId, other: ValueId) -> bool {
        let node = &self.graph.nodes[i];
        let same = self.plan.places[result.0 as usize] == self.plan.places[other.0 as usize]
            && self.graph.ty(result) == self.graph.ty(other);
        let read_at = |p: &usize| node.operands[*p] == Operand::Value(other);
        let places: Vec<usize> = (0..node.operands.len()).filter(read_at).collect();
        let overwritten = super::assign::in_place_operands(node.op);
        same && (ELEMENT_BY_ELEMENT.contains(&node.op) || places.iter().all(|p| overwritten.contains(p)))
    }
}

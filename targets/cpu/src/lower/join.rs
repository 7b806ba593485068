//! Which neighbouring steps the threads may take together.
//!
//! Steps over the same rows are joined: a thread then does all of them for its rows, while others are still at the first
//! step of theirs. So row r of a step may touch only what row r of the others touches. The plan gives a place that is no
//! longer read to the next value, with rows of another length; there one thread would write over what another has still
//! to read, and such a step begins a group of its own.

use lapidary_compiler::ir::{Dim, NodeId, SymbolId, ValueId};
use lapidary_compiler::plan::Region;

use super::{Lowering, Step, Units};

/// A part of the arena that a node reads or writes.
#[derive(Clone, Copy, Debug)]
struct Touch {
    begin: u64,
    end: u64,
    /// Bytes from row to row, and of a row; `None`: not touched row by row of the group's rows.
    rows: Option<(u64, u64)>,
    writes: bool,
}

impl Touch {
    /// Whether a thread at one row may meet what another thread does at another row.
    fn conflicts(&self, other: &Touch) -> bool {
        let overlap = self.begin < other.end && other.begin < self.end;
        if !overlap || !(self.writes || other.writes) {
            return false;
        }
        let (Some((stride, width)), Some((other_stride, other_width))) = (self.rows, other.rows) else { return true };
        let begin = self.begin.min(other.begin);
        let end = (self.begin + width).max(other.begin + other_width);
        stride != other_stride || end - begin > stride
    }
}

impl<'a> Lowering<'a> {
    /// Groups of steps that are handed to the threads together, in order.
    pub fn join(&self, steps: Vec<Step<'a>>) -> Vec<Vec<Step<'a>>> {
        let mut groups: Vec<Vec<Step<'a>>> = Vec::new();
        for step in steps {
            match groups.last_mut() {
                Some(group) if self.joins(group, &step) => group.push(step),
                Some(_) | None => groups.push(vec![step]),
            }
        }
        groups
    }

    fn joins(&self, group: &[Step<'_>], step: &Step<'_>) -> bool {
        let Units::Rows(dim) = step.units else { return false };
        if group[0].units != step.units {
            return false;
        }
        let touches = self.touches(step.node, dim);
        let mut others: Vec<NodeId> = group.iter().map(|s| s.node).filter(|n| *n != step.node).collect();
        others.dedup();
        !others.iter().any(|node| {
            let earlier = self.touches(*node, dim);
            touches.iter().any(|touch| earlier.iter().any(|other| touch.conflicts(other)))
        })
    }

    /// What any step of a node touches in the arena.
    fn touches(&self, id: NodeId, dim: Dim) -> Vec<Touch> {
        let node = self.graph.node(id);
        let read = node.operands.iter().filter_map(|o| o.value()).filter_map(|v| self.touch(v, dim, false));
        let written = node.results.iter().filter_map(|v| self.touch(*v, dim, true));
        let scratch = self.plan.scratch.iter().filter(|s| s.node == id && s.region == Region::Arena);
        let scratch = scratch.map(|s| Touch {
            begin: s.offset_bytes,
            end: s.offset_bytes + s.size_bytes,
            rows: None,
            writes: true,
        });
        read.chain(written).chain(scratch).collect()
    }

    fn touch(&self, value: ValueId, dim: Dim, writes: bool) -> Option<Touch> {
        // Inputs are not in the arena.
        self.definitions[value.0 as usize]?;
        let (ty, place) = (self.graph.ty(value), self.plan.place(value));
        let count = match ty.rows() {
            Dim::Const(n) => n,
            Dim::Sym(SymbolId::TOKENS | SymbolId::OUTPUT_ROWS) => self.plan.chunk_tokens,
            Dim::Sym(symbol) => self.graph.symbols[symbol.0 as usize].max_per_token * self.plan.chunk_tokens,
        };
        let (stride, width) = (place.row_stride * ty.dtype.bytes(), ty.cols() * ty.dtype.bytes());
        Some(Touch {
            begin: place.offset_bytes,
            end: place.offset_bytes + count.saturating_sub(1) * stride + width,
            rows: (ty.rows() == dim).then_some((stride, width)),
            writes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(begin: u64, stride: u64, width: u64, writes: bool) -> Touch {
        Touch { begin, end: begin + 9 * stride + width, rows: Some((stride, width)), writes }
    }

    #[test]
    fn only_the_same_rows_of_one_frame_go_together() {
        let read = rows(0, 64, 64, false);
        assert!(!read.conflicts(&rows(0, 64, 64, false)), "reading together");
        assert!(!read.conflicts(&rows(0, 64, 64, true)), "in place");
        assert!(!rows(16, 64, 16, false).conflicts(&rows(0, 64, 64, true)), "a view");
        assert!(!read.conflicts(&rows(640, 64, 64, true)), "elsewhere");
        assert!(read.conflicts(&rows(0, 32, 32, true)), "rows of another length");
        assert!(read.conflicts(&rows(32, 64, 64, true)), "rows of another frame");
        assert!(read.conflicts(&Touch { rows: None, ..rows(0, 64, 64, true) }), "not by rows");
        assert!(rows(0, 64, 64, true).conflicts(&Touch { rows: None, ..rows(600, 64, 4, false) }), "the last row");
    }
}

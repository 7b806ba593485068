//! Which values are views of others.

use crate::ir::{Graph, Op, Operand, ValueId};

/// For every value, the value whose memory it is a part of: `slice` never copies.
#[derive(Clone, Debug)]
pub struct Views {
    bases: Vec<(ValueId, u64)>,
}

impl Views {
    /// Follows every `slice`.
    pub fn new(graph: &Graph) -> Self {
        let mut bases: Vec<(ValueId, u64)> = (0..graph.values.len() as u32).map(|v| (ValueId(v), 0)).collect();
        for node in graph.nodes.iter().filter(|n| n.op == Op::Slice) {
            if let Operand::Value(x) = node.operands[0] {
                let (base, first_col) = bases[x.0 as usize];
                bases[node.results[0].0 as usize] = (base, first_col + node.attrs.int("begin"));
            }
        }
        Self { bases }
    }

    /// The value that a value is a view of; itself if it is none.
    pub fn base(&self, value: ValueId) -> ValueId {
        self.bases[value.0 as usize].0
    }

    /// First column of the view in its base.
    pub fn first_col(&self, value: ValueId) -> u64 {
        self.bases[value.0 as usize].1
    }
}

/// Operands whose rows follow each other without gaps: the op's kernels take no row stride for them.
const DENSE_OPERANDS: &[(Op, &[usize])] = &[
    (Op::RouteScores, &[1]),
    (Op::RouteCluster, &[0]),
    (Op::RouteSelect, &[0]),
    (Op::RouteGroup, &[0, 1]),
    (Op::RouteMemory, &[0, 1]),
    (Op::ExpertApply, &[1, 2]),
];

/// Whether an op reads operand `place` without gaps between its rows.
pub fn reads_dense(op: Op, place: usize) -> bool {
    DENSE_OPERANDS.iter().any(|(dense, places)| *dense == op && places.contains(&place))
}

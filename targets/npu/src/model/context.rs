//! What lowering an op needs to know: the graph, where values and weights are, how many rows there are.

use lapidary_compiler::ir::{Dim, Graph, Node, NodeId, Op, Operand, SymbolId, ValueId, WeightId};
use lapidary_npu_isa::choice::Type;

use super::flow::Matrix;
use super::homes::{Homes, Room};
use super::layout::Layout;
use super::order::{Area, Space};
use super::weights::{ALIGN, Placed, WeightImage};
use crate::builder::Value;
use crate::error::LowerError;

/// A number of rows, and the largest that it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The number.
    pub count: Value,
    /// Its bound.
    pub most: u64,
    /// Rows that buffers have: `most`, or more.
    pub room: u64,
}

impl Rows {
    /// A known number.
    pub const fn known(count: u64) -> Rows {
        Rows { count: Value::Const(count as i64), most: count, room: count }
    }
}

/// One entry point of one model.
#[derive(Debug)]
pub struct Context<'a> {
    /// The fused graph.
    pub graph: &'a Graph,
    /// Weights in DRAM.
    pub weights: &'a WeightImage,
    /// Where else what lies in DRAM.
    pub layout: &'a Layout,
    /// Where values are.
    pub homes: &'a Homes,
    /// Longest sequence.
    pub max_tokens: u64,
    /// Rows that there can be.
    pub room: Room,
    /// T.
    pub tokens: Value,
    /// S.
    pub output_rows: Value,
    /// Position of the first token.
    pub position: Value,
    /// Where in DRAM ops have what does not fit their working memory.
    pub temporaries: u64,
}

impl Context<'_> {
    /// How many rows a dimension has; the number of chosen (token, module) pairs is known to `expert.ffn` alone.
    pub fn rows(&self, dim: Dim) -> Rows {
        match dim {
            Dim::Const(n) => Rows::known(n),
            Dim::Sym(SymbolId::OUTPUT_ROWS) => self.tokens_or(self.output_rows),
            Dim::Sym(_) => self.tokens_or(self.tokens),
        }
    }

    fn tokens_or(&self, count: Value) -> Rows {
        Rows { count, most: self.room.tokens, room: self.room.rows }
    }

    /// Most pairs of a token and a module in the lists of a `route.group`.
    pub fn most_pairs(&self, list: ValueId) -> u64 {
        match self.graph.ty(list).rows() {
            Dim::Const(n) => n,
            Dim::Sym(symbol) => self.room.tokens * self.graph.symbols[symbol.0 as usize].max_per_token,
        }
    }

    /// Rows of a value.
    pub fn rows_of(&self, value: ValueId) -> Rows {
        self.rows(self.graph.ty(value).rows())
    }

    /// Elements of a row of a value.
    pub fn cols_of(&self, value: ValueId) -> u64 {
        self.graph.ty(value).cols()
    }

    /// A value operand.
    ///
    /// # Panics
    /// If it is none: the graph is verified.
    pub fn operand(&self, node: &Node, place: usize) -> ValueId {
        self.optional(node, place).expect("the schema wants a value")
    }

    /// A value operand, if it is given.
    pub fn optional(&self, node: &Node, place: usize) -> Option<ValueId> {
        node.operands[place].value()
    }

    /// A weight operand, if it is given.
    pub fn weight(&self, node: &Node, place: usize) -> Option<WeightId> {
        match node.operands[place] {
            Operand::Weight(weight) => Some(weight),
            Operand::Value(_) | Operand::None => None,
        }
    }

    /// A weight operand as products read it.
    pub fn product_weight(&self, node: &Node, place: usize) -> Placed {
        self.weights.product(self.weight(node, place).expect("the schema wants a weight"))
    }

    /// A weight operand as rows.
    pub fn row_weight(&self, node: &Node, place: usize) -> Placed {
        self.weights.rows(self.weight(node, place).expect("the schema wants a weight"))
    }

    /// Where a value is.
    pub fn value(&self, value: ValueId) -> Matrix {
        let view = self.homes.view(value);
        match self.homes.home(view.base) {
            Some(home) => home.at_col(view.col),
            // Graph inputs: the ids.
            None => Matrix::dense(Area::new(Space::Dram, self.layout.ids, 4 * self.room.rows), 1, Type::I32),
        }
    }

    /// Where in DRAM an op has rows of codes that its working memory has no room for, and their scales.
    pub fn codes_in_dram(&self) -> [Area; 2] {
        let reads_codes = |node: &&Node| matches!(node.op, Op::Linear | Op::LinearSwiglu | Op::ExpertFfn);
        let inputs = self.graph.nodes.iter().filter(reads_codes).map(|node| self.cols_of(self.operand(node, 0))).max();
        let codes =
            Area::new(Space::Dram, self.temporaries, (self.room.rows * inputs.unwrap_or(0)).next_multiple_of(ALIGN));
        [codes, Area::new(Space::Dram, codes.end, (4 * self.room.rows).next_multiple_of(ALIGN))]
    }

    /// An op that the NPU cannot do.
    pub fn cannot(&self, node: &Node, message: impl Into<String>) -> LowerError {
        LowerError::Op { label: node.label.clone(), op: node.op.row().name, message: message.into() }
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        self.graph.node(id)
    }
}

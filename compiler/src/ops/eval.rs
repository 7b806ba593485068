//! What reference evaluations work with: a node's operands as numbers, and sums in f64.

use std::sync::Arc;

use std::cell::OnceCell;

use crate::interp::{Tensor, WeightCache};
use crate::ir::{Graph, Node, Operand, WeightId};
use crate::quant::{QuantizedRow, QuantizedRows, quantize_row};

/// A node as its evaluation sees it. The graph is verified, so operands have the types that the shape rule wants.
pub struct EvalCx<'a> {
    graph: &'a Graph,
    node: &'a Node,
    values: &'a [Option<Tensor>],
    weights: &'a WeightCache<'a>,
    tokens: usize,
    output_rows: usize,
}

impl<'a> EvalCx<'a> {
    /// `values` holds all operands of `node`.
    pub(crate) fn new(
        graph: &'a Graph,
        node: &'a Node,
        values: &'a [Option<Tensor>],
        weights: &'a WeightCache<'a>,
        tokens: usize,
        output_rows: usize,
    ) -> Self {
        Self { graph, node, values, weights, tokens, output_rows }
    }

    /// Tokens of the call: T.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows that go through the head: S.
    pub fn output_rows(&self) -> usize {
        self.output_rows
    }

    /// Value operand `i`.
    pub fn value(&self, i: usize) -> &'a Tensor {
        self.optional(i).expect("the schema wants a value")
    }

    /// Value operand `i`, if it is given.
    pub fn optional(&self, i: usize) -> Option<&'a Tensor> {
        let v = self.node.operands[i].value()?;
        Some(self.values[v.0 as usize].as_ref().expect("defined before"))
    }

    /// An integer attribute as a size.
    pub fn size(&self, attr: &str) -> usize {
        self.node.attrs.int(attr) as usize
    }

    /// A number attribute.
    pub fn float(&self, attr: &str) -> f32 {
        self.node.attrs.float(attr)
    }

    /// A flag attribute.
    pub fn flag(&self, attr: &str) -> bool {
        self.node.attrs.flag(attr)
    }

    /// A word attribute.
    pub fn word(&self, attr: &str) -> &'static str {
        self.node.attrs.word(attr)
    }

    fn weight_id(&self, i: usize) -> WeightId {
        self.node.operands[i].weight().expect("the schema wants a weight")
    }

    /// Rows and columns of weight operand `i`.
    pub fn weight_shape(&self, i: usize) -> (usize, usize) {
        let w = self.graph.weight(self.weight_id(i));
        (w.rows() as usize, w.cols() as usize)
    }

    /// Weight operand `i`, ready to be multiplied by.
    pub fn matrix(&self, i: usize) -> Result<Matrix, String> {
        let id = self.weight_id(i);
        match self.graph.weight(id).storage.is_integer() {
            true => self.weights.codes(id).map(Matrix::Codes),
            false => Ok(Matrix::Floats { cols: self.weight_shape(i).1, elems: self.weights.all(id)? }),
        }
    }

    /// All elements of weight operand `i`, rounded as it is stored.
    pub fn weight(&self, i: usize) -> Result<Arc<Vec<f32>>, String> {
        self.weights.all(self.weight_id(i))
    }

    /// All elements of weight operand `i`, if it is given.
    pub fn optional_weight(&self, i: usize) -> Result<Option<Arc<Vec<f32>>>, String> {
        match self.node.operands[i] {
            Operand::Weight(w) => self.weights.all(w).map(Some),
            Operand::Value(_) | Operand::None => Ok(None),
        }
    }

    /// One row of weight operand `i`.
    pub fn weight_row(&self, i: usize, row: usize, out: &mut [f32]) -> Result<(), String> {
        self.weights.reader.read_stored_rows(self.weight_id(i), row as u64, out).map_err(|e| e.to_string())
    }

    /// Number of modules of an op with weights per module.
    pub fn num_modules(&self) -> usize {
        (self.node.operands.len() - self.node.op.num_fixed_operands()) / self.node.op.num_module_groups()
    }

    /// Where module `c`'s weight of a group stands among the operands.
    pub fn module_operand(&self, group: usize, c: usize) -> usize {
        self.node.op.num_fixed_operands() + group * self.num_modules() + c
    }
}

/// `Σ a[i]·b[i]` in f64, in eight partial sums so that the compiler can vectorize it.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += f64::from(x[i]) * f64::from(y[i]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// A row of activations, quantized when a product first needs it so.
pub struct Row<'a> {
    x: &'a [f32],
    quantized: OnceCell<QuantizedRow>,
}

impl<'a> Row<'a> {
    pub(super) fn new(x: &'a [f32]) -> Self {
        Self { x, quantized: OnceCell::new() }
    }
}

/// A matrix `[n, k]` to multiply rows by.
pub enum Matrix {
    /// Float storage.
    Floats {
        /// k.
        cols: usize,
        /// Row by row.
        elems: Arc<Vec<f32>>,
    },
    /// Integer storage: the row of activations is quantized as well.
    Codes(Arc<QuantizedRows>),
}

impl Matrix {
    /// Outputs n.
    pub(super) fn rows(&self) -> usize {
        match self {
            Matrix::Floats { cols, elems } => elems.len() / cols,
            Matrix::Codes(codes) => codes.rows(),
        }
    }

    /// Output `o` of `x · wᵀ`: in f64 of floats, exactly the f32 of the definitions of codes.
    pub(super) fn output(&self, o: usize, x: &Row<'_>) -> f64 {
        match self {
            Matrix::Floats { cols, elems } => dot(x.x, &elems[o * cols..(o + 1) * cols]),
            Matrix::Codes(codes) => f64::from(codes.dot(o, x.quantized.get_or_init(|| quantize_row(x.x)))),
        }
    }

    /// `x · wᵀ` of one row: `[k]` → `[n]`.
    pub(super) fn times<'m>(&'m self, x: &'m Row<'_>) -> impl Iterator<Item = f64> + 'm {
        (0..self.rows()).map(move |o| self.output(o, x))
    }
}

/// `x / (1 + exp(−x))`.
pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
pub(super) fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// `exp(x) / Σ exp(x)` in place.
pub(super) fn softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|v| *v /= sum);
}

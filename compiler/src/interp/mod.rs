//! The reference interpreter: runs a graph node by node through the reference evaluations of the op table.
//!
//! It is the oracle of every target's tests: plain loops, values rounded to f32 after each node, sums in f64, the whole
//! sequence at once from position 0. It runs a graph of any phase, on the numbers that its weights' *storage* holds: f16
//! is rounded, and products with integer storage are exactly those that [`quant`](crate::quant) defines.
//!
//! ```
//! use lapidary_compiler::interp::Interpreter;
//! use lapidary_compiler::ir::{NoSource, parse};
//! let graph = parse(
//!     "lir 1\nphase imported\nweight @w: f32[9, 2] embedding = splat(0.5)\ninput \"ids\" = %0: u32[T]\n\
//!      %1 = embed(%0, @w)\noutput \"y\" = %1\n",
//! )
//! .unwrap();
//! let outputs = Interpreter::new(&graph, &NoSource).run(&[3, 1, 4], 1).unwrap();
//! assert_eq!(outputs.get("y").unwrap().shape, [3, 2]);
//! ```

mod tensor;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ir::{Dim, Graph, Node, NodeId, SymbolId, ValueId, WeightId, WeightReader, WeightSource};
use crate::ops::{EvalCx, EvalFn, Op};
use crate::quant::QuantizedRows;
pub use tensor::{Data, Tensor};

/// Weights are kept between calls up to this size.
const CACHE_BYTES: usize = 1 << 30;

/// Why a graph could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterpError {
    /// An input is missing, unknown, or of another type than the graph's.
    #[error("input {name}: {message}")]
    Input {
        /// The input.
        name: String,
        /// `what: wanted …, found …`.
        message: String,
    },
    /// A node failed: a weight could not be read, or an id is out of range.
    #[error("node {node} ({op}, {label}): {message}")]
    Node {
        /// Position in the program.
        node: u32,
        /// Name of the op.
        op: &'static str,
        /// Label of the node.
        label: String,
        /// `what: wanted …, found …`.
        message: String,
    },
}

/// Results of a run, in the order of the graph's outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs(pub Vec<(String, Tensor)>);

impl Outputs {
    /// The output of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }
}

/// Weights as f32, read when first used and kept while there is room.
pub(crate) struct WeightCache<'a> {
    pub reader: WeightReader<'a>,
    kept: Mutex<Kept>,
}

/// Weights that were read, and their size.
#[derive(Default)]
struct Kept {
    weights: HashMap<WeightId, Arc<Vec<f32>>>,
    codes: HashMap<WeightId, Arc<QuantizedRows>>,
    bytes: usize,
}

impl WeightCache<'_> {
    /// All codes and scales of a weight that is stored in integers.
    pub fn codes(&self, weight: WeightId) -> Result<Arc<QuantizedRows>, String> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept().codes.get(&weight) {
            return Ok(found.clone());
        }
        let read = Arc::new(self.reader.read_all_codes(weight).map_err(|e| e.to_string())?);
        let mut guard = kept();
        if guard.bytes + read.codes.len() <= CACHE_BYTES {
            guard.bytes += read.codes.len();
            guard.codes.insert(weight, read.clone());
        }
        Ok(read)
    }

    /// All elements of a weight, rounded as it is stored.
    pub fn all(&self, weight: WeightId) -> Result<Arc<Vec<f32>>, String> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept().weights.get(&weight) {
            return Ok(found.clone());
        }
        let read = Arc::new(self.reader.read_all_stored(weight).map_err(|e| e.to_string())?);
        let mut guard = kept();
        if guard.bytes + read.len() * 4 <= CACHE_BYTES {
            guard.bytes += read.len() * 4;
            guard.weights.insert(weight, read.clone());
        }
        Ok(read)
    }
}

/// Called after each node with its results.
pub type Observer<'o> = &'o mut dyn FnMut(NodeId, &[&Tensor]);

/// Runs one graph.
pub struct Interpreter<'a> {
    graph: &'a Graph,
    weights: WeightCache<'a>,
    evals: fn(Op) -> EvalFn,
}

impl<'a> Interpreter<'a> {
    /// An interpreter of a verified graph.
    pub fn new(graph: &'a Graph, source: &'a dyn WeightSource) -> Self {
        Interpreter::with_evals(graph, source, |op| op.row().eval)
    }

    /// An interpreter that takes each op's evaluation from `evals` instead of the op table: a target's own arithmetic.
    pub fn with_evals(graph: &'a Graph, source: &'a dyn WeightSource, evals: fn(Op) -> EvalFn) -> Self {
        let reader = WeightReader::new(graph, source);
        Self { graph, weights: WeightCache { reader, kept: Mutex::default() }, evals }
    }

    /// Runs a model on token ids; the head sees the last `output_rows` rows.
    pub fn run(&self, ids: &[u32], output_rows: usize) -> Result<Outputs, InterpError> {
        self.run_observed(&[("ids", Tensor::indices(ids.to_vec()))], output_rows, &mut |_, _| {})
    }

    /// Results of one node of a call of `tokens` tokens; `values` holds its operands, by the ids of the graph's values.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    ///
    /// # Panics
    /// If an operand is missing.
    pub fn node(
        &self,
        id: NodeId,
        values: &[Option<Tensor>],
        tokens: usize,
        output_rows: usize,
    ) -> Result<Vec<Tensor>, InterpError> {
        let node = self.graph.node(id);
        let cx = EvalCx::new(self.graph, node, values, &self.weights, tokens, output_rows);
        (self.evals)(node.op)(&cx).map_err(|message| node_error(id, node, message))
    }

    /// Runs a graph on named inputs; `observe` sees every node's results as they are made.
    pub fn run_observed(
        &self,
        inputs: &[(&str, Tensor)],
        output_rows: usize,
        observe: Observer<'_>,
    ) -> Result<Outputs, InterpError> {
        let mut run = Run { graph: self.graph, sizes: vec![None; self.graph.symbols.len()], values: Vec::new() };
        run.values.resize_with(self.graph.values.len(), || None);
        run.bind_inputs(inputs, output_rows)?;
        let last_use = last_uses(self.graph);
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let id = NodeId(i as u32);
            let results = self.node(id, &run.values, run.tokens(), output_rows)?;
            observe(id, &results.iter().collect::<Vec<_>>());
            for (r, tensor) in node.results.iter().zip(results) {
                run.check(*r, &tensor).map_err(|message| node_error(id, node, message))?;
                run.values[r.0 as usize] = Some(tensor);
            }
            for v in node.operands.iter().filter_map(|o| o.value()).chain(node.results.iter().copied()) {
                if last_use[v.0 as usize] <= i {
                    run.values[v.0 as usize] = None;
                }
            }
        }
        let take = |o: &crate::ir::Output| {
            let value = run.values[o.value.0 as usize].clone();
            (o.name.clone(), value.expect("a verified graph defines its outputs"))
        };
        Ok(Outputs(self.graph.outputs.iter().map(take).collect()))
    }
}

fn node_error(id: NodeId, node: &Node, message: String) -> InterpError {
    InterpError::Node { node: id.0, op: node.op.row().name, label: node.label.clone(), message }
}

/// The state of one run.
struct Run<'a> {
    graph: &'a Graph,
    /// Value of each symbol, once known.
    sizes: Vec<Option<usize>>,
    values: Vec<Option<Tensor>>,
}

impl Run<'_> {
    /// T; a graph without tokens has S for it.
    fn tokens(&self) -> usize {
        self.sizes[SymbolId::TOKENS.0 as usize].unwrap_or(1)
    }

    fn bind_inputs(&mut self, inputs: &[(&str, Tensor)], output_rows: usize) -> Result<(), InterpError> {
        let fail = |name: &str, message: String| InterpError::Input { name: name.into(), message };
        for (name, _) in inputs {
            if !self.graph.inputs.iter().any(|(n, _)| n == name) {
                let known: Vec<&str> = self.graph.inputs.iter().map(|(n, _)| n.as_str()).collect();
                return Err(fail(name, format!("name: wanted one of {}, found another", known.join(", "))));
            }
        }
        for (name, value) in &self.graph.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else {
                return Err(fail(name, "value: wanted one, found none".into()));
            };
            if tensor.rows() == 0 {
                return Err(fail(name, "rows: wanted at least 1, found 0".into()));
            }
            self.check(*value, tensor).map_err(|message| fail(name, message))?;
            self.values[value.0 as usize] = Some(tensor.clone());
        }
        let tokens = self.sizes[SymbolId::TOKENS.0 as usize].unwrap_or(output_rows);
        let max = self.graph.info.max_position_embeddings;
        if max > 0 && tokens as u64 > max {
            let message = format!("tokens: wanted at most {max} (max_position_embeddings), found {tokens}");
            return Err(fail("ids", message));
        }
        if output_rows == 0 || output_rows > tokens {
            return Err(fail("output rows", format!("S: wanted 1 to T = {tokens}, found {output_rows}")));
        }
        self.sizes[SymbolId::OUTPUT_ROWS.0 as usize] = Some(output_rows);
        Ok(())
    }

    /// Holds a tensor to the value's type; a symbol takes the first size that it meets.
    fn check(&mut self, value: ValueId, tensor: &Tensor) -> Result<(), String> {
        let ty = self.graph.ty(value);
        let mut same = ty.dtype == tensor.dtype() && ty.shape.len() == tensor.shape.len();
        same &= tensor.shape.iter().product::<usize>() == tensor.elems();
        for (dim, found) in ty.shape.iter().zip(&tensor.shape) {
            same &= match dim {
                Dim::Const(n) => *n == *found as u64,
                Dim::Sym(s) => *self.sizes[s.0 as usize].get_or_insert(*found) == *found,
            };
        }
        match same {
            true => Ok(()),
            false => {
                let wanted = self.graph.show_type(ty);
                Err(format!("value: wanted {wanted}, found {}{:?}", tensor.dtype(), tensor.shape))
            }
        }
    }
}

/// The last node that uses each value, by id: its definition if none does, never for outputs.
fn last_uses(graph: &Graph) -> Vec<usize> {
    let mut out = vec![0; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for v in node.operands.iter().filter_map(|o| o.value()).chain(node.results.iter().copied()) {
            out[v.0 as usize] = i;
        }
    }
    for output in &graph.outputs {
        out[output.value.0 as usize] = usize::MAX;
    }
    out
}

//! The verifier: what every graph keeps to, in every phase.

use std::collections::HashSet;

use super::{
    Component, DType, Dim, Graph, Node, NodeId, Operand, Phase, Storage, SymbolId, TensorType, Weight, WeightDef,
    limits,
};
use crate::ops::{InferCx, Op, check_schema, mismatch, shortened};

/// What is wrong with a graph, and where: `place: what: wanted …, found …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct VerifyError {
    /// `node 12 (linear, layers.0.attn.q)`, `weight 3 (@lm_head.weight)`, `output 0 (logits)`, …
    pub place: String,
    /// `what: wanted …, found …`.
    pub message: String,
}

/// Ops that a phase has replaced: they must not appear from that phase on.
const REPLACED_FROM: &[(Op, Phase)] = &[(Op::ExpertApply, Phase::Fused)];

impl Graph {
    /// Holds the graph to its rules: limits, weights and their definitions, each node to its op's row, types to the
    /// shape rules, definitions before uses, outputs, and what the phase allows.
    pub fn verify(&self) -> Result<(), VerifyError> {
        self.verify_info()?;
        self.verify_symbols()?;
        self.verify_weights()?;
        self.verify_values()?;
        self.verify_nodes()?;
        self.verify_outputs()
    }

    fn verify_info(&self) -> Result<(), VerifyError> {
        let counts = [
            ("symbols", self.symbols.len()),
            ("values", self.values.len()),
            ("weights", self.weights.len()),
            ("nodes", self.nodes.len()),
            ("outputs", self.outputs.len()),
        ];
        for (what, n) in counts {
            if n > limits::MAX_ENTITIES {
                return Err(error("graph".into(), mismatch(what, format!("at most {}", limits::MAX_ENTITIES), n)));
            }
        }
        let sizes = [
            ("vocab_size", self.info.vocab_size, limits::MAX_COLS),
            ("hidden_size", self.info.hidden_size, limits::MAX_COLS),
            ("num_layers", self.info.num_layers, limits::MAX_ENTITIES as u64),
            ("num_clusters", self.info.num_clusters, limits::MAX_PER_TOKEN),
            ("num_labels", self.info.num_labels, limits::MAX_COLS),
            ("max_position_embeddings", self.info.max_position_embeddings, limits::MAX_POSITIONS),
        ];
        for (what, n, max) in sizes {
            if n > max {
                return Err(error("model".into(), mismatch(what, format!("at most {max}"), n)));
            }
        }
        Ok(())
    }

    fn verify_symbols(&self) -> Result<(), VerifyError> {
        let mut names = HashSet::new();
        for (i, symbol) in self.symbols.iter().enumerate() {
            let place = || format!("symbol {i} ({})", symbol.name);
            if !names.insert(symbol.name.as_str()) {
                return Err(error(place(), mismatch("name", "one of its own", "another symbol's")));
            }
            let fixed = [("T", 1), ("S", 1)].get(i).copied();
            match fixed {
                Some((name, bound)) if symbol.name != name || symbol.max_per_token != bound => {
                    let found = format!("{} <= {}", symbol.name, symbol.max_per_token);
                    return Err(error(place(), mismatch("symbol", format!("{name} <= {bound}"), found)));
                }
                Some(_) => {}
                None if !is_identifier(&symbol.name) => {
                    return Err(error(place(), mismatch("name", "letters, digits and _", &symbol.name)));
                }
                None if !(1..=limits::MAX_PER_TOKEN).contains(&symbol.max_per_token) => {
                    let wanted = format!("1 to {} per token", limits::MAX_PER_TOKEN);
                    return Err(error(place(), mismatch("bound", wanted, symbol.max_per_token)));
                }
                None => {}
            }
        }
        match self.symbols.len() {
            0 | 1 => Err(error("graph".into(), mismatch("symbols", "T and S first", self.symbols.len()))),
            _ => Ok(()),
        }
    }

    fn verify_weights(&self) -> Result<(), VerifyError> {
        let mut names = HashSet::new();
        let mut depths: Vec<u32> = Vec::with_capacity(self.weights.len());
        let mut total = 0u64;
        let read = self.weights_read();
        for (i, weight) in self.weights.iter().enumerate() {
            let fail = |message| error(format!("weight {i} (@{})", weight.name), message);
            if !names.insert(weight.name.as_str()) {
                return Err(fail(mismatch("name", "one of its own", "another weight's")));
            }
            total += check_weight_shape(weight).map_err(fail)?;
            if total > limits::MAX_TOTAL_WEIGHT_ELEMS {
                let wanted = format!("at most {} elements of all weights", limits::MAX_TOTAL_WEIGHT_ELEMS);
                return Err(fail(mismatch("size", wanted, total)));
            }
            let bases = weight.def.bases();
            if let Some(later) = bases.iter().find(|b| b.0 as usize >= i) {
                return Err(fail(mismatch("definition", "earlier weights", format!("weight {}", later.0))));
            }
            let depth = bases.iter().map(|b| depths[b.0 as usize] + 1).max().unwrap_or(0);
            if depth > limits::MAX_WEIGHT_DEPTH {
                let wanted = format!("at most {} derivations deep", limits::MAX_WEIGHT_DEPTH);
                return Err(fail(mismatch("definition", wanted, depth)));
            }
            depths.push(depth);
            self.check_definition(weight).map_err(fail)?;
            if self.phase >= Phase::Quantized && weight.storage == Storage::Bf16 && read[i] {
                return Err(fail(mismatch("storage", "f32, f16, int8 or int4 once quantized", "bf16")));
            }
        }
        Ok(())
    }

    /// Which weights nodes read themselves, by id.
    fn weights_read(&self) -> Vec<bool> {
        let mut read = vec![false; self.weights.len()];
        for w in self.nodes.iter().flat_map(|n| n.operands.iter()).filter_map(|o| o.weight()) {
            if let Some(slot) = read.get_mut(w.0 as usize) {
                *slot = true;
            }
        }
        read
    }

    fn check_definition(&self, weight: &Weight) -> Result<(), String> {
        let show = |w: &Weight| format!("@{} {:?}", w.name, w.shape);
        let finite = |what: &str, x: f32| match x.is_finite() {
            true => Ok(()),
            false => Err(mismatch(what, "a finite number", x)),
        };
        match &weight.def {
            WeightDef::Stored => Ok(()),
            WeightDef::Splat(x) => finite("splat", *x),
            WeightDef::Random { std, .. } if *std < 0.0 => Err(mismatch("std", "at least 0", std)),
            WeightDef::Random { std, .. } => finite("std", *std),
            WeightDef::Concat(parts) => {
                let mut rows = 0;
                for part in parts.iter().map(|p| self.weight(*p)) {
                    if part.shape.len() != 2 || part.cols() != weight.cols() {
                        let wanted = format!("matrices of {} columns", weight.cols());
                        return Err(mismatch("concat", wanted, show(part)));
                    }
                    rows += part.rows();
                }
                match weight.shape.len() == 2 && rows == weight.rows() {
                    true => Ok(()),
                    false => Err(mismatch("concat", format!("{rows} rows in all"), show(weight))),
                }
            }
            WeightDef::ScaleColumns { base, columns } => {
                let (base, columns) = (self.weight(*base), self.weight(*columns));
                if base.shape != weight.shape || base.shape.len() != 2 {
                    return Err(mismatch("scale_columns", format!("a matrix {:?}", weight.shape), show(base)));
                }
                if columns.shape != [weight.cols()] {
                    return Err(mismatch("scale_columns", format!("a vector [{}]", weight.cols()), show(columns)));
                }
                Ok(())
            }
            WeightDef::Scale { base, factor } => {
                let base = self.weight(*base);
                if base.shape != weight.shape {
                    return Err(mismatch("scale", format!("shape {:?}", weight.shape), show(base)));
                }
                finite("factor", *factor)
            }
        }
    }

    fn verify_values(&self) -> Result<(), VerifyError> {
        for (i, value) in self.values.iter().enumerate() {
            let fail =
                |wanted: &str| Err(error(format!("value %{i}"), mismatch("type", wanted, self.show_type(&value.ty))));
            let shape = value.ty.shape.as_slice();
            let (rows, cols) = match shape {
                [rows] => (rows, 1),
                [rows, Dim::Const(cols)] => (rows, *cols),
                [..] => return fail("rank 1 or 2, a symbol only first"),
            };
            let rows = match rows {
                Dim::Const(n) => *n,
                Dim::Sym(s) if (s.0 as usize) < self.symbols.len() => 1,
                Dim::Sym(_) => return fail("a symbol of the graph"),
            };
            if !(1..=limits::MAX_COLS).contains(&rows) || !(1..=limits::MAX_COLS).contains(&cols) {
                return fail(&format!("dimensions of 1 to {}", limits::MAX_COLS));
            }
            match value.ty.dtype {
                DType::F32 | DType::U32 | DType::U8 => {}
                DType::F16 | DType::BF16 => return fail("f32, u32 or u8"),
            }
        }
        Ok(())
    }

    fn verify_nodes(&self) -> Result<(), VerifyError> {
        let mut defined = vec![false; self.values.len()];
        for (name, value) in &self.inputs {
            match defined.get_mut(value.0 as usize) {
                Some(slot) if !*slot => *slot = true,
                Some(_) | None => {
                    let found = format!("%{}", value.0);
                    return Err(error(format!("input {name}"), mismatch("value", "one of its own", found)));
                }
            }
        }
        let definitions = self.checked_definitions()?;
        let mut symbols: HashSet<SymbolId> = HashSet::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let fail = |message| self.node_error(i, message);
            check_schema(self, node.op, &node.operands, &node.attrs).map_err(fail)?;
            self.check_order(node, &defined).map_err(fail)?;
            let types = self.inferred(node, &definitions, &mut symbols).map_err(fail)?;
            for ((r, wanted), name) in node.results.iter().zip(&types).zip(node.op.row().results) {
                if self.ty(*r) != wanted {
                    return Err(fail(mismatch(name, self.show_type(wanted), self.show_type(self.ty(*r)))));
                }
                if std::mem::replace(&mut defined[r.0 as usize], true) {
                    return Err(fail(mismatch(name, "a value of its own", format!("%{}, defined before", r.0))));
                }
            }
            if let Some((_, phase)) = REPLACED_FROM.iter().find(|(op, from)| *op == node.op && self.phase >= *from) {
                let wanted = format!("no {} from phase {} on", node.op.row().name, phase.name());
                return Err(fail(mismatch("op", wanted, format!("one in phase {}", self.phase.name()))));
            }
        }
        Ok(())
    }

    /// [`Graph::definitions`], after the ids of all results were checked.
    fn checked_definitions(&self) -> Result<Vec<Option<NodeId>>, VerifyError> {
        for (i, node) in self.nodes.iter().enumerate() {
            let wanted = node.op.row().results.len();
            if node.results.len() != wanted {
                return Err(self.node_error(i, mismatch("results", wanted, node.results.len())));
            }
            if let Some(r) = node.results.iter().find(|r| r.0 as usize >= self.values.len()) {
                let wanted = format!("ids below {}", self.values.len());
                return Err(self.node_error(i, mismatch("results", wanted, r.0)));
            }
        }
        Ok(self.definitions())
    }

    fn check_order(&self, node: &Node, defined: &[bool]) -> Result<(), String> {
        for (k, operand) in node.operands.iter().enumerate() {
            if let Operand::Value(v) = operand
                && !defined[v.0 as usize]
            {
                let found = match self.topological_order() {
                    Err(NodeId(n)) => format!("%{}, in a cycle through node {n}", v.0),
                    Ok(_) if self.definitions()[v.0 as usize].is_some() => format!("%{}, defined later", v.0),
                    Ok(_) => format!("%{}, which nothing defines", v.0),
                };
                return Err(mismatch(&format!("operand {k}"), "a value defined before", found));
            }
        }
        Ok(())
    }

    fn inferred(
        &self,
        node: &Node,
        definitions: &[Option<NodeId>],
        symbols: &mut HashSet<SymbolId>,
    ) -> Result<Vec<TensorType>, String> {
        let mut cx = InferCx::new(self, node.op, &node.operands, &node.attrs);
        cx.definitions = Some(definitions);
        if node.op.row().new_symbol.is_some() {
            let own = |s: &SymbolId| *s != SymbolId::TOKENS && *s != SymbolId::OUTPUT_ROWS;
            cx.symbol = node.results.iter().filter_map(|r| self.ty(*r).rows().as_symbol()).find(own);
            if let Some(s) = cx.symbol
                && !symbols.insert(s)
            {
                let found = format!("{}, another node's", self.symbols[s.0 as usize].name);
                return Err(mismatch("symbol", "one of the node's own", found));
            }
        }
        (node.op.row().infer)(&cx)
    }

    fn verify_outputs(&self) -> Result<(), VerifyError> {
        let definitions = self.definitions();
        let mut names = HashSet::new();
        for (i, output) in self.outputs.iter().enumerate() {
            let fail = |message| Err(error(format!("output {i} ({})", output.name), message));
            if !names.insert(output.name.as_str()) {
                return fail(mismatch("name", "one of its own", "another output's"));
            }
            match definitions.get(output.value.0 as usize) {
                Some(Some(_)) => {}
                Some(None) if self.inputs.iter().any(|(_, v)| *v == output.value) => {}
                Some(None) | None => {
                    return fail(mismatch("value", "a defined value", format!("%{}", output.value.0)));
                }
            }
        }
        Ok(())
    }

    fn node_error(&self, i: usize, message: String) -> VerifyError {
        let node = &self.nodes[i];
        let label = if node.label.is_empty() { String::new() } else { format!(", {}", node.label) };
        error(format!("node {i} ({}{label})", node.op.row().name), message)
    }
}

fn error(place: String, message: String) -> VerifyError {
    VerifyError { place: shortened(place), message: shortened(message) }
}

/// Letters, digits and `_`, not starting with a digit.
pub(super) fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Elements of a weight of rank 1 or 2 that is not too large.
pub(super) fn check_weight_shape(weight: &Weight) -> Result<u64, String> {
    let found = format!("{}{:?}", weight.storage, weight.shape);
    let elems = match weight.shape.as_slice() {
        [n] => Some(*n),
        [n, k] => n.checked_mul(*k),
        [..] => return Err(mismatch("shape", "rank 1 or 2", found)),
    };
    if weight.storage.is_integer() {
        if weight.shape.len() != 2 {
            return Err(mismatch("storage", "f32, f16 or bf16 of a vector", found));
        }
        if weight.cols() > limits::MAX_QUANTIZED_COLS {
            let wanted = format!("at most {} columns of {}", limits::MAX_QUANTIZED_COLS, weight.storage);
            return Err(mismatch("shape", wanted, found));
        }
        if matches!(weight.component, Component::Norm | Component::Routing) {
            let wanted = format!("f32, f16 or bf16 in component {}", weight.component.name());
            return Err(mismatch("storage", wanted, found));
        }
    }
    let max = limits::MAX_WEIGHT_ELEMS;
    match elems {
        Some(n) if (1..=max).contains(&n) => Ok(n),
        Some(_) | None => Err(mismatch("shape", format!("1 to {max} elements"), found)),
    }
}

//! Making nodes: types inferred from the op's row.

use std::collections::BTreeSet;

use super::{
    Attrs, Dim, Graph, Node, NodeId, Operand, SymbolId, TensorType, ValueId, ValueInfo, Weight, WeightDef, WeightId,
};
use crate::ops::{InferCx, Op, check_schema};

impl Graph {
    /// A node that is not in the program yet: operands and attributes held to the op's row, attributes put into its
    /// order, results made as new values of the inferred types. `route.group` gets a new symbol.
    ///
    /// # Errors
    /// What does not fit, as `what: wanted …, found …`. Nothing was added then.
    pub fn make_node(
        &mut self,
        op: Op,
        operands: Vec<Operand>,
        attrs: Attrs,
        label: impl Into<String>,
    ) -> Result<Node, String> {
        check_schema(self, op, &operands, &attrs)?;
        let attrs =
            Attrs(op.row().attrs.iter().map(|row| (row.name, attrs.get(row.name).expect("checked").clone())).collect());
        let name = self.free_symbol_name();
        let types = self.infer_results(op, &operands, &attrs, None, &name)?;
        let results = types.into_iter().map(|ty| self.add_value(ty)).collect();
        Ok(Node { op, operands, attrs, results, label: label.into() })
    }

    /// The types of a node's results. A symbol of the node's own is added under `symbol_name`, unless this fails.
    pub(super) fn infer_results(
        &mut self,
        op: Op,
        operands: &[Operand],
        attrs: &Attrs,
        definitions: Option<&[Option<NodeId>]>,
        symbol_name: &str,
    ) -> Result<Vec<TensorType>, String> {
        let symbols = self.symbols.len();
        let mut symbol = None;
        if let Some(bound) = op.row().new_symbol {
            let bound = bound(&InferCx { definitions, ..InferCx::new(self, op, operands, attrs) })?;
            symbol = Some(self.add_symbol(symbol_name, bound));
        }
        let types = (op.row().infer)(&InferCx { symbol, definitions, ..InferCx::new(self, op, operands, attrs) });
        if types.is_err() {
            self.symbols.truncate(symbols);
        }
        types
    }

    fn free_symbol_name(&self) -> String {
        let taken: BTreeSet<&str> = self.symbols.iter().map(|s| s.name.as_str()).collect();
        let free = (0..=self.symbols.len()).map(|i| format!("N{i}")).find(|name| !taken.contains(name.as_str()));
        free.expect("more candidates than symbols")
    }

    /// [`Self::make_node`], appended to the program. Returns the results.
    pub fn push(
        &mut self,
        op: Op,
        operands: Vec<Operand>,
        attrs: Attrs,
        label: impl Into<String>,
    ) -> Result<Vec<ValueId>, String> {
        let node = self.make_node(op, operands, attrs, label)?;
        let results = node.results.clone();
        self.nodes.push(node);
        Ok(results)
    }

    /// [`Self::push`] of an op with one result.
    pub fn push1(
        &mut self,
        op: Op,
        operands: Vec<Operand>,
        attrs: Attrs,
        label: impl Into<String>,
    ) -> Result<ValueId, String> {
        Ok(self.push(op, operands, attrs, label)?[0])
    }

    /// The weight of that name.
    pub fn weight_by_name(&self, name: &str) -> Option<WeightId> {
        self.weights.iter().position(|w| w.name == name).map(|i| WeightId(i as u32))
    }

    /// Whether a name is free for a new weight.
    pub fn is_free_weight_name(&self, name: &str) -> bool {
        self.weight_by_name(name).is_none()
    }

    /// Drops values that nothing defines, weights that nothing reaches and symbols of no value, and numbers the rest
    /// anew: values in the order of their definition, which is also how the text form numbers them.
    pub fn compact(&mut self) {
        self.compact_values();
        self.compact_weights();
        self.compact_symbols();
    }

    fn compact_values(&mut self) {
        let mut new_ids = vec![None; self.values.len()];
        let mut values = Vec::with_capacity(self.values.len());
        let inputs = self.inputs.iter_mut().map(|(_, v)| v);
        for v in inputs.chain(self.nodes.iter_mut().flat_map(|n| n.results.iter_mut())) {
            values.push(self.values[v.0 as usize].clone());
            let new = ValueId(values.len() as u32 - 1);
            new_ids[v.0 as usize] = Some(new);
            *v = new;
        }
        let renumber = |v: ValueId| new_ids[v.0 as usize].expect("a verified graph defines what it uses");
        for operand in self.nodes.iter_mut().flat_map(|n| n.operands.iter_mut()) {
            if let Operand::Value(v) = operand {
                *v = renumber(*v);
            }
        }
        for output in &mut self.outputs {
            output.value = renumber(output.value);
        }
        self.values = values;
    }

    fn compact_weights(&mut self) {
        let mut used = vec![false; self.weights.len()];
        for w in self.nodes.iter().flat_map(|n| n.operands.iter()).filter_map(|o| o.weight()) {
            used[w.0 as usize] = true;
        }
        // Definitions refer to lower ids only, so one sweep from the end finds everything.
        for i in (0..self.weights.len()).rev() {
            for base in self.weights[i].def.bases().into_iter().filter(|_| used[i]).collect::<Vec<_>>() {
                used[base.0 as usize] = true;
            }
        }
        let mut new_ids = vec![WeightId(0); self.weights.len()];
        let mut weights: Vec<Weight> = Vec::with_capacity(self.weights.len());
        for (i, mut weight) in std::mem::take(&mut self.weights).into_iter().enumerate() {
            if !used[i] {
                continue;
            }
            let renumber = |w: &mut WeightId| *w = new_ids[w.0 as usize];
            match &mut weight.def {
                WeightDef::Stored | WeightDef::Splat(_) | WeightDef::Random { .. } => {}
                WeightDef::Concat(parts) => parts.iter_mut().for_each(renumber),
                WeightDef::ScaleColumns { base, columns } => [base, columns].into_iter().for_each(renumber),
                WeightDef::Scale { base, .. } => renumber(base),
            }
            new_ids[i] = WeightId(weights.len() as u32);
            weights.push(weight);
        }
        for operand in self.nodes.iter_mut().flat_map(|n| n.operands.iter_mut()) {
            if let Operand::Weight(w) = operand {
                *w = new_ids[w.0 as usize];
            }
        }
        self.weights = weights;
    }

    fn compact_symbols(&mut self) {
        let dims = |values: &[ValueInfo]| -> Vec<SymbolId> {
            let symbols = values.iter().flat_map(|v| v.ty.shape.iter()).filter_map(|d| d.as_symbol());
            [SymbolId::TOKENS, SymbolId::OUTPUT_ROWS].into_iter().chain(symbols).collect()
        };
        let used: BTreeSet<SymbolId> = dims(&self.values).into_iter().collect();
        let kept: Vec<SymbolId> = used.into_iter().collect();
        self.symbols = kept.iter().map(|s| self.symbols[s.0 as usize].clone()).collect();
        for dim in self.values.iter_mut().flat_map(|v| v.ty.shape.iter_mut()) {
            if let Dim::Sym(s) = dim {
                *s = SymbolId(kept.binary_search(s).expect("collected above") as u32);
            }
        }
    }
}

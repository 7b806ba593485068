//! What is checked of a node against its row, and the view of a node that shape rules get.

use super::{AttrRow, Op, OperandKind};
use crate::ir::{AttrKind, AttrValue, Attrs, DType, Dim, Graph, NodeId, Operand, SymbolId, TensorType, Weight};

/// `what: wanted …, found …`: the form of every message about a graph.
pub fn mismatch(what: &str, wanted: impl std::fmt::Display, found: impl std::fmt::Display) -> String {
    format!("{what}: wanted {wanted}, found {found}")
}

/// A message that quotes a file in part: whatever it quotes, it stays short.
pub(crate) fn shortened(message: String) -> String {
    match message.char_indices().nth(1000) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

/// Holds operands and attributes to the op's row: count, kind, existence; never their shapes.
pub fn check_schema(graph: &Graph, op: Op, operands: &[Operand], attrs: &Attrs) -> Result<(), String> {
    check_operands(graph, op, operands)?;
    let rows = op.row().attrs;
    if let Some((name, _)) = attrs.0.iter().find(|(name, _)| !rows.iter().any(|r| r.name == *name)) {
        let known: Vec<&str> = rows.iter().map(|r| r.name).collect();
        return Err(mismatch("attributes", format!("only {}", list(&known)), name));
    }
    for row in rows {
        match attrs.0.iter().filter(|(name, _)| *name == row.name).count() {
            1 => check_attr(row, attrs.get(row.name).expect("counted"))?,
            n => return Err(mismatch(row.name, "one value", format!("{n} values"))),
        }
    }
    Ok(())
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn check_operands(graph: &Graph, op: Op, operands: &[Operand]) -> Result<(), String> {
    let (fixed, groups) = (op.num_fixed_operands(), op.num_module_groups());
    let found = format!("{} operands", operands.len());
    if groups == 0 && operands.len() != fixed {
        return Err(mismatch("operands", fixed, found));
    }
    if groups > 0 && (operands.len() <= fixed || !(operands.len() - fixed).is_multiple_of(groups)) {
        let wanted = format!("{fixed} and then {groups} times one weight per module");
        return Err(mismatch("operands", wanted, found));
    }
    for (i, operand) in operands.iter().enumerate() {
        let row = op.row().operands[i.min(fixed + i.saturating_sub(fixed).min(groups.saturating_sub(1)))];
        let wanted = match (row.kind, operand) {
            (OperandKind::Value | OperandKind::OptionalValue, Operand::Value(_))
            | (OperandKind::Weight | OperandKind::OptionalWeight | OperandKind::WeightPerModule, Operand::Weight(_))
            | (OperandKind::OptionalValue | OperandKind::OptionalWeight, Operand::None) => None,
            (OperandKind::Value, _) => Some("a value"),
            (OperandKind::OptionalValue, _) => Some("a value or _"),
            (OperandKind::Weight | OperandKind::WeightPerModule, _) => Some("a weight"),
            (OperandKind::OptionalWeight, _) => Some("a weight or _"),
        };
        if let Some(wanted) = wanted {
            let found = match operand {
                Operand::Value(_) => "a value",
                Operand::Weight(_) => "a weight",
                Operand::None => "_",
            };
            return Err(mismatch(&format!("operand {i} ({})", row.name), wanted, found));
        }
        let (id, len) = match operand {
            Operand::Value(v) => (v.0, graph.values.len()),
            Operand::Weight(w) => (w.0, graph.weights.len()),
            Operand::None => continue,
        };
        if id as usize >= len {
            return Err(mismatch(&format!("operand {i} ({})", row.name), format!("an id below {len}"), id));
        }
    }
    Ok(())
}

fn check_attr(row: &AttrRow, value: &AttrValue) -> Result<(), String> {
    let wanted = match (row.kind, value) {
        (AttrKind::Int, AttrValue::Int(_)) | (AttrKind::Bool, AttrValue::Bool(_)) => return Ok(()),
        (AttrKind::Float, AttrValue::Float(x)) if x.is_finite() => return Ok(()),
        (AttrKind::Word(words), AttrValue::Word(w)) if words.contains(w) => return Ok(()),
        (AttrKind::Int, _) => "a non-negative integer".into(),
        (AttrKind::Bool, _) => "true or false".into(),
        (AttrKind::Float, _) => "a finite number".into(),
        (AttrKind::Word(words), _) => format!("one of {}", list(words)),
    };
    Err(mismatch(row.name, wanted, value))
}

/// A node as its shape rule sees it. Operands and attributes fit the row.
#[derive(Clone, Copy, Debug)]
pub struct InferCx<'a> {
    /// Types and weights that the operands refer to.
    pub graph: &'a Graph,
    /// The op.
    pub op: Op,
    /// Operands.
    pub operands: &'a [Operand],
    /// Attributes.
    pub attrs: &'a Attrs,
    /// The symbol that the node brings in (`route.group`'s N), if it does.
    pub symbol: Option<SymbolId>,
    /// [`Graph::definitions`] when the caller has them; a rule that asks for a definition searches otherwise.
    pub definitions: Option<&'a [Option<NodeId>]>,
}

impl<'a> InferCx<'a> {
    /// A node that has no results yet.
    pub fn new(graph: &'a Graph, op: Op, operands: &'a [Operand], attrs: &'a Attrs) -> Self {
        Self { graph, op, operands, attrs, symbol: None, definitions: None }
    }

    /// The name of an operand that is not a module's weight.
    pub fn name(&self, i: usize) -> &'static str {
        self.op.row().operands[i].name
    }

    /// Type of operand `i`, a value.
    pub fn value(&self, i: usize) -> &'a TensorType {
        self.optional(i).expect("the schema wants a value")
    }

    /// Type of operand `i` if it is given.
    pub fn optional(&self, i: usize) -> Option<&'a TensorType> {
        self.operands[i].value().map(|v| self.graph.ty(v))
    }

    /// Weight operand `i` if it is given.
    pub fn optional_weight(&self, i: usize) -> Option<&'a Weight> {
        self.operands[i].weight().map(|w| self.graph.weight(w))
    }

    /// Rows and columns of value `i`, which has to be a matrix of `dtype`.
    pub fn matrix(&self, i: usize, dtype: DType) -> Result<(Dim, u64), String> {
        let ty = self.value(i);
        match ty.shape.as_slice() {
            [rows, Dim::Const(cols)] if ty.dtype == dtype => Ok((*rows, *cols)),
            _ => Err(mismatch(self.name(i), format!("{dtype} of rank 2"), self.graph.show_type(ty))),
        }
    }

    /// Length of value `i`, which has to be a vector of `dtype`.
    pub fn vector(&self, i: usize, dtype: DType) -> Result<Dim, String> {
        let ty = self.value(i);
        match ty.shape.as_slice() {
            [rows] if ty.dtype == dtype => Ok(*rows),
            _ => Err(mismatch(self.name(i), format!("{dtype} of rank 1"), self.graph.show_type(ty))),
        }
    }

    /// Holds value `i` to exactly this type.
    pub fn want(&self, i: usize, wanted: &TensorType) -> Result<(), String> {
        match self.optional(i) {
            Some(ty) if ty == wanted => Ok(()),
            Some(ty) => Err(mismatch(self.name(i), self.graph.show_type(wanted), self.graph.show_type(ty))),
            None => Ok(()),
        }
    }

    /// Holds `rows` of operand `i` to T: ops that know positions or tokens.
    pub fn want_tokens(&self, i: usize, rows: Dim) -> Result<(), String> {
        match rows {
            Dim::Sym(SymbolId::TOKENS) => Ok(()),
            Dim::Sym(_) | Dim::Const(_) => {
                Err(mismatch(self.name(i), "one row per token (T)", self.graph.show_type(self.value(i))))
            }
        }
    }

    /// Rows and columns of weight operand `i`, which has to be a matrix; of floats, unless the op multiplies codes.
    pub fn weight_matrix(&self, i: usize) -> Result<(u64, u64), String> {
        let name = self.op.row().operands[i.min(self.op.row().operands.len() - 1)].name;
        let w = self.optional_weight(i).expect("the schema wants a weight");
        let found = || format!("@{} {}{:?}", w.name, w.storage, w.shape);
        match w.shape.as_slice() {
            [_, _] if w.storage.is_integer() && !self.op.reads_matrices() => {
                Err(mismatch(name, "a matrix stored as f32, f16 or bf16", found()))
            }
            [n, k] => Ok((*n, *k)),
            [..] => Err(mismatch(name, "a matrix", found())),
        }
    }

    /// Number of modules of an op with weights per module.
    pub fn num_modules(&self) -> u64 {
        ((self.operands.len() - self.op.num_fixed_operands()) / self.op.num_module_groups()) as u64
    }

    /// Holds every weight of a module group to `[n, k]`.
    pub fn want_modules(&self, group: usize, n: u64, k: u64) -> Result<(), String> {
        let (fixed, per) = (self.op.num_fixed_operands(), self.num_modules() as usize);
        let name = self.name(fixed + group);
        for module in 0..per {
            let w = self.optional_weight(fixed + group * per + module).expect("the schema wants a weight");
            if w.shape != [n, k] {
                let found = format!("@{} {}{:?}", w.name, w.storage, w.shape);
                return Err(mismatch(&format!("{name} of module {module}"), format!("a matrix [{n}, {k}]"), found));
            }
        }
        Ok(())
    }

    /// An attribute that must not be zero.
    pub fn positive(&self, attr: &str) -> Result<u64, String> {
        match self.attrs.int(attr) {
            0 => Err(mismatch(attr, "at least 1", 0)),
            n => Ok(n),
        }
    }

    /// A number attribute that has to be more than zero.
    pub fn positive_float(&self, attr: &str) -> Result<f32, String> {
        match self.attrs.float(attr) {
            x if x > 0.0 => Ok(x),
            x => Err(mismatch(attr, "more than 0", x)),
        }
    }
}

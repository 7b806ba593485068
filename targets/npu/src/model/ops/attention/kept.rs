//! Keys and values in the form in which they are kept: what is stored of a row, and how it is moved, rounded and read.

use lapidary_compiler::ir::{KvStorage, Node};
use lapidary_npu_isa::choice::{Broadcast, Type};
use lapidary_npu_isa::{Op as Instruction, Queue};

use super::super::super::context::Context;
use super::super::super::flow::{Flow, Matrix};
use super::super::super::order::{Area, Space};
use super::super::super::weights::ALIGN;
use super::super::known;
use super::Done;
use crate::builder::{Place, Value};
use crate::error::LowerError;

/// What attention there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Heads of queries.
    pub heads: u64,
    /// Heads of keys and values.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Of scores.
    pub scale: f32,
    /// How rows are kept.
    pub storage: KvStorage,
}

impl Shape {
    pub fn of(cx: &Context<'_>, node: &Node) -> Result<Shape, LowerError> {
        let attrs = &node.attrs;
        Ok(Shape {
            heads: attrs.int("heads"),
            kv_heads: attrs.int("kv_heads"),
            head_dim: attrs.int("head_dim"),
            scale: attrs.float("scale"),
            storage: storage(node).ok_or_else(|| cx.cannot(node, "kv_cache: wanted f32, f16 or int8"))?,
        })
    }

    /// Elements of a row of keys.
    pub const fn width(&self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// Query heads of a key head.
    pub const fn group(&self) -> u64 {
        self.heads / self.kv_heads
    }

    /// Whether rows are codes, which have to be multiplied by their scales before they are used.
    pub fn has_codes(&self) -> bool {
        self.storage == KvStorage::Int8
    }

    fn form(&self) -> Form {
        Form { storage: self.storage, width: self.width(), kv_heads: self.kv_heads }
    }

    /// Bytes of a kept row.
    pub fn row_bytes(&self) -> u64 {
        self.form().code_bytes() + self.form().scale_bytes()
    }

    /// Room for kept rows in the scratchpad.
    pub fn take(&self, flow: &mut Flow<'_>, rows: u64) -> Result<Kept, LowerError> {
        let form = self.form();
        let codes = form.codes(flow.scratch.take(rows * form.code_bytes())?);
        let scales = match self.has_codes() {
            true => Some(form.scales(flow.scratch.take(rows * form.scale_bytes())?)),
            false => None,
        };
        Ok(Kept { codes, scales })
    }
}

/// How a node keeps keys and values.
fn storage(node: &Node) -> Option<KvStorage> {
    KvStorage::by_name(node.attrs.word("kv_cache"))
}

/// How a node keeps keys and values between calls; `None`: it keeps none.
pub(super) fn storage_of(node: &Node) -> Option<KvStorage> {
    if node.keeps_keys() { storage(node) } else { None }
}

/// A kept row.
#[derive(Clone, Copy, Debug)]
struct Form {
    storage: KvStorage,
    width: u64,
    kv_heads: u64,
}

impl Form {
    fn element(&self) -> Type {
        match self.storage {
            KvStorage::F32 => Type::F32,
            KvStorage::F16 => Type::F16,
            KvStorage::Int8 => Type::I8,
        }
    }

    fn code_bytes(&self) -> u64 {
        self.width * u64::from(self.element().bytes())
    }

    fn scale_bytes(&self) -> u64 {
        if self.storage == KvStorage::Int8 { 4 * self.kv_heads } else { 0 }
    }

    fn codes(&self, area: Area) -> Matrix {
        Matrix::dense(area, self.width, self.element())
    }

    fn scales(&self, area: Area) -> Matrix {
        Matrix::dense(area, self.kv_heads, Type::F32)
    }
}

/// What a node keeps between calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// Keys and values by position.
    pub kept: [Kept; 2],
    /// First byte behind them.
    pub end: u64,
}

impl State {
    /// Keys, their scales, values, their scales, from `begin` on.
    pub fn at(begin: u64, rows: u64, storage: KvStorage, kv_heads: u64, head_dim: u64) -> State {
        let form = Form { storage, width: kv_heads * head_dim, kv_heads };
        let mut end = begin;
        let mut take = |bytes: u64| {
            let area = Area::new(Space::Dram, end, bytes);
            end = (end + bytes).next_multiple_of(ALIGN);
            area
        };
        let kept = [0, 1].map(|_| Kept {
            codes: form.codes(take(rows * form.code_bytes())),
            scales: (form.scale_bytes() > 0).then(|| form.scales(take(rows * form.scale_bytes()))),
        });
        State { kept, end }
    }
}

/// Rows of keys or of values: floats, or codes and a scale of each head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub codes: Matrix,
    pub scales: Option<Matrix>,
}

impl Kept {
    /// From row `index`·`rows` on: registers of the current scope.
    pub fn at_row(&self, flow: &mut Flow<'_>, index: Value, rows: u64) -> Result<Kept, LowerError> {
        let codes = flow.at_row(&self.codes, index, rows)?;
        let scales = self.scales.map(|scales| flow.at_row(&scales, index, rows)).transpose()?;
        Ok(Kept { codes, scales })
    }

    /// Both parts, and elements of a row of each.
    fn parts(&self, shape: &Shape) -> impl Iterator<Item = (Matrix, u64)> {
        [(self.codes, shape.width())].into_iter().chain(self.scales.map(|scales| (scales, shape.kv_heads)))
    }
}

/// Which rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    /// One behind the other, from this one on.
    Run(Value),
    /// Those of a list.
    List(Matrix),
}

/// Rows that queries read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// All rows that there are.
    pub kept: Kept,
    /// How many that is at most.
    pub room: u64,
    /// Which of them.
    pub choice: Choice,
    /// The last place in `kept`, or in the list, at which a block begins.
    pub last: u64,
}

impl Source {
    /// Whether nothing has to be fetched.
    pub fn is_here(&self) -> bool {
        matches!(self.choice, Choice::Run(_)) && self.kept.codes.on_chip()
    }

    /// Rows that have not to be fetched: registers of the current scope.
    pub fn here(&self, flow: &mut Flow<'_>) -> Result<Kept, LowerError> {
        match self.choice {
            Choice::Run(first) => self.kept.at_row(flow, first, 1),
            Choice::List(_) => Ok(self.kept),
        }
    }

    /// Chosen rows from number `index`·`size` on to the begin of `dst`.
    pub fn fetch(
        &self,
        flow: &mut Flow<'_>,
        shape: &Shape,
        dst: &Kept,
        (index, size): (Value, u64),
        rows: Value,
    ) -> Done {
        for ((to, cols), (from, _)) in dst.parts(shape).zip(self.kept.parts(shape)) {
            if !from.on_chip() {
                flow.one_by_one(Queue::Load)?;
            }
            flow.scope(|flow| match self.choice {
                Choice::Run(first) => {
                    let row = number(flow, first, index, size, self.last)?;
                    let from = flow.at_row(&from, row, 1)?;
                    flow.load(&to, &from, known(cols), rows)
                }
                Choice::List(list) => {
                    let at = number(flow, Value::ZERO, index, size, self.last)?;
                    let list = flow.at_row(&list, at, 1)?;
                    let (bound, bytes) = (known(self.room), cols * u64::from(from.element.bytes()));
                    match from.on_chip() {
                        true => flow.gather(&to, &from, &list, bound, cols, rows),
                        false => flow.load_rows(&to, &from, &list, bound, bytes, rows, false),
                    }
                }
            })?;
        }
        Ok(())
    }
}

/// min(first + index·size, last), in a register of the current scope if it is not known. The bound holds by itself where there
/// are rows: the verifier does not see that.
fn number(flow: &mut Flow<'_>, first: Value, index: Value, size: u64, last: u64) -> Result<Value, LowerError> {
    match (first, index) {
        (first, Value::Const(0)) => Ok(first),
        (Value::Const(first), Value::Const(index)) => Ok(Value::Const((first + index * size as i64).min(last as i64))),
        (first, index) => {
            let row = flow.b.reg("a row")?;
            flow.b.sum(row, Place::of(first), &[(index, size as i64)])?;
            flow.b.arithmetic(Instruction::Min, row, row, known(last))?;
            Ok(Value::Reg(row))
        }
    }
}

/// dst = rows of src, f32, as they are kept. `scales` is room for one f32 per row.
pub(super) fn round(
    flow: &mut Flow<'_>,
    shape: &Shape,
    dst: &Kept,
    src: &Matrix,
    rows: Value,
    scales: Option<Matrix>,
) -> Done {
    let Some(to) = dst.scales else {
        return flow.unary(Instruction::Copy, &dst.codes, src, known(shape.width()), rows);
    };
    if rows == Value::Const(1) || shape.kv_heads == 1 {
        // Rows of one head each: of one token, or dense ones.
        let heads = |m: &Matrix| match rows {
            Value::Const(1) => Matrix { stride: shape.head_dim * u64::from(m.element.bytes()), ..*m },
            _ => *m,
        };
        let rows = if rows == Value::Const(1) { known(shape.kv_heads) } else { rows };
        return flow.quantize(&heads(&dst.codes), &to, &heads(src), shape.head_dim, rows);
    }
    let scales = scales.expect("more than one row has room for scales");
    for head in 0..shape.kv_heads {
        let at = head * shape.head_dim;
        flow.quantize(&dst.codes.at_col(at), &scales, &src.at_col(at), shape.head_dim, rows)?;
        flow.unary(Instruction::Copy, &to.at_col(head), &scales, known(1), rows)?;
    }
    Ok(())
}

/// wide = f32(codes) · scales.
pub(super) fn widen(flow: &mut Flow<'_>, shape: &Shape, wide: &Matrix, kept: &Kept, rows: Value) -> Done {
    let Some(scales) = kept.scales else { return Ok(()) };
    let heads = |m: &Matrix| Matrix { stride: shape.head_dim * u64::from(m.element.bytes()), ..*m };
    let scales = Matrix { stride: 4, ..scales };
    flow.scope(|flow| {
        let rows = flow.b.product("rows of heads", rows, shape.kv_heads as i64)?;
        let (wide, codes) = (heads(wide), heads(&kept.codes));
        flow.binary(Instruction::VMul, &wide, &codes, &scales, Broadcast::Column, known(shape.head_dim), rows)
    })
}

/// Rows to DRAM, from row `first` of `state` on.
pub(super) fn store(flow: &mut Flow<'_>, shape: &Shape, state: &Kept, first: Value, rows: &Kept, count: Value) -> Done {
    for ((to, cols), (from, _)) in state.parts(shape).zip(rows.parts(shape)) {
        flow.scope(|flow| {
            let to = flow.at_row(&to, first, 1)?;
            flow.store(&to, &from, known(cols), count)
        })?;
    }
    Ok(())
}

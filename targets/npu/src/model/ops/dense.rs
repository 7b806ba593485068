//! Ops on rows: embedding, norms, element by element, rows chosen or reduced.

use lapidary_compiler::ir::{NodeId, Op, ValueId};
use lapidary_npu_isa::Op as Instruction;
use lapidary_npu_isa::choice::{Broadcast, Type};
use lapidary_npu_isa::format::Count;
use lapidary_npu_isa::operand::Maybe;

use super::super::context::{Context, Rows};
use super::super::flow::{Flow, Matrix};
use super::super::order::{Area, Space};
use super::super::stream::Stream;
use super::super::weights::{CodeRows, FloatRows, Placed};
use super::known;
use crate::builder::{Place, Value};
use crate::error::LowerError;
use crate::matmul::WeightFormat;

type Done = Result<(), LowerError>;

/// Stores a result of the graph that is on chip.
pub(super) fn store_output(cx: &Context<'_>, flow: &mut Flow<'_>, value: ValueId, address: u64) -> Done {
    let (home, cols, rows) = (cx.value(value), cx.cols_of(value), cx.rows_of(value));
    let bytes = rows.room * cols * u64::from(home.element.bytes());
    let out = Matrix::dense(Area::new(Space::Dram, address, bytes), cols, home.element);
    flow.store(&out, &home, known(cols), rows.count)
}

/// A matrix of floats in DRAM.
pub(super) fn float_rows(w: &FloatRows) -> Matrix {
    let area = Area::new(Space::Dram, w.address, w.rows * w.row_bytes());
    Matrix::dense(area, w.cols, w.element)
}

/// A weight of few elements, in the scratchpad.
pub(super) fn load_weight(
    cx: &Context<'_>,
    flow: &mut Flow<'_>,
    id: NodeId,
    place: usize,
) -> Result<(Matrix, FloatRows), LowerError> {
    let node = cx.node(id);
    let Placed::Floats(w) = cx.row_weight(node, place) else {
        return Err(cx.cannot(node, format!("operand {place}: wanted a weight stored in floats, found codes")));
    };
    let from = float_rows(&w);
    let area = flow.scratch.take(w.rows * w.row_bytes())?;
    let weight = Matrix::dense(area, w.cols, w.element);
    // As one run of bytes.
    flow.load(&weight, &from, known(w.rows * w.cols), Value::Const(1))?;
    Ok((weight, w))
}

/// Rows of a table by ids.
pub(super) fn embed(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let y = cx.stream(node.results[0]);
    let ids = cx.stream(cx.operand(node, 0));
    let table = cx.row_weight(node, 1);
    let rows = cx.rows_of(node.results[0]);
    match table {
        Placed::Floats(w) => flow.by_rows(rows, &[ids], &[y], |flow, block, ids, y| {
            let bound = known(w.rows);
            match w.element {
                Type::F32 => flow.load_rows(&y[0], &float_rows(&w), &ids[0], bound, w.row_bytes(), block.rows, false),
                _ => {
                    let area = flow.scratch.take(block.size.min(rows.room) * w.row_bytes())?;
                    let narrow = Matrix::dense(area, w.cols, w.element);
                    flow.load_rows(&narrow, &float_rows(&w), &ids[0], bound, w.row_bytes(), block.rows, false)?;
                    flow.unary(Instruction::Copy, &y[0], &narrow, known(w.cols), block.rows)
                }
            }
        }),
        Placed::Codes(w) => flow.by_rows(rows, &[ids], &[y], |flow, block, ids, y| {
            embed_codes(flow, &w, block.size.min(rows.room), block.rows, &ids[0], &y[0])
        }),
        Placed::Tiles(_) => Err(cx.cannot(node, "table: wanted rows, found tiles")),
    }
}

fn embed_codes(flow: &mut Flow<'_>, w: &CodeRows, room: u64, rows: Value, ids: &Matrix, y: &Matrix) -> Done {
    let table = |address: u64, bytes: u64| Matrix {
        area: Area::new(Space::Dram, address, w.rows * bytes),
        at: Place::at(address),
        stride: bytes,
        element: Type::I8,
    };
    let bound = known(w.rows);
    let (group, scale_type, unpack) = match w.format {
        WeightFormat::Int8 => (w.cols, Type::F32, false),
        WeightFormat::Int4 { group } => (u64::from(group), Type::F16, true),
    };
    let wide = w.row_bytes << u64::from(unpack);
    let codes = Matrix::dense(flow.scratch.take(room * wide)?, wide, Type::I8);
    let scales = Matrix::dense(
        flow.scratch.take(room * w.scale_bytes)?,
        w.scale_bytes / u64::from(scale_type.bytes()),
        scale_type,
    );
    flow.load_rows(&codes, &table(w.address, w.row_bytes), ids, bound, w.row_bytes, rows, unpack)?;
    flow.load_rows(&scales, &table(w.scales, w.scale_bytes), ids, bound, w.scale_bytes, rows, false)?;
    for g in 0..w.cols.div_ceil(group) {
        let (first, cols) = (g * group, group.min(w.cols - g * group));
        let (codes, scales) = (codes.at_col(first), scales.at_col(g));
        flow.binary(Instruction::VMul, &y.at_col(first), &codes, &scales, Broadcast::Column, known(cols), rows)?;
    }
    Ok(())
}

/// `x / √(mean(x²) + eps) · w`.
pub(super) fn rms_norm(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    let w = match cx.weight(node, 1) {
        Some(_) => load_weight(cx, flow, id, 1)?.0,
        None => {
            let ones = Matrix::dense(flow.scratch.take(4 * x.cols)?, x.cols, Type::F32);
            flow.fill(&ones, x.cols, Value::Const(1), Value::Const(f32::to_bits(1.0).into()))?;
            ones
        }
    };
    let eps = node.attrs.float("eps");
    flow.by_rows(cx.rows_of(node.results[0]), &[x], &[y], |flow, block, x, out| {
        flow.rms_norm(&out[0], &x[0], &w, y.cols, block.rows, eps)
    })
}

/// `a + b`, `a ⊙ b`.
pub(super) fn binary(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let f = if node.op == Op::Add { Instruction::VAdd } else { Instruction::VMul };
    let (a, b) = (cx.stream(cx.operand(node, 0)), cx.stream(cx.operand(node, 1)));
    let y = cx.stream(node.results[0]);
    flow.by_rows(cx.rows_of(node.results[0]), &[a, b], &[y], |flow, block, x, out| {
        flow.binary(f, &out[0], &x[0], &x[1], Broadcast::Full, known(y.cols), block.rows)
    })
}

/// `factor · x`.
pub(super) fn scale(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    let factor = node.attrs.float("factor");
    flow.by_rows(cx.rows_of(node.results[0]), &[x], &[y], |flow, block, x, out| {
        flow.affine(&out[0], &x[0], y.cols, block.rows, factor, None)
    })
}

/// silu, gelu.
pub(super) fn activation(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let f = if node.op == Op::Silu { Instruction::Silu } else { Instruction::Gelu };
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    flow.by_rows(cx.rows_of(node.results[0]), &[x], &[y], |flow, block, x, out| {
        flow.unary(f, &out[0], &x[0], known(y.cols), block.rows)
    })
}

/// `exp(x) / Σ exp(x)` over each row.
pub(super) fn softmax(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    flow.by_rows(cx.rows_of(node.results[0]), &[x], &[y], |flow, block, x, out| {
        flow.softmax(&out[0], &x[0], known(y.cols), block.rows, None, None)
    })
}

/// Rotary positions: rows of a table from the first position on.
pub(super) fn rope(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    let (heads, head_dim) = (node.attrs.int("heads"), node.attrs.int("head_dim"));
    let address = cx.weights.rope(head_dim, node.attrs.float("theta"));
    // Rows behind the last position are never used, but a call could begin at the last.
    let bytes = 4 * head_dim * (cx.max_tokens + cx.room.rows);
    let table = Matrix::dense(Area::new(Space::Dram, address, bytes), head_dim, Type::F32);
    flow.scope(|flow| {
        let from = flow.at_row(&table, cx.position, 1)?;
        let table = Stream { home: from, cols: head_dim };
        flow.by_rows(cx.rows_of(node.results[0]), &[x, table], &[y], |flow, block, x, out| {
            flow.rope(&out[0], &x[0], &x[1], (heads, head_dim), block.rows)
        })
    })
}

/// The same value everywhere.
pub(super) fn fill(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let y = cx.stream(node.results[0]);
    let value = Value::Const(node.attrs.float("value").to_bits().into());
    flow.by_rows(cx.rows_of(node.results[0]), &[], &[y], |flow, block, _, out| {
        flow.fill(&out[0], y.cols, block.rows, value)
    })
}

/// dst\[i\] = start + i for i < count.
pub(super) fn iota(flow: &mut Flow<'_>, dst: &Matrix, start: Value, count: Value) -> Done {
    flow.scope(|flow| {
        let start = match start {
            Value::Const(0) => Maybe(None),
            start => Maybe(Some(flow.b.in_register("first number", start)?)),
        };
        let op = Count { dst: flow.sp(dst.at)?, count: flow.given(count)?, start };
        flow.issue(Instruction::Iota(op), &[], &[dst.area])
    })
}

/// The last S rows of T.
pub(super) fn last_rows(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    if cx.room.tokens == 1 {
        return Ok(());
    }
    let (x, y) = (cx.value(cx.operand(node, 0)), cx.stream(node.results[0]));
    let rows = cx.rows_of(node.results[0]);
    let list = Matrix::dense(flow.scratch.take(4 * rows.room)?, 1, Type::I32);
    flow.scope(|flow| {
        let start = flow.b.reg("first row")?;
        flow.b.sum(start, Place::default(), &[(cx.tokens, 1), (cx.output_rows, -1)])?;
        iota(flow, &list, Value::Reg(start), rows.count)
    })?;
    flow.by_rows(rows, &[Stream { home: list, cols: 1 }], &[y], |flow, block, list, out| match x.on_chip() {
        true => flow.gather(&out[0], &x, &list[0], cx.tokens, y.cols, block.rows),
        false => flow.load_rows(&out[0], &x, &list[0], cx.tokens, 4 * y.cols, block.rows, false),
    })
}

/// A row of sums, one row per block added to it, then divided by the number of rows.
pub(super) fn mean_rows(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (x, y) = (cx.value(cx.operand(node, 0)), cx.stream(node.results[0]));
    let rows = cx.rows_of(cx.operand(node, 0));
    let count = Matrix::dense(flow.scratch.take(4)?, 1, Type::F32);
    let as_integer = Matrix { element: Type::I32, ..count };
    flow.scope(|flow| {
        let number = Value::Reg(flow.b.in_register("number of rows", rows.count)?);
        flow.fill(&as_integer, 1, Value::Const(1), number)?;
        flow.unary(Instruction::Copy, &count, &as_integer, known(1), Value::Const(1))
    })?;
    // Columns, as many as fit with all rows, so that rows add up in their order.
    let sums = Matrix::dense(flow.scratch.take(4 * y.cols)?, y.cols, Type::F32);
    match x.on_chip() {
        true => flow.column_sum(&sums, &x, y.cols, rows.count)?,
        false => {
            let cols = (flow.scratch.largest() / (4 * rows.room)).clamp(1, y.cols);
            let staging = flow.scratch.take(4 * cols * rows.room)?;
            let mut first = 0;
            while first < y.cols {
                let width = cols.min(y.cols - first);
                let part = Matrix::dense(staging, width, Type::F32);
                flow.load(&part, &x.at_col(first), known(width), rows.count)?;
                flow.column_sum(&sums.at_col(first), &part, width, rows.count)?;
                first += width;
            }
        }
    }
    flow.by_rows(Rows::known(1), &[], &[y], |flow, _, _, out| {
        flow.binary(Instruction::VDiv, &out[0], &sums, &count, Broadcast::Scalar, known(y.cols), Value::Const(1))
    })
}

/// `x / max(‖x‖₂, 1e-12)` per row.
pub(super) fn l2_normalize(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    let rows = cx.rows_of(node.results[0]);
    let norms = Matrix::dense(flow.scratch.take(4 * rows.room)?, 1, Type::F32);
    let least = Matrix::dense(flow.scratch.take(4)?, 1, Type::F32);
    flow.fill(&least, 1, Value::Const(1), Value::Const(f32::to_bits(1e-12).into()))?;
    flow.by_rows(rows, &[x], &[y], |flow, block, x, out| {
        flow.row_reduce(Instruction::RowSumSquares, &norms, &x[0], y.cols, block.rows)?;
        flow.unary(Instruction::Sqrt, &norms, &norms, known(1), block.rows)?;
        flow.binary(Instruction::VMax, &norms, &norms, &least, Broadcast::Scalar, known(1), block.rows)?;
        flow.binary(Instruction::VDiv, &out[0], &x[0], &norms, Broadcast::Column, known(y.cols), block.rows)
    })
}

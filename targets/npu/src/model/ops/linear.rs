//! Products with one matrix, and with the two of a SwiGLU: columns by columns where the result has its home in DRAM.

use lapidary_compiler::ir::NodeId;
use lapidary_npu_isa::Op as Instruction;
use lapidary_npu_isa::choice::{Broadcast, Type};
use lapidary_npu_isa::format::Unary;

use super::super::context::{Context, Rows};
use super::super::flow::{Flow, Matrix};
use super::super::stream::{Block, Stream};
use super::known;
use super::product::{Columns, Input, product, quantized, reads_codes};
use crate::builder::Value;
use crate::error::LowerError;

type Done = Result<(), LowerError>;

/// What becomes of a product on its way to a result.
struct Tail {
    act: Option<fn(Unary) -> Instruction>,
    residual: Option<Stream>,
}

/// `act(x · wᵀ) + residual`.
pub(super) fn linear(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let act: Option<fn(Unary) -> Instruction> = match node.attrs.word("act") {
        "silu" => Some(Instruction::Silu),
        "gelu" => Some(Instruction::Gelu),
        _ => None,
    };
    let tail = Tail { act, residual: cx.optional(node, 2).map(|r| cx.stream(r)) };
    let y = cx.stream(node.results[0]);
    let columns = Columns::all(cx.product_weight(node, 1), None);
    // Where the residual lies in the result's place, the product is made elsewhere.
    let in_place = tail.residual.is_some_and(|r| r.home == y.home);
    with_input(cx, flow, id, &columns, |flow, input, block, rows| {
        let buffers =
            u64::from(in_place || !y.home.on_chip()) + u64::from(tail.residual.is_some_and(|r| !r.home.on_chip()));
        let width = if buffers == 0 { columns.count() } else { fitting_width(flow, &columns, rows, buffers) };
        pieces(flow, &columns, width, |flow, index, columns, width_now| {
            flow.scope(|flow| {
                let home = part_of(flow, &y.home, block, index, width)?;
                let mark = flow.scratch.mark();
                let dst = match in_place {
                    true => Matrix::dense(flow.scratch.take(4 * rows.room * width_now)?, width_now, Type::F32),
                    false => on_chip_part(flow, &home, rows, width_now)?,
                };
                product(flow, input, rows, columns, width_now, &dst)?;
                if let Some(act) = tail.act {
                    flow.unary(act, &dst, &dst, known(width_now), block.rows)?;
                }
                if let Some(residual) = tail.residual {
                    let from = part_of(flow, &residual.home, block, index, width)?;
                    let r = on_chip_part(flow, &from, rows, width_now)?;
                    if !from.on_chip() {
                        flow.load(&r, &from, known(width_now), block.rows)?;
                    }
                    let sum = if in_place && home.on_chip() { home } else { dst };
                    flow.binary(Instruction::VAdd, &sum, &dst, &r, Broadcast::Full, known(width_now), block.rows)?;
                }
                if !home.on_chip() {
                    flow.store(&home, &dst, known(width_now), block.rows)?;
                }
                flow.scratch.back_to(mark);
                Ok(())
            })
        })
    })
}

/// `silu(x · gateᵀ) ⊙ (x · upᵀ)`.
pub(super) fn swiglu(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let y = cx.stream(node.results[0]);
    let gate = Columns::all(cx.product_weight(node, 1), None);
    let up = Columns::all(cx.product_weight(node, 2), None);
    if reads_codes(&gate.weight) != reads_codes(&up.weight) {
        return Err(cx.cannot(node, "gate and up: wanted both in integers or both in floats, found one of each"));
    }
    with_input(cx, flow, id, &gate, |flow, input, block, rows| {
        swiglu_pieces(flow, input, rows, &gate, &up, |flow, index, width| part_of(flow, &y.home, block, index, width))
    })
}

/// `silu(input · gateᵀ) ⊙ (input · upᵀ)` into what `home` says of columns index·width on.
pub(super) fn swiglu_pieces(
    flow: &mut Flow<'_>,
    input: &Input,
    rows: Rows,
    gate: &Columns,
    up: &Columns,
    home: impl Fn(&mut Flow<'_>, Value, u64) -> Result<Matrix, LowerError>,
) -> Done {
    let on_chip = flow.scope(|flow| home(flow, Value::ZERO, 0))?.on_chip();
    let buffers = if on_chip { 1 } else { 2 };
    let width = fitting_width(flow, gate, rows, buffers);
    pieces(flow, gate, width, |flow, index, gate, width_now| {
        flow.scope(|flow| {
            let up = up.piece(flow, index, width)?;
            let home = home(flow, index, width)?;
            let mark = flow.scratch.mark();
            let dst = on_chip_part(flow, &home, rows, width_now)?;
            let other = Matrix::dense(flow.scratch.take(4 * rows.room * width_now)?, width_now, Type::F32);
            product(flow, input, rows, gate, width_now, &dst)?;
            product(flow, input, rows, &up, width_now, &other)?;
            flow.binary(Instruction::SiluMul, &dst, &dst, &other, Broadcast::Full, known(width_now), rows.count)?;
            if !home.on_chip() {
                flow.store(&home, &dst, known(width_now), rows.count)?;
            }
            flow.scratch.back_to(mark);
            Ok(())
        })
    })
}

/// Brings a node's first operand into the form that its products read: all rows of codes at once, or floats block by block.
fn with_input(
    cx: &Context<'_>,
    flow: &mut Flow<'_>,
    id: NodeId,
    columns: &Columns,
    body: impl Fn(&mut Flow<'_>, &Input, Block, Rows) -> Done,
) -> Done {
    let node = cx.node(id);
    let x = cx.stream(cx.operand(node, 0));
    let rows = cx.rows_of(cx.operand(node, 0));
    let whole = Block { index: Value::ZERO, size: rows.room, rows: rows.count };
    if reads_codes(&columns.weight) {
        let codes = quantized(cx, flow, x, rows)?;
        return body(flow, &Input::Codes(codes), whole, rows);
    }
    flow.by_rows(rows, &[x], &[], |flow, block, x, _| {
        if block.size < rows.most {
            flow.note(&format!("weights are read for each {} rows: more do not fit the working memory", block.size));
        }
        let size = block.size.min(rows.room);
        let rows = Rows { count: block.rows, most: size.min(rows.most), room: size };
        body(flow, &Input::Floats(x[0]), block, rows)
    })
}

/// Columns index·width on of a block's rows.
fn part_of(flow: &mut Flow<'_>, home: &Matrix, block: Block, index: Value, width: u64) -> Result<Matrix, LowerError> {
    let rows = flow.at_row(home, block.index, block.size)?;
    flow.moved(&rows, index, (width * u64::from(home.element.bytes())) as i64)
}

/// Where columns are made: their home, if that is on chip, or a piece of working memory.
fn on_chip_part(flow: &mut Flow<'_>, home: &Matrix, rows: Rows, width: u64) -> Result<Matrix, LowerError> {
    match home.on_chip() {
        true => Ok(*home),
        false => Ok(Matrix::dense(flow.scratch.take(4 * rows.room * width)?, width, Type::F32)),
    }
}

/// Columns of which `buffers` fit three quarters of the working memory.
fn fitting_width(flow: &Flow<'_>, columns: &Columns, rows: Rows, buffers: u64) -> u64 {
    let fit = flow.scratch.largest() / 4 * 3 / (4 * rows.room * buffers);
    let unit = columns.unit();
    if fit >= columns.count() { columns.count() } else { (fit / unit).max(1) * unit }
}

/// Executes the body for pieces of `width` columns.
fn pieces(
    flow: &mut Flow<'_>,
    columns: &Columns,
    width: u64,
    body: impl Fn(&mut Flow<'_>, Value, &Columns, u64) -> Done,
) -> Done {
    let (full, rest) = (columns.count() / width, columns.count() % width);
    flow.repeat("columns", known(full), full, |flow, index| {
        let columns = columns.piece(flow, index, width)?;
        body(flow, index, &columns, width)
    })?;
    if rest > 0 {
        flow.scope(|flow| {
            let columns = columns.piece(flow, known(full), width)?;
            body(flow, known(full), &columns, rest)
        })?;
    }
    Ok(())
}

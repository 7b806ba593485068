//! Routing: scores, clusters, sets of modules, tokens by module, cluster memory.

use lapidary_compiler::ir::NodeId;
use lapidary_compiler::ops::Policy;
use lapidary_npu_isa::Op as Instruction;
use lapidary_npu_isa::choice::{Broadcast, Type};
use lapidary_npu_isa::format::{Compact, Group, SelectBoth, SelectColumns, SelectLimit, SelectMass, SelectRows};
use lapidary_npu_isa::operand::{Flag, Maybe};

use super::super::context::{Context, Rows};
use super::super::flow::{Flow, Matrix};
use super::super::order::{Area, Space};
use super::super::stream::Stream;
use super::dense::load_weight;
use super::known;
use crate::builder::{Place, Value};
use crate::error::LowerError;

type Done = Result<(), LowerError>;

/// `softmax_c(scale·q·keys[c] + lambda·ln(domains[:, c mod D] + 1e-6))`.
pub(super) fn scores(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (q, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    let domains = cx.optional(node, 1).map(|v| cx.stream(v));
    let (keys, _) = load_weight(cx, flow, id, 2)?;
    let (scale, lambda) = (node.attrs.float("scale"), node.attrs.float("lambda"));
    let num_domains = node.attrs.int("num_domains");
    let rows = cx.rows_of(node.results[0]);
    let mut reads = vec![q];
    reads.extend(domains);
    flow.by_rows(rows, &reads, &[y], |flow, block, x, out| {
        let a = &out[0];
        flow.dot_rows(a, &x[0], &keys, q.cols, block.rows, known(y.cols))?;
        flow.affine(a, a, y.cols, block.rows, scale, None)?;
        if let Some(domains) = x.get(1) {
            let mark = flow.scratch.mark();
            let logs = flow.scratch.take(4 * num_domains * block.size.min(rows.room))?;
            let logs = Matrix::dense(logs, num_domains, Type::F32);
            flow.affine(&logs, domains, num_domains, block.rows, 1.0, Some(1e-6))?;
            flow.unary(Instruction::Ln, &logs, &logs, known(num_domains), block.rows)?;
            flow.affine(&logs, &logs, num_domains, block.rows, lambda, None)?;
            let mut first = 0;
            while first < y.cols {
                let cols = num_domains.min(y.cols - first);
                let part = a.at_col(first);
                flow.binary(Instruction::VAdd, &part, &part, &logs, Broadcast::Full, known(cols), block.rows)?;
                first += cols;
            }
            flow.scratch.back_to(mark);
        }
        flow.softmax(a, a, known(y.cols), block.rows, None, None)
    })
}

/// `argmax_c`, the lowest on a tie.
pub(super) fn cluster(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (a, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    flow.by_rows(cx.rows_of(node.results[0]), &[a], &[y], |flow, block, a_rows, out| {
        flow.row_reduce(Instruction::RowArgmax, &out[0], &a_rows[0], a.cols, block.rows)
    })
}

/// The token's set of modules.
pub(super) fn select(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let a = cx.stream(cx.operand(node, 0));
    let (mask, gates) = (cx.stream(node.results[0]), cx.stream(node.results[1]));
    let rows = cx.rows_of(node.results[0]);
    let policy = Policy::of(&node.attrs);
    let (k_min, k_max) = (node.attrs.int("k_min"), node.attrs.int("k_max"));
    let norm = Flag(node.attrs.flag("norm_gates"));
    let cap = match policy.looks_across_tokens() {
        true => Some(capacity(cx, flow, id)?),
        false => None,
    };
    let one = |flow: &mut Flow<'_>, rows: Value, a: &Matrix, mask: &Matrix, gates: &Matrix| {
        flow.scope(|flow| {
            let (mask_at, gates_at, scores) = (flow.sp(mask.at)?, flow.sp(gates.at)?, flow.sp(a.at)?);
            let cols = flow.size(known(a.stride / 4))?;
            let rows = flow.count(rows)?;
            let k = flow.given(known(k_max))?;
            let (reads, writes) = ([a.area], [mask.area, gates.area]);
            let (mask, gates) = (mask_at, gates_at);
            let op = match policy {
                Policy::TopK => Instruction::TopK(SelectRows { mask, gates, scores, cols, k, rows, norm }),
                Policy::Threshold => {
                    let tau = flow.float(node.attrs.float("tau"))?;
                    Instruction::Threshold(SelectLimit { mask, gates, scores, cols, k, tau, rows, norm })
                }
                Policy::TopP => {
                    let (k_min, p) = (flow.given(known(k_min))?, flow.float(node.attrs.float("p"))?);
                    Instruction::TopP(SelectMass { mask, gates, scores, cols, k_min, k, p, rows, norm })
                }
                Policy::ExpertChoice => {
                    let cap = flow.given(cap.unwrap_or(Value::ZERO))?;
                    Instruction::ExpertChoice(SelectColumns { mask, gates, scores, cols, cap, rows })
                }
                Policy::Bidirectional => {
                    let cap = flow.given(cap.unwrap_or(Value::ZERO))?;
                    Instruction::Bidirectional(SelectBoth { mask, gates, scores, cols, k, cap, rows, norm })
                }
            };
            flow.issue(op, &reads, &writes)
        })
    };
    if !policy.looks_across_tokens() {
        return flow
            .by_rows(rows, &[a], &[mask, gates], |flow, block, x, out| one(flow, block.rows, &x[0], &out[0], &out[1]));
    }
    // All tokens at once.
    let a_here = all_of(flow, a, rows)?;
    let (mask_here, gates_here) = (room_for(flow, mask, rows)?, room_for(flow, gates, rows)?);
    one(flow, rows.count, &a_here, &mask_here, &gates_here)?;
    for (stream, here) in [(mask, mask_here), (gates, gates_here)] {
        if !stream.home.on_chip() {
            flow.store(&stream.home, &here, known(stream.cols), rows.count)?;
        }
    }
    Ok(())
}

/// A place for all rows in the scratchpad: their home, or working memory.
fn room_for(flow: &mut Flow<'_>, s: Stream, rows: Rows) -> Result<Matrix, LowerError> {
    match s.home.on_chip() {
        true => Ok(s.home),
        false => {
            let bytes = rows.room * s.cols * u64::from(s.home.element.bytes());
            Ok(Matrix::dense(flow.scratch.take(bytes)?, s.cols, s.home.element))
        }
    }
}

/// All rows in the scratchpad.
fn all_of(flow: &mut Flow<'_>, s: Stream, rows: Rows) -> Result<Matrix, LowerError> {
    let here = room_for(flow, s, rows)?;
    if !s.home.on_chip() {
        flow.load(&here, &s.home, known(s.cols), rows.count)?;
    }
    Ok(here)
}

/// How many tokens a module takes of T: from a table in DRAM.
fn capacity(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Result<Value, LowerError> {
    let address = cx.layout.capacities(id);
    let word = Matrix::dense(flow.scratch.take(4)?, 1, Type::I32);
    // Nobody writes the table.
    let area = Area::new(Space::Dram, address, 0);
    let table = Matrix { area, at: Place::at(address), stride: 4, element: Type::I32 };
    flow.scope(|flow| {
        let from = flow.at_row(&table, cx.tokens, 1)?;
        flow.load(&word, &from, known(1), Value::Const(1))
    })?;
    Ok(Value::Reg(flow.read_word("capacity of a module", &word, cx.room.tokens)?))
}

/// Tokens by module: the table of records, the list of tokens, their gates in the same order.
pub(super) fn group(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let rows = cx.rows_of(cx.operand(node, 0));
    let (mask, gates) = (cx.stream(cx.operand(node, 0)), cx.stream(cx.operand(node, 1)));
    let (mask_here, gates_here) = (all_of(flow, mask, rows)?, all_of(flow, gates, rows)?);
    let (table, list, list_gates) = (cx.value(node.results[0]), cx.value(node.results[1]), cx.value(node.results[2]));
    let most = cx.most_pairs(node.results[1]);
    flow.scope(|flow| {
        let most = Maybe(Some(flow.b.constant("most pairs of a token and a module", most as i64)?));
        let group = Group {
            table: flow.sp(table.at)?,
            list: flow.sp(list.at)?,
            mask: flow.sp(mask_here.at)?,
            cols: flow.size(known(mask.cols))?,
            most,
            rows: flow.count(rows.count)?,
        };
        flow.issue(Instruction::Group(group), &[mask_here.area], &[table.area, list.area])?;
        let compact = Compact {
            dst: flow.sp(list_gates.at)?,
            mask: flow.sp(mask_here.at)?,
            src: flow.sp(gates_here.at)?,
            cols: flow.size(known(mask.cols))?,
            most,
            rows: flow.count(rows.count)?,
        };
        flow.issue(Instruction::Compact(compact), &[mask_here.area, gates_here.area], &[list_gates.area])
    })
}

/// `Σ_c g_c · values[c]`: gates are 0 where nothing was selected.
pub(super) fn memory(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let (gates, y) = (cx.stream(cx.operand(node, 1)), cx.stream(node.results[0]));
    let (values, _) = load_weight(cx, flow, id, 2)?;
    flow.by_rows(cx.rows_of(node.results[0]), &[gates], &[y], |flow, block, x, out| {
        flow.mix_rows(&out[0], &x[0], &values, y.cols, block.rows, known(gates.cols), false)
    })
}

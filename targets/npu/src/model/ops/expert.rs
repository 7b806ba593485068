//! Modules over the tokens that chose them: a loop over the table that `r.group` made. A module that nobody chose costs a skip.

use lapidary_compiler::ir::NodeId;
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::{Op as Instruction, Reg};

use super::super::context::{Context, Rows};
use super::super::flow::{Flow, Matrix};
use super::super::homes::RECORD_WORDS;
use super::super::stream::{Block, Stream};
use super::super::weights::Placed;
use super::dense::iota;
use super::known;
use super::linear::swiglu_pieces;
use super::product::{Codes, Columns, Input, product, quantize_into, quantized, reads_codes};
use crate::builder::{Place, Value};
use crate::error::LowerError;

type Done = Result<(), LowerError>;

/// Gate, up and down of a module.
type Module = [Placed; 3];

/// What all modules share.
struct Shared {
    /// Rows that modules read.
    input: Input,
    /// Rows that they add to.
    y: Stream,
    list: Matrix,
    gates: Matrix,
    rows: Rows,
    /// Inputs d and hidden f.
    sizes: (u64, u64),
}

/// `residual + Σ_{c ∈ R} g_c · down_c(silu(gate_c x) ⊙ up_c x)`, one module after the other.
pub(super) fn ffn(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let node = cx.node(id);
    let fixed = node.op.num_fixed_operands();
    let count = (node.operands.len() - fixed) / node.op.num_module_groups();
    let module = |c: usize| [0, 1, 2].map(|group| cx.product_weight(node, fixed + group * count + c));
    let modules: Vec<Module> = (0..count).map(module).collect();
    let (x, y) = (cx.stream(cx.operand(node, 0)), cx.stream(node.results[0]));
    let rows = cx.rows_of(node.results[0]);
    let [gate, _, _] = &modules[0];
    let in_codes = reads_codes(gate);
    if modules.iter().flatten().any(|w| reads_codes(w) != in_codes) {
        return Err(cx.cannot(node, "modules: wanted all weights in integers or all in floats, found some of each"));
    }
    let hidden = Columns::all(*gate, None).count();
    // Table, list and gates are on chip.
    let table = cx.value(cx.operand(node, 1));
    let (list, gates) = (cx.value(cx.operand(node, 2)), cx.value(cx.operand(node, 3)));
    let pairs = cx.most_pairs(cx.operand(node, 2));
    // The more rows fit, the fewer times weights are read.
    flow.scratch.take_all();
    begin(cx, flow, id, y, rows)?;
    let input = match in_codes {
        true => Input::Codes(quantized(cx, flow, x, rows)?),
        false => Input::Floats(x.home),
    };
    let shared = Shared { input, y, list, gates, rows, sizes: (x.cols, hidden) };
    flow.require(lapidary_npu_isa::Queue::Sequencer, &[table.area], &[])?;
    let name = super::super::label(node).to_owned();
    let mut first = 0;
    while first < count {
        let run = run_of(&modules[first..]);
        flow.repeat("module", known(run.0 as u64), run.0 as u64, |flow, index| {
            // The module's number in a register: reports read it.
            let c = match index {
                Value::Reg(index) if first == 0 => index,
                _ => {
                    let c = flow.b.reg("module")?;
                    flow.b.sum(c, Place::at(first as u64), &[(index, 1)])?;
                    c
                }
            };
            flow.b.op_label(&name, Some(c));
            let chosen = word_of(flow, "tokens of the module", &table, c, 2, rows.most)?;
            flow.unless_zero(chosen, |flow| {
                let begin = word_of(flow, "the module's first", &table, c, 1, pairs)?;
                let offset = match index {
                    Value::Const(_) => None,
                    Value::Reg(index) => {
                        let offset = flow.b.reg("the module's weights")?;
                        flow.b.arithmetic(Instruction::Mul, offset, index, known(run.1))?;
                        Some(offset)
                    }
                };
                one(flow, &shared, &modules[first], offset, begin, chosen)
            })
        })?;
        flow.b.op_label(&name, None);
        first += run.0;
    }
    Ok(())
}

/// A word of a module's record, in a register of the current scope.
fn word_of(
    flow: &mut Flow<'_>,
    what: &'static str,
    table: &Matrix,
    module: Reg,
    word: u64,
    max: u64,
) -> Result<Reg, LowerError> {
    debug_assert!(word < RECORD_WORDS, "a record has so many words");
    let rd = flow.b.reg(what)?;
    flow.scope(|flow| {
        let record = flow.at_row(table, Value::Reg(module), 1)?;
        flow.read_into(rd, &record.at_col(word), max)
    })?;
    Ok(rd)
}

/// y = residual, or 0.
fn begin(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId, y: Stream, rows: Rows) -> Done {
    match cx.optional(cx.node(id), 4) {
        Some(residual) => {
            let residual = cx.stream(residual);
            if residual.home == y.home {
                return Ok(());
            }
            flow.by_rows(rows, &[residual], &[y], |flow, block, r, out| {
                flow.unary(Instruction::Copy, &out[0], &r[0], known(y.cols), block.rows)
            })
        }
        None => {
            flow.by_rows(rows, &[], &[y], |flow, block, _, out| flow.fill(&out[0], y.cols, block.rows, Value::ZERO))
        }
    }
}

/// How many modules from the first on lie at one distance from each other, and that distance in bytes.
fn run_of(modules: &[Module]) -> (usize, u64) {
    let address = |w: &Placed| match w {
        Placed::Tiles(t) => t.address,
        Placed::Floats(f) => f.address,
        Placed::Codes(c) => c.address,
    };
    let Some(distance) = modules.get(1).and_then(|next| address(&next[0]).checked_sub(address(&modules[0][0]))) else {
        return (1, 0);
    };
    let follows = |i: usize| {
        let by = i as u64 * distance;
        modules[0].iter().zip(&modules[i]).all(|(first, this)| match (first, this) {
            (Placed::Tiles(a), Placed::Tiles(b)) => {
                (a.address + by, a.scales + by, a.tiling) == (b.address, b.scales, b.tiling)
            }
            (Placed::Floats(a), Placed::Floats(b)) => {
                (a.address + by, a.rows, a.cols, a.element) == (b.address, b.rows, b.cols, b.element)
            }
            (_, _) => false,
        })
    };
    ((1..modules.len()).find(|i| !follows(*i)).unwrap_or(modules.len()), distance)
}

/// One module over its `chosen` tokens, whose list begins at `begin`.
fn one(flow: &mut Flow<'_>, shared: &Shared, module: &Module, offset: Option<Reg>, begin: Reg, chosen: Reg) -> Done {
    let [gate, up, down] = module.map(|w| Columns::all(w, offset));
    let (d, f) = shared.sizes;
    let codes = matches!(shared.input, Input::Codes(_));
    // Per row: codes of what is hidden; then what is gathered, hidden floats and columns of `up`, and behind those, in their
    // place, the result and rows that are added to.
    let (element, up_cols) = (if codes { 1 } else { 4 }, gate.unit().min(f));
    let own_y = if shared.y.home.on_chip() { 0 } else { 4 * d + 4 };
    let (kept, before) =
        (if codes { f + 4 } else { 4 * f }, element * d + 4 + 4 * up_cols + if codes { 4 * f } else { 0 });
    let row_bytes = kept + before.max(4 * d + own_y);
    // What products want beside it, and the ends of pieces.
    let aside = if codes { 4 * d.max(f) + 512 } else { 2 * 4 * d.max(f) + 512 };
    let room = Rows { count: Value::Reg(chosen), ..shared.rows };
    let size = Flow::block_size(room, row_bytes, flow.scratch.largest().saturating_sub(aside));
    if size < room.most {
        flow.note(&format!(
            "weights of a module are read for each {size} of its tokens: more do not fit the working memory"
        ));
    }
    flow.blocks(room, size, |flow, block| {
        let here = size.min(room.room);
        let rows = Rows { count: block.rows, most: here.min(room.most), room: here };
        let mark = flow.scratch.mark();
        let part = Part { begin, block };
        let kept = match codes {
            true => Input::Codes(Codes {
                codes: Matrix::dense(flow.scratch.take(here * f)?, f, Type::I8),
                scales: Matrix::dense(flow.scratch.take(4 * here)?, 1, Type::F32),
            }),
            false => Input::Floats(Matrix::dense(flow.scratch.take(4 * here * f)?, f, Type::F32)),
        };
        let before = flow.scratch.mark();
        let input = gathered(flow, shared, &part, rows)?;
        let hidden = match kept {
            Input::Floats(hidden) => hidden,
            Input::Codes(_) => Matrix::dense(flow.scratch.take(4 * here * f)?, f, Type::F32),
        };
        swiglu_pieces(flow, &input, rows, &gate, &up, |flow, index, width| {
            flow.moved(&hidden, index, 4 * width as i64)
        })?;
        if let Input::Codes(codes) = &kept {
            quantize_into(flow, Stream { home: hidden, cols: f }, rows, codes)?;
        }
        flow.scratch.back_to(before);
        let result = Matrix::dense(flow.scratch.take(4 * here * d)?, d, Type::F32);
        product(flow, &kept, rows, &down, d, &result)?;
        scatter(flow, shared, &result, &part, here)?;
        flow.scratch.back_to(mark);
        Ok(())
    })
}

/// A block of a module's part of the lists.
struct Part {
    /// Where the module's part begins.
    begin: Reg,
    block: Block,
}

impl Part {
    /// The block's part of a list of words; its place is in a register of the current scope.
    fn of(&self, flow: &mut Flow<'_>, list: &Matrix) -> Result<Matrix, LowerError> {
        let at = flow.b.reg("a part of a list")?;
        let (begin, index) = ((Value::Reg(self.begin), 4), (self.block.index, 4 * self.block.size as i64));
        flow.b.sum(at, list.at, &[begin, index])?;
        Ok(Matrix { at: Place { base: Some(at), offset: 0 }, ..*list })
    }
}

/// The rows of a module's tokens.
fn gathered(flow: &mut Flow<'_>, shared: &Shared, part: &Part, rows: Rows) -> Result<Input, LowerError> {
    let (d, bound) = (shared.sizes.0, shared.rows.count);
    let fetch = |flow: &mut Flow<'_>, from: &Matrix, cols: u64| {
        let bytes = cols * u64::from(from.element.bytes());
        let to = Matrix::dense(flow.scratch.take(rows.room * bytes)?, cols, from.element);
        flow.scope(|flow| {
            let list = part.of(flow, &shared.list)?;
            match from.on_chip() {
                true => flow.gather(&to, from, &list, bound, cols, rows.count),
                false => flow.load_rows(&to, from, &list, bound, bytes, rows.count, false),
            }
        })?;
        Ok::<Matrix, LowerError>(to)
    };
    Ok(match &shared.input {
        Input::Floats(x) => Input::Floats(fetch(flow, x, d)?),
        Input::Codes(codes) => {
            Input::Codes(Codes { codes: fetch(flow, &codes.codes, d)?, scales: fetch(flow, &codes.scales, 1)? })
        }
    })
}

/// Adds results times gates to the rows of the tokens.
fn scatter(flow: &mut Flow<'_>, shared: &Shared, result: &Matrix, part: &Part, room: u64) -> Done {
    let (d, bound, y, count) = (shared.sizes.0, shared.rows.count, &shared.y.home, part.block.rows);
    flow.scope(|flow| {
        let list = part.of(flow, &shared.list)?;
        let gates = part.of(flow, &shared.gates)?;
        if y.on_chip() {
            return flow.scatter_add(y, result, &list, &gates, bound, d, count);
        }
        // A token is in a module's list only once: its row is fetched, added to, and put back.
        let rows = Matrix::dense(flow.scratch.take(4 * d * room)?, d, Type::F32);
        let same = Matrix::dense(flow.scratch.take(4 * room)?, 1, Type::I32);
        flow.load_rows(&rows, y, &list, bound, 4 * d, count, false)?;
        iota(flow, &same, Value::ZERO, count)?;
        flow.scatter_add(&rows, result, &same, &gates, count, d, count)?;
        flow.store_rows(y, &rows, &list, bound, d, count)
    })
}

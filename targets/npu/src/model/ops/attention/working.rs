//! Working memory of attention, and what is done in it: scores, weights and sums of a block of queries.

use lapidary_npu_isa::Op as Instruction;
use lapidary_npu_isa::choice::Type;

use super::super::super::context::Rows;
use super::super::super::flow::{Flow, Matrix};
use super::super::known;
use super::Done;
use super::kept::{Kept, Shape, Source, widen};
use crate::builder::{Place, Value};
use crate::error::LowerError;

/// What working memory to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// Queries at a time.
    pub queries: u64,
    /// Most keys that they see together.
    pub most: u64,
    /// Keys at a time: all, or a power of two.
    pub block: u64,
    /// Most keys that are fetched, of all.
    pub fetched: u64,
    /// Whether keys, values are fetched block by block.
    pub staged: [bool; 2],
    /// Rows of keys, of values that stay for the whole call.
    pub resident: [u64; 2],
    /// Whether queries, results have their home in DRAM.
    pub passing: [bool; 2],
}

/// Working memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Working {
    pub want: Want,
    /// Rows by head, then query; columns are keys.
    scores: Matrix,
    /// Columns that scores have.
    columns: u64,
    /// Where blocks of keys and values are; both for either if there are several.
    pub stored: [Option<Kept>; 2],
    /// Codes times scales.
    wide: Option<Matrix>,
    /// Queries and results that pass.
    pub passing: [Option<Matrix>; 2],
}

/// Takes the rows that stay.
pub(super) fn take_resident(
    flow: &mut Flow<'_>,
    shape: &Shape,
    rows: [u64; 2],
) -> Result<[Option<Kept>; 2], LowerError> {
    let [keys, values] = rows.map(|rows| if rows > 0 { shape.take(flow, rows).map(Some) } else { Ok(None) });
    Ok([keys?, values?])
}

/// The first of several wishes that can be fulfilled; nothing is taken yet.
///
/// # Errors
/// What the last, smallest one says.
pub(super) fn choose(
    flow: &mut Flow<'_>,
    shape: &Shape,
    wants: impl IntoIterator<Item = Want>,
) -> Result<Want, LowerError> {
    let mut least = None;
    for want in wants {
        let mark = flow.scratch.mark();
        // And a row that is rounded before it is kept, whole and as it is kept, with its scales.
        let row_bytes = 4 * shape.width() + shape.row_bytes() + 4 * 32;
        let taken = take_resident(flow, shape, want.resident)
            .and_then(|_| Working::take(flow, shape, want))
            .and_then(|_| flow.scratch.take(row_bytes));
        flow.scratch.back_to(mark);
        match taken {
            Ok(_) => return Ok(want),
            Err(error @ LowerError::TooSmall { .. }) => least = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(least.unwrap_or(LowerError::argument("ways to do attention", "one at least", 0)))
}

impl Working {
    /// Takes everything but the rows that stay.
    pub fn take(flow: &mut Flow<'_>, shape: &Shape, want: Want) -> Result<Working, LowerError> {
        let Want { queries, most, block, .. } = want;
        let blocks = block < most;
        let columns = if blocks { most.next_multiple_of(block) } else { most };
        let scores = flow.scratch.take(4 * shape.heads * queries * columns)?;
        let mut row = |passing: bool| -> Result<Option<Matrix>, LowerError> {
            let cols = shape.heads * shape.head_dim;
            let area = passing.then(|| flow.scratch.take(4 * queries * cols)).transpose()?;
            Ok(area.map(|area| Matrix::dense(area, cols, Type::F32)))
        };
        let passing = [row(want.passing[0])?, row(want.passing[1])?];
        let any = want.staged[0] || want.staged[1];
        let [keys, values] = want.staged.map(|staged| match staged || (blocks && any) {
            true => shape.take(flow, block.min(want.fetched)).map(Some),
            false => Ok(None),
        });
        let stored = [keys?, values?];
        let wide = match shape.has_codes() {
            true => {
                let area = flow.scratch.take(4 * shape.width() * block.min(most))?;
                Some(Matrix::dense(area, shape.width(), Type::F32))
            }
            false => None,
        };
        Ok(Working { want, scores: Matrix::dense(scores, columns, Type::F32), columns, stored, wide, passing })
    }

    /// Whether all keys and values are there at a time, wherever they came from.
    pub fn at_once(&self) -> bool {
        self.want.block >= self.want.most
    }

    /// Rows of the block `index` of queries, loaded if they pass.
    pub fn arrive(
        &self,
        flow: &mut Flow<'_>,
        shape: &Shape,
        home: &Matrix,
        index: Value,
        rows: Value,
    ) -> Result<Matrix, LowerError> {
        let Some(staging) = self.passing[0] else { return flow.at_row(home, index, self.want.queries) };
        flow.scope(|flow| {
            let home = flow.at_row(home, index, self.want.queries)?;
            flow.load(&staging, &home, known(shape.heads * shape.head_dim), rows)
        })?;
        Ok(staging)
    }

    /// Where results of the block `index` of queries go for now.
    pub fn result(&self, flow: &mut Flow<'_>, home: &Matrix, index: Value) -> Result<Matrix, LowerError> {
        match self.passing[1] {
            Some(staging) => Ok(staging),
            None => flow.at_row(home, index, self.want.queries),
        }
    }

    /// Stores results that pass.
    pub fn leave(&self, flow: &mut Flow<'_>, shape: &Shape, home: &Matrix, index: Value, rows: Value) -> Done {
        let Some(staging) = self.passing[1] else { return Ok(()) };
        flow.scope(|flow| {
            let home = flow.at_row(home, index, self.want.queries)?;
            flow.store(&home, &staging, known(shape.heads * shape.head_dim), rows)
        })
    }
}

/// Keys and values one behind the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Keys, values.
    pub sources: [Source; 2],
    /// How many.
    pub rows: Value,
}

/// A block of queries and what they see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queries<'a> {
    /// They themselves.
    pub q: Matrix,
    /// Where their results go.
    pub y: Matrix,
    /// How many.
    pub rows: Value,
    /// Keys that they see together.
    pub keys: Value,
    /// The first of them that query 0 sees, and the first that it does not see any more: one further on for each query.
    pub range: Option<(Value, Value)>,
    /// In what parts, ascending: only one if keys come in blocks, and only the first is fetched.
    pub parts: &'a [Part],
    /// Whether those that have to be fetched are there already.
    pub fetched: bool,
}

/// Attention of a block of queries. `behind_fetch` is done when keys and values are in working memory, or at the end.
pub(super) fn attend(
    flow: &mut Flow<'_>,
    shape: &Shape,
    working: &Working,
    queries: &Queries<'_>,
    behind_fetch: &dyn Fn(&mut Flow<'_>) -> Done,
) -> Done {
    let at_once = working.at_once();
    if at_once {
        for part in queries.parts {
            for (source, stored) in part.sources.iter().zip(&working.stored) {
                if let (Some(stored), false, false) = (stored, queries.fetched, source.is_here()) {
                    source.fetch(flow, shape, stored, (Value::ZERO, 1), part.rows)?;
                }
            }
        }
        behind_fetch(flow)?;
    }
    working.each_part(flow, shape, queries, 0, &|flow, block| dots(flow, shape, working, queries, block))?;
    weights(flow, shape, working, queries)?;
    if queries.parts.iter().any(|part| working.in_blocks(part, 1)) {
        flow.fill(&queries.y, shape.heads * shape.head_dim, queries.rows, Value::ZERO)?;
    }
    working.each_part(flow, shape, queries, 1, &|flow, block| sums(flow, shape, working, queries, block))?;
    if at_once { Ok(()) } else { behind_fetch(flow) }
}

/// Keys or values that are multiplied with.
struct KeyBlock {
    /// They.
    floats: Matrix,
    /// Scores from their columns on.
    scores: Matrix,
    /// How many.
    rows: Value,
    /// Whether results are added to others.
    accumulate: bool,
}

/// What is done with a block.
type Compute<'a> = dyn Fn(&mut Flow<'_>, &KeyBlock) -> Done + 'a;

impl Working {
    /// Whether keys (0) or values (1) come in more than one block.
    fn in_blocks(&self, part: &Part, which: usize) -> bool {
        !self.at_once() && (self.wide.is_some() || !part.sources[which].is_here())
    }

    /// Rows as they are multiplied with.
    fn floats(&self, flow: &mut Flow<'_>, shape: &Shape, kept: &Kept, rows: Value) -> Result<Matrix, LowerError> {
        match self.wide {
            None => Ok(kept.codes),
            Some(wide) => widen(flow, shape, &wide, kept, rows).map(|()| wide),
        }
    }

    /// Columns of scores from those of a block on.
    fn columns_of(&self, flow: &mut Flow<'_>, index: Value) -> Result<Matrix, LowerError> {
        let block = self.want.block;
        match index {
            Value::Const(_) => flow.moved(&self.scores, index, 4 * block as i64),
            Value::Reg(reg) => {
                // A block with rows begins there at the latest.
                let column = flow.b.reg("a column")?;
                flow.b.arithmetic(Instruction::Mul, column, reg, known(block))?;
                flow.b.arithmetic(Instruction::Min, column, column, known(self.columns.saturating_sub(block)))?;
                flow.moved(&self.scores, Value::Reg(column), 4)
            }
        }
    }

    fn each_part(
        &self,
        flow: &mut Flow<'_>,
        shape: &Shape,
        queries: &Queries<'_>,
        which: usize,
        compute: &Compute<'_>,
    ) -> Done {
        let mut before: Option<Value> = None;
        for part in queries.parts {
            if self.in_blocks(part, which) {
                self.each_block(flow, shape, part, which, compute)?;
            } else {
                flow.scope(|flow| {
                    let source = &part.sources[which];
                    let kept = match self.stored[which] {
                        Some(stored) if !source.is_here() => stored,
                        _ => source.here(flow)?,
                    };
                    let scores = match before {
                        None => self.scores,
                        Some(column) => flow.moved(&self.scores, column, 4)?,
                    };
                    let floats = self.floats(flow, shape, &kept, part.rows)?;
                    compute(flow, &KeyBlock { floats, scores, rows: part.rows, accumulate: before.is_some() })
                })?;
            }
            before = Some(part.rows);
        }
        Ok(())
    }

    fn each_block(&self, flow: &mut Flow<'_>, shape: &Shape, part: &Part, which: usize, compute: &Compute<'_>) -> Done {
        let (source, block) = (&part.sources[which], self.want.block);
        let one = |flow: &mut Flow<'_>, kept: &Kept, index: Value, rows: Value| {
            flow.scope(|flow| {
                let scores = self.columns_of(flow, index)?;
                let floats = self.floats(flow, shape, kept, rows)?;
                compute(flow, &KeyBlock { floats, scores, rows, accumulate: true })
            })
        };
        match self.stored {
            [Some(even), Some(odd)] if !source.is_here() => {
                let fetch = |flow: &mut Flow<'_>, at: usize, index: Value, rows: Value| {
                    source.fetch(flow, shape, if at == 0 { &even } else { &odd }, (index, block), rows)
                };
                self.in_turns(flow, part.rows, &fetch, &|flow, at, index, rows| {
                    one(flow, if at == 0 { &even } else { &odd }, index, rows)
                })
            }
            _ => {
                let rows = Rows { count: part.rows, most: self.want.most, room: self.columns };
                flow.blocks(rows, block, |flow, b| {
                    let kept = source.here(flow)?.at_row(flow, b.index, block)?;
                    one(flow, &kept, b.index, b.rows)
                })
            }
        }
    }

    /// Blocks through two buffers: while one is computed with, the next arrives in the other. Blocks behind the last have no rows.
    fn in_turns(
        &self,
        flow: &mut Flow<'_>,
        keys: Value,
        fetch: &dyn Fn(&mut Flow<'_>, usize, Value, Value) -> Done,
        compute: &dyn Fn(&mut Flow<'_>, usize, Value, Value) -> Done,
    ) -> Done {
        let block = self.want.block;
        let rows_of = |flow: &mut Flow<'_>, index: Value| -> Result<Value, LowerError> {
            let left = flow.b.reg("rows of a block")?;
            flow.b.sum(left, Place::default(), &[(keys, 1), (index, -(block as i64))])?;
            flow.b.arithmetic(Instruction::Min, left, left, known(block))?;
            flow.b.arithmetic(Instruction::Max, left, left, Value::ZERO)?;
            Ok(Value::Reg(left))
        };
        let turn = |flow: &mut Flow<'_>,
                    at: usize,
                    index: Value,
                    what: &dyn Fn(&mut Flow<'_>, usize, Value, Value) -> Done| {
            flow.scope(|flow| {
                let rows = rows_of(flow, index)?;
                what(flow, at, index, rows)
            })
        };
        turn(flow, 0, Value::ZERO, fetch)?;
        flow.scope(|flow| {
            let pairs = flow.b.reg("pairs of blocks")?;
            flow.b.sum(pairs, Place::default().plus(2 * block as i64 - 1), &[(keys, 1)])?;
            flow.b.arithmetic(Instruction::Shr, pairs, pairs, known((2 * block).ilog2().into()))?;
            let most = self.want.most.div_ceil(2 * block);
            flow.repeat("pair of blocks", Value::Reg(pairs), most, |flow, pair| {
                flow.scope(|flow| {
                    let index = flow.b.reg("block")?;
                    let pair = flow.b.in_register("pair", pair)?;
                    flow.b.arithmetic(Instruction::Shl, index, pair, Value::Const(1))?;
                    for at in [0, 1] {
                        let next = flow.b.reg("next block")?;
                        flow.b.arithmetic(Instruction::Add, next, index, Value::Const(1))?;
                        turn(flow, 1 - at, Value::Reg(next), fetch)?;
                        turn(flow, at, Value::Reg(index), compute)?;
                        flow.b.arithmetic(Instruction::Add, index, index, Value::Const(1))?;
                    }
                    Ok(())
                })
            })
        })
    }
}

/// scores\[h, i, n\] = dot(q\[i\] of head h, key n). They are never added to others.
fn dots(flow: &mut Flow<'_>, shape: &Shape, working: &Working, queries: &Queries<'_>, block: &KeyBlock) -> Done {
    for head in Heads::all(shape, working, queries) {
        let (keys, scores) = (block.floats.at_col(head.key_column), block.scores.row(head.score));
        flow.dot_rows(&scores, &head.of(&queries.q), &keys, shape.head_dim, head.rows, block.rows)?;
    }
    Ok(())
}

/// Scores become weights.
fn weights(flow: &mut Flow<'_>, shape: &Shape, working: &Working, queries: &Queries<'_>) -> Done {
    let (scores, scale) = (&working.scores, Some(shape.scale));
    if working.want.queries == 1 {
        return flow.softmax(scores, scores, queries.keys, known(shape.heads), scale, None);
    }
    for head in 0..shape.heads {
        let scores = scores.row(head * working.want.queries);
        flow.softmax(&scores, &scores, queries.keys, queries.rows, scale, queries.range)?;
    }
    Ok(())
}

/// y\[i\] of head h = (y\[i\] of head h +) Σ_n weights\[h, i, n\] · value n. Weights of keys that a query does not see are 0.
fn sums(flow: &mut Flow<'_>, shape: &Shape, working: &Working, queries: &Queries<'_>, block: &KeyBlock) -> Done {
    for head in Heads::all(shape, working, queries) {
        let (values, weights) = (block.floats.at_col(head.key_column), block.scores.row(head.score));
        let y = head.of(&queries.y);
        flow.mix_rows(&y, &weights, &values, shape.head_dim, head.rows, block.rows, block.accumulate)?;
    }
    Ok(())
}

/// Rows of queries that one instruction computes: all of a head, or of one query all heads of a key head.
struct Heads {
    /// First column of keys and values.
    key_column: u64,
    /// First row of scores.
    score: u64,
    /// First column of queries and results.
    column: u64,
    /// Bytes from row to row, if they are heads of one query.
    stride: Option<u64>,
    rows: Value,
}

impl Heads {
    fn all(shape: &Shape, working: &Working, queries: &Queries<'_>) -> Vec<Heads> {
        let (size, head_dim, group) = (working.want.queries, shape.head_dim, shape.group());
        match size {
            1 => (0..shape.kv_heads)
                .map(|kv_head| Heads {
                    key_column: kv_head * head_dim,
                    score: kv_head * group,
                    column: kv_head * group * head_dim,
                    stride: Some(4 * head_dim),
                    rows: known(group),
                })
                .collect(),
            _ => (0..shape.heads)
                .map(|head| Heads {
                    key_column: head / group * head_dim,
                    score: head * size,
                    column: head * head_dim,
                    stride: None,
                    rows: queries.rows,
                })
                .collect(),
        }
    }

    fn of(&self, matrix: &Matrix) -> Matrix {
        let matrix = matrix.at_col(self.column);
        Matrix { stride: self.stride.unwrap_or(matrix.stride), ..matrix }
    }
}

//! Attention: keys and values are kept in DRAM, and pass through the scratchpad to the queries that see them.
//!
//! * `kept`: rows in the form in which they are kept, and how they are moved. `working`: a block of queries and what they see.
//! * `range`, `clustered`: which keys that are.
//!
//! What is read of DRAM: of one token (decode) each key and value that it sees, once; its own never. Of more, each row that they
//! see once if all fit the scratchpad. Otherwise `range` reads them once per block of queries; `clustered` those of windows
//! once and the others once per query; and if not even the window fits, all once per query, in blocks.
//!
//! A query of a block may not see all keys that are multiplied with: their weights are 0, and fma(0, v, t) = t of finite v.

mod clustered;
mod kept;
mod range;
mod working;

use lapidary_compiler::ir::{Node, NodeId, Op};
use lapidary_npu_isa::choice::Type;

use super::super::context::{Context, Rows};
use super::super::flow::{Flow, Matrix};
use super::super::homes::Room;
use super::super::order::{Area, Space};
use super::known;
use crate::builder::{Place, Value};
use crate::error::LowerError;
use kept::{Choice, Kept, Shape, Source, State, round, store};
use working::{Part, Queries, Want, Working, attend, choose};

type Done = Result<(), LowerError>;

/// Largest block of keys that pass through the scratchpad while others are computed with.
const BLOCK_KEYS: u64 = 256;

/// Rows of keys and of values that there are places for: more than tokens, because the verifier cannot see that a call's last
/// position is below `max_tokens`.
pub fn state_rows(max_tokens: u64, room: Room) -> u64 {
    max_tokens + 2 * room.rows.max(BLOCK_KEYS)
}

/// Bytes of DRAM that a node keeps between calls; 0 for ops that keep nothing.
pub fn state_bytes(node: &Node, max_tokens: u64, room: Room) -> u64 {
    let Some(storage) = kept::storage_of(node) else { return 0 };
    let (kv_heads, head_dim) = (node.attrs.int("kv_heads"), node.attrs.int("head_dim"));
    let state = State::at(0, state_rows(max_tokens, room), storage, kv_heads, head_dim);
    match node.op {
        Op::AttnClustered => state.end + clustered::ring_bytes(node, max_tokens),
        _ => state.end,
    }
}

/// Each token's attention to the keys that it sees.
pub(super) fn attention(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Done {
    let attention = Attention::of(cx, id)?;
    match cx.node(id).op {
        Op::AttnClustered => clustered::lower(&attention, flow),
        _ => range::lower(&attention, flow),
    }
}

/// An attention node.
struct Attention<'a> {
    cx: &'a Context<'a>,
    node: &'a Node,
    shape: Shape,
    q: Matrix,
    /// Keys and values of the call's tokens.
    own: [Matrix; 2],
    y: Matrix,
    /// T.
    rows: Rows,
    /// What is kept of all tokens.
    state: Option<State>,
}

impl<'a> Attention<'a> {
    fn of(cx: &'a Context<'a>, id: NodeId) -> Result<Attention<'a>, LowerError> {
        let node = cx.node(id);
        let shape = Shape::of(cx, node)?;
        let value = |place| cx.value(cx.operand(node, place));
        let state = cx
            .layout
            .state(id)
            .map(|area| State::at(area.begin, cx.layout.state_rows, shape.storage, shape.kv_heads, shape.head_dim));
        Ok(Attention {
            cx,
            node,
            shape,
            q: value(0),
            own: [value(1), value(2)],
            y: cx.value(node.results[0]),
            rows: cx.rows_of(node.results[0]),
            state,
        })
    }

    /// Whether queries, results pass through the scratchpad.
    fn passing(&self) -> [bool; 2] {
        [!self.q.on_chip(), !self.y.on_chip()]
    }

    fn max_tokens(&self) -> u64 {
        self.cx.max_tokens
    }

    /// Position of row `index`·`size` of the call, in a register of the current scope unless it is the first's.
    fn position_of(&self, flow: &mut Flow<'_>, index: Value, size: u64) -> Result<Value, LowerError> {
        let position = self.cx.position;
        if index == Value::ZERO {
            return Ok(position);
        }
        let at = flow.b.reg("position of a query")?;
        flow.b.sum(at, Place::of(position), &[(index, size as i64)])?;
        Ok(Value::Reg(at))
    }

    /// Attention of the only token: `old` keys before its own, `keys` with it, of which the last is its own.
    fn one_token(&self, flow: &mut Flow<'_>, base: Want, choice: Choice, old: Value, keys: Value) -> Done {
        let shape = &self.shape;
        let blocks = halves(BLOCK_KEYS, 1).filter(|block| *block < base.most);
        let wants = std::iter::once(base).chain(blocks.map(|block| Want { block, ..base }));
        let want = choose(flow, shape, wants)?;
        let last = match choice {
            Choice::Run(_) => self.max_tokens(),
            Choice::List(_) => want.most.next_multiple_of(want.block) - want.block,
        };
        let source = |kept: Kept| Source { kept, room: self.cx.layout.state_rows, choice, last };
        let Some(state) = self.state else { return Err(self.cx.cannot(self.node, "state: wanted some, found none")) };
        let sources = state.kept.map(source);
        let fetched = want.block >= want.most;
        let working = if fetched {
            let working = Working::take(flow, shape, want)?;
            for (source, stored) in sources.iter().zip(&working.stored) {
                if let Some(stored) = stored {
                    source.fetch(flow, shape, stored, (Value::ZERO, 1), old)?;
                }
            }
            for (which, stored) in working.stored.iter().enumerate() {
                self.keep(flow, which, stored.map(|stored| (stored, old)))?;
            }
            working
        } else {
            for which in [0, 1] {
                self.keep(flow, which, None)?;
            }
            Working::take(flow, shape, want)?
        };
        let (index, rows) = (Value::ZERO, Value::Const(1));
        let q = working.arrive(flow, shape, &self.q, index, rows)?;
        let y = working.result(flow, &self.y, index)?;
        let parts = &[Part { sources, rows: keys }];
        attend(flow, shape, &working, &Queries { q, y, rows, keys, range: None, parts, fetched }, &|_| Ok(()))?;
        working.leave(flow, shape, &self.y, index, rows)
    }

    /// Rounds the call's own keys (0) or values (1) and keeps them: in the state, and from row `first` of `resident` on.
    fn keep(&self, flow: &mut Flow<'_>, which: usize, resident: Option<(Kept, Value)>) -> Done {
        let (shape, home) = (&self.shape, self.own[which]);
        let Some(state) = self.state.map(|state| state.kept[which]) else { return Ok(()) };
        let floats = !shape.has_codes() && state.codes.element == Type::F32;
        let rounded = resident.is_some() || (floats && home.on_chip());
        let (wide, scaled) = (!home.on_chip() && !floats, shape.has_codes() && self.rows.most > 1);
        let row_bytes = if wide { 4 * shape.width() } else { 0 }
            + if rounded { 0 } else { shape.row_bytes() }
            + if scaled { 4 } else { 0 };
        let rows = self.rows;
        let size = match row_bytes {
            0 => rows.room,
            _ => Flow::block_size(rows, row_bytes, flow.scratch.largest().saturating_sub(4 * 32)),
        };
        let mark = flow.scratch.mark();
        let room = size.min(rows.room);
        let mut take = |wanted: bool, cols: u64| -> Result<Option<Matrix>, LowerError> {
            let area = wanted.then(|| flow.scratch.take(4 * cols * room)).transpose()?;
            Ok(area.map(|area| Matrix::dense(area, cols, Type::F32)))
        };
        let (wide, scales) = (take(wide, shape.width())?, take(scaled, 1)?);
        let narrow = if rounded { None } else { Some(shape.take(flow, room)?) };
        flow.blocks(rows, size, |flow, block| {
            let own = flow.at_row(&home, block.index, block.size)?;
            let to = match (resident, narrow) {
                (Some((kept, first)), _) => kept.at_row(flow, first, 1)?.at_row(flow, block.index, block.size)?,
                (None, Some(narrow)) => narrow,
                (None, None) => Kept { codes: own, scales: None },
            };
            let cols = known(shape.width());
            match wide {
                Some(wide) => {
                    flow.load(&wide, &own, cols, block.rows)?;
                    round(flow, shape, &to, &wide, block.rows, scales)?;
                }
                None if !own.on_chip() => flow.load(&to.codes, &own, cols, block.rows)?,
                None if to.codes != own => round(flow, shape, &to, &own, block.rows, scales)?,
                None => (),
            }
            let position = self.position_of(flow, block.index, block.size)?;
            store(flow, shape, &state, position, &to, block.rows)
        })?;
        flow.scratch.back_to(mark);
        Ok(())
    }
}

/// Powers of two from the first down to the last.
fn halves(first: u64, last: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(first), |n| Some(n / 2)).take_while(move |n| *n >= last && *n > 0)
}

/// Words in DRAM.
const fn words(address: u64, count: u64) -> Matrix {
    Matrix::dense(Area::new(Space::Dram, address, 4 * count), 1, Type::I32)
}

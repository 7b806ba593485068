//! Attention to a range of keys: those up to the query's own, of which a window may only show the latest; or all.

use lapidary_npu_isa::Op as Instruction;

use super::super::super::flow::{Flow, Matrix};
use super::super::super::stream::Block;
use super::super::known;
use super::kept::{Choice, Kept, Source};
use super::working::{Part, Queries, Want, Working, attend, choose, take_resident};
use super::{Attention, BLOCK_KEYS, Done, halves};
use crate::builder::{Place, Value};
use crate::error::LowerError;

/// Most queries of a block whose keys stay in the scratchpad: more of them share little, and compute with keys that only some see.
const QUERIES: u64 = 16;
/// Most queries of a block whose keys are fetched for it.
const QUERIES_THAT_FETCH: u64 = 64;

pub(super) fn lower(attention: &Attention<'_>, flow: &mut Flow<'_>) -> Done {
    let attrs = &attention.node.attrs;
    let window = match attrs.int("window") {
        0 => attention.max_tokens(),
        window => window,
    };
    lower_window(attention, flow, attrs.flag("causal"), window)
}

/// With a window that is all a query sees; not causal, it sees all.
pub(super) fn lower_window(attention: &Attention<'_>, flow: &mut Flow<'_>, causal: bool, window: u64) -> Done {
    let max_tokens = attention.max_tokens();
    let range = Range { attention, causal, window: window.min(max_tokens), windowed: window < max_tokens };
    match (range.causal, attention.rows.most) {
        (true, 1) => range.one(flow),
        _ => range.many(flow),
    }
}

struct Range<'a> {
    attention: &'a Attention<'a>,
    causal: bool,
    /// Most keys that a query sees, and itself the last of them.
    window: u64,
    /// Whether that is less than there can be.
    windowed: bool,
}

/// Keys that a block of queries sees.
struct Seen {
    first: Value,
    keys: Value,
    range: Option<(Value, Value)>,
}

impl Range<'_> {
    /// Most keys that so many queries see.
    fn most(&self, queries: u64) -> u64 {
        match (self.causal, self.windowed) {
            (false, _) => self.attention.rows.most,
            (true, true) => (self.window - 1 + queries).min(self.attention.max_tokens()),
            (true, false) => self.window,
        }
    }

    /// max(position − (window − 1), 0).
    fn first_seen(&self, flow: &mut Flow<'_>, position: Value) -> Result<Value, LowerError> {
        if !self.windowed {
            return Ok(Value::ZERO);
        }
        let first = flow.b.reg("first key")?;
        flow.b.sum(first, Place::of(position).plus(1 - self.window as i64), &[])?;
        flow.b.arithmetic(Instruction::Max, first, first, Value::ZERO)?;
        Ok(Value::Reg(first))
    }

    /// Where the call's first own row is, behind the kept rows that its first query sees.
    fn kept_rows(&self, flow: &mut Flow<'_>) -> Result<Value, LowerError> {
        let position = self.attention.cx.position;
        if !self.windowed {
            return Ok(position);
        }
        let rows = flow.b.reg("kept rows")?;
        flow.b.sum(rows, Place::of(position), &[])?;
        flow.b.arithmetic(Instruction::Min, rows, rows, known(self.window - 1))?;
        Ok(Value::Reg(rows))
    }

    /// A place in the state beyond which no block begins.
    fn last_row(&self) -> u64 {
        self.attention.max_tokens()
    }

    /// One token: keys and values come before its own are known.
    fn one(&self, flow: &mut Flow<'_>) -> Done {
        let a = self.attention;
        let most = self.most(1);
        let base = Want {
            queries: 1,
            most,
            block: most,
            fetched: most,
            staged: [true; 2],
            resident: [0; 2],
            passing: a.passing(),
        };
        let first = self.first_seen(flow, a.cx.position)?;
        let old = self.kept_rows(flow)?;
        let keys = flow.b.reg("keys")?;
        flow.b.sum(keys, Place::of(old).plus(1), &[])?;
        a.one_token(flow, base, Choice::Run(first), old, Value::Reg(keys))
    }

    fn many(&self, flow: &mut Flow<'_>) -> Done {
        let a = self.attention;
        let want = choose(flow, &a.shape, self.wants())?;
        let resident = take_resident(flow, &a.shape, want.resident)?;
        if self.causal {
            flow.scope(|flow| self.begin(flow, resident))?;
        } else {
            for (kept, own) in resident.iter().zip(&a.own) {
                if let Some(kept) = kept {
                    flow.load(&kept.codes, own, known(a.shape.width()), a.rows.count)?;
                }
            }
        }
        let working = Working::take(flow, &a.shape, want)?;
        flow.blocks(a.rows, want.queries, |flow, block| {
            let q = working.arrive(flow, &a.shape, &a.q, block.index, block.rows)?;
            let y = working.result(flow, &a.y, block.index)?;
            let seen = self.seen(flow, block, want.queries)?;
            let sources = self.sources(flow, &resident, &seen, want)?;
            let parts = &[Part { sources, rows: seen.keys }];
            let queries = Queries { q, y, rows: block.rows, keys: seen.keys, range: seen.range, parts, fetched: false };
            attend(flow, &a.shape, &working, &queries, &|_| Ok(()))?;
            working.leave(flow, &a.shape, &a.y, block.index, block.rows)
        })
    }

    /// Kept rows that the call's tokens see come to stay, and its own behind them; or only the state gets these.
    fn begin(&self, flow: &mut Flow<'_>, resident: [Option<Kept>; 2]) -> Done {
        let a = self.attention;
        let old = self.kept_rows(flow)?;
        let first = self.first_seen(flow, a.cx.position)?;
        for (which, kept) in resident.iter().enumerate() {
            if let (Some(kept), Some(state)) = (kept, a.state) {
                let source = Source {
                    kept: state.kept[which],
                    room: a.cx.layout.state_rows,
                    choice: Choice::Run(first),
                    last: self.last_row(),
                };
                source.fetch(flow, &a.shape, kept, (Value::ZERO, 1), old)?;
            }
        }
        for (which, kept) in resident.iter().enumerate() {
            a.keep(flow, which, kept.map(|kept| (kept, old)))?;
        }
        Ok(())
    }

    /// Ways to do it, the best first: all keys and values stay, or blocks of them come for each block of queries.
    fn wants(&self) -> Vec<Want> {
        let a = self.attention;
        let room = a.rows.room;
        let sizes = |most: u64| halves(most.min(room.next_power_of_two()), 1);
        let here = a.own.map(|own| !self.causal && own.on_chip());
        let mut wants = Vec::new();
        for queries in sizes(QUERIES) {
            let most = self.most(queries);
            let block = if a.shape.has_codes() { most.min(BLOCK_KEYS / 4) } else { most };
            let block = if block < most { 1 << block.ilog2() } else { block };
            // Positions at which blocks begin are not known to fit the rows that follow.
            let rows = match (self.causal, self.windowed) {
                (false, _) => room,
                (true, true) => self.window - 1 + room + block,
                (true, false) => self.window - 1 + room.max(block),
            };
            let resident = here.map(|here| if here { 0 } else { rows });
            wants.push(Want {
                queries,
                most,
                block,
                fetched: most,
                staged: [false; 2],
                resident,
                passing: a.passing(),
            });
        }
        let staged = here.map(|here| !here);
        let fetching = if self.windowed { QUERIES } else { QUERIES_THAT_FETCH };
        for queries in sizes(fetching) {
            let most = self.most(queries);
            let least = if queries == 1 { 1 } else { 32 };
            // Blocks of a value that nothing is kept of end with its last row.
            let largest = if self.causal { BLOCK_KEYS } else { BLOCK_KEYS.min(room) };
            let blocks = halves(largest, least).filter(|block| *block < most);
            for block in std::iter::once(most).chain(blocks) {
                wants.push(Want {
                    queries,
                    most,
                    block,
                    fetched: most,
                    staged,
                    resident: [0; 2],
                    passing: a.passing(),
                });
            }
        }
        wants
    }

    /// Keys that the block's queries see.
    fn seen(&self, flow: &mut Flow<'_>, block: Block, size: u64) -> Result<Seen, LowerError> {
        let a = self.attention;
        if !self.causal {
            return Ok(Seen { first: Value::ZERO, keys: a.rows.count, range: None });
        }
        let position = a.position_of(flow, block.index, size)?;
        let first = self.first_seen(flow, position)?;
        let keys = flow.b.reg("keys")?;
        flow.b.sum(keys, Place::of(position), &[(block.rows, 1)])?;
        flow.b.arithmetic(Instruction::Min, keys, keys, known(a.max_tokens()))?;
        if let Value::Reg(first) = first {
            flow.b.arithmetic(Instruction::Sub, keys, keys, Value::Reg(first))?;
            flow.b.arithmetic(Instruction::Min, keys, keys, known(self.most(size)))?;
        }
        flow.b.arithmetic(Instruction::Max, keys, keys, Value::ZERO)?;
        if size == 1 {
            return Ok(Seen { first, keys: Value::Reg(keys), range: None });
        }
        let end = flow.b.reg("end of keys")?;
        flow.b.sum(end, Place::of(position).plus(1), &[])?;
        let begin = match first {
            Value::Const(_) => Value::Const(-(size as i64)),
            Value::Reg(first) => {
                flow.b.arithmetic(Instruction::Sub, end, end, Value::Reg(first))?;
                let begin = flow.b.reg("begin of keys")?;
                flow.b.arithmetic(Instruction::Add, begin, end, Value::Const(-(self.window as i64)))?;
                Value::Reg(begin)
            }
        };
        Ok(Seen { first, keys: Value::Reg(keys), range: Some((begin, Value::Reg(end))) })
    }

    /// Where the block's keys and values are.
    fn sources(
        &self,
        flow: &mut Flow<'_>,
        resident: &[Option<Kept>; 2],
        seen: &Seen,
        want: Want,
    ) -> Result<[Source; 2], LowerError> {
        let a = self.attention;
        let stay = want.resident[0] > 0;
        // Rows that stay begin with the first that the call's first query sees.
        let first = match seen.first {
            Value::Reg(first) if self.causal && stay => {
                let begin = self.first_seen(flow, a.cx.position)?;
                let place = flow.b.in_register("place of the first key", begin)?;
                flow.b.arithmetic(Instruction::Sub, place, first, Value::Reg(place))?;
                flow.b.arithmetic(Instruction::Max, place, place, Value::ZERO)?;
                flow.b.arithmetic(Instruction::Min, place, place, known(a.rows.room - want.queries))?;
                Value::Reg(place)
            }
            first => first,
        };
        let source = |which: usize| {
            let own = |own: Matrix| Kept { codes: own, scales: None };
            match (resident[which], a.state) {
                (Some(kept), _) => {
                    Source { kept, room: want.resident[which], choice: Choice::Run(first), last: want.resident[which] }
                }
                (None, Some(state)) => Source {
                    kept: state.kept[which],
                    room: a.cx.layout.state_rows,
                    choice: Choice::Run(first),
                    last: self.last_row(),
                },
                (None, None) => Source {
                    kept: own(a.own[which]),
                    room: a.rows.room,
                    choice: Choice::Run(Value::ZERO),
                    last: a.rows.room - want.block.min(a.rows.room),
                },
            }
        };
        Ok([source(0), source(1)])
    }
}

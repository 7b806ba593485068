//! Attention to window, sinks and the latest tokens of the query's own cluster: a list of keys for each query.
//!
//! A ring of each cluster's latest tokens is kept between calls. While a query computes, the routing unit makes the list of the next.

use lapidary_compiler::ir::Node;
use lapidary_npu_isa::Op as Instruction;
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::{RingAdmit, RingAppend};

use super::super::super::flow::{Flow, Matrix};
use super::super::known;
use super::kept::{Choice, Kept, Source};
use super::working::{Part, Queries, Want, Working, attend, choose, take_resident};
use super::{Attention, BLOCK_KEYS, Done, halves, range, words};
use crate::builder::{Place, Value};
use crate::error::LowerError;

/// Rings stay in the scratchpad for the call if that takes no more than this part of the working memory.
const RINGS_PART: u64 = 4;

/// Numbers of keys; more than the longest sequence has are as many as it has.
#[derive(Clone, Copy, Debug)]
struct Counts {
    window: u64,
    sinks: u64,
    cap: u64,
    clusters: u64,
    /// Most keys of a query.
    most: u64,
    /// Most of them before the window.
    before: u64,
}

impl Counts {
    fn of(node: &Node, max_tokens: u64) -> Counts {
        let count = |name| node.attrs.int(name).min(max_tokens);
        let (window, sinks, cap) = (count("window"), count("sinks"), count("cluster_cap"));
        let most = (window + sinks + cap).min(max_tokens);
        let before = (sinks + cap).min(max_tokens - window);
        Counts { window, sinks, cap, clusters: node.attrs.int("num_clusters"), most, before }
    }

    /// Words of a ring; without places there is none.
    const fn ring_words(&self) -> u64 {
        if self.cap == 0 { 0 } else { 1 + self.cap }
    }
}

/// Bytes of all rings.
pub(super) fn ring_bytes(node: &Node, max_tokens: u64) -> u64 {
    let counts = Counts::of(node, max_tokens);
    4 * counts.clusters * counts.ring_words()
}

pub(super) fn lower(attention: &Attention<'_>, flow: &mut Flow<'_>) -> Done {
    let counts = Counts::of(attention.node, attention.max_tokens());
    if counts.before == 0 {
        return range::lower_window(attention, flow, true, counts.window);
    }
    let lists = Lists::take(attention, flow)?;
    match attention.rows.most {
        1 => lists.one(flow),
        _ => lists.many(flow),
    }
}

/// What lists are made of, in the scratchpad.
struct Lists<'a> {
    attention: &'a Attention<'a>,
    counts: Counts,
    list: Matrix,
    count: Matrix,
    /// Rings in DRAM, one per row.
    kept_rings: Matrix,
    /// Rings that stay, or room for one.
    rings: Matrix,
    stay: bool,
    /// Clusters of the call's tokens.
    clusters: Option<Matrix>,
}

impl<'a> Lists<'a> {
    /// Takes working memory, and loads what stays.
    fn take(attention: &'a Attention<'a>, flow: &mut Flow<'_>) -> Result<Lists<'a>, LowerError> {
        let a = attention;
        let counts = Counts::of(a.node, a.max_tokens());
        let ring_words = counts.ring_words();
        let begin = a.state.map_or(0, |state| state.end);
        let kept_rings = Matrix { stride: 4 * ring_words, ..words(begin, counts.clusters * ring_words) };
        // A block of the list may begin anywhere before its end.
        let room = counts.most.next_multiple_of(BLOCK_KEYS.min(counts.most.next_power_of_two()));
        let list = Matrix::dense(flow.scratch.take(4 * room)?, 1, Type::I32);
        let count = Matrix::dense(flow.scratch.take(4)?, 1, Type::I32);
        let bytes = kept_rings.area.bytes();
        let stay = a.rows.most > 1 && ring_words > 0 && bytes <= flow.scratch.largest() / RINGS_PART;
        let area = flow.scratch.take(if stay { bytes } else { 4 * ring_words.max(1) })?;
        let rings = Matrix { stride: 4 * ring_words, ..Matrix::dense(area, 1, Type::I32) };
        if ring_words == 0 {
            // Whoever times without values has to know that nothing is in it.
            flow.fill(&Matrix::dense(area, 1, Type::I32), 1, Value::Const(1), Value::ZERO)?;
        }
        let mut clusters = None;
        if ring_words > 0 {
            let home = a.cx.value(a.cx.operand(a.node, 3));
            clusters = Some(match home.on_chip() {
                true => home,
                false => {
                    let here = Matrix::dense(flow.scratch.take(4 * a.rows.room)?, 1, Type::I32);
                    flow.load(&here, &home, known(1), a.rows.count)?;
                    here
                }
            });
        }
        let lists = Lists { attention, counts, list, count, kept_rings, rings, stay, clusters };
        if stay {
            let all = known(counts.clusters * ring_words);
            flow.load(&lists.rings, &lists.kept_rings, all, Value::Const(1))?;
        }
        Ok(lists)
    }

    /// The list of keys that the call's token `index` sees, and their number.
    fn admit(&self, flow: &mut Flow<'_>, index: Value) -> Done {
        let (a, counts) = (self.attention, &self.counts);
        let words = known(counts.ring_words());
        flow.scope(|flow| {
            let token = match a.position_of(flow, index, 1)? {
                Value::Reg(position) if index != Value::ZERO => {
                    flow.b.arithmetic(Instruction::Min, position, position, known(a.max_tokens() - 1))?;
                    Value::Reg(position)
                }
                position => position,
            };
            let (mut ring, mut kept) = (self.rings, None);
            if let Some(clusters) = &self.clusters {
                let word = flow.at_row(clusters, index, 1)?;
                let cluster = Value::Reg(flow.read_word("cluster", &word, counts.clusters - 1)?);
                if self.stay {
                    ring = flow.at_row(&ring, cluster, 1)?;
                } else {
                    let from = flow.at_row(&self.kept_rings, cluster, 1)?;
                    flow.load(&ring, &from, words, Value::Const(1))?;
                    kept = Some(from);
                }
                self.append(flow, &ring, token)?;
            }
            self.list_of(flow, &ring, token)?;
            match kept {
                Some(kept) => flow.store(&kept, &ring, words, Value::Const(1)),
                None => Ok(()),
            }
        })
    }

    fn append(&self, flow: &mut Flow<'_>, ring: &Matrix, token: Value) -> Done {
        flow.scope(|flow| {
            let append = RingAppend {
                ring: flow.sp(ring.at)?,
                token: flow.given(token)?,
                cap: flow.given(known(self.counts.cap))?,
            };
            flow.issue(Instruction::Append(append), &[ring.area], &[ring.area])
        })
    }

    fn list_of(&self, flow: &mut Flow<'_>, ring: &Matrix, token: Value) -> Done {
        flow.scope(|flow| {
            let admit = RingAdmit {
                list: flow.sp(self.list.at)?,
                count: flow.sp(self.count.at)?,
                ring: flow.sp(ring.at)?,
                token: flow.given(token)?,
                window: flow.given(known(self.counts.window))?,
                sinks: flow.given(known(self.counts.sinks))?,
                cap: flow.given(known(self.counts.cap))?,
            };
            flow.issue(Instruction::Admit(admit), &[ring.area], &[self.list.area, self.count.area])
        })
    }

    /// All keys of a query by its list.
    fn by_list(&self) -> Want {
        let most = self.counts.most;
        let passing = self.attention.passing();
        Want { queries: 1, most, block: most, fetched: most, staged: [true; 2], resident: [0; 2], passing }
    }

    /// Keys before the window by the list; those of the window are in `resident` rows.
    fn beside_window(&self, resident: u64) -> Want {
        let counts = &self.counts;
        let most = counts.before + counts.window;
        Want { most, block: most, fetched: counts.before, resident: [resident; 2], ..self.by_list() }
    }

    /// A query's keys: how many, of them before the window, of the window. Registers of the current scope.
    fn keys(&self, flow: &mut Flow<'_>, position: Value) -> Result<[Value; 3], LowerError> {
        let counts = &self.counts;
        let keys = flow.read_word("keys", &self.count, counts.most)?;
        let (before, window) = (flow.b.reg("keys before the window")?, flow.b.reg("keys of the window")?);
        flow.b.sum(window, Place::of(position).plus(1), &[])?;
        flow.b.arithmetic(Instruction::Min, window, window, known(counts.window))?;
        flow.b.arithmetic(Instruction::Sub, before, keys, Value::Reg(window))?;
        flow.b.arithmetic(Instruction::Max, before, before, Value::ZERO)?;
        flow.b.arithmetic(Instruction::Min, before, before, known(counts.before))?;
        Ok([keys, before, window].map(Value::Reg))
    }

    /// max(position − (window − 1), 0).
    fn window_begin(&self, flow: &mut Flow<'_>, position: Value) -> Result<Value, LowerError> {
        let first = flow.b.reg("first key of the window")?;
        flow.b.sum(first, Place::of(position).plus(1 - self.counts.window as i64), &[])?;
        flow.b.arithmetic(Instruction::Max, first, first, Value::ZERO)?;
        Ok(Value::Reg(first))
    }

    /// Rows of keys (0) or values (1) in DRAM.
    fn in_dram(&self, which: usize, choice: Choice, last: u64) -> Result<Source, LowerError> {
        let a = self.attention;
        let state = a.state.ok_or_else(|| a.cx.cannot(a.node, "state: wanted some, found none"))?;
        Ok(Source { kept: state.kept[which], room: a.cx.layout.state_rows, choice, last })
    }

    /// The last place in the list at which a block begins.
    fn last(&self, block: u64) -> u64 {
        self.counts.most.next_multiple_of(block) - block
    }

    /// The rows that the window of the first query shows before its own come to `resident`, then the call's own behind them.
    /// Without, only the state gets these.
    fn begin(&self, flow: &mut Flow<'_>, resident: &[Option<Kept>; 2], window: u64) -> Done {
        let a = self.attention;
        flow.scope(|flow| {
            let (first, old) = if window < a.max_tokens() {
                let old = flow.b.reg("kept rows")?;
                flow.b.sum(old, Place::of(a.cx.position), &[])?;
                flow.b.arithmetic(Instruction::Min, old, old, known(window - 1))?;
                (self.window_begin(flow, a.cx.position)?, Value::Reg(old))
            } else {
                (Value::ZERO, a.cx.position)
            };
            for (which, kept) in resident.iter().enumerate() {
                if let Some(kept) = kept {
                    let source = self.in_dram(which, Choice::Run(first), a.max_tokens())?;
                    source.fetch(flow, &a.shape, kept, (Value::ZERO, 1), old)?;
                }
            }
            for (which, kept) in resident.iter().enumerate() {
                a.keep(flow, which, kept.map(|kept| (kept, old)))?;
            }
            Ok(())
        })
    }

    /// One token. Its window comes before its cluster, key and value are known.
    fn one(&self, flow: &mut Flow<'_>) -> Done {
        let (a, list) = (self.attention, Choice::List(self.list));
        match choose(flow, &a.shape, [self.beside_window(self.counts.window)]) {
            Ok(want) => {
                let resident = take_resident(flow, &a.shape, want.resident)?;
                self.begin(flow, &resident, self.counts.window)?;
                let working = Working::take(flow, &a.shape, want)?;
                self.admit(flow, Value::ZERO)?;
                self.query(flow, &working, &resident, Value::ZERO)
            }
            Err(LowerError::TooSmall { .. }) => {
                self.admit(flow, Value::ZERO)?;
                let keys = flow.read_word("keys", &self.count, self.counts.most)?;
                let old = flow.b.reg("kept keys")?;
                flow.b.arithmetic(Instruction::Sub, old, keys, Value::Const(1))?;
                flow.b.arithmetic(Instruction::Max, old, old, Value::ZERO)?;
                a.one_token(flow, self.by_list(), list, Value::Reg(old), Value::Reg(keys))
            }
            Err(error) => Err(error),
        }
    }

    fn many(&self, flow: &mut Flow<'_>) -> Done {
        let (a, counts) = (self.attention, &self.counts);
        let all = self.all_rows();
        let by_list = self.by_list();
        let blocks = halves(BLOCK_KEYS, 1).filter(|block| *block < by_list.most);
        let wants = [self.beside_window(all), self.beside_window(counts.window - 1 + a.rows.room), by_list]
            .into_iter()
            .chain(blocks.map(|block| Want { block, ..by_list }));
        let want = choose(flow, &a.shape, wants)?;
        let resident = take_resident(flow, &a.shape, want.resident)?;
        self.begin(flow, &resident, if want.resident[0] == all { a.max_tokens() } else { counts.window })?;
        let working = Working::take(flow, &a.shape, want)?;
        self.admit(flow, Value::ZERO)?;
        flow.repeat("token", a.rows.count, a.rows.most, |flow, token| self.query(flow, &working, &resident, token))?;
        if self.stay {
            let all = known(counts.clusters * counts.ring_words());
            flow.store(&self.kept_rings, &self.rings, all, Value::Const(1))?;
        }
        Ok(())
    }

    /// Rows that stay if all do: positions at which a call begins are not known to fit its tokens.
    fn all_rows(&self) -> u64 {
        self.attention.max_tokens() - 1 + self.attention.rows.room
    }

    /// Token `index`, whose list is made, and the list of the next.
    fn query(&self, flow: &mut Flow<'_>, working: &Working, resident: &[Option<Kept>; 2], index: Value) -> Done {
        let a = self.attention;
        let position = a.position_of(flow, index, 1)?;
        let [keys, before, window] = self.keys(flow, position)?;
        let want = &working.want;
        let last = self.last(want.block.min(self.counts.most));
        let list = Choice::List(self.list);
        let mut listed = [self.in_dram(0, list, last)?, self.in_dram(1, list, last)?];
        let mut parts = vec![Part { sources: listed, rows: keys }];
        if let [Some(keys), Some(values)] = *resident {
            let all = want.resident[0] == self.all_rows();
            // The only token's window is all that is there.
            let first = if all || index != Value::ZERO { self.window_begin(flow, position)? } else { Value::ZERO };
            if let (Value::Reg(first), false) = (first, all) {
                let begin = self.window_begin(flow, a.cx.position)?;
                flow.b.arithmetic(Instruction::Sub, first, first, begin)?;
                flow.b.arithmetic(Instruction::Max, first, first, Value::ZERO)?;
                flow.b.arithmetic(Instruction::Min, first, first, known(a.rows.room - 1))?;
            }
            let here = |kept: Kept, choice: Choice| Source { kept, room: want.resident[0], choice, last: 0 };
            if all {
                listed = [here(keys, list), here(values, list)];
            }
            let run = Choice::Run(first);
            parts = vec![
                Part { sources: listed, rows: before },
                Part { sources: [here(keys, run), here(values, run)], rows: window },
            ];
        }
        let q = working.arrive(flow, &a.shape, &a.q, index, Value::Const(1))?;
        let y = working.result(flow, &a.y, index)?;
        let queries = Queries { q, y, rows: Value::Const(1), keys, range: None, parts: &parts, fetched: false };
        attend(flow, &a.shape, working, &queries, &|flow| self.admit_next(flow, index))?;
        working.leave(flow, &a.shape, &a.y, index, Value::Const(1))
    }

    /// The list of the token behind this one, if there is one.
    fn admit_next(&self, flow: &mut Flow<'_>, token: Value) -> Done {
        let rows = self.attention.rows;
        if rows.most == 1 {
            return Ok(());
        }
        flow.scope(|flow| {
            let token = flow.b.in_register("token", token)?;
            let next = flow.b.reg("next token")?;
            flow.b.arithmetic(Instruction::Add, next, token, Value::Const(1))?;
            let left = flow.b.reg("tokens left")?;
            flow.b.sum(left, Place::of(rows.count), &[(Value::Reg(next), -1)])?;
            flow.b.arithmetic(Instruction::Min, next, next, known(rows.most - 1))?;
            flow.unless_zero(left, |flow| self.admit(flow, Value::Reg(next)))
        })
    }
}

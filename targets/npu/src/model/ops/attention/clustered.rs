//! Attention to window, sinks and the latest tokens of the query's own cluster: a list of keys for each query.
//!
//! A ring of each cluster's latest tokens is kept between calls. While a query computes, the routing unit makes the list of the next.

use lapidary_compiler::ir::Node;
use lapidary_npu_isa::Op as Instruction;
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::{RingAdmit, RingAppend};

use super::super::super::flow::{Flow, Matrix};
use super::super::known;
use super::kept::{Choice, Source};
use super::working::{Queries, Want, Working, attend, choose, take_resident};
use super::{Attention, BLOCK_KEYS, Done, halves, words};
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
}

impl Counts {
    fn of(node: &Node, max_tokens: u64) -> Counts {
        let count = |name| node.attrs.int(name).min(max_tokens);
        let (window, sinks, cap) = (count("window"), count("sinks"), count("cluster_cap"));
        let most = (window + sinks + cap).min(max_tokens);
        Counts { window, sinks, cap, clusters: node.attrs.int("num_clusters"), most }
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

    fn base(&self) -> Want {
        Want {
            queries: 1,
            most: self.counts.most,
            block: self.counts.most,
            staged: [true; 2],
            resident: [0; 2],
            passing: self.attention.passing(),
        }
    }

    /// The last place in the list at which a block begins.
    fn last(&self, block: u64) -> u64 {
        self.counts.most.next_multiple_of(block) - block
    }

    /// One token: its own key and value are the last of the list.
    fn one(&self, flow: &mut Flow<'_>) -> Done {
        self.admit(flow, Value::ZERO)?;
        let keys = flow.read_word("keys", &self.count, self.counts.most)?;
        let old = flow.b.reg("kept keys")?;
        flow.b.arithmetic(Instruction::Sub, old, keys, Value::Const(1))?;
        flow.b.arithmetic(Instruction::Max, old, old, Value::ZERO)?;
        self.attention.one_token(flow, self.base(), Choice::List(self.list), Value::Reg(old), Value::Reg(keys))
    }

    fn many(&self, flow: &mut Flow<'_>) -> Done {
        let (a, base) = (self.attention, self.base());
        let all = a.max_tokens() - 1 + a.rows.room;
        let blocks = halves(BLOCK_KEYS, 1).filter(|block| *block < base.most);
        let wants = [Want { resident: [all; 2], ..base }, base]
            .into_iter()
            .chain(blocks.map(|block| Want { block, ..base }));
        let want = choose(flow, &a.shape, wants)?;
        let resident = take_resident(flow, &a.shape, want.resident)?;
        for which in [0, 1] {
            if let (Some(kept), Some(state)) = (resident[which], a.state) {
                let source = Source {
                    kept: state.kept[which],
                    room: a.cx.layout.state_rows,
                    choice: Choice::Run(Value::ZERO),
                    last: 0,
                };
                source.fetch(flow, &a.shape, &kept, (Value::ZERO, 1), a.cx.position)?;
            }
        }
        for which in [0, 1] {
            a.keep(flow, which, resident[which].map(|kept| (kept, a.cx.position)))?;
        }
        let working = Working::take(flow, &a.shape, want)?;
        let sources = [0, 1].map(|which| {
            let state = a.state.map(|state| state.kept[which]);
            let (kept, room) = match (resident[which], state) {
                (Some(kept), _) => (kept, all),
                (None, Some(kept)) => (kept, a.cx.layout.state_rows),
                (None, None) => unreachable!("clustered attention keeps keys"),
            };
            Source { kept, room, choice: Choice::List(self.list), last: self.last(want.block) }
        });
        self.admit(flow, Value::ZERO)?;
        flow.repeat("token", a.rows.count, a.rows.most, |flow, token| {
            let keys = Value::Reg(flow.read_word("keys", &self.count, self.counts.most)?);
            let q = working.arrive(flow, &a.shape, &a.q, token, Value::Const(1))?;
            let y = working.result(flow, &a.y, token)?;
            let queries = Queries { q, y, rows: Value::Const(1), keys, range: None, sources, fetched: false };
            attend(flow, &a.shape, &working, &queries, &|flow| self.admit_next(flow, token))?;
            working.leave(flow, &a.shape, &a.y, token, Value::Const(1))
        })?;
        if self.stay {
            let all = known(self.counts.clusters * self.counts.ring_words());
            flow.store(&self.kept_rings, &self.rings, all, Value::Const(1))?;
        }
        Ok(())
    }

    /// The list of the token behind this one, if there is one.
    fn admit_next(&self, flow: &mut Flow<'_>, token: Value) -> Done {
        let rows = self.attention.rows;
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

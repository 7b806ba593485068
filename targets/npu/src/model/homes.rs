//! Where values are between ops: in the scratchpad as long as there is room, else in DRAM.

use lapidary_compiler::ir::{Dim, Graph, Node, Op, SymbolId, ValueId};
use lapidary_npu_isa::address::Memory;

use super::flow::Matrix;
use super::layout::element;
use super::order::{Area, Space};
use super::weights::ALIGN;
use crate::error::LowerError;

/// Words of a record of a module in the table that `r.group` makes.
pub const RECORD_WORDS: u64 = 4;

/// How many rows there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens of a call, at most.
    pub tokens: u64,
    /// Rows that a buffer of one row per token has: whole blocks of any power of two up to it.
    pub rows: u64,
}

impl Room {
    /// For calls of so many tokens.
    pub const fn new(tokens: u64) -> Room {
        Room { tokens, rows: tokens.next_power_of_two() }
    }

    /// Rows that a buffer has for a dimension.
    pub fn of(&self, graph: &Graph, dim: Dim) -> u64 {
        match dim {
            Dim::Const(n) => n,
            Dim::Sym(SymbolId::TOKENS | SymbolId::OUTPUT_ROWS) => self.rows,
            // Where a module's part begins and how long it is are two numbers to whoever checks the program: both are bounded.
            Dim::Sym(symbol) => self.tokens * graph.symbols[symbol.0 as usize].max_per_token + self.rows,
        }
    }
}

/// A part of another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of which.
    pub base: ValueId,
    /// First column.
    pub col: u64,
}

/// A value that has a place of its own.
#[derive(Clone, Copy, Debug)]
struct Life {
    value: ValueId,
    bytes: u64,
    first: usize,
    last: usize,
    uses: usize,
    /// It cannot be in DRAM: the sequencer, or a list of rows, reads it.
    on_chip: bool,
}

/// Where every value is.
#[derive(Clone, Debug)]
pub struct Homes {
    views: Vec<View>,
    homes: Vec<Option<Matrix>>,
    /// Bytes of the scratchpad that are taken, from 0 on.
    pub scratchpad_bytes: u64,
    /// Bytes of DRAM that are taken.
    pub arena_bytes: u64,
    /// Names and sizes of values that are in DRAM, but for results.
    pub spilled: Vec<(String, u64)>,
}

/// Elements of a row of a value, as it lies in memory: offsets of groups are records of a table.
fn cols(graph: &Graph, value: ValueId, definition: Option<&Node>) -> u64 {
    match definition {
        Some(node) if node.op == Op::RouteGroup && node.results[0] == value => RECORD_WORDS,
        _ => graph.ty(value).cols(),
    }
}

impl Homes {
    /// Gives every value a place: in the first `scratchpad_bytes` of the scratchpad, else in DRAM, from `arena` on or where
    /// `output` has a place for it. Lists of tokens have to be in the scratchpad, of `all_bytes`.
    pub fn new(
        graph: &Graph,
        room: Room,
        (scratchpad_bytes, all_bytes): (u64, u64),
        arena: u64,
        output: impl Fn(ValueId) -> Option<u64>,
    ) -> Result<Homes, LowerError> {
        let views = views(graph, room);
        let lives = lives(graph, room, &views);
        let mut order: Vec<usize> = (0..lives.len()).collect();
        // What is read often in a short life first.
        let worth = |life: &Life| (life.uses as f64) / (1 + life.last - life.first) as f64;
        order.sort_by(|a, b| {
            let (a, b) = (&lives[*a], &lives[*b]);
            let by = b.on_chip.cmp(&a.on_chip).then(worth(b).total_cmp(&worth(a)));
            by.then(a.bytes.cmp(&b.bytes)).then(a.value.0.cmp(&b.value.0))
        });
        let definitions = graph.definitions();
        let mut homes = Homes {
            views,
            homes: vec![None; graph.values.len()],
            scratchpad_bytes: 0,
            arena_bytes: 0,
            spilled: Vec::new(),
        };
        let (mut on_chip, mut in_dram) = (Vec::<(Life, u64)>::new(), Vec::<(Life, u64)>::new());
        for i in order {
            let life = lives[i];
            let at = first_fit(&on_chip, &life);
            let most = if life.on_chip { all_bytes } else { scratchpad_bytes };
            let (space, begin) = if at + life.bytes <= most {
                on_chip.push((life, at));
                homes.scratchpad_bytes = homes.scratchpad_bytes.max(at + life.bytes);
                (Space::Scratchpad, at)
            } else if life.on_chip {
                return Err(LowerError::TooSmall {
                    what: "lists of tokens by module".into(),
                    memory: Memory::Scratchpad,
                    wanted: at + life.bytes,
                    found: all_bytes,
                });
            } else if let Some(address) = output(life.value) {
                (Space::Dram, address)
            } else {
                let at = first_fit(&in_dram, &life);
                in_dram.push((life, at));
                homes.arena_bytes = homes.arena_bytes.max(at + life.bytes);
                (Space::Dram, arena + at)
            };
            let node = definitions[life.value.0 as usize].map(|id| graph.node(id));
            // Results have to go there anyway.
            if space == Space::Dram && output(life.value).is_none() {
                homes.spilled.push((node.map_or_else(String::new, |n| n.label.clone()), life.bytes));
            }
            let (cols, element) = (cols(graph, life.value, node), element(graph.ty(life.value).dtype));
            let area = Area::new(space, begin, life.bytes);
            homes.homes[life.value.0 as usize] = Some(Matrix::dense(area, cols, element));
        }
        Ok(homes)
    }

    /// What a value is a part of; itself if it is none.
    pub fn view(&self, value: ValueId) -> View {
        self.views[value.0 as usize]
    }

    /// Where a value that is no view is; `None`: graph inputs and what nothing defines.
    pub fn home(&self, value: ValueId) -> Option<Matrix> {
        self.homes[value.0 as usize]
    }
}

/// Ops whose result may lie where one of their operands was, if nobody needs that any more, and which operand.
const IN_PLACE: &[(Op, usize)] = &[
    (Op::Linear, 2),
    (Op::ExpertFfn, 4),
    (Op::Rope, 0),
    (Op::Add, 0),
    (Op::Mul, 0),
    (Op::Scale, 0),
    (Op::Silu, 0),
    (Op::Gelu, 0),
    (Op::Softmax, 0),
];

/// Slices are parts of what they are cut from; sums and the like lie where their operand was.
fn views(graph: &Graph, room: Room) -> Vec<View> {
    let mut views: Vec<View> = (0..graph.values.len() as u32).map(|v| View { base: ValueId(v), col: 0 }).collect();
    let users = graph.users();
    let last_use = |value: ValueId| users[value.0 as usize].last().map_or(0, |node| node.0 as usize);
    // All values that lie in the memory of each base.
    let mut parts: Vec<Vec<ValueId>> = (0..graph.values.len() as u32).map(|v| vec![ValueId(v)]).collect();
    for (i, node) in graph.nodes.iter().enumerate() {
        let in_place = IN_PLACE.iter().find(|(op, _)| *op == node.op).map(|(_, operand)| *operand);
        let col = if node.op == Op::Slice { node.attrs.int("begin") } else { 0 };
        // The last rows of one are all.
        let is_part = node.op == Op::Slice || node.op == Op::LastRows && room.tokens == 1;
        let Some(operand) = in_place.or(is_part.then_some(0)) else { continue };
        let Some(x) = node.operands[operand].value() else { continue };
        let (y, of) = (node.results[0], views[x.0 as usize]);
        if in_place.is_some() {
            let is_input = graph.inputs.iter().any(|(_, v)| *v == of.base);
            let twice = node.operands.iter().filter(|o| o.value() == Some(x)).count() > 1;
            // Whatever shares columns with it is done, this use included.
            let columns = |v: ValueId| views[v.0 as usize].col..views[v.0 as usize].col + graph.ty(v).cols();
            let own = of.col..of.col + graph.ty(x).cols();
            let needed = parts[of.base.0 as usize].iter().any(|other| {
                let meets = columns(*other).start < own.end && own.start < columns(*other).end;
                meets && (last_use(*other) > i || graph.is_output(*other))
            });
            if is_input || twice || needed || graph.is_output(y) || graph.ty(x) != graph.ty(y) {
                continue;
            }
        }
        views[y.0 as usize] = View { col: of.col + col, ..of };
        parts[of.base.0 as usize].push(y);
    }
    views
}

/// How often an op goes over its result: a module layer reads and writes rows for each module.
fn passes(op: Op) -> usize {
    if op == Op::ExpertFfn { 8 } else { 1 }
}

fn lives(graph: &Graph, room: Room, views: &[View]) -> Vec<Life> {
    let mut lives: Vec<Option<Life>> = vec![None; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for value in node.operands.iter().filter_map(|o| o.value()) {
            if let Some(life) = &mut lives[views[value.0 as usize].base.0 as usize] {
                life.last = i;
                life.uses += 1;
            }
        }
        for (place, value) in node.results.iter().enumerate() {
            let base = views[value.0 as usize].base;
            if base != *value {
                if let Some(life) = &mut lives[base.0 as usize] {
                    (life.last, life.uses) = (i, life.uses + passes(node.op));
                }
                continue;
            }
            let ty = graph.ty(*value);
            let row_bytes = cols(graph, *value, Some(node)) * u64::from(element(ty.dtype).bytes());
            let bytes = (room.of(graph, ty.rows()) * row_bytes).next_multiple_of(ALIGN);
            // The list of tokens and the table that the sequencer reads.
            let on_chip = node.op == Op::RouteGroup && place < 3;
            lives[value.0 as usize] =
                Some(Life { value: *value, bytes, first: i, last: i, uses: passes(node.op), on_chip });
        }
    }
    lives.into_iter().flatten().collect()
}

/// Lowest place at which nothing is that is alive at the same time.
fn first_fit(taken: &[(Life, u64)], life: &Life) -> u64 {
    let mut others: Vec<(u64, u64)> = taken
        .iter()
        .filter(|(other, _)| other.first <= life.last && life.first <= other.last)
        .map(|(other, at)| (*at, at + other.bytes))
        .collect();
    others.sort_unstable();
    let mut at = 0;
    for (begin, end) in others {
        if begin >= at + life.bytes {
            break;
        }
        at = at.max(end);
    }
    at
}

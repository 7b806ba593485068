//! Selections as they were executed: who decided, and how often each module was chosen.

use std::collections::HashMap;

use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::operand::{Maybe, Size};
use lapidary_npu_isa::{Op, Program, Registers, address::Sp};

use crate::error::Wrong;
use crate::memory::{set_word, word};
use crate::number::narrow;
use crate::routing::{Call, Routed};

/// Labels beyond this number are counted with the last.
const MOST_LABELS: usize = 1 << 10;

/// What the selections of one op label chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selections {
    /// The label; nothing: instructions before the first.
    pub name: String,
    /// How often each column was chosen.
    pub visits: Vec<u64>,
    /// Tokens by how many columns they were given, from 0 on.
    pub tokens_by_count: Vec<u64>,
    /// Tokens whose columns are not known, in a run without values.
    pub unknown_tokens: u64,
}

impl Selections {
    /// Tokens whose columns are known.
    pub fn tokens(&self) -> u64 {
        self.tokens_by_count.iter().sum()
    }

    /// Adds one's numbers to another's.
    pub fn add(&mut self, other: &Selections) {
        add(&mut self.visits, &other.visits);
        add(&mut self.tokens_by_count, &other.tokens_by_count);
        self.unknown_tokens += other.unknown_tokens;
        self.check();
    }

    /// What is chosen is chosen by somebody.
    pub(crate) fn check(&self) {
        let chosen: u64 = self.tokens_by_count.iter().zip(0..).map(|(tokens, count)| tokens * count).sum();
        assert_eq!(chosen, self.visits.iter().sum::<u64>(), "{self:?}");
    }

    fn count(&mut self, mask: &[u8], cols: usize) {
        if self.visits.len() < cols {
            self.visits.resize(cols, 0);
        }
        for row in mask.chunks_exact(cols.max(1)) {
            let mut chosen = 0;
            for (visits, mask) in self.visits.iter_mut().zip(row) {
                let one = u64::from(*mask != 0);
                *visits += one;
                chosen += one as usize;
            }
            if self.tokens_by_count.len() <= chosen {
                self.tokens_by_count.resize(chosen + 1, 0);
            }
            self.tokens_by_count[chosen] += 1;
        }
    }
}

fn add(sums: &mut Vec<u64>, others: &[u64]) {
    if sums.len() < others.len() {
        sums.resize(others.len(), 0);
    }
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
}

/// An instruction that decides where tokens go.
#[derive(Clone, Copy)]
pub(crate) enum Decides {
    /// A selection of the routing unit.
    Modules { mask: u64, gates: u64, rows: usize, cols: usize },
    /// `v.row_argmax`.
    Cluster { dst: u64, stride: u64, rows: usize, cols: usize },
}

impl Decides {
    /// Of an instruction that has work and whose operands are within the scratchpad.
    pub(crate) fn of(op: &Op, regs: &Registers) -> Option<Decides> {
        let modules = |mask: Sp, gates: Sp, rows: Maybe, cols: Size<12>| Decides::Modules {
            mask: mask.value(regs) as u64,
            gates: gates.value(regs) as u64,
            rows: rows.value_or(regs, 1) as usize,
            cols: cols.value(regs) as usize,
        };
        match op {
            Op::TopK(f) => Some(modules(f.mask, f.gates, f.rows, f.cols)),
            Op::Threshold(f) => Some(modules(f.mask, f.gates, f.rows, f.cols)),
            Op::TopP(f) => Some(modules(f.mask, f.gates, f.rows, f.cols)),
            Op::ExpertChoice(f) => Some(modules(f.mask, f.gates, f.rows, f.cols)),
            Op::Bidirectional(f) => Some(modules(f.mask, f.gates, f.rows, f.cols)),
            Op::RowArgmax(f) => Some(Decides::Cluster {
                dst: f.dst.value(regs) as u64,
                stride: f.dst_stride.value_or(regs, 4) as u64,
                rows: f.rows.value_or(regs, 1) as usize,
                cols: f.cols.value(regs) as usize,
            }),
            _ => None,
        }
    }

    fn rows(self) -> u64 {
        match self {
            Decides::Modules { rows, .. } | Decides::Cluster { rows, .. } => rows as u64,
        }
    }

    fn is_cluster(self) -> bool {
        matches!(self, Decides::Cluster { .. })
    }
}

/// Asks who decides, and counts what was decided.
pub(crate) struct Decisions<'a> {
    program: &'a Program,
    routed: Option<Routed<'a>>,
    /// Rows that instructions of a label have had, by label and kind.
    rows: HashMap<(usize, bool), u64>,
    /// Places of labels in `selections`.
    places: HashMap<usize, usize>,
    /// By the first label of a name.
    first_of_name: HashMap<&'a str, usize>,
    pub selections: Vec<Selections>,
    mask: Vec<u8>,
    gates: Vec<f32>,
    best: Vec<u32>,
}

impl<'a> Decisions<'a> {
    pub(crate) fn new(program: &'a Program, mut routed: Option<Routed<'a>>) -> Self {
        if let Some(routed) = &mut routed {
            routed.routing.begin();
        }
        let mut first_of_name = HashMap::new();
        for (i, label) in program.op_labels.iter().enumerate().filter(|(_, label)| !label.name.is_empty()) {
            first_of_name.entry(label.name.as_str()).or_insert(i);
        }
        Decisions {
            program,
            routed,
            rows: HashMap::new(),
            places: HashMap::new(),
            first_of_name,
            selections: Vec::new(),
            mask: Vec::new(),
            gates: Vec::new(),
            best: Vec::new(),
        }
    }

    /// Name and number of an instruction's label; instructions without one have the number behind all labels.
    fn label(&self, at: usize) -> (&'a str, usize) {
        let name = self.program.op_label(at).map_or("", |label| label.name.as_str());
        (name, self.first_of_name.get(name).copied().unwrap_or(self.program.op_labels.len()))
    }

    fn call(&self, at: usize, rows: usize, cols: usize, is_cluster: bool) -> Call<'a> {
        let (label, number) = self.label(at);
        let before = self.rows.get(&(number, is_cluster)).copied().unwrap_or(0);
        let first = self.routed.as_ref().map_or(0, |routed| routed.first_token);
        Call { label, first: first.saturating_add(before), rows, cols }
    }

    /// Writes what the routing decides, if it does.
    pub(crate) fn decide(&mut self, sp: &mut [u8], at: usize, decides: Decides) -> Result<bool, Wrong> {
        match decides {
            Decides::Modules { rows, cols, .. } | Decides::Cluster { rows, cols, .. } if rows == 0 || cols == 0 => {
                Ok(false)
            }
            Decides::Modules { mask, gates, rows, cols } => {
                let call = self.call(at, rows, cols, false);
                let Some(routed) = &mut self.routed else { return Ok(false) };
                let len = rows * cols;
                self.mask.clear();
                self.mask.resize(len, 0);
                self.gates.clear();
                self.gates.resize(len, 0.0);
                if !routed.routing.select(&call, &mut self.mask, &mut self.gates) {
                    return Ok(false);
                }
                for (mask, gate) in self.mask.iter_mut().zip(&mut self.gates) {
                    match *mask {
                        0 => *gate = 0.0,
                        _ => *mask = 1,
                    }
                }
                sp[mask as usize..][..len].copy_from_slice(&self.mask);
                narrow(&self.gates, Type::F32, &mut sp[gates as usize..][..4 * len]);
                Ok(true)
            }
            Decides::Cluster { dst, stride, rows, cols } => {
                let call = self.call(at, rows, cols, true);
                let Some(routed) = &mut self.routed else { return Ok(false) };
                self.best.clear();
                self.best.resize(rows, 0);
                if !routed.routing.cluster(&call, &mut self.best) {
                    return Ok(false);
                }
                if let Some(best) = self.best.iter().find(|best| **best as usize >= cols) {
                    return Err(Wrong::new("column of the routing", format!("below {cols}"), best));
                }
                for (best, row) in self.best.iter().zip(0u64..) {
                    set_word(sp, dst + row * stride, *best);
                }
                Ok(true)
            }
        }
    }

    /// An instruction that decides was executed; `is_known`: the scratchpad has what it wrote.
    pub(crate) fn decided(&mut self, sp: &[u8], at: usize, decides: Decides, is_known: bool) {
        let (name, number) = self.label(at);
        match decides {
            Decides::Modules { mask, gates, rows, cols } => {
                let call = self.call(at, rows, cols, false);
                let next = self.selections.len().min(MOST_LABELS - 1);
                let place = *self.places.entry(number).or_insert(next);
                if place == self.selections.len() {
                    self.selections.push(Selections { name: name.into(), ..Selections::default() });
                }
                let Some(selections) = self.selections.get_mut(place) else { return };
                if is_known {
                    let (len, mask) = (rows * cols, mask as usize);
                    selections.count(&sp[mask..][..len], cols);
                    if let Some(routed) = &mut self.routed {
                        self.gates.clear();
                        let words = sp[gates as usize..][..4 * len].chunks_exact(4);
                        self.gates.extend(words.map(|w| f32::from_bits(word(w, 0))));
                        routed.routing.selected(&call, &sp[mask..][..len], &self.gates);
                    }
                } else {
                    selections.unknown_tokens += rows as u64;
                }
            }
            Decides::Cluster { dst, stride, rows, cols } => {
                let call = self.call(at, rows, cols, true);
                if let (Some(routed), true) = (&mut self.routed, is_known) {
                    self.best.clear();
                    self.best.extend((0..rows as u64).map(|row| word(sp, dst + row * stride)));
                    routed.routing.clustered(&call, &self.best);
                }
            }
        }
        let key = (number, decides.is_cluster());
        let rows = self.rows.entry(key).or_default();
        *rows = rows.saturating_add(decides.rows());
    }
}

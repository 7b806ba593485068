//! The routing unit: selections, the counting sort, rings of tokens. Operands are read before results are written.

use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::{Compact, Count, Group, RingAdmit, RingAppend};
use lapidary_npu_isa::operand::{Given, Maybe, Size};
use lapidary_npu_isa::{Op, Registers, address::Sp};

use super::vector::Rows;
use crate::error::Wrong;
use crate::memory::{set_word, word};
use crate::number::narrow;

/// A selection's operands.
struct Selection {
    mask: u64,
    gates: u64,
    rows: usize,
    cols: usize,
    norm: bool,
    scores: Vec<f32>,
    chosen: Vec<bool>,
}

/// Positions of scores, best first: the larger, of equal ones the earlier; what is no number counts as −∞.
fn best_first(scores: impl Iterator<Item = f32>) -> Vec<usize> {
    let keys: Vec<f32> = scores.map(|s| if s.is_nan() { f32::NEG_INFINITY } else { s }).collect();
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*b].partial_cmp(&keys[*a]).unwrap_or(std::cmp::Ordering::Equal));
    order
}

fn at_most(k: Given, regs: &Registers, most: usize) -> usize {
    usize::try_from(k.value(regs)).map_or(0, |k| k.min(most))
}

impl Selection {
    fn new(
        sp: &[u8],
        regs: &Registers,
        [mask, gates, scores]: [Sp; 3],
        cols: Size<12>,
        rows: Maybe,
        norm: bool,
    ) -> Self {
        let (rows, cols) = (rows.value_or(regs, 1) as usize, cols.value(regs) as usize);
        let mut read = vec![0.0; rows * cols];
        let at = Rows::new(regs, scores.value(regs), (rows * cols) as i64, Maybe(None), Type::F32);
        at.read(sp, 0, &mut read);
        let (mask, gates) = (mask.value(regs) as u64, gates.value(regs) as u64);
        Selection { mask, gates, rows, cols, norm, scores: read, chosen: vec![false; rows * cols] }
    }

    /// Each row takes its best while `goes_on` says so of how many it took and the next score.
    fn along_rows(&mut self, mut goes_on: impl FnMut(usize, f32) -> bool) {
        for (scores, chosen) in self.scores.chunks_exact(self.cols).zip(self.chosen.chunks_exact_mut(self.cols)) {
            for (taken, c) in best_first(scores.iter().copied()).into_iter().enumerate() {
                if !goes_on(taken, scores[c]) {
                    break;
                }
                chosen[c] = true;
            }
        }
    }

    /// What each column takes: its `cap` best rows.
    fn along_columns(&self, cap: usize) -> Vec<bool> {
        let mut chosen = vec![false; self.chosen.len()];
        for c in 0..self.cols {
            let order = best_first((0..self.rows).map(|i| self.scores[i * self.cols + c]));
            order.into_iter().take(cap).for_each(|i| chosen[i * self.cols + c] = true);
        }
        chosen
    }

    fn write(mut self, sp: &mut [u8]) {
        for (scores, chosen) in self.scores.chunks_exact_mut(self.cols).zip(self.chosen.chunks_exact(self.cols)) {
            scores.iter_mut().zip(chosen).filter(|(_, chosen)| !**chosen).for_each(|(gate, _)| *gate = 0.0);
            let sum = scores.iter().fold(0.0f32, |sum, gate| sum + gate);
            if self.norm && sum > 0.0 {
                scores.iter_mut().for_each(|gate| *gate /= sum);
            }
        }
        let mask = &mut sp[self.mask as usize..][..self.chosen.len()];
        mask.iter_mut().zip(&self.chosen).for_each(|(m, c)| *m = u8::from(*c));
        narrow(&self.scores, Type::F32, &mut sp[self.gates as usize..][..4 * self.scores.len()]);
    }
}

/// Executes an instruction of ROUTE that has work and whose operands are within the scratchpad. Gives N of its cost class.
pub(crate) fn execute(sp: &mut [u8], regs: &Registers, op: &Op) -> Result<u64, Wrong> {
    match op {
        Op::TopK(f) => {
            let mut s = Selection::new(sp, regs, [f.mask, f.gates, f.scores], f.cols, f.rows, f.norm.0);
            let k = at_most(f.k, regs, s.cols);
            s.along_rows(|taken, _| taken < k);
            s.write(sp);
        }
        Op::Threshold(f) => {
            let mut s = Selection::new(sp, regs, [f.mask, f.gates, f.scores], f.cols, f.rows, f.norm.0);
            let (k, tau) = (at_most(f.k, regs, s.cols), f.tau.float(regs));
            s.along_rows(|taken, score| taken < k && score >= tau);
            s.write(sp);
        }
        Op::TopP(f) => {
            let mut s = Selection::new(sp, regs, [f.mask, f.gates, f.scores], f.cols, f.rows, f.norm.0);
            let (least, k, p) = (at_most(f.k_min, regs, s.cols), at_most(f.k, regs, s.cols), f.p.float(regs));
            let mut mass = 0.0f32;
            s.along_rows(|taken, score| {
                if taken == 0 {
                    mass = 0.0;
                }
                let goes_on = taken < k && (taken < least || mass < p);
                mass += score;
                goes_on
            });
            s.write(sp);
        }
        Op::ExpertChoice(f) => {
            let mut s = Selection::new(sp, regs, [f.mask, f.gates, f.scores], f.cols, f.rows, false);
            s.chosen = s.along_columns(at_most(f.cap, regs, s.rows));
            s.write(sp);
        }
        Op::Bidirectional(f) => {
            let mut s = Selection::new(sp, regs, [f.mask, f.gates, f.scores], f.cols, f.rows, f.norm.0);
            let k = at_most(f.k, regs, s.cols);
            let columns = s.along_columns(at_most(f.cap, regs, s.rows));
            s.along_rows(|taken, _| taken < k);
            s.chosen.iter_mut().zip(columns).for_each(|(row, column)| *row &= column);
            s.write(sp);
        }
        Op::Group(f) => return group(sp, regs, f),
        Op::Compact(f) => return compact(sp, regs, f),
        Op::Append(f) => append(sp, regs, f),
        Op::Admit(f) => return Ok(admit(sp, regs, f)),
        Op::Iota(f) => iota(sp, regs, f),
        _ => unreachable!("{op:?} is not of the routing unit"),
    }
    Ok(0)
}

/// Set elements of a mask, column by column, and where each column begins.
fn set_elements(sp: &[u8], mask: u64, rows: usize, cols: usize) -> (Vec<u32>, Vec<u32>) {
    // An empty mask has no place.
    let mask = if rows * cols == 0 { &[] } else { &sp[mask as usize..][..rows * cols] };
    let (mut list, mut begins) = (Vec::new(), Vec::with_capacity(cols));
    for c in 0..cols {
        begins.push(list.len() as u32);
        list.extend((0..rows).filter(|i| mask[i * cols + c] != 0).map(|i| i as u32));
    }
    (list, begins)
}

fn not_above(most: Maybe, all: usize, regs: &Registers, n: usize) -> Result<u64, Wrong> {
    let most = most.value_or(regs, all as i64);
    match n as i64 <= most {
        true => Ok(n as u64),
        false => Err(Wrong::new("set elements", format!("at most {most}"), n)),
    }
}

fn group(sp: &mut [u8], regs: &Registers, f: &Group) -> Result<u64, Wrong> {
    let (rows, cols) = (f.rows.value_or(regs, 1) as usize, f.cols.value(regs) as usize);
    let (list, begins) = set_elements(sp, f.mask.value(regs) as u64, rows, cols);
    let n = not_above(f.most, rows * cols, regs, list.len())?;
    let (table, out) = (f.table.value(regs) as u64, f.list.value(regs) as u64);
    let ends = begins.iter().skip(1).copied().chain([n as u32]);
    for (c, (begin, end)) in begins.iter().zip(ends).enumerate() {
        for (i, value) in [c as u32, *begin, end - begin, 0].into_iter().enumerate() {
            set_word(sp, table + 16 * c as u64 + 4 * i as u64, value);
        }
    }
    for (i, value) in [cols as u32, n as u32, 0, 0].into_iter().enumerate() {
        set_word(sp, table + 16 * cols as u64 + 4 * i as u64, value);
    }
    for (i, row) in list.into_iter().enumerate() {
        set_word(sp, out + 4 * i as u64, row);
    }
    Ok(n)
}

fn compact(sp: &mut [u8], regs: &Registers, f: &Compact) -> Result<u64, Wrong> {
    let (rows, cols) = (f.rows.value_or(regs, 1) as usize, f.cols.value(regs) as usize);
    let (list, begins) = set_elements(sp, f.mask.value(regs) as u64, rows, cols);
    let n = not_above(f.most, rows * cols, regs, list.len())?;
    let src = f.src.value(regs) as u64;
    let mut column = 0;
    let mut values = Vec::with_capacity(list.len());
    for (position, i) in list.iter().enumerate() {
        while begins.get(column + 1).is_some_and(|begin| *begin as usize <= position) {
            column += 1;
        }
        values.push(f32::from_bits(word(sp, src + 4 * (u64::from(*i) * cols as u64 + column as u64))));
    }
    if n > 0 {
        narrow(&values, Type::F32, &mut sp[f.dst.value(regs) as usize..][..4 * values.len()]);
    }
    Ok(n)
}

fn append(sp: &mut [u8], regs: &Registers, f: &RingAppend) {
    let (ring, cap) = (f.ring.value(regs) as u64, f.cap.value(regs) as u64);
    if cap == 0 {
        return;
    }
    let n = word(sp, ring);
    set_word(sp, ring + 4 + 4 * (u64::from(n) % cap), f.token.value(regs) as u32);
    set_word(sp, ring, n.wrapping_add(1));
}

/// What `r.admit` lists.
fn admitted(sp: &[u8], regs: &Registers, f: &RingAdmit) -> Vec<u32> {
    let (token, window, sinks) = (f.token.value(regs) as u64, f.window.value(regs) as u64, f.sinks.value(regs) as u64);
    let (ring, cap) = (f.ring.value(regs) as u64, f.cap.value(regs) as u64);
    let remembered = u64::from(word(sp, ring)).min(cap);
    let first_of_window = (token + 1).saturating_sub(window);
    let mut list: Vec<u32> = (0..sinks.min(token + 1)).map(|j| j as u32).collect();
    let mut places: Vec<u64> = (0..remembered).map(|i| word(sp, ring + 4 + 4 * i).into()).collect();
    places.retain(|j| (sinks..first_of_window).contains(j));
    places.sort_unstable();
    places.dedup();
    list.extend(places.into_iter().map(|j| j as u32));
    list.extend((first_of_window.max(sinks)..=token).map(|j| j as u32));
    list
}

fn admit(sp: &mut [u8], regs: &Registers, f: &RingAdmit) -> u64 {
    let list = admitted(sp, regs, f);
    let out = f.list.value(regs) as u64;
    for (i, j) in list.iter().enumerate() {
        set_word(sp, out + 4 * i as u64, *j);
    }
    set_word(sp, f.count.value(regs) as u64, list.len() as u32);
    list.len() as u64
}

fn iota(sp: &mut [u8], regs: &Registers, f: &Count) {
    let (dst, start) = (f.dst.value(regs) as u64, f.start.value_or(regs, 0));
    for i in 0..f.count.value(regs) as u64 {
        set_word(sp, dst + 4 * i, (start as u32).wrapping_add(i as u32));
    }
}

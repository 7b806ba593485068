//! The five policies that choose a token's modules from its scores.
//!
//! Ties go to the lower index, and not-a-number counts as −∞, so that all scores have one order everywhere.
//! Gates are the scores of the selected modules; renormalised, they are divided by their f32 sum taken in ascending
//! order of modules (left alone when that sum is not positive).

use crate::args::RouteSelectArgs;
use crate::simd::Scalar;
use core::cmp::Ordering;

/// A score with a place in the order.
#[inline(always)]
fn ordered(score: f32) -> f32 {
    if score.is_nan() { f32::NEG_INFINITY } else { score }
}

/// One token's row of the arguments.
struct Row<'a> {
    scores: &'a [f32],
    mask: &'a mut [u8],
    gates: &'a mut [f32],
}

impl Row<'_> {
    /// Best module that is not selected yet.
    #[inline(always)]
    fn best_left(&self) -> Option<usize> {
        let mut best: Option<(usize, f32)> = None;
        for (c, (&score, &taken)) in self.scores.iter().zip(&*self.mask).enumerate() {
            let score = ordered(score);
            if taken == 0 && best.is_none_or(|(_, best)| score > best) {
                best = Some((c, score));
            }
        }
        best.map(|(c, _)| c)
    }

    /// Selects the best modules in descending order while `more(selected, score)` says so.
    #[inline(always)]
    fn take_while(&mut self, mut more: impl FnMut(usize, f32) -> bool) {
        self.mask.fill(0);
        let mut selected = 0;
        while let Some(c) = self.best_left() {
            if !more(selected, self.scores[c]) {
                break;
            }
            self.mask[c] = 1;
            selected += 1;
        }
    }

    /// Fills in the gates of the selection.
    #[inline(always)]
    fn set_gates(&mut self, normalise: bool) {
        let mut sum = 0.0;
        for ((gate, &score), &taken) in self.gates.iter_mut().zip(self.scores).zip(&*self.mask) {
            *gate = if taken != 0 { score } else { 0.0 };
            sum += *gate;
        }
        if normalise && sum > 0.0 {
            for gate in &mut *self.gates {
                *gate /= sum;
            }
        }
    }
}

/// Row `r`.
///
/// # Safety
/// `args` is valid, `r` is below its rows, and no other [`Row`] of it is alive.
#[inline(always)]
unsafe fn row(args: &RouteSelectArgs, r: usize) -> Row<'_> {
    let clusters = args.num_clusters as usize;
    // SAFETY: row r has `num_clusters` elements in all three; the caller promises that no other slice is alive.
    unsafe {
        Row {
            scores: core::slice::from_raw_parts(args.a.add(r * clusters), clusters),
            mask: core::slice::from_raw_parts_mut(args.mask.add(r * clusters), clusters),
            gates: core::slice::from_raw_parts_mut(args.gates.add(r * clusters), clusters),
        }
    }
}

/// Each token takes its `k_max` best modules.
///
/// # Safety
/// `args` is valid as [`RouteSelectArgs`] says.
#[inline(always)]
pub(crate) unsafe fn select_top_k(_: Scalar, args: &RouteSelectArgs) {
    let most = args.k_max as usize;
    for r in 0..args.rows as usize {
        // SAFETY: r < rows, one row at a time.
        let mut row = unsafe { row(args, r) };
        row.take_while(|selected, _| selected < most);
        row.set_gates(args.norm_gates != 0);
    }
}

/// Each token takes the smallest prefix of the descending order whose mass, added in that order in f32, is at least
/// `p`; then at least `k_min`, then at most `k_max`.
///
/// # Safety
/// `args` is valid as [`RouteSelectArgs`] says.
#[inline(always)]
pub(crate) unsafe fn select_top_p(_: Scalar, args: &RouteSelectArgs) {
    let (fewest, most) = (args.k_min as usize, args.k_max as usize);
    for r in 0..args.rows as usize {
        // SAFETY: r < rows, one row at a time.
        let mut row = unsafe { row(args, r) };
        let mut mass = 0.0;
        row.take_while(|selected, score| {
            let enough = selected >= fewest && mass >= args.p.value;
            mass += score;
            !enough && selected < most
        });
        row.set_gates(args.norm_gates != 0);
    }
}

/// Each token takes the modules whose score is at least `tau`, the `k_max` best when there are more; maybe none.
///
/// # Safety
/// `args` is valid as [`RouteSelectArgs`] says.
#[inline(always)]
pub(crate) unsafe fn select_threshold(_: Scalar, args: &RouteSelectArgs) {
    let most = args.k_max as usize;
    for r in 0..args.rows as usize {
        // SAFETY: r < rows, one row at a time.
        let mut row = unsafe { row(args, r) };
        row.take_while(|selected, score| selected < most && score >= args.tau.value);
        row.set_gates(args.norm_gates != 0);
    }
}

/// Tokens that a module takes: min(rows, ⌈capacity_factor·rows·k_max/C⌉).
#[inline(always)]
fn capacity(args: &RouteSelectArgs) -> usize {
    let share = f64::from(args.capacity_factor.value) * args.rows as f64 * args.k_max as f64;
    // A cast saturates, and takes not-a-number to 0.
    (libm::ceil(share / args.num_clusters as f64) as u64).min(args.rows) as usize
}

/// Puts the module's `cap` best tokens first in the scratch, in no order, and returns (those, the others).
///
/// # Safety
/// `args` is valid with scratch, `module` is below C, and no other slice of the scratch is alive.
#[inline(always)]
unsafe fn split_tokens(args: &RouteSelectArgs, module: usize, cap: usize) -> (&[u32], &[u32]) {
    let (rows, clusters) = (args.rows as usize, args.num_clusters as usize);
    // SAFETY: the scratch has `rows` elements, any bytes are u32s, and no other slice of it is alive.
    let tokens = unsafe {
        args.scratch.write_bytes(0, rows);
        core::slice::from_raw_parts_mut(args.scratch, rows)
    };
    for (r, token) in tokens.iter_mut().enumerate() {
        *token = r as u32;
    }
    if cap > 0 && cap < rows {
        tokens.select_nth_unstable_by(cap - 1, |&x, &y| {
            // SAFETY: x and y are rows, `module` is a column.
            let score = |r: u32| ordered(unsafe { args.a.add(r as usize * clusters + module).read() });
            score(y).partial_cmp(&score(x)).unwrap_or(Ordering::Equal).then(x.cmp(&y))
        });
    }
    tokens.split_at(cap)
}

/// Each module takes its `cap` best tokens; a token may end with none or with all modules. Gates are the scores.
///
/// # Safety
/// `args` is valid as [`RouteSelectArgs`] says, with scratch.
#[inline(always)]
pub(crate) unsafe fn select_expert_choice(_: Scalar, args: &RouteSelectArgs) {
    let (rows, clusters) = (args.rows as usize, args.num_clusters as usize);
    let cap = capacity(args);
    // SAFETY: mask has rows × C elements, and the tokens are rows.
    unsafe {
        args.mask.write_bytes(0, rows * clusters);
        for module in 0..clusters {
            let (taken, _) = split_tokens(args, module, cap);
            for &r in taken {
                args.mask.add(r as usize * clusters + module).write(1);
            }
        }
        for r in 0..rows {
            row(args, r).set_gates(false);
        }
    }
}

/// Of a token's `k_max` best modules those survive in which it is among the module's `cap` best tokens.
///
/// # Safety
/// `args` is valid as [`RouteSelectArgs`] says, with scratch.
#[inline(always)]
pub(crate) unsafe fn select_bidirectional(_: Scalar, args: &RouteSelectArgs) {
    let (rows, clusters, most) = (args.rows as usize, args.num_clusters as usize, args.k_max as usize);
    let cap = capacity(args);
    // SAFETY: one row at a time; mask has rows × C elements, and the tokens are rows.
    unsafe {
        for r in 0..rows {
            row(args, r).take_while(|selected, _| selected < most);
        }
        for module in 0..clusters {
            let (_, refused) = split_tokens(args, module, cap);
            for &r in refused {
                args.mask.add(r as usize * clusters + module).write(0);
            }
        }
        for r in 0..rows {
            row(args, r).set_gates(args.norm_gates != 0);
        }
    }
}

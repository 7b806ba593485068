//! ROUTE: everything is read before anything is written.

use crate::memory::{Checks, Faults, Kind, Matrix, Memories, Place, Run, Type};
use crate::spec::Operands;

pub fn execute(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    match o.entry.mnemonic.as_str() {
        "r.top_k" | "r.threshold" | "r.top_p" | "r.expert_choice" | "r.bidirectional" => select(m, o),
        "r.group" => group(m, o),
        "r.compact" => compact(m, o),
        "r.append" => append(m, o),
        "r.admit" => admit(m, o),
        "r.iota" => iota(m, o),
        other => panic!("{other} is not of ROUTE"),
    }
}

/// The order of scores: positions, the best first.
fn best_first(scores: &[f32]) -> Vec<usize> {
    let value = |at: usize| if scores[at].is_nan() { f32::NEG_INFINITY } else { scores[at] };
    let mut left: Vec<usize> = (0..scores.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let mut best = 0;
        for candidate in 1..left.len() {
            if value(left[candidate]) > value(left[best]) {
                best = candidate;
            }
        }
        order.push(left.remove(best));
    }
    order
}

fn take(scores: &[f32], count: i64) -> Vec<bool> {
    let mut taken = vec![false; scores.len()];
    for at in best_first(scores).into_iter().take(usize::try_from(count).unwrap_or(0)) {
        taken[at] = true;
    }
    taken
}

fn select(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = (o.maybe("rows").unwrap_or(1), o.size("cols"));
    let scores = Matrix::dense(o, "scores", Type::F32, rows, cols);
    let mask = Matrix::dense(o, "mask", Type::I8, rows, cols);
    let gates = Matrix::dense(o, "gates", Type::F32, rows, cols);
    let mut checks = Checks::default();
    checks.work(!mask.run().is_empty()).matrices(&[&scores, &mask, &gates]);
    for count in ["k", "k_min", "cap"] {
        if o.entry.has(count) {
            checks.counts(&[o.reg(count)]);
        }
    }
    checks.finish(m)?;
    let all: Vec<Vec<f32>> = (0..rows).map(|i| (0..cols).map(|j| m.get(&scores, i, j)).collect()).collect();
    let by_rows = |choose: &dyn Fn(&[f32]) -> Vec<bool>| all.iter().map(|row| choose(row)).collect::<Vec<_>>();
    let by_columns = |cap: i64| {
        let mut taken = vec![vec![false; cols as usize]; rows as usize];
        for c in 0..cols as usize {
            let column: Vec<f32> = all.iter().map(|row| row[c]).collect();
            for (i, chosen) in take(&column, cap).into_iter().enumerate() {
                taken[i][c] = chosen;
            }
        }
        taken
    };
    let taken = match o.entry.mnemonic.as_str() {
        "r.top_k" => by_rows(&|row| take(row, o.reg("k"))),
        "r.threshold" => by_rows(&|row| threshold(row, o.reg("k"), f32::from_bits(o.reg("tau") as u32))),
        "r.top_p" => {
            let p = f32::from_bits(o.reg("p") as u32);
            by_rows(&|row| top_p(row, o.reg("k_min"), o.reg("k"), p))
        }
        "r.expert_choice" => by_columns(o.reg("cap")),
        _ => {
            let (mut both, columns) = (by_rows(&|row| take(row, o.reg("k"))), by_columns(o.reg("cap")));
            for (row, other) in both.iter_mut().zip(&columns) {
                for (a, b) in row.iter_mut().zip(other) {
                    *a = *a && *b;
                }
            }
            both
        }
    };
    // Masks first, then gates.
    for (i, chosen) in taken.iter().enumerate() {
        for (c, one) in chosen.iter().enumerate() {
            m.scratchpad[mask.at(i as i64, c as i64) as usize] = u8::from(*one);
        }
    }
    let norm = o.entry.has("norm") && o.flag("norm");
    for (i, (chosen, scores)) in taken.iter().zip(&all).enumerate() {
        let mut row: Vec<f32> = chosen.iter().zip(scores).map(|(one, score)| if *one { *score } else { 0.0 }).collect();
        if norm {
            let mut sum = 0f32;
            for gate in &row {
                sum += gate;
            }
            if sum > 0.0 {
                row.iter_mut().for_each(|gate| *gate /= sum);
            }
        }
        for (c, gate) in row.iter().enumerate() {
            m.put(&gates, i as i64, c as i64, *gate);
        }
    }
    Ok(())
}

fn threshold(row: &[f32], k: i64, tau: f32) -> Vec<bool> {
    let mut taken = vec![false; row.len()];
    for (count, at) in best_first(row).into_iter().enumerate() {
        // A score that is not a number is no less than nothing: it is not ≥ tau.
        if count as i64 >= k || row[at] < tau || row[at].is_nan() || tau.is_nan() {
            break;
        }
        taken[at] = true;
    }
    taken
}

fn top_p(row: &[f32], k_min: i64, k: i64, p: f32) -> Vec<bool> {
    let mut taken = vec![false; row.len()];
    let mut mass = 0f32;
    for (count, at) in best_first(row).into_iter().enumerate() {
        let count = count as i64;
        if count >= k || !(count < k_min || mass < p) {
            break;
        }
        taken[at] = true;
        mass += row[at];
    }
    taken
}

/// Set elements of the mask in the order of the counting sort: (row, column).
fn sorted(m: &Memories, begin: i64, rows: i64, cols: i64) -> Vec<(i64, i64)> {
    let mut list = Vec::new();
    for c in 0..cols {
        for i in 0..rows {
            if m.scratchpad[(begin + i * cols + c) as usize] != 0 {
                list.push((i, c));
            }
        }
    }
    list
}

/// Rows, columns, the mask and how many elements it may have.
fn masked(o: &Operands<'_>) -> (i64, i64, Run, i64) {
    let (rows, cols) = (o.maybe("rows").unwrap_or(1), o.size("cols"));
    let mask = Run::flat(Place::Scratchpad, o.address("mask"), rows.saturating_mul(cols), 1);
    (rows, cols, mask, o.maybe("most").unwrap_or(rows.saturating_mul(cols)))
}

fn group(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols, mask, most) = masked(o);
    let (table, list) = (o.address("table"), o.address("list"));
    let mut checks = Checks::default();
    checks.counts(&[rows, cols, most]).run(mask);
    checks.run(Run::flat(Place::Scratchpad, table, cols.saturating_add(1).saturating_mul(16), 4));
    checks.run(Run::flat(Place::Scratchpad, list, most.saturating_mul(4), 4)).finish(m)?;
    let elements = sorted(m, mask.begin, rows, cols);
    if elements.len() as i64 > most {
        return Err(vec![Kind::Most]);
    }
    let mut first = 0;
    for c in 0..=cols {
        let count = elements.iter().filter(|(_, column)| *column == c).count() as i64;
        for (word, value) in [c, first, count, 0].into_iter().enumerate() {
            m.put_word(table + 16 * c + 4 * word as i64, value as u32);
        }
        first += count;
    }
    for (n, (i, _)) in elements.iter().enumerate() {
        m.put_word(list + 4 * n as i64, *i as u32);
    }
    Ok(())
}

fn compact(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols, mask, most) = masked(o);
    let src = Matrix::dense(o, "src", Type::F32, rows, cols);
    let dst = o.address("dst");
    let list = Run::flat(Place::Scratchpad, dst, most.saturating_mul(4), 4);
    let mut checks = Checks::default();
    checks.work(most != 0).counts(&[rows, cols, most]).run(list);
    checks.run(mask).matrices(&[&src]).finish(m)?;
    if most == 0 {
        return Ok(());
    }
    let elements = sorted(m, mask.begin, rows, cols);
    if elements.len() as i64 > most {
        return Err(vec![Kind::Most]);
    }
    let values: Vec<f32> = elements.iter().map(|(i, c)| m.get(&src, *i, *c)).collect();
    for (n, value) in values.into_iter().enumerate() {
        m.put_float(dst + 4 * n as i64, value);
    }
    Ok(())
}

/// The token's number, if it is one.
fn token(o: &Operands<'_>, checks: &mut Checks) -> u32 {
    let token = o.reg("token");
    if !(0..=0xffff_ffff).contains(&token) {
        checks.counts(&[-1]);
    }
    token as u32
}

fn append(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (ring, cap) = (o.address("ring"), o.reg("cap"));
    let bytes = cap.saturating_add(1).saturating_mul(4);
    let mut checks = Checks::default();
    checks.work(cap != 0).counts(&[cap]).run(Run::flat(Place::Scratchpad, ring, bytes, 4));
    let token = token(o, &mut checks);
    checks.finish(m)?;
    if cap == 0 {
        return Ok(());
    }
    let n = m.word(ring);
    m.put_word(ring + 4 + 4 * (i64::from(n) % cap), token);
    m.put_word(ring, n.wrapping_add(1));
    Ok(())
}

fn admit(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (window, sinks, cap) = (o.reg("window"), o.reg("sinks"), o.reg("cap"));
    let (list, count, ring) = (o.address("list"), o.address("count"), o.address("ring"));
    let mut checks = Checks::default();
    let token = i64::from(token(o, &mut checks));
    let ring_bytes = cap.saturating_add(1).saturating_mul(4);
    checks.counts(&[window, sinks, cap]).run(Run::flat(Place::Scratchpad, ring, ring_bytes, 4));
    let most = cap.saturating_add(window).saturating_add(sinks).min(token + 1);
    checks.run(Run::flat(Place::Scratchpad, list, most.saturating_mul(4), 4));
    checks.run(Run::flat(Place::Scratchpad, count, 4, 4)).finish(m)?;
    let places = i64::from(m.word(ring)).min(cap);
    let kept: Vec<i64> = (0..places).map(|at| i64::from(m.word(ring + 4 + 4 * at))).collect();
    let admitted: Vec<i64> = (0..=token).filter(|j| token - j < window || *j < sinks || kept.contains(j)).collect();
    for (n, j) in admitted.iter().enumerate() {
        m.put_word(list + 4 * n as i64, *j as u32);
    }
    m.put_word(count, admitted.len() as u32);
    Ok(())
}

fn iota(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (dst, count) = (o.address("dst"), o.reg("count"));
    let run = Run::flat(Place::Scratchpad, dst, count.saturating_mul(4), 4);
    Checks::default().counts(&[count]).run(run).finish(m)?;
    let start = o.maybe("start").unwrap_or(0);
    for i in 0..count {
        m.put_word(dst + 4 * i, start.wrapping_add(i) as u32);
    }
    Ok(())
}

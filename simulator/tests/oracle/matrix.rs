//! MATRIX: one scalar loop per instruction.

use crate::memory::{Checks, Faults, Memories, Place, Run};
use crate::numbers::{fma, from_f16, pattern};
use crate::spec::Operands;

/// What the array holds.
#[derive(Clone, Debug, Default)]
pub struct Tile {
    k: i64,
    n: i64,
    codes: Vec<i64>,
    scales: Vec<f32>,
}

pub fn execute(m: &mut Memories, tile: &mut Tile, o: &Operands<'_>) -> Result<(), Faults> {
    match o.entry.mnemonic.as_str() {
        "m.preload" => preload(m, tile, o, false),
        "m.preload_scaled" => preload(m, tile, o, true),
        "m.pass" => pass(m, tile, o, false),
        "m.pass_scaled" => pass(m, tile, o, true),
        other => panic!("{other} is not of MATRIX"),
    }
}

fn preload(m: &Memories, tile: &mut Tile, o: &Operands<'_>, scaled: bool) -> Result<(), Faults> {
    let (k, n) = (o.size("k"), o.size("n"));
    let packed = o.bits("codes") == 1;
    let row_bytes = if packed { n.saturating_add(1) / 2 } else { n };
    let begin = o.address("tile");
    let run = Run {
        place: Place::Weights,
        begin,
        bytes: row_bytes,
        rows: k,
        stride: row_bytes,
        planes: 1,
        plane_stride: 0,
        element: 1,
    };
    let mut checks = Checks::default();
    checks.counts(&[k, n]).limit(k > m.array_rows as i64).limit(n > m.array_cols as i64).run(run);
    if scaled {
        checks.run(Run::flat(Place::Weights, o.address("scales"), n.saturating_mul(2), 2));
    }
    checks.finish(m)?;
    let mut codes = Vec::new();
    for r in 0..k {
        for c in 0..n {
            let at = begin + r * row_bytes;
            codes.push(if packed {
                let byte = i64::from(m.weights[(at + c / 2) as usize]);
                let half = if c % 2 == 0 { byte % 16 } else { byte / 16 };
                if half > 7 { half - 16 } else { half }
            } else {
                i64::from(m.weights[(at + c) as usize] as i8)
            });
        }
    }
    let scale = |c: i64| {
        let at = (o.address("scales") + 2 * c) as usize;
        from_f16(u16::from_le_bytes([m.weights[at], m.weights[at + 1]]))
    };
    let scales = (0..n).map(|c| if scaled { scale(c) } else { 1.0 }).collect();
    *tile = Tile { k, n, codes, scales };
    Ok(())
}

fn pass(m: &mut Memories, tile: &Tile, o: &Operands<'_>, scaled: bool) -> Result<(), Faults> {
    let (rows, k) = (o.size("rows"), o.size("k"));
    let stride = o.maybe("a_stride").unwrap_or(k);
    let a = o.address("a");
    let acc = o.address("acc");
    let accumulate = o.flag("accumulate");
    let sums = if scaled { o.address("sums") } else { acc };
    let append = scaled && o.flag("append");
    let run =
        Run { place: Place::Scratchpad, begin: a, bytes: k, rows, stride, planes: 1, plane_stride: 0, element: 1 };
    let mut checks = Checks::default();
    checks.work(rows != 0).limit(rows != 0 && k != tile.k).run(run).accumulators(acc, rows);
    if scaled && accumulate {
        checks.accumulators(sums, rows);
    }
    checks.finish(m)?;
    if rows == 0 {
        return Ok(());
    }
    let cols = m.array_cols as i64;
    let before = m.accumulators.clone();
    for i in 0..rows {
        for c in 0..cols {
            let to = ((acc + i) * cols + c) as usize;
            if c >= tile.n {
                if !(if scaled { append } else { accumulate }) {
                    m.accumulators[to] = 0;
                }
                continue;
            }
            let code = |r: i64| i64::from(m.scratchpad[(a + i * stride + r) as usize] as i8);
            let mut p: i64 = (0..k).map(|r| code(r) * tile.codes[(r * tile.n + c) as usize]).sum();
            if accumulate {
                p += i64::from(before[((sums + i) * cols + c) as usize] as i32);
            }
            // 32 bits with wrap-around.
            let p = p as i32;
            m.accumulators[to] = if scaled {
                let t = if append { f32::from_bits(before[to]) } else { 0.0 };
                pattern(fma(p as f32, tile.scales[c as usize], t))
            } else {
                p as u32
            };
        }
    }
    Ok(())
}

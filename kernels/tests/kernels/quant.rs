//! Quantized products and rows, bit for bit.
//!
//! Integer sums are taken in i64, float operations one by one in the order of the definition; so a result that is only
//! stored, scaled or added has no tolerance. With silu it has 8 roundings (exp to 2 ulp, a sum, a quotient, a product), and
//! where silu is below 10⁻³⁶ in size, the kernel's may be 0.

use crate::gemm::around;
use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::{EPS, Kernel, property};
use half::f16;
use lapidary_kernels::args::{QGemmArgs, QuantizeRowsArgs};
use lapidary_kernels::{KernelOp, QuantLayout, QuantSource, WeightType, quantized_row_bytes};
use proptest::prelude::*;

/// Which codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Codes {
    /// Any.
    Random,
    /// The largest inputs and weights, all of one sign: the largest sums.
    Largest,
    /// The largest in size, with opposite signs.
    Opposite,
    /// Largest and smallest in turn, so that sums of neighbours cancel or do not.
    Alternating,
}

/// A matrix of codes `[n, k]` with the scales of its rows or groups.
pub struct Weights {
    pub codes: Vec<i8>,
    /// `[n, groups]`, as f32; binary16 values for int4.
    pub scales: Vec<f32>,
    /// The binary16 bits of the scales.
    bits: Vec<u16>,
}

impl Weights {
    pub fn new(random: &mut Random, layout: &QuantLayout, n: usize, k: usize, kind: Codes) -> Self {
        let (least, most): (i8, i8) = if layout.group() == 0 { (-127, 127) } else { (-8, 7) };
        let code = |random: &mut Random, input: usize| match kind {
            Codes::Random => (random.below((most as i16 - least as i16 + 1) as usize) as i16 + i16::from(least)) as i8,
            Codes::Largest => most,
            Codes::Opposite => least,
            Codes::Alternating => [least, most, most, least, least][input % 5],
        };
        let codes = (0..n * k).map(|at| code(random, at % k)).collect();
        let scale = |random: &mut Random| {
            let scale = random.unit() * 0.02;
            if layout.group() == 0 { scale } else { f16::from_f32(scale).to_f32() }
        };
        Self::of(codes, (0..n * groups(layout, k)).map(|_| scale(random)).collect())
    }

    pub fn of(codes: Vec<i8>, scales: Vec<f32>) -> Self {
        let bits = scales.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        Self { codes, scales, bits }
    }

    pub fn source(&self, layout: &QuantLayout) -> QuantSource<'_> {
        match layout.weight() {
            WeightType::I8 => QuantSource::I8 { codes: &self.codes, scales: &self.scales },
            _ => QuantSource::I4 { codes: &self.codes, scales: &self.bits },
        }
    }
}

pub fn groups(layout: &QuantLayout, k: usize) -> usize {
    if layout.group() == 0 { 1 } else { k.div_ceil(layout.group()) }
}

/// Panels of one matrix by the definition.
pub fn panels(w: &Weights, layout: &QuantLayout, n: usize, k: usize) -> Vec<Vec<u8>> {
    let (nr, kr, group) = (layout.nr(), layout.kr(), layout.group());
    let code = |output: usize, input: usize, end: usize| {
        if output < n && input < end { w.codes[output * k + input] } else { 0 }
    };
    let scale =
        |output: usize, group: usize| if output < n { w.scales[output * groups(layout, k) + group] } else { 0.0 };
    (0..n.div_ceil(nr))
        .map(|panel| {
            let outputs = panel * nr..(panel + 1) * nr;
            let mut bytes = Vec::new();
            if group == 0 {
                for block in 0..k.div_ceil(kr) {
                    for output in outputs.clone() {
                        for input in block * kr..(block + 1) * kr {
                            bytes.push((i16::from(code(output, input, k)) + i16::from(layout.code_offset())) as u8);
                        }
                    }
                }
                for output in outputs {
                    bytes.extend(scale(output, 0).to_le_bytes());
                }
                return bytes;
            }
            for begin in (0..k).step_by(group) {
                let end = k.min(begin + group);
                for output in outputs.clone() {
                    bytes.extend(f16::from_f32(scale(output, begin / group)).to_le_bytes());
                }
                for block in (begin..end).step_by(2 * kr) {
                    for output in outputs.clone() {
                        for input in block..block + kr {
                            let (low, high) = (code(output, input, end), code(output, input + kr, end));
                            bytes.push((low + 8) as u8 | ((high + 8) as u8) << 4);
                        }
                    }
                }
            }
            bytes
        })
        .collect()
}

/// A quantized row by the definition.
pub struct Row {
    pub codes: Vec<i8>,
    pub scale: f32,
}

impl Row {
    fn record(&self) -> Vec<u8> {
        let k = self.codes.len();
        let mut bytes: Vec<u8> = self.codes.iter().map(|&q| q as u8).collect();
        bytes.resize(k.next_multiple_of(64), 0);
        bytes.extend(self.scale.to_le_bytes());
        let sum = |codes: &[i8]| codes.iter().map(|&q| i32::from(q)).sum::<i32>();
        bytes.extend((-128 * sum(&self.codes)).to_le_bytes());
        for block in self.codes.chunks(32) {
            bytes.extend((-8 * sum(block)).to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        assert_eq!(bytes.len(), quantized_row_bytes(k));
        bytes
    }

    /// Product with an output, by the definition, bit for bit.
    fn times(&self, w: &Weights, layout: &QuantLayout, output: usize) -> f32 {
        let k = self.codes.len();
        let codes = &w.codes[output * k..][..k];
        let scales = &w.scales[output * groups(layout, k)..][..groups(layout, k)];
        let sum = |a: &[i8], w: &[i8]| {
            let sum: i64 = a.iter().zip(w).map(|(&a, &w)| i64::from(a) * i64::from(w)).sum();
            i32::try_from(sum).expect("sums fit i32") as f32
        };
        if layout.group() == 0 {
            return sum(&self.codes, codes) * scales[0] * self.scale;
        }
        let groups = self.codes.chunks(layout.group()).zip(codes.chunks(layout.group()));
        groups.zip(scales).fold(0.0f32, |t, ((a, w), &scale)| sum(a, w).mul_add(scale, t)) * self.scale
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    group: usize,
    codes: Codes,
    indirect_a: bool,
    indirect_c: bool,
    scaled: bool,
    accumulate: bool,
    panels: Option<(usize, usize)>,
    seed: u64,
}

const PLAIN: Case = Case {
    m: 1,
    n: 1,
    k: 1,
    group: 32,
    codes: Codes::Random,
    indirect_a: false,
    indirect_c: false,
    scaled: false,
    accumulate: false,
    panels: None,
    seed: 1,
};

fn run(kernel: &Kernel, case: Case) {
    let Case { m, n, k, .. } = case;
    let group = if kernel.row.weight == WeightType::I8 { 0 } else { case.group };
    let layout = kernel.row.quant_layout(group).expect("a quantized kernel has a layout");
    let swiglu = matches!(kernel.row.op, KernelOp::GemmSwiglu | KernelOp::GemvSwiglu);
    let nr = layout.nr();
    let random = &mut Random(case.seed);
    let gate = Weights::new(random, &layout, n, k, case.codes);
    let up = Weights::new(random, &layout, n, k, case.codes);
    let gate_panels = panels(&gate, &layout, n, k);
    let packed = if swiglu {
        let up_panels = panels(&up, &layout, n, k);
        gate_panels.into_iter().zip(up_panels).flat_map(|(gate, up)| [gate, up]).collect::<Vec<_>>().concat()
    } else {
        gate_panels.concat()
    };
    let packed = Guarded::of(&packed);

    let lda_bytes = quantized_row_bytes(k) + 64 * random.below(2);
    let ldc = n + random.below(3);
    let a_total = if case.indirect_a { m + 3 } else { m };
    let c_total = if case.indirect_c { m + 3 } else { m };
    let rows: Vec<Row> = (0..a_total)
        .map(|_| {
            let code = |random: &mut Random, i: usize| match case.codes {
                Codes::Random => (random.below(255) as i16 - 127) as i8,
                Codes::Largest | Codes::Opposite => 127,
                Codes::Alternating => [127, 127, -127, 127, -127, -127, -127][i % 7],
            };
            Row { codes: (0..k).map(|i| code(random, i)).collect(), scale: random.unit().abs() * 0.1 }
        })
        .collect();
    let mut a = vec![0xaa; (a_total * lda_bytes).saturating_sub(lda_bytes - quantized_row_bytes(k))];
    for (row, place) in rows.iter().zip(a.chunks_mut(lda_bytes)) {
        place[..quantized_row_bytes(k)].copy_from_slice(&row.record());
    }
    let a = Guarded::of(&a);
    let a_rows = Guarded::from_fn(m, |_| random.below(a_total) as u32);
    let mut free: Vec<u32> = (0..c_total as u32).collect();
    let c_rows = Guarded::from_fn(m, |_| free.swap_remove(random.below(free.len())));
    let scale = random.floats(m, 2.0);
    let (begin, end) = case.panels.unwrap_or((0, n.div_ceil(nr)));

    let mut c = Guarded::filled((c_total * ldc).saturating_sub(ldc - n), UNTOUCHED);
    let mut expected = Expected::untouched(c.len());
    for i in 0..m {
        let row = &rows[if case.indirect_a { a_rows[i] as usize } else { i }];
        let c_row = if case.indirect_c { c_rows[i] as usize } else { i };
        let scale = if case.scaled { scale[i] } else { 1.0 };
        for j in begin * nr..(end * nr).min(n) {
            let at = c_row * ldc + j;
            let start = if case.accumulate { random.unit() } else { f32::NAN };
            c[at] = start;
            let y = row.times(&gate, &layout, j);
            if swiglu {
                let (g, u) = (f64::from(y), f64::from(row.times(&up, &layout, j)));
                let product = f64::from(scale) * g / (1.0 + (-g).exp()) * u;
                let start = if case.accumulate { f64::from(start) } else { 0.0 };
                let vanished = (f64::from(scale) * u).abs().max(1.0) * 1.0e-36;
                let tolerance = EPS * (8.0 * product.abs() + (start + product).abs()) + vanished;
                expected.set(at, start + product, tolerance);
            } else {
                let y = y * scale;
                expected.set(at, f64::from(if case.accumulate { start + y } else { y }), 0.0);
            }
        }
    }
    kernel.run(&QGemmArgs {
        a: a.as_ptr(),
        lda_bytes: lda_bytes as u64,
        a_rows: if case.indirect_a { a_rows.as_ptr() } else { std::ptr::null() },
        m: m as u64,
        k: k as u64,
        w: packed.as_ptr(),
        group: group as u64,
        n: n as u64,
        panel_begin: begin as u64,
        panel_end: end as u64,
        c: c.as_mut_ptr(),
        ldc: ldc as u64,
        c_rows: if case.indirect_c { c_rows.as_ptr() } else { std::ptr::null() },
        row_scale: if case.scaled { scale.as_ptr() } else { std::ptr::null() },
        accumulate: u64::from(case.accumulate),
    });
    expected.check(&c, || format!("{} {case:?}", kernel.row.name));
}

pub fn check(kernels: &[Kernel]) {
    for kernel in kernels {
        let tile = kernel.row.tile;
        run(kernel, Case { m: 0, n: tile.nr, ..PLAIN });
        for m in (1..=tile.mr + 1).chain([2 * tile.mr + 1]) {
            for n in around(tile.nr).into_iter().chain(around(tile.nr / 2)) {
                for k in [1, 4, 8, 33, 64] {
                    run(kernel, Case { m, n, k, seed: (m * 31 + n * 7 + k) as u64, ..PLAIN });
                }
            }
        }
        // Both sides of every unit of inputs, of a group, and of what loops unroll.
        for k in (1..=34).chain([47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 160, 255, 256, 257, 300]) {
            for group in QuantLayout::GROUPS {
                run(kernel, Case { m: tile.mr, n: tile.nr + 1, k, group, seed: k as u64, ..PLAIN });
            }
        }
        for codes in [Codes::Largest, Codes::Opposite, Codes::Alternating] {
            for k in [2, 16, 32, 33, 128, 700] {
                for group in QuantLayout::GROUPS {
                    run(kernel, Case { m: tile.mr, n: tile.nr, k, group, codes, ..PLAIN });
                }
            }
        }
        // The largest sums of all, and rounding of sums to f32.
        for codes in [Codes::Largest, Codes::Opposite] {
            run(kernel, Case { m: 1, n: 2, k: QuantLayout::MOST_INPUTS, group: 128, codes, ..PLAIN });
        }
        run(kernel, Case { m: 2, n: tile.nr + 1, k: 3000, scaled: true, accumulate: true, seed: 5, ..PLAIN });
    }
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let sizes = (0usize..30, 1usize..100, 1usize..300, 0usize..3);
    property((sizes, flags, any::<u64>(), any::<u64>()), |((m, n, k, group), flags, range, seed)| {
        for kernel in kernels {
            let count = n.div_ceil(kernel.row.tile.nr);
            let begin = range as usize % count;
            let end = begin + (range >> 32) as usize % (count - begin + 1);
            let (indirect_a, indirect_c, scaled, accumulate) = flags;
            let group = QuantLayout::GROUPS[group];
            let panels = Some((begin, end));
            let case = Case { m, n, k, group, indirect_a, indirect_c, scaled, accumulate, panels, seed, ..PLAIN };
            run(kernel, case);
        }
    });
}

/// Codes and scale of a row of floats, by the definition.
pub fn quantize(x: &[f32]) -> Row {
    let amax = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if amax < 2.0f32.powi(-100) {
        return Row { codes: vec![0; x.len()], scale: 0.0 };
    }
    let inverse = 127.0 / amax;
    let codes = x.iter().map(|&x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).collect();
    Row { codes, scale: amax / 127.0 }
}

fn run_quantize_rows(kernel: &Kernel, rows: &[Vec<f32>], indirect: bool, random: &mut Random) {
    let k = rows[0].len();
    let ldx = k + random.below(3);
    let ldy = quantized_row_bytes(k) + 64 * random.below(2);
    let mut x = Guarded::filled((rows.len() * ldx).saturating_sub(ldx - k), f32::NAN);
    for (row, place) in rows.iter().zip(x.chunks_mut(ldx)) {
        place[..k].copy_from_slice(row);
    }
    let x_rows = Guarded::from_fn(rows.len(), |i| if indirect { random.below(rows.len()) as u32 } else { i as u32 });
    let mut y = Guarded::filled(rows.len() * ldy - (ldy - quantized_row_bytes(k)), 0xaau8);
    kernel.run(&QuantizeRowsArgs {
        x: x.as_ptr(),
        ldx: ldx as u64,
        x_rows: if indirect { x_rows.as_ptr() } else { std::ptr::null() },
        y: y.as_mut_ptr(),
        ldy_bytes: ldy as u64,
        rows: rows.len() as u64,
        k: k as u64,
    });
    for (i, record) in y.chunks(ldy).enumerate() {
        let row = &rows[x_rows[i] as usize];
        let (record, between) = record.split_at(quantized_row_bytes(k));
        assert_eq!(record, quantize(row).record(), "{} row {i} of {k}: {row:?}", kernel.row.name);
        assert!(between.iter().all(|&b| b == 0xaa), "{} wrote between records", kernel.row.name);
    }
}

pub fn check_quantize_rows(kernels: &[Kernel]) {
    for kernel in kernels {
        let random = &mut Random(3);
        for k in (1..=70).chain([95, 96, 97, 127, 128, 129, 768, 1000]) {
            for rows in [1, 3] {
                let rows: Vec<_> = (0..rows).map(|_| (0..k).map(|_| random.unit() * 3.0).collect()).collect();
                run_quantize_rows(kernel, &rows, k % 2 == 0, random);
            }
        }
        // Ties at every code, both signs: 127 / 127 is exact.
        let ties: Vec<f32> = (-127..127).map(|q| q as f32 + 0.5).chain([127.0, -127.0]).collect();
        // Rows of nothing, of the smallest that has codes, below it, of the largest number, of one element.
        let small = 2.0f32.powi(-100);
        let odd = [
            vec![0.0; 40],
            vec![-0.0; 40],
            vec![small, -small / 2.0, 0.0],
            vec![small.next_down(), 0.0],
            vec![f32::from_bits(1); 5],
            vec![f32::MAX, f32::MIN, 1.0e38, -2.0e36],
            vec![-7.0],
            // A product that rounds up to more than 127.
            (1..200).map(|i| 1.0 + i as f32 * 1.0e-7).collect(),
        ];
        for row in odd.into_iter().chain([ties]) {
            run_quantize_rows(kernel, &[row], false, random);
        }
    }
    property((1usize..200, -90i32..120, any::<u64>()), |(k, exponent, seed)| {
        let random = &mut Random(seed);
        let row: Vec<f32> = (0..k).map(|_| random.unit() * 2.0f32.powi(exponent)).collect();
        for kernel in kernels {
            run_quantize_rows(kernel, std::slice::from_ref(&row), false, random);
        }
    });
    // Not-finite values: anything within bounds.
    for kernel in kernels {
        let x = Guarded::from_fn(67, |i| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0][i % 4]);
        let mut y = Guarded::filled(quantized_row_bytes(67), 0u8);
        let x_rows = std::ptr::null();
        let ldy_bytes = y.len() as u64;
        kernel.run(&QuantizeRowsArgs { x: x.as_ptr(), ldx: 67, x_rows, y: y.as_mut_ptr(), ldy_bytes, rows: 1, k: 67 });
    }
}

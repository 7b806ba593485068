//! The quantized definitions against integers in 64 bits, exact fixed point and numbers worked out by hand; and the
//! interpreter's quantized ops against the definition written anew.

#[path = "support/source.rs"]
mod source;

use half::f16;
use lapidary_compiler::interp::Tensor;
use lapidary_compiler::ir::{Graph, Int4Group, KvStorage, Storage, WeightId, WeightReader};
use lapidary_compiler::quant::{
    QuantizedRow, QuantizedRows, Scales, int4_dot, int8_dot, quantize_int4, quantize_int8, quantize_row,
    quantized_row_bytes, round_kv_row,
};
use source::{Numbers, eval, noise};

const GROUPS: [Int4Group; 3] = [Int4Group::G32, Int4Group::G64, Int4Group::G128];
/// Row lengths around every block and group boundary.
const LENGTHS: [usize; 12] = [1, 2, 31, 32, 33, 63, 65, 70, 127, 129, 160, 300];

/// `round_half_to_even` of a double of less than 2^40, in integers.
fn round_half_even(x: f64) -> i64 {
    let floor = x.floor();
    match (x - floor).partial_cmp(&0.5).unwrap() {
        std::cmp::Ordering::Less => floor as i64,
        std::cmp::Ordering::Greater => floor as i64 + 1,
        std::cmp::Ordering::Equal => floor as i64 + (floor as i64 & 1),
    }
}

/// The activation rule written anew: f32 operations as doubles rounded once (products of two f32 are exact in f64, and so
/// is a quotient's rounding: 53 bits are more than twice 24 and two).
fn oracle_row(x: &[f32]) -> (Vec<i64>, f32) {
    let amax = x.iter().map(|x| f64::from(*x).abs()).fold(0.0, f64::max);
    if amax < 2f64.powi(-100) {
        return (vec![0; x.len()], 0.0);
    }
    let inv = f64::from((127.0 / amax) as f32);
    let code = |x: &f32| round_half_even(f64::from((f64::from(*x) * inv) as f32)).clamp(-127, 127);
    (x.iter().map(code).collect(), (amax / 127.0) as f32)
}

/// `(f32(acc)·s_w)·s_x`, each product a double rounded once.
fn oracle_int8(x: &(Vec<i64>, f32), codes: &[i64], scale: f32) -> f32 {
    let acc: i64 = x.0.iter().zip(codes).map(|(a, b)| a * b).sum();
    let scaled = (f64::from(acc as f64 as f32) * f64::from(scale)) as f32;
    (f64::from(scaled) * f64::from(x.1)) as f32
}

/// `t·s_x`; t in units of 2^-24, of which f16 scales and so all sums are multiples: each fused step rounded exactly once.
fn oracle_int4(x: &(Vec<i64>, f32), codes: &[i64], scales: &[f16], group: usize) -> f32 {
    let unit = 2f64.powi(24);
    let mut t = 0f32;
    for ((x, w), s) in x.0.chunks(group).zip(codes.chunks(group)).zip(scales) {
        let acc: i64 = x.iter().zip(w).map(|(a, b)| a * b).sum();
        let scale = (f64::from(s.to_f32()) * unit) as i128;
        let sum = i128::from(acc) * scale + (f64::from(t) * unit) as i128;
        t = (f64::from(sum as f32) / unit) as f32;
    }
    (f64::from(t) * f64::from(x.1)) as f32
}

fn wide(codes: &[i8]) -> Vec<i64> {
    codes.iter().map(|q| i64::from(*q)).collect()
}

#[test]
fn activation_rows_round_half_to_even() {
    let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 0.49999997];
    let row = quantize_row(&x);
    assert_eq!((row.codes, row.scale), (vec![127, 0, 2, 2, 0, -2, -2, 126, -126, 0], 1.0));
    assert_eq!(quantize_row(&[-3.0]), QuantizedRow { codes: vec![-127], scale: 3.0 / 127.0 });
    for (seed, k) in LENGTHS.into_iter().enumerate() {
        for size in [1.0, 1e-28, 3.7e20] {
            let x: Vec<f32> = noise(seed as u64, k).iter().map(|x| x * size).collect();
            let (codes, scale) = oracle_row(&x);
            let row = quantize_row(&x);
            assert_eq!((wide(&row.codes), row.scale), (codes, scale), "{k} of size {size}");
            assert!(row.codes.iter().any(|q| q.abs() == 127), "{k}: the largest has the largest code");
        }
    }
}

#[test]
fn rows_of_zeros_and_extreme_rows_have_codes() {
    let smallest = 2f32.powi(-100);
    assert_eq!(quantize_row(&[0.0, -0.0, 0.0]), QuantizedRow { codes: vec![0; 3], scale: 0.0 });
    let below = f32::from_bits(smallest.to_bits() - 1);
    assert_eq!(quantize_row(&[below, -below]), QuantizedRow { codes: vec![0; 2], scale: 0.0 });
    assert_eq!(quantize_row(&[f32::MIN_POSITIVE, 1e-45]).codes, [0, 0]);
    assert_eq!(quantize_row(&[smallest, -smallest, smallest / 2.0]).codes, [127, -127, 64]);
    assert_eq!(quantize_row(&[f32::MAX, f32::MIN, f32::MAX / 4.0]).codes, [127, -127, 32]);
    // Not specified, but no panic.
    quantize_row(&[f32::NAN, f32::INFINITY, 1.0]);
    quantize_row(&[]);
}

#[test]
fn powers_of_two_change_the_scale_alone() {
    for (seed, k) in LENGTHS.into_iter().enumerate() {
        let x = noise(seed as u64 + 50, k);
        for power in [-60, -9, -1, 1, 7, 100] {
            let factor = 2f32.powi(power);
            let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
            let (a, b) = (quantize_row(&x), quantize_row(&scaled));
            assert_eq!((&b.codes, b.scale), (&a.codes, a.scale * factor), "{k} · 2^{power}");
            let (a, b) = (quantize_int8(&x, None), quantize_int8(&scaled, None));
            assert_eq!((&b.codes, b.scale), (&a.codes, a.scale * factor), "{k} · 2^{power}");
            // f16 scales: where they neither over- nor underflow.
            if (-9..8).contains(&power) {
                for group in GROUPS {
                    let (a, b) = (quantize_int4(&x, group, None), quantize_int4(&scaled, group, None));
                    let scales = |row: &[f16]| row.iter().map(|s| s.to_f32()).collect::<Vec<_>>();
                    let wanted: Vec<f32> = scales(&a.scales).iter().map(|s| s * factor).collect();
                    assert!(wanted.iter().all(|s| *s == 0.0 || s.abs() > 6.2e-5), "no scale is subnormal");
                    assert_eq!((&b.codes, scales(&b.scales)), (&a.codes, wanted), "{k} · 2^{power}");
                }
            }
        }
    }
}

#[test]
fn what_was_quantized_quantizes_to_itself() {
    for (seed, k) in LENGTHS.into_iter().enumerate() {
        let x = noise(seed as u64 + 90, k);
        let row = quantize_row(&x);
        let again = quantize_row(&row.codes.iter().map(|q| f32::from(*q) * row.scale).collect::<Vec<_>>());
        assert_eq!(again.codes, row.codes);
        assert!((again.scale - row.scale).abs() <= f32::EPSILON * row.scale);

        let mut kept = x.clone();
        for storage in KvStorage::ALL {
            round_kv_row(storage, &mut kept);
            let mut twice = kept.clone();
            round_kv_row(storage, &mut twice);
            let tolerance = if storage == KvStorage::Int8 { 2.0 * f32::EPSILON } else { 0.0 };
            assert!(kept.iter().zip(&twice).all(|(a, b)| (a - b).abs() <= tolerance * a.abs()), "{storage}");
        }

        for group in GROUPS {
            let mut first = vec![0.0; k];
            let storage = Storage::Int4(group);
            QuantizedRows::quantize(storage, &x, k, None).unwrap().dequantize(&mut first);
            let mut second = vec![0.0; k];
            QuantizedRows::quantize(storage, &first, k, None).unwrap().dequantize(&mut second);
            assert_eq!(first, second, "{storage} of {k}");
        }
        // An int8 row whose largest code is used.
        let codes: Vec<i8> =
            (0..k).map(|i| if i == k / 2 { -127 } else { (i as i64 * 37 % 255 - 127) as i8 }).collect();
        let again = quantize_int8(&codes.iter().map(|q| f32::from(*q) * 0.013).collect::<Vec<_>>(), None);
        assert_eq!(again.codes, codes);
    }
}

#[test]
fn rows_in_working_memory_have_room_for_codes_scale_and_sums() {
    for k in LENGTHS {
        let wanted = k.div_ceil(64) * 64 + (4 * (2 + k.div_ceil(32))).div_ceil(64) * 64;
        assert_eq!(quantized_row_bytes(k as u64), wanted as u64);
    }
    assert_eq!([0, 1, 64, 65, 448, 480].map(quantized_row_bytes), [64, 128, 128, 192, 512, 640]);
    assert_eq!(quantized_row_bytes(u64::MAX), u64::MAX);
}

#[test]
fn products_are_exact_integers_scaled_in_order() {
    for (seed, k) in LENGTHS.into_iter().enumerate() {
        for size in [1.0, 900.0, 1e-3] {
            let x: Vec<f32> = noise(seed as u64, k).iter().map(|x| x * 3.0).collect();
            let w: Vec<f32> = noise(seed as u64 + 30, k).iter().map(|w| w * size).collect();
            let (row, anew) = (quantize_row(&x), oracle_row(&x));
            let q = quantize_int8(&w, None);
            assert_eq!(int8_dot(&row, &q.codes, q.scale), oracle_int8(&anew, &wide(&q.codes), q.scale), "int8 {k}");
            for group in GROUPS {
                let q = quantize_int4(&w, group, None);
                let elems = group.elems() as usize;
                assert_eq!(q.scales.len(), k.div_ceil(elems));
                let wanted = oracle_int4(&anew, &wide(&q.codes), &q.scales, elems);
                assert_eq!(int4_dot(&row, &q.codes, &q.scales, elems), wanted, "int4:{elems} {k}");
            }
        }
    }
    // The longest row with the largest codes: 127² · 2^17 < 2^31.
    let k = lapidary_compiler::ir::limits::MAX_QUANTIZED_COLS as usize;
    let row = QuantizedRow { codes: vec![-127; k], scale: 0.5 };
    let codes = vec![127i8; k];
    assert_eq!(int8_dot(&row, &codes, 0.25), -2_114_060_288.0 * 0.125);
    let scales = vec![f16::from_f32(-1.0); k / 32];
    let anew = (wide(&row.codes), row.scale);
    let coarse = vec![-8i8; k];
    assert_eq!(int4_dot(&row, &coarse, &scales, 32), oracle_int4(&anew, &wide(&coarse), &scales, 32));
    // One rounding per group: sums of many bits times scales of eleven do not fit an f32 before they are added.
    let (x, mut differs) =
        (QuantizedRow { codes: (0..256).map(|i| 127 - i8::from(i % 128 == 5)).collect(), scale: 1.0 }, 0);
    for pair in noise(77, 64).chunks(2) {
        let scales = [f16::from_f32(pair[0]), f16::from_f32(pair[1])];
        let found = int4_dot(&x, &[7; 256], &scales, 128);
        assert_eq!(found, oracle_int4(&(wide(&x.codes), 1.0), &[7; 256], &scales, 128));
        let acc = (7 * (127 * 128 - 1)) as f32;
        differs += i32::from(found != (0.0 + acc * scales[0].to_f32()) + acc * scales[1].to_f32());
    }
    assert!(differs > 0, "two roundings are told from one");
}

/// Squared error of one group or row under max-abs scales.
fn max_abs_error(x: &[f32], largest: f64, half: bool) -> f64 {
    let amax = x.iter().map(|x| f64::from(*x).abs()).fold(0.0, f64::max);
    let scale = (amax / largest) as f32;
    let scale = f64::from(if half { f16::from_f32(scale).to_f32() } else { scale });
    let code = |x: f64| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(-largest, largest) };
    x.iter().map(|x| (f64::from(*x) - code(f64::from(*x)) * scale).powi(2)).sum()
}

fn error(x: &[f32], codes: &[i8], scale: f32) -> f64 {
    x.iter().zip(codes).map(|(x, q)| (f64::from(*x) - f64::from(*q) * f64::from(scale)).powi(2)).sum()
}

#[test]
fn searched_scales_are_never_worse_than_max_abs() {
    for (seed, k) in LENGTHS.into_iter().enumerate() {
        for tails in [1, 5] {
            // Odd powers make tails: a few large numbers among many small ones.
            let x: Vec<f32> = noise(seed as u64 + 7, k).iter().map(|x| 0.02 * x.powi(tails)).collect();
            let q = quantize_int8(&x, None);
            assert!(q.codes.iter().all(|c| *c >= -127) && q.scale >= 0.0);
            // The search compares f32 sums: equal up to their rounding.
            assert!(error(&x, &q.codes, q.scale) <= max_abs_error(&x, 127.0, false) * (1.0 + 1e-4) + 1e-20, "{k}");
            for group in GROUPS {
                let q = quantize_int4(&x, group, None);
                assert!(q.codes.iter().all(|c| (-8..=7).contains(c)));
                let chunks = x.chunks(group.elems() as usize).zip(q.codes.chunks(group.elems() as usize));
                for ((x, codes), s) in chunks.zip(&q.scales) {
                    let found = error(x, codes, s.to_f32());
                    assert!(found <= max_abs_error(x, 7.0, true) * (1.0 + 1e-4) + 1e-20, "{k} {group:?}");
                }
            }
        }
    }
}

#[test]
fn weights_at_the_edges_have_codes() {
    let zero = quantize_int8(&[0.0; 9], None);
    assert_eq!((zero.codes, zero.scale), (vec![0; 9], 0.0));
    // −8 is used, with a negative scale where the largest is positive.
    for sign in [1.0, -1.0] {
        let x: Vec<f32> = (-8..8).map(|i| sign * i as f32).collect();
        let q = quantize_int4(&x, Int4Group::G32, None);
        assert_eq!(error(&x, &q.codes, q.scales[0].to_f32()), 0.0, "{sign}");
        assert_eq!(q.scales[0].to_f32(), sign);
    }
    // Beyond f16's scales on both sides: the nearest that there is.
    let large = quantize_int4(&[1e9, -3e8, 0.0], Int4Group::G32, None);
    assert_eq!((large.codes[0].abs() >= 7, large.scales[0].to_f32().abs()), (true, 65504.0));
    let small = quantize_int4(&[1e-9, -1e-10], Int4Group::G32, None);
    assert_eq!((small.codes, small.scales[0]), (vec![0, 0], f16::ZERO));
    let tiny = quantize_int4(&[f32::MIN_POSITIVE, 1e-45], Int4Group::G32, None);
    assert_eq!(tiny.codes, [0, 0]);
    let huge = quantize_int8(&[f32::MAX, -f32::MAX, f32::MAX / 127.0], None);
    assert_eq!(huge.codes, [127, -127, 1]);
    let least = quantize_int8(&[2f32.powi(-100), -(2f32.powi(-101))], None);
    assert!(least.scale > 0.0 && least.codes[0] == 127);
}

#[test]
fn importance_moves_the_error_to_where_it_costs_less() {
    // A few columns matter.
    let x = noise(4, 64);
    let importance: Vec<f32> = (0..64).map(|i| if i % 16 == 3 { 50.0 } else { 0.1 }).collect();
    let weighted = |codes: &[i8], scale: f32| -> f64 {
        let terms = x.iter().zip(codes).zip(&importance);
        terms.map(|((x, q), w)| f64::from(*w) * (f64::from(*x) - f64::from(*q) * f64::from(scale)).powi(2)).sum()
    };
    let (plain, guided) =
        (quantize_int4(&x, Int4Group::G64, None), quantize_int4(&x, Int4Group::G64, Some(&importance)));
    let [plain, guided] = [plain, guided].map(|q| weighted(&q.codes, q.scales[0].to_f32()));
    assert!(guided < 0.8 * plain, "{guided} against {plain}");
    let ones = vec![1.0; 64];
    assert_eq!(quantize_int4(&x, Int4Group::G32, Some(&ones)), quantize_int4(&x, Int4Group::G32, None));
    assert_eq!(quantize_int8(&x, Some(&ones)), quantize_int8(&x, None));
}

/// Matrices whose codes are known: every row of each uses the largest code, and scales are powers of two.
struct Known {
    codes: Vec<Vec<i64>>,
    scales: Vec<Vec<f32>>,
    group: usize,
    numbers: Vec<f32>,
}

impl Known {
    fn new(seed: u64, storage: Storage, rows: usize, cols: usize) -> Known {
        let (group, largest) = match storage {
            Storage::Int4(group) => (group.elems() as usize, 7),
            _ => (cols, 127),
        };
        let draws = noise(seed, rows * cols + rows * cols.div_ceil(group));
        let mut draws = draws.iter().map(|x| (f64::from(*x) * 1e6) as i64);
        let mut known = Known { codes: Vec::new(), scales: Vec::new(), group, numbers: Vec::new() };
        for _ in 0..rows {
            let mut row: Vec<i64> = (0..cols).map(|_| draws.next().unwrap() % (largest + 1)).collect();
            let scales: Vec<f32> =
                (0..cols.div_ceil(group)).map(|_| 2f32.powi(-6 - (draws.next().unwrap().abs() % 3) as i32)).collect();
            for chunk in row.chunks_mut(group) {
                chunk[chunk.len() / 2] = largest;
            }
            known.numbers.extend(row.iter().enumerate().map(|(i, q)| *q as f32 * scales[i / group]));
            known.codes.push(row);
            known.scales.push(scales);
        }
        known
    }

    fn product(&self, o: usize, x: &(Vec<i64>, f32)) -> f32 {
        if self.group == self.codes[o].len() && self.scales[o].len() == 1 && self.codes[o].iter().any(|q| q.abs() > 8) {
            return oracle_int8(x, &self.codes[o], self.scales[o][0]);
        }
        let scales: Vec<f16> = self.scales[o].iter().map(|s| f16::from_f32(*s)).collect();
        oracle_int4(x, &self.codes[o], &scales, self.group)
    }

    fn times(&self, x: &[f32]) -> Vec<f32> {
        let x = oracle_row(x);
        (0..self.codes.len()).map(|o| self.product(o, &x)).collect()
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn hidden(gate: &Known, up: &Known, x: &[f32]) -> Vec<f32> {
    let pairs = gate.times(x).into_iter().zip(up.times(x));
    pairs.map(|(g, u)| (silu(f64::from(g)) * f64::from(u)) as f32).collect()
}

const STORAGES: [Storage; 4] =
    [Storage::Int8, Storage::Int4(Int4Group::G32), Storage::Int4(Int4Group::G64), Storage::Int4(Int4Group::G128)];

fn tensor(cols: usize, data: &[f32]) -> Tensor {
    Tensor::matrix(data.len() / cols, cols, data.to_vec())
}

#[test]
fn linear_is_the_defined_product_plus_residual() {
    let (t, k, n) = (3, 70, 5);
    let (mut x, r) = (noise(1, t * k), noise(2, t * n));
    x[k..2 * k].fill(0.0);
    for storage in STORAGES {
        let w = Known::new(3, storage, n, k);
        let head = format!("weight @w: {storage}[{n}, {k}] general = stored");
        let numbers = Numbers::default().with("w", k, &w.numbers);
        let inputs = [("x", "f32[T, 70]", tensor(k, &x)), ("r", "f32[T, 5]", tensor(n, &r))];
        let found = |body: &str| eval(&head, &inputs, body, &numbers).f32s().to_vec();
        let products: Vec<f32> = x.chunks(k).flat_map(|x| w.times(x)).collect();
        assert_eq!(found("%y = linear(%x, @w, _) {act = none}"), products, "{storage}");
        assert_eq!(products[n..2 * n], [0.0; 5], "a row of zeros");
        let sums: Vec<f32> = products.iter().zip(&r).map(|(p, r)| (f64::from(*p) + f64::from(*r)) as f32).collect();
        assert_eq!(found("%y = linear(%x, @w, %r) {act = none}"), sums, "{storage}");
        let acts: Vec<f32> = products.iter().map(|p| silu(f64::from(*p)) as f32).collect();
        assert_eq!(found("%y = linear(%x, @w, _) {act = silu}"), acts, "{storage}");
    }
}

#[test]
fn swiglu_multiplies_defined_products() {
    let (t, k, f) = (2, 129, 4);
    let x = noise(5, t * k);
    for (gate_storage, up_storage) in STORAGES.iter().flat_map(|a| STORAGES.map(|b| (*a, b))) {
        let (gate, up) = (Known::new(6, gate_storage, f, k), Known::new(7, up_storage, f, k));
        let head = format!(
            "weight @g: {gate_storage}[{f}, {k}] general = stored\nweight @u: {up_storage}[{f}, {k}] general = stored"
        );
        let numbers = Numbers::default().with("g", k, &gate.numbers).with("u", k, &up.numbers);
        let inputs = [("x", "f32[T, 129]", tensor(k, &x))];
        let found = eval(&head, &inputs, "%y = linear.swiglu(%x, @g, @u)", &numbers);
        let wanted: Vec<f32> = x.chunks(k).flat_map(|x| hidden(&gate, &up, x)).collect();
        assert_eq!(found.f32s(), wanted, "{gate_storage} {up_storage}");
    }
}

#[test]
fn modules_quantize_their_rows_and_hidden_rows() {
    let (t, d, f, modules) = (4usize, 40, 33, 3);
    let (x, r) = (noise(8, t * d), noise(9, t * d));
    let scores: Vec<f32> = noise(10, t * modules).iter().map(|x| x + 1.0).collect();
    for storage in STORAGES {
        let all: Vec<[Known; 3]> = (0..modules as u64)
            .map(|c| {
                let [gate, up] = [11, 12].map(|s| Known::new(s + 10 * c, storage, f, d));
                [gate, up, Known::new(13 + 10 * c, storage, d, f)]
            })
            .collect();
        let mut numbers = Numbers::default();
        let mut head = String::new();
        for (c, module) in all.iter().enumerate() {
            for (name, known, n, k) in [("g", &module[0], f, d), ("u", &module[1], f, d), ("d", &module[2], d, f)] {
                head += &format!("weight @{name}{c}: {storage}[{n}, {k}] modules = stored\n");
                numbers = numbers.with(&format!("{name}{c}"), k, &known.numbers);
            }
        }
        let inputs = [
            ("x", "f32[T, 40]", tensor(d, &x)),
            ("s", "f32[T, 3]", tensor(modules, &scores)),
            ("r", "f32[T, 40]", tensor(d, &r)),
        ];
        let select = "%m, %g = route.select(%s) {policy = top_k, k_min = 0, k_max = 2, p = 1.0, tau = 0.0, \
                      capacity_factor = 1.0, norm_gates = false}\n%o, %t, %tg = route.group(%m, %g)\n";
        let names = |p: &str| (0..modules).map(|c| format!("@{p}{c}")).collect::<Vec<_>>().join(", ");
        let weights = [names("g"), names("u"), names("d")].join(", ");
        // The two best of three: all but the worst.
        let chosen = |t: usize, c: usize| {
            let row = &scores[t * modules..(t + 1) * modules];
            row.iter().enumerate().any(|(other, s)| other != c && *s < row[c])
        };
        let mut wanted: Vec<f64> = r.iter().map(|r| f64::from(*r)).collect();
        let mut gathered = Vec::new();
        for (c, [gate, up, down]) in all.iter().enumerate() {
            for t in (0..t).filter(|t| chosen(*t, c)) {
                let x = &x[t * d..(t + 1) * d];
                gathered.extend(gate.times(x));
                let y = down.times(&hidden(gate, up, x));
                let gate = f64::from(scores[t * modules + c]);
                wanted[t * d..(t + 1) * d].iter_mut().zip(y).for_each(|(w, y)| *w += gate * f64::from(y));
            }
        }
        let wanted: Vec<f32> = wanted.into_iter().map(|w| w as f32).collect();
        let ffn = format!("{select}%y = expert.ffn(%x, %o, %t, %tg, %r, {weights})");
        assert_eq!(eval(&head, &inputs, &ffn, &numbers).f32s(), wanted, "{storage}");
        let apply = format!("{select}%a = expert.apply(%x, %m, %g, {weights})\n%y = add(%a, %r)");
        let found = eval(&head, &inputs, &apply, &numbers);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 4.0 * f32::EPSILON * (a.abs() + 2.0);
        assert!(found.f32s().iter().zip(&wanted).all(close), "{storage}: one rounding more");
        let linear = format!("{select}%rows = route.gather(%x, %t)\n%y = expert.linear(%rows, %o, {})", names("g"));
        assert_eq!(eval(&head, &inputs, &linear, &numbers).f32s(), gathered, "{storage}");
    }
}

#[test]
fn embedded_rows_are_codes_times_scales_and_tied_heads_multiply_the_codes() {
    let (v, d) = (11, 70);
    for storage in STORAGES {
        let table = Known::new(21, storage, v, d);
        let head = format!("weight @e: {storage}[{v}, {d}] embedding = stored");
        let numbers = Numbers::default().with("e", d, &table.numbers);
        let ids = Tensor::indices(vec![10, 0, 3, 3]);
        let found = eval(&head, &[("i", "u32[T]", ids.clone())], "%y = embed(%i, @e)", &numbers);
        // Scales are powers of two: code times scale is the stored number.
        let rows: Vec<f32> = [10, 0, 3, 3].iter().flat_map(|i| &table.numbers[i * d..(i + 1) * d]).copied().collect();
        assert_eq!(found.f32s(), rows, "{storage}");
        let body = "%x = embed(%i, @e)\n%y = linear(%x, @e, _) {act = none}";
        let found = eval(&head, &[("i", "u32[T]", ids)], body, &numbers);
        let logits: Vec<f32> = rows.chunks(d).flat_map(|x| table.times(x)).collect();
        assert_eq!(found.f32s(), logits, "{storage}");
    }
    // Numbers that are no codes are rounded to some.
    let x = noise(22, 9 * 33);
    let numbers = Numbers::default().with("e", 33, &x);
    for storage in [Storage::F16, Storage::Bf16].into_iter().chain(STORAGES) {
        let head = format!("weight @e: {storage}[9, 33] embedding = stored");
        let ids = [("i", "u32[T]", Tensor::indices(vec![4]))];
        let found = eval(&head, &ids, "%y = embed(%i, @e)", &numbers).f32s().to_vec();
        let steps = match storage {
            Storage::F16 => 2f32.powi(-12),
            Storage::Bf16 => 2f32.powi(-9),
            Storage::Int8 => 0.51 / 127.0,
            _ => 0.6 / 7.0,
        };
        let row = &x[4 * 33..5 * 33];
        assert!(found.iter().zip(row).all(|(f, x)| (f - x).abs() <= steps), "{storage}: {found:?}");
        assert!(found.iter().zip(row).any(|(f, x)| f != x), "{storage} rounds");
    }
}

#[test]
fn attention_reads_what_the_cache_keeps() {
    let (t, heads, kv_heads, head_dim) = (6, 4, 2, 6);
    let [q, k, v] = [(31, heads), (32, kv_heads), (33, kv_heads)].map(|(s, h)| noise(s, t * h * head_dim));
    let shape = "heads = 4, kv_heads = 2, head_dim = 6, scale = 0.7";
    let run = |kv: &str, op: &str, k: &[f32], v: &[f32]| -> Vec<f32> {
        let inputs = [
            ("q", "f32[T, 24]", tensor(24, &q)),
            ("k", "f32[T, 12]", tensor(12, k)),
            ("v", "f32[T, 12]", tensor(12, v)),
            ("c", "u32[T]", Tensor::indices(vec![0, 1, 0, 1, 1, 0])),
        ];
        let body = match op {
            "range" => format!("%y = attn.range(%q, %k, %v) {{{shape}, causal = true, window = 4, kv_cache = {kv}}}"),
            _ => format!(
                "%y = attn.clustered(%q, %k, %v, %c) {{{shape}, window = 2, sinks = 1, cluster_cap = 2, \
                 num_clusters = 2, kv_cache = {kv}}}"
            ),
        };
        eval("", &inputs, &body, &Numbers::default()).f32s().to_vec()
    };
    let rounded = |x: &[f32], kv: &str| -> Vec<f32> {
        let per_head = |row: &[f32]| -> Vec<f32> {
            match kv {
                "f16" => row.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
                _ => {
                    let (codes, scale) = oracle_row(row);
                    codes.iter().map(|q| (*q as f64 * f64::from(scale)) as f32).collect()
                }
            }
        };
        x.chunks(head_dim).flat_map(per_head).collect()
    };
    for op in ["range", "clustered"] {
        let exact = run("f32", op, &k, &v);
        for kv in ["f16", "int8"] {
            let found = run(kv, op, &k, &v);
            assert_eq!(found, run("f32", op, &rounded(&k, kv), &rounded(&v, kv)), "{op} {kv}");
            assert_ne!(found, exact, "{op} {kv} rounds");
        }
    }
}

fn graph_of(storage: Storage) -> Graph {
    source::graph(&format!(
        "lir 1\nphase imported\nweight @a: {storage}[5, 70] general = random(1, 0.1)\n\
         weight @b: {storage}[4, 70] general = random(2, 0.3)\nweight @ab: {storage}[9, 70] general = concat(@a, @b)\n\
         weight @f: f32[5, 70] general = scale(@a, 1.0)\nweight @bad: {storage}[2, 70] general = stored\n"
    ))
}

#[test]
fn codes_are_read_in_any_pieces_and_merged_weights_have_their_parts_codes() {
    for storage in STORAGES {
        let graph = graph_of(storage);
        let reader = WeightReader::new(&graph, &lapidary_compiler::ir::NoSource);
        let [a, b, ab] = [0, 1, 2].map(WeightId);
        let whole = reader.read_all_codes(ab).unwrap();
        let parts = [a, b].map(|id| reader.read_all_codes(id).unwrap());
        assert_eq!(whole.codes, [&parts[0].codes[..], &parts[1].codes].concat());
        let scales = |rows: &QuantizedRows| -> Vec<f32> {
            match &rows.scales {
                Scales::PerRow(s) => s.clone(),
                Scales::PerGroup { scales, .. } => scales.iter().map(|s| s.to_f32()).collect(),
            }
        };
        assert_eq!(scales(&whole), [scales(&parts[0]), scales(&parts[1])].concat());
        let mut pieces = Vec::new();
        for (first, rows) in [(0, 2), (2, 5), (7, 2)] {
            pieces.extend(reader.read_codes(ab, first, rows).unwrap().codes);
        }
        assert_eq!(pieces, whole.codes);
        // The sizes that are stored.
        let groups = scales(&whole).len() as u64;
        match storage {
            Storage::Int8 => assert_eq!((groups, graph.weight(ab).bytes()), (9, 9 * 74)),
            Storage::Int4(g) => {
                assert_eq!(groups, 9 * 70u64.div_ceil(g.elems()));
                assert_eq!(graph.weight(ab).bytes(), 9 * 35 + 2 * groups);
            }
            _ => unreachable!("integers only"),
        }
        let error = |id, first, rows| reader.read_codes(WeightId(id), first, rows).unwrap_err().to_string();
        assert!(error(0, 4, 2).contains("rows: wanted whole rows of 70 within 0..5"), "{}", error(0, 4, 2));
        assert!(error(0, u64::MAX, 2).contains("rows: wanted"));
        assert!(error(0, 0, u64::MAX).contains("rows: wanted"));
        assert_eq!(error(3, 0, 1), "weight @f: storage: wanted int8 or int4, found f32");
        let mut numbers = vec![0.25f32; 140];
        numbers[71] = f32::NAN;
        let bad = Numbers::default().with("bad", 70, &numbers);
        let error = WeightReader::new(&graph, &bad).read_all_codes(WeightId(4)).unwrap_err().to_string();
        assert_eq!(error, format!("weight @bad: row 1: wanted finite numbers to store as {storage}, found NaN"));
    }
}

#[test]
fn outputs_may_be_permuted() {
    let (rows, cols) = (7, 70);
    let x = noise(41, rows * cols);
    let order = [3, 0, 6, 1, 5, 2, 4];
    let permuted: Vec<f32> = order.iter().flat_map(|r| &x[r * cols..(r + 1) * cols]).copied().collect();
    let row = quantize_row(&noise(42, cols));
    for storage in STORAGES {
        let [a, b] = [&x, &permuted].map(|x| QuantizedRows::quantize(storage, x, cols, None).unwrap());
        for (to, from) in order.iter().enumerate() {
            assert_eq!(b.dot(to, &row), a.dot(*from, &row), "{storage}");
        }
    }
    assert!(QuantizedRows::quantize(Storage::F16, &x, cols, None).is_none());
}

//! Programs for the products of docs/quantization.md, and what they have to give, computed from that page.

use crate::dice::Dice;
use crate::numbers::to_f16;
use crate::programs::word;

/// A program with its DRAM, and the f32 that it leaves at the start of the scratchpad.
pub struct Product {
    pub words: Vec<u128>,
    pub dram: Vec<u8>,
    pub wanted: Vec<f32>,
}

/// [m, k] × [k, n] on an array of `rows` × `cols`; `group` is that of int4, none for int8.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    pub rows: usize,
    pub cols: usize,
    pub group: Option<usize>,
}

/// Where things are in the scratchpad, besides y at 0.
const X: u64 = 4096;
const CODES: u64 = 8192;
const TOKENS: u64 = 10240;
const CHANNELS: u64 = 10752;
/// Tiles and scales in DRAM.
const PARTS: usize = 16384;

fn sp(at: u64) -> u64 {
    (at / 32) << 5
}

fn at_register(number: u64) -> u64 {
    number
}

struct Writer {
    words: Vec<u128>,
    dram: Vec<u8>,
}

impl Writer {
    fn op(&mut self, mnemonic: &str, operands: &[(&str, u64)]) {
        self.words.push(word(mnemonic, operands));
    }

    fn li(&mut self, rd: u64, value: usize) {
        self.op("li", &[("rd", rd), ("value", value as u64)]);
    }

    /// Everything so far is done before what follows.
    fn fence(&mut self) {
        for queue in [1, 3, 4] {
            self.words.push(word("sync", &[("queue", queue)]) | 1 << 17);
            self.words.push(word("sync", &[]) | 1 << 7);
        }
    }

    fn constant(&mut self, bytes: &[u8]) -> u64 {
        self.dram.resize(self.dram.len().next_multiple_of(64), 0);
        let at = self.dram.len() as u64;
        self.dram.extend(bytes);
        (at / 64) << 5
    }

    fn load(&mut self, dst: u64, bytes: &[u8]) {
        let src = self.constant(bytes);
        self.op("load", &[("dst", dst), ("src", src), ("row_bytes", bytes.len() as u64)]);
    }
}

/// Makes one up.
pub fn product(dice: &mut Dice, shape: Shape) -> Product {
    let Shape { m, k, n, group, .. } = shape;
    let x: Vec<f32> = (0..m * k).map(|_| dice.within(-4096, 4096) as f32 / dice.of(&[1000.0, 333.0])).collect();
    let most = if group.is_some() { 7 } else { 127 };
    let least = if group.is_some() { -8 } else { -127 };
    let codes: Vec<i8> = (0..k * n).map(|_| dice.within(least, most) as i8).collect();
    let groups = group.map_or(1, |g| k.div_ceil(g));
    let scales: Vec<f32> = (0..groups * n)
        .map(|_| {
            let scale = dice.within(1, 2000) as f32 / 65536.0;
            if group.is_some() { crate::numbers::from_f16(to_f16(scale)) } else { scale }
        })
        .collect();
    let wanted = by_the_page(&shape, &x, &codes, &scales);
    let mut w = Writer { words: Vec::new(), dram: Vec::new() };
    w.load(sp(X), &x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    w.li(8, m);
    w.fence();
    w.op("v.quantize", &[("dst", sp(CODES)), ("a", sp(X)), ("scales", sp(TOKENS)), ("cols", k as u64), ("rows", 8)]);
    for first in (0..n).step_by(shape.cols) {
        let cols = shape.cols.min(n - first);
        columns(&mut w, &shape, first, cols, &codes, &scales);
    }
    w.op("halt", &[]);
    assert!(w.dram.len() < 8 * PARTS);
    Product { words: w.words, dram: w.dram, wanted }
}

/// The program's part for columns `first` to `first + cols − 1`.
fn columns(w: &mut Writer, shape: &Shape, first: usize, cols: usize, codes: &[i8], scales: &[f32]) {
    let Shape { m, k, n, group, .. } = *shape;
    let size = group.unwrap_or(k);
    for (g, group_first) in (0..k).step_by(size).enumerate() {
        let group_end = k.min(group_first + size);
        for tile_first in (group_first..group_end).step_by(shape.rows) {
            let height = shape.rows.min(group_end - tile_first);
            let code = |r: usize, c: usize| codes[(tile_first + r) * n + first + c];
            let mut tile = Vec::new();
            for r in 0..height {
                for c in (0..cols).step_by(if group.is_some() { 2 } else { 1 }) {
                    let high = if group.is_some() && c + 1 < cols { code(r, c + 1) as u8 & 15 } else { 0 };
                    let low = if group.is_some() { code(r, c) as u8 & 15 } else { code(r, c) as u8 };
                    tile.push(if group.is_some() { high << 4 | low } else { low });
                }
            }
            w.fence();
            w.load(1 << 20, &tile);
            let halves: Vec<u8> = (0..cols)
                .flat_map(|c| to_f16(scales[if group.is_some() { g * n + first + c } else { 0 }]).to_le_bytes())
                .collect();
            w.load(1 << 20 | (2048 / 32) << 5, &halves);
            w.li(9, CODES as usize + tile_first);
            w.li(10, k);
            w.fence();
            let tile = [("codes", group.is_some().into()), ("tile", 0), ("k", height as u64), ("n", cols as u64)];
            let begins = tile_first == group_first;
            let ends = tile_first + height == group_end;
            let pass = [("a", at_register(9)), ("rows", m as u64), ("k", height as u64), ("a_stride", 10)];
            let accumulate = ("accumulate", u64::from(!begins));
            if group.is_some() && ends {
                w.op("m.preload_scaled", &[&tile[..], &[("scales", (2048 / 32) << 5)]].concat());
                let rest = [("sums", 0), ("acc", 16 << 5), accumulate, ("append", u64::from(g > 0))];
                w.op("m.pass_scaled", &[&pass[..], &rest].concat());
            } else {
                w.op("m.preload", &tile);
                w.op("m.pass", &[&pass[..], &[("acc", 0), accumulate]].concat());
            }
        }
    }
    let channels: Vec<u8> = scales[first..first + cols].iter().flat_map(|s| s.to_le_bytes()).collect();
    w.load(sp(CHANNELS), &channels);
    w.li(11, 4 * first);
    w.li(12, 4 * n);
    w.fence();
    let out =
        [("dst", at_register(11)), ("tokens", sp(TOKENS)), ("cols", cols as u64), ("rows", 8), ("dst_stride", 12)];
    if group.is_some() {
        w.op("v.rescale_floats", &[&out[..], &[("acc", 16 << 5)]].concat());
    } else {
        w.op("v.rescale", &[&out[..], &[("acc", 0), ("channels", sp(CHANNELS))]].concat());
    }
}

/// docs/quantization.md, "What is computed", with the C library's fused operation.
fn by_the_page(shape: &Shape, x: &[f32], codes: &[i8], scales: &[f32]) -> Vec<f32> {
    let Shape { m, k, n, group, .. } = *shape;
    let mut wanted = Vec::new();
    for row in x.chunks(k).take(m) {
        let amax = row.iter().fold(0f32, |amax, x| if x.abs() > amax { x.abs() } else { amax });
        // A quotient of two floats, rounded from f64, is the quotient rounded once.
        let s = (f64::from(amax) / 127.0) as f32;
        let inv = (127.0 / f64::from(amax)) as f32;
        let q: Vec<i64> = row.iter().map(|x| (x * inv).round_ties_even().clamp(-127.0, 127.0) as i64).collect();
        for c in 0..n {
            let dot = |range: std::ops::Range<usize>| -> i32 {
                range.map(|r| q[r] * i64::from(codes[r * n + c])).sum::<i64>().try_into().expect("exact in i32")
            };
            wanted.push(match group {
                None => (dot(0..k) as f32 * scales[c]) * s,
                Some(size) => {
                    let groups = (0..k).step_by(size).enumerate();
                    let t = groups.fold(0f32, |t, (g, first)| {
                        (dot(first..k.min(first + size)) as f32).mul_add(scales[g * n + c], t)
                    });
                    t * s
                }
            });
        }
    }
    wanted
}

/// A random shape that fits the small machine: 16 rows, 4 KiB of activations.
pub fn shape(dice: &mut Dice, rows: usize, cols: usize) -> Shape {
    let group = dice.of(&[None, Some(32), Some(64), Some(128)]);
    let k = dice.within(1, 64) as usize;
    let k = if group.is_some() && dice.once_in(2) { 3 * k } else { k };
    let m = dice.within(1, (1024 / k).min(16) as i64) as usize;
    let n = dice.within(1, 40) as usize;
    Shape { m, k, n, rows, cols, group }
}

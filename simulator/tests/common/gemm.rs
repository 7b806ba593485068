//! Products as programs: from DRAM to DRAM with double-buffered tiles, and of the array alone.

use lapidary_npu_isa::address::{Acc, Address, Dram, OnChip, Sp, W};
use lapidary_npu_isa::builder::Builder;
use lapidary_npu_isa::choice::{Codes, Queue, Type};
use lapidary_npu_isa::format;
use lapidary_npu_isa::instruction::Token;
use lapidary_npu_isa::operand::{Flag, Maybe, Reg, Size};
use lapidary_npu_isa::{Machine, Op, Program};

/// M × K times K × N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    pub m: u64,
    pub n: u64,
    pub k: u64,
}

fn reg(number: u8) -> Reg {
    Reg::new(number).unwrap()
}

fn token(number: u8) -> Token {
    Token::new(number).unwrap()
}

fn based(base: Reg) -> Address {
    Address { base: Some(base), offset: 0 }
}

/// Sizes of tiles along an axis.
pub fn cuts(length: u64, tile: u64) -> impl Iterator<Item = u64> {
    (0..length.div_ceil(tile)).map(move |i| tile.min(length - i * tile))
}

/// Preloads and passes only, one behind the other, without any DMA.
pub fn array_only(gemm: Gemm, machine: &Machine) -> Program {
    let mut b = Builder::new();
    let at = |offset| Address { base: None, offset };
    for n in cuts(gemm.n, machine.matrix.cols) {
        for (i, k) in cuts(gemm.k, machine.matrix.rows).enumerate() {
            let (k, n) = (Size::Imm(k as u32), Size::Imm(n as u32));
            b.push(Op::Preload(format::Tile { codes: Codes::I8, tile: W(at(0)), k, n }));
            let (rows, accumulate) = (Size::Imm(gemm.m as u32), Flag(i > 0));
            let (a, acc) = (Sp(at(0)), Acc(at(0)));
            b.push(Op::Pass(format::Pass { a, acc, rows, k, a_stride: Maybe(None), accumulate }));
        }
    }
    b.finish().unwrap()
}

/// Where a product's operands are in DRAM: inputs i8 row by row, tiles of weights one behind the other (inputs before outputs), scales
/// of outputs and of rows, results f32 row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub inputs: u64,
    pub weights: u64,
    pub channels: u64,
    pub tokens: u64,
    pub results: u64,
}

/// The layout of a product.
pub fn layout(gemm: Gemm) -> Layout {
    let next = |address: u64, bytes: u64| (address + bytes).next_multiple_of(64);
    let inputs = 0;
    let weights = next(inputs, gemm.m * gemm.k);
    let channels = next(weights, gemm.k * gemm.n);
    let tokens = next(channels, 4 * gemm.n);
    let results = next(tokens, 4 * gemm.m);
    Layout { inputs, weights, channels, tokens, results }
}

/// The whole product. Inputs stay in the scratchpad, tiles come through two buffers, sums and results have two blocks.
pub fn product(gemm: Gemm, machine: &Machine) -> Program {
    let Gemm { m, n, k } = gemm;
    let (rows, cols) = (machine.matrix.rows, machine.matrix.cols);
    let at = layout(gemm);
    let [tile_there, tile_free, sums_there, sums_free, y_there, y_free, x_there, scales_there] =
        [1, 2, 3, 4, 5, 6, 7, 8].map(token);
    let align = |bytes: u64| bytes.next_multiple_of(32) as i64;
    let channels = align(m * k);
    let tokens = channels + align(4 * n);
    let y = tokens + align(4 * m);
    let y_bytes = align(4 * m * cols);
    assert!(y + 2 * y_bytes <= machine.scratchpad.bytes as i64 && 2 * m <= machine.accumulator_rows());
    let mut b = Builder::new();
    // r1: addresses on chip, r2: of DRAM, r3: rows, r4: stride, r5: stride, r6: accumulators, r7: scales.
    let load = |b: &mut Builder, to: i64, from: u64, bytes: u64, post: &[Token]| {
        // One long run: rows of at most 8 KiB that touch.
        let row = (1..=8192.min(bytes)).rev().find(|row| bytes.is_multiple_of(*row)).unwrap_or(1);
        b.li(reg(1), to);
        b.li(reg(2), from as i64);
        b.li(reg(3), (bytes / row) as i64);
        let load = format::LoadBox {
            dst: OnChip::Scratchpad(Sp(based(reg(1)))),
            src: Dram(based(reg(2))),
            row_bytes: Size::Imm(row as u32),
            rows: Maybe(Some(reg(3))),
            src_stride: Maybe(None),
            dst_stride: Maybe(None),
            planes: Maybe(None),
            src_plane: Maybe(None),
            dst_plane: Maybe(None),
            unpack: Flag(false),
        };
        b.push_with(Op::Load(load), &[], post);
    };
    b.op_label("operands", None);
    load(&mut b, 0, at.inputs, m * k, &[x_there]);
    load(&mut b, channels, at.channels, 4 * n, &[]);
    load(&mut b, tokens, at.tokens, 4 * m, &[scales_there]);
    b.sync(Queue::Matrix, &[], &[tile_free, tile_free]);
    b.sync(Queue::Vector, &[], &[sums_free, sums_free]);
    b.sync(Queue::Store, &[], &[y_free, y_free]);
    b.sync(Queue::Matrix, &[x_there], &[]);
    b.sync(Queue::Vector, &[scales_there], &[]);
    b.op_label("product", None);
    let mut weights = at.weights;
    let mut tile = 0;
    for (j, n_tile) in cuts(n, cols).enumerate() {
        let block = (j % 2) as u64;
        b.sync(Queue::Matrix, &[sums_free], &[]);
        b.li(reg(4), k as i64);
        b.li(reg(6), (block * m) as i64);
        for (i, k_tile) in cuts(k, rows).enumerate() {
            let buffer = (tile % 2) * (rows * cols).next_multiple_of(32);
            tile += 1;
            b.li(reg(1), buffer as i64);
            b.li(reg(2), weights as i64);
            let load = format::LoadBox {
                dst: OnChip::Weights(W(based(reg(1)))),
                src: Dram(based(reg(2))),
                row_bytes: Size::Imm((k_tile * n_tile) as u32),
                rows: Maybe(None),
                src_stride: Maybe(None),
                dst_stride: Maybe(None),
                planes: Maybe(None),
                src_plane: Maybe(None),
                dst_plane: Maybe(None),
                unpack: Flag(false),
            };
            b.push_with(Op::Load(load), &[tile_free], &[tile_there]);
            weights += k_tile * n_tile;
            let (tile_k, tile_n) = (Size::Imm(k_tile as u32), Size::Imm(n_tile as u32));
            let preload = format::Tile { codes: Codes::I8, tile: W(based(reg(1))), k: tile_k, n: tile_n };
            b.push_with(Op::Preload(preload), &[tile_there], &[tile_free]);
            b.li(reg(5), (i as u64 * rows) as i64);
            let pass = format::Pass {
                a: Sp(based(reg(5))),
                acc: Acc(based(reg(6))),
                rows: Size::Imm(m as u32),
                k: tile_k,
                a_stride: Maybe(Some(reg(4))),
                accumulate: Flag(i > 0),
            };
            b.push(Op::Pass(pass));
        }
        b.sync(Queue::Matrix, &[], &[sums_there]);
        b.sync(Queue::Vector, &[y_free], &[]);
        b.li(reg(1), y + block as i64 * y_bytes);
        b.li(reg(7), channels + 4 * (j as u64 * cols) as i64);
        b.li(reg(8), tokens);
        b.li(reg(3), m as i64);
        let rescale = format::Rescale {
            dst: Sp(based(reg(1))),
            acc: Acc(based(reg(6))),
            channels: Sp(based(reg(7))),
            tokens: Sp(based(reg(8))),
            cols: Size::Imm(n_tile as u32),
            rows: Maybe(Some(reg(3))),
            dst_stride: Maybe(None),
            dst_type: Type::F32,
        };
        b.push_with(Op::Rescale(rescale), &[sums_there], &[sums_free, y_there]);
        b.li(reg(2), (at.results + 4 * j as u64 * cols) as i64);
        b.li(reg(5), 4 * n as i64);
        let store = format::StoreBox {
            dst: Dram(based(reg(2))),
            src: Sp(based(reg(1))),
            row_bytes: Size::Imm(4 * n_tile as u32),
            rows: Maybe(Some(reg(3))),
            src_stride: Maybe(None),
            dst_stride: Maybe(Some(reg(5))),
            planes: Maybe(None),
            src_plane: Maybe(None),
            dst_plane: Maybe(None),
        };
        b.push_with(Op::Store(store), &[y_there], &[y_free]);
    }
    b.finish().unwrap()
}

//! The vector unit, row by row: element by element, norms, rotations, quantizing, products, rows by list.
//!
//! Every instruction reads row i of all its operands, then writes row i of its result, i ascending.

use lapidary_npu_isa::choice::{Broadcast, Type};
use lapidary_npu_isa::format::*;
use lapidary_npu_isa::operand::Maybe;
use lapidary_npu_isa::{Op, Registers};

use super::dma::index;
use crate::error::Wrong;
use crate::memory::{Memories, set_word};
use crate::number::{self, canonical, exp, narrow, widen};

/// Rows of elements in the scratchpad.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    at: u64,
    stride: u64,
    ty: Type,
}

impl Rows {
    /// An operand of rows of `cols` elements.
    pub(super) fn new(regs: &Registers, at: i64, cols: i64, stride: Maybe, ty: Type) -> Rows {
        let dense = cols.saturating_mul(i64::from(ty.bytes()));
        Rows { at: at as u64, stride: stride.value_or(regs, dense) as u64, ty }
    }

    fn span(&self, row: u64, cols: usize) -> std::ops::Range<usize> {
        let begin = (self.at + row * self.stride) as usize;
        begin..begin + cols * self.ty.bytes() as usize
    }

    /// Reads elements of a row.
    pub(super) fn read(&self, scratchpad: &[u8], row: u64, out: &mut [f32]) {
        widen(&scratchpad[self.span(row, out.len())], self.ty, out);
    }

    /// Writes elements of a row.
    pub(super) fn write(&self, scratchpad: &mut [u8], row: u64, values: &[f32]) {
        let span = self.span(row, values.len());
        narrow(values, self.ty, &mut scratchpad[span]);
    }
}

/// Room that instructions reuse.
#[derive(Clone, Debug, Default)]
pub(crate) struct VectorBuffers {
    a: Vec<f32>,
    b: Vec<f32>,
    out: Vec<f32>,
    bytes: Vec<u8>,
}

/// Number whose pattern a register may hold.
fn float(reg: Maybe, regs: &Registers) -> Option<f32> {
    reg.0.map(|r| f32::from_bits(regs.get(r) as u32))
}

impl VectorBuffers {
    /// Executes an instruction of VECTOR that has work and whose operands are within the scratchpad.
    pub(crate) fn execute(
        &mut self,
        memories: &mut Memories,
        acc_cols: usize,
        regs: &Registers,
        op: &Op,
    ) -> Result<(), Wrong> {
        let sp = &mut memories.scratchpad;
        match op {
            Op::Rescale(f) => self.rescale(memories, acc_cols, regs, f),
            Op::RescaleFloats(f) => self.rescale_floats(memories, acc_cols, regs, f),
            Op::Copy(f) => self.unary(sp, regs, f, |x| x),
            Op::Exp(f) => self.unary(sp, regs, f, exp),
            Op::Ln(f) => self.unary(sp, regs, f, number::ln),
            Op::Reciprocal(f) => self.unary(sp, regs, f, |x| 1.0 / x),
            Op::Sqrt(f) => self.unary(sp, regs, f, f32::sqrt),
            Op::Rsqrt(f) => self.unary(sp, regs, f, |x| 1.0 / x.sqrt()),
            Op::Silu(f) => self.unary(sp, regs, f, number::silu),
            Op::Gelu(f) => self.unary(sp, regs, f, number::gelu),
            Op::Affine(f) => self.affine(sp, regs, f),
            Op::Fill(f) => self.fill(sp, regs, f),
            Op::VAdd(f) => self.binary(sp, regs, f, |a, b| a + b),
            Op::VSub(f) => self.binary(sp, regs, f, |a, b| a - b),
            Op::VMul(f) => self.binary(sp, regs, f, |a, b| a * b),
            Op::VDiv(f) => self.binary(sp, regs, f, |a, b| a / b),
            Op::VMax(f) => self.binary(sp, regs, f, number::max),
            Op::VMin(f) => self.binary(sp, regs, f, number::min),
            Op::SiluMul(f) => self.binary(sp, regs, f, |a, b| number::silu(a) * b),
            Op::RowSum(f) => self.row_reduce(sp, regs, f, |row| number::sum(row).to_bits()),
            Op::RowSumSquares(f) => self.row_reduce(sp, regs, f, |row| number::dot(row, row).to_bits()),
            Op::RowMax(f) => self.row_reduce(sp, regs, f, |row| largest(row).to_bits()),
            Op::RowArgmax(f) => self.row_argmax(sp, regs, f),
            Op::ColumnSum(f) => self.column_sum(sp, regs, f),
            Op::SoftmaxRows(f) => self.softmax(sp, regs, f),
            Op::RmsNorm(f) => self.rms_norm(sp, regs, f),
            Op::Rope(f) => self.rope(sp, regs, f),
            Op::QuantizeRows(f) => self.quantize(sp, regs, f),
            Op::DotRows(f) => self.dot_rows(sp, regs, f),
            Op::MixRows(f) => self.mix_rows(sp, regs, f),
            Op::VGather(f) => return self.gather(sp, regs, f),
            Op::VScatterAdd(f) => return self.scatter_add(sp, regs, f),
            _ => unreachable!("{op:?} is not of the vector unit"),
        }
        Ok(())
    }

    fn rescale(&mut self, memories: &mut Memories, acc_cols: usize, regs: &Registers, f: &Rescale) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        let channels = Rows::new(regs, f.channels.value(regs), cols, Maybe(None), Type::F32);
        let tokens = Rows::new(regs, f.tokens.value(regs), 1, Maybe(None), Type::F32);
        let first = f.acc.value(regs) as usize;
        let cols = cols as usize;
        self.b.resize(cols, 0.0);
        for i in 0..rows {
            let words = &memories.accumulators[(first + i as usize) * acc_cols..][..cols];
            channels.read(&memories.scratchpad, 0, &mut self.b);
            let mut token = [0.0];
            tokens.read(&memories.scratchpad, i, &mut token);
            self.out.clear();
            self.out.extend(words.iter().zip(&self.b).map(|(w, c)| (*w as i32 as f32 * c) * token[0]));
            dst.write(&mut memories.scratchpad, i, &self.out);
        }
    }

    fn rescale_floats(&mut self, memories: &mut Memories, acc_cols: usize, regs: &Registers, f: &RescaleFloats) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        let tokens = Rows::new(regs, f.tokens.value(regs), 1, Maybe(None), Type::F32);
        let first = f.acc.value(regs) as usize;
        for i in 0..rows {
            let words = &memories.accumulators[(first + i as usize) * acc_cols..][..cols as usize];
            let mut token = [0.0];
            tokens.read(&memories.scratchpad, i, &mut token);
            self.out.clear();
            self.out.extend(words.iter().map(|w| f32::from_bits(*w) * token[0]));
            dst.write(&mut memories.scratchpad, i, &self.out);
        }
    }

    fn unary(&mut self, sp: &mut [u8], regs: &Registers, f: &Unary, apply: impl Fn(f32) -> f32) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        self.a.resize(cols as usize, 0.0);
        for i in 0..rows {
            a.read(sp, i, &mut self.a);
            self.a.iter_mut().for_each(|x| *x = apply(*x));
            dst.write(sp, i, &self.a);
        }
    }

    fn affine(&mut self, sp: &mut [u8], regs: &Registers, f: &Affine) {
        let (mul, add) = (f.mul.float(regs), float(f.add, regs));
        let unary = Unary {
            dst: f.dst,
            a: f.a,
            cols: f.cols,
            rows: f.rows,
            dst_stride: f.dst_stride,
            a_stride: f.a_stride,
            dst_type: f.dst_type,
            a_type: f.a_type,
        };
        match add {
            Some(add) => self.unary(sp, regs, &unary, |x| x * mul + add),
            None => self.unary(sp, regs, &unary, |x| x * mul),
        }
    }

    fn fill(&mut self, sp: &mut [u8], regs: &Registers, f: &Fill) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        let low = f.value.value(regs) as u32;
        let mut one = vec![0; f.dst_type.bytes() as usize];
        match f.dst_type {
            Type::I32 => one.copy_from_slice(&low.to_le_bytes()),
            Type::F32 | Type::F16 | Type::I8 => narrow(&[f32::from_bits(low)], f.dst_type, &mut one),
        }
        for i in 0..rows {
            sp[dst.span(i, cols as usize)].chunks_exact_mut(one.len()).for_each(|e| e.copy_from_slice(&one));
        }
    }

    fn binary(&mut self, sp: &mut [u8], regs: &Registers, f: &Binary, apply: impl Fn(f32, f32) -> f32) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        let b_cols = match f.broadcast {
            Broadcast::Full | Broadcast::Row => cols,
            Broadcast::Column | Broadcast::Scalar => 1,
        };
        let b = Rows::new(regs, f.b.value(regs), b_cols, f.b_stride, f.b_type);
        self.a.resize(cols as usize, 0.0);
        self.b.resize(b_cols as usize, 0.0);
        for i in 0..rows {
            a.read(sp, i, &mut self.a);
            let row = match f.broadcast {
                Broadcast::Full | Broadcast::Column => i,
                Broadcast::Row | Broadcast::Scalar => 0,
            };
            b.read(sp, row, &mut self.b);
            match self.b[..] {
                [only] if b_cols == 1 => self.a.iter_mut().for_each(|x| *x = apply(*x, only)),
                _ => self.a.iter_mut().zip(&self.b).for_each(|(x, y)| *x = apply(*x, *y)),
            }
            dst.write(sp, i, &self.a);
        }
    }

    fn row_reduce(&mut self, sp: &mut [u8], regs: &Registers, f: &RowReduce, reduce: impl Fn(&[f32]) -> u32) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), 1, f.dst_stride, Type::F32);
        self.a.resize(cols as usize, 0.0);
        for i in 0..rows {
            if cols > 0 {
                a.read(sp, i, &mut self.a);
            }
            dst.write(sp, i, &[f32::from_bits(reduce(&self.a))]);
        }
    }

    fn row_argmax(&mut self, sp: &mut [u8], regs: &Registers, f: &RowReduce) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), 1, f.dst_stride, Type::F32);
        self.a.resize(cols as usize, 0.0);
        for i in 0..rows {
            if cols > 0 {
                a.read(sp, i, &mut self.a);
            }
            let (mut best, mut largest) = (0u32, f32::NEG_INFINITY);
            for (j, x) in self.a.iter().enumerate() {
                if *x > largest {
                    (best, largest) = (j as u32, *x);
                }
            }
            set_word(sp, dst.at + i * dst.stride, best);
        }
    }

    fn column_sum(&mut self, sp: &mut [u8], regs: &Registers, f: &ColumnReduce) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), cols, Maybe(None), Type::F32);
        self.a.resize(cols as usize, 0.0);
        self.out.clear();
        self.out.resize(cols as usize, 0.0);
        for i in 0..rows {
            a.read(sp, i, &mut self.a);
            self.out.iter_mut().zip(&self.a).for_each(|(t, x)| *t += x);
        }
        dst.write(sp, 0, &self.out);
    }

    fn softmax(&mut self, sp: &mut [u8], regs: &Registers, f: &Softmax) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        let scale = float(f.scale, regs);
        self.a.resize(cols as usize, 0.0);
        self.out.resize(cols as usize, 0.0);
        for i in 0..rows {
            a.read(sp, i, &mut self.a);
            self.out.fill(0.0);
            let moved = |reg: Maybe, absent: i64| reg.0.map_or(absent, |r| regs.get(r).saturating_add(i as i64));
            let begin = moved(f.begin, 0).max(0);
            let end = moved(f.end, cols).min(cols);
            if begin < end {
                let columns = begin as usize..end as usize;
                let z = &mut self.a[columns.clone()];
                if let Some(scale) = scale {
                    z.iter_mut().for_each(|x| *x *= scale);
                }
                let m = largest(z);
                if m != f32::NEG_INFINITY {
                    z.iter_mut().for_each(|x| *x = exp(*x - m));
                    let s = number::sum(z);
                    self.out[columns].iter_mut().zip(&*z).for_each(|(y, e)| *y = e / s);
                }
            }
            dst.write(sp, i, &self.out);
        }
    }

    fn rms_norm(&mut self, sp: &mut [u8], regs: &Registers, f: &Norm) {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let w = Rows::new(regs, f.w.value(regs), cols, Maybe(None), Type::F32);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        let eps = f.eps.float(regs);
        self.a.resize(cols as usize, 0.0);
        self.b.resize(cols as usize, 0.0);
        for i in 0..rows {
            a.read(sp, i, &mut self.a);
            w.read(sp, 0, &mut self.b);
            let q = number::dot(&self.a, &self.a);
            let r = 1.0 / (q / cols as f32 + eps).sqrt();
            self.a.iter_mut().zip(&self.b).for_each(|(x, w)| *x = (*x * r) * w);
            dst.write(sp, i, &self.a);
        }
    }

    fn rope(&mut self, sp: &mut [u8], regs: &Registers, f: &Rotate) {
        let (rows, half) = (f.rows.value_or(regs, 1) as u64, f.half.value(regs) as usize);
        let cols = f.heads.value_or(regs, 1) * 2 * half as i64;
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let table = Rows::new(regs, f.table.value(regs), 2 * half as i64, f.table_stride, Type::F32);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, f.dst_type);
        self.a.resize(cols as usize, 0.0);
        self.b.resize(2 * half, 0.0);
        for i in 0..rows {
            a.read(sp, i, &mut self.a);
            table.read(sp, i, &mut self.b);
            let (cosines, sines) = self.b.split_at(half);
            for head in self.a.chunks_exact_mut(2 * half) {
                let (xs, ys) = head.split_at_mut(half);
                for (((x, y), c), s) in xs.iter_mut().zip(ys).zip(cosines).zip(sines) {
                    let turned = x.mul_add(*c, -(*y * s));
                    *y = y.mul_add(*c, *x * s);
                    *x = turned;
                }
            }
            dst.write(sp, i, &self.a);
        }
    }

    fn quantize(&mut self, sp: &mut [u8], regs: &Registers, f: &Quantize) {
        // 2⁻¹⁰⁰.
        const LEAST: f32 = f32::from_bits(27 << 23);
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, f.a_type);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, Type::I8);
        let scales = Rows::new(regs, f.scales.value(regs), 1, Maybe(None), Type::F32);
        self.a.resize(cols as usize, 0.0);
        for i in 0..rows {
            let mut m = 0.0f32;
            if cols > 0 {
                a.read(sp, i, &mut self.a);
                m = self.a.iter().fold(m, |m, x| number::max(m, x.abs()));
                if m < LEAST {
                    self.a.fill(0.0);
                } else {
                    let inverse = 127.0 / m;
                    self.a.iter_mut().for_each(|x| *x *= inverse);
                }
                dst.write(sp, i, &self.a);
            }
            scales.write(sp, i, &[if m < LEAST { 0.0 } else { m / 127.0 }]);
        }
    }

    fn dot_rows(&mut self, sp: &mut [u8], regs: &Registers, f: &Product) {
        let (rows, b_rows) = (f.rows.value_or(regs, 1) as u64, f.b_rows.value_or(regs, 1));
        let cols = f.cols.value(regs);
        let a = Rows::new(regs, f.a.value(regs), cols, f.a_stride, Type::F32);
        let b = Rows::new(regs, f.b.value(regs), cols, f.b_stride, f.b_type);
        let dst = Rows::new(regs, f.dst.value(regs), b_rows, f.dst_stride, Type::F32);
        self.a.resize(cols as usize, 0.0);
        self.b.resize(cols as usize, 0.0);
        self.out.resize(b_rows as usize, 0.0);
        for i in 0..rows {
            if cols > 0 {
                a.read(sp, i, &mut self.a);
            }
            if f.accumulate.0 {
                dst.read(sp, i, &mut self.out);
            }
            for (n, out) in self.out.iter_mut().enumerate() {
                if cols > 0 {
                    b.read(sp, n as u64, &mut self.b);
                }
                let product = number::dot(&self.a, &self.b);
                *out = if f.accumulate.0 { *out + product } else { product };
            }
            dst.write(sp, i, &self.out);
        }
    }

    fn mix_rows(&mut self, sp: &mut [u8], regs: &Registers, f: &Mix) {
        let (rows, b_rows) = (f.rows.value_or(regs, 1) as u64, f.b_rows.value_or(regs, 1));
        let cols = f.cols.value(regs);
        let a = Rows::new(regs, f.a.value(regs), b_rows, f.a_stride, Type::F32);
        let b = Rows::new(regs, f.b.value(regs), cols, f.b_stride, f.b_type);
        let dst = Rows::new(regs, f.dst.value(regs), cols, f.dst_stride, Type::F32);
        self.a.resize(b_rows as usize, 0.0);
        self.b.resize(cols as usize, 0.0);
        self.out.resize(cols as usize, 0.0);
        for i in 0..rows {
            if b_rows > 0 {
                a.read(sp, i, &mut self.a);
            }
            match f.accumulate.0 {
                true => dst.read(sp, i, &mut self.out),
                false => self.out.fill(0.0),
            }
            for (n, weight) in self.a.iter().enumerate() {
                b.read(sp, n as u64, &mut self.b);
                self.out.iter_mut().zip(&self.b).for_each(|(t, x)| *t = weight.mul_add(*x, *t));
            }
            dst.write(sp, i, &self.out);
        }
    }

    fn gather(&mut self, sp: &mut [u8], regs: &Registers, f: &GatherRows) -> Result<(), Wrong> {
        let (rows, bytes) = (f.rows.value_or(regs, 1) as u64, f.row_bytes.value(regs));
        let src = Rows::new(regs, f.src.value(regs), bytes, f.src_stride, Type::I8);
        let dst = Rows::new(regs, f.dst.value(regs), bytes, f.dst_stride, Type::I8);
        for i in 0..rows {
            let index = index(sp, f.index.value(regs) as u64, i, f.bound.value(regs))?;
            self.bytes.clear();
            self.bytes.extend_from_slice(&sp[src.span(index.into(), bytes as usize)]);
            sp[dst.span(i, bytes as usize)].copy_from_slice(&self.bytes);
        }
        Ok(())
    }

    fn scatter_add(&mut self, sp: &mut [u8], regs: &Registers, f: &ScatterRows) -> Result<(), Wrong> {
        let (rows, cols) = (f.rows.value_or(regs, 1) as u64, f.cols.value(regs));
        let src = Rows::new(regs, f.src.value(regs), cols, f.src_stride, Type::F32);
        let dst = Rows::new(regs, f.dst.value(regs), cols, Maybe(None), Type::F32);
        let gates = Rows::new(regs, f.gates.value(regs), 1, Maybe(None), Type::F32);
        self.a.resize(cols as usize, 0.0);
        self.out.resize(cols as usize, 0.0);
        for i in 0..rows {
            let index = u64::from(index(sp, f.index.value(regs) as u64, i, f.bound.value(regs))?);
            let mut gate = [0.0];
            gates.read(sp, i, &mut gate);
            src.read(sp, i, &mut self.a);
            dst.read(sp, index, &mut self.out);
            self.out.iter_mut().zip(&self.a).for_each(|(t, x)| *t = gate[0].mul_add(*x, *t));
            dst.write(sp, index, &self.out);
        }
        Ok(())
    }
}

/// The largest as `v.row_max` has it; −∞ of nothing.
fn largest(row: &[f32]) -> f32 {
    canonical(row.iter().fold(f32::NEG_INFINITY, |m, x| number::max(m, *x)))
}

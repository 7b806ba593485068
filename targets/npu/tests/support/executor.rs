//! Programs executed one instruction after the other, as `ISA.md` defines their values: only the instructions that matmul uses.
#![allow(dead_code)]

use half::f16;
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::choice::{Codes, Condition, Type};
use lapidary_npu_isa::operand::{Maybe, Term};
use lapidary_npu_isa::{Instruction, Machine, Op, Program, Reg, Registers};

/// Memories and registers.
pub struct Executor {
    pub regs: Registers,
    pub dram: Vec<u8>,
    pub sp: Vec<u8>,
    pub w: Vec<u8>,
    pub acc: Vec<u32>,
    cols: usize,
    lens: [u64; 4],
    /// Of the tile in the array: rows of codes, and scales.
    tile: (Vec<Vec<i32>>, Vec<f32>),
    pub loaded: u64,
    pub stored: u64,
    pub passes: u64,
    pub preloads: u64,
    /// Cycles of the array by rule M3.
    pub matrix_cycles: u64,
    pub executed: u64,
    array: u64,
    /// Highest unit touched of each memory, and one past it.
    pub touched: [u64; 4],
}

fn codes_row(bytes: &[u8], codes: Codes, n: usize) -> Vec<i32> {
    match codes {
        Codes::I8 => (0..n).map(|c| i32::from(bytes[c] as i8)).collect(),
        Codes::I4 => (0..n)
            .map(|c| {
                let nibble = (bytes[c / 2] >> (4 * (c % 2)) & 15) as i32;
                if nibble > 7 { nibble - 16 } else { nibble }
            })
            .collect(),
    }
}

impl Executor {
    pub fn new(machine: &Machine, program: &Program, dram_bytes: u64) -> Executor {
        let mut dram = vec![0; dram_bytes as usize];
        for segment in &program.segments {
            let begin = segment.address as usize;
            dram[begin..begin + segment.bytes.len()].copy_from_slice(&segment.bytes);
        }
        let (rows, cols) = (machine.accumulator_rows(), machine.matrix.cols);
        Executor {
            regs: Registers::default(),
            sp: vec![0; machine.scratchpad.bytes as usize],
            w: vec![0; machine.weights.bytes as usize],
            acc: vec![0; (rows * cols) as usize],
            cols: cols as usize,
            lens: [dram_bytes, machine.scratchpad.bytes, machine.weights.bytes, rows],
            dram,
            tile: Default::default(),
            loaded: 0,
            stored: 0,
            passes: 0,
            preloads: 0,
            matrix_cycles: 0,
            executed: 0,
            array: machine.matrix.rows + machine.matrix.cols - 2,
            touched: [0; 4],
        }
    }

    pub fn run(&mut self, program: &Program) {
        let code = &program.instructions;
        let mut loops: Vec<(usize, i64)> = Vec::new();
        let mut tokens = [0i64; 32];
        let mut at = 0;
        loop {
            let Instruction { op, tokens: t } = code[at];
            self.executed += 1;
            for wait in t.waits() {
                tokens[wait.index()] -= 1;
                assert!(tokens[wait.index()] >= 0, "{at}: {} waits for a token that is not there", code[at]);
            }
            for access in op.accesses(&self.regs).unwrap_or_else(|f| panic!("{at}: {}: {f:?}", code[at])) {
                let end = access.end();
                if !access.is_empty() {
                    let memory = access.memory as usize;
                    assert!(end <= self.lens[memory], "{at}: {} touches {}[{end}]", code[at], access.memory);
                    self.touched[memory] = self.touched[memory].max(end);
                }
            }
            t.posts().for_each(|post| tokens[post.index()] += 1);
            let mut next = at + 1;
            match op {
                Op::Halt(_) => return,
                Op::Loop(head) => {
                    let count = head.count.value(&self.regs);
                    assert!(count <= head.max.0.into(), "{at}: count {count} over {}", head.max.0);
                    self.regs.set(head.rd.0, 0);
                    match count {
                        ..=0 => next = at + 2 + head.body.0 as usize,
                        _ => loops.push((at, count)),
                    }
                }
                Op::End(_) => {
                    let (head, count) = *loops.last().expect("an open loop");
                    let Op::Loop(l) = code[head].op else { unreachable!() };
                    let index = self.regs.get(l.rd.0) + 1;
                    self.regs.set(l.rd.0, index);
                    match index < count {
                        true => next = head + 1,
                        false => _ = loops.pop(),
                    }
                }
                Op::SkipIfZero(s) if s.a.value(&self.regs) == 0 => next += s.target.0 as usize,
                Op::Branch(b) => {
                    let (x, y) = (b.a.value(&self.regs), b.b.value(&self.regs));
                    let taken = match b.condition {
                        Condition::Eq => x == y,
                        Condition::Ne => x != y,
                        Condition::Lt => x < y,
                        Condition::Ge => x >= y,
                    };
                    next += if taken { b.target.0 as usize } else { 0 };
                }
                _ => self.execute(&op),
            }
            at = next;
        }
    }

    fn set(&mut self, rd: Reg, value: i64) {
        self.regs.set(rd, value);
    }

    fn scalar(&mut self, f: lapidary_npu_isa::format::Arithmetic, with: impl Fn(i64, i64) -> i64) {
        let b = match f.b {
            Term::Imm(n) => n.into(),
            Term::Reg(r) => r.value(&self.regs),
        };
        self.set(f.rd.0, with(f.a.value(&self.regs), b));
    }

    fn count(&self, m: Maybe) -> usize {
        m.value_or(&self.regs, 1) as usize
    }

    fn stride(&self, m: Maybe, dense: usize) -> usize {
        m.value_or(&self.regs, dense as i64) as usize
    }

    fn f32_at(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.sp[at..at + 4].try_into().expect("four bytes"))
    }

    fn put(&mut self, at: usize, ty: Type, y: f32) {
        match ty {
            Type::F32 => self.sp[at..at + 4].copy_from_slice(&y.to_le_bytes()),
            Type::F16 => self.sp[at..at + 2].copy_from_slice(&f16::from_f32(y).to_le_bytes()),
            Type::I8 => self.sp[at] = y.round_ties_even().clamp(-127.0, 127.0) as i8 as u8,
            Type::I32 => self.sp[at..at + 4].copy_from_slice(&(y.round_ties_even() as i32).to_le_bytes()),
        }
    }

    fn execute(&mut self, op: &Op) {
        let regs = self.regs;
        match *op {
            Op::Li(c) => self.set(c.rd.0, c.value.0),
            Op::Add(f) => self.scalar(f, i64::wrapping_add),
            Op::Sub(f) => self.scalar(f, i64::wrapping_sub),
            Op::Mul(f) => self.scalar(f, i64::wrapping_mul),
            Op::Shr(f) => self.scalar(f, |a, b| a >> b),
            Op::Min(f) => self.scalar(f, i64::min),
            Op::Max(f) => self.scalar(f, i64::max),
            Op::And(f) => self.scalar(f, |a, b| a & b),
            Op::Lds(l) => {
                let at = l.src.value(&regs) as usize;
                let value = u32::from_le_bytes(self.sp[at..at + 4].try_into().expect("four bytes"));
                assert!(value <= l.max.0);
                self.set(l.rd.0, value.into());
            }
            Op::Sync(_) | Op::SkipIfZero(_) => (),
            Op::Load(l) => {
                let bytes = l.row_bytes.value(&regs) as usize;
                let rows = self.count(l.rows);
                let (from, to) = (self.stride(l.src_stride, bytes), self.stride(l.dst_stride, bytes));
                let (src, dst) = (l.src.value(&regs) as usize, l.dst.value(&regs) as usize);
                self.loaded += (rows * bytes) as u64;
                for r in 0..rows {
                    let row = self.dram[src + r * from..][..bytes].to_vec();
                    let memory = if l.dst.memory() == Memory::Weights { &mut self.w } else { &mut self.sp };
                    memory[dst + r * to..][..bytes].copy_from_slice(&row);
                }
            }
            Op::Store(s) => {
                let bytes = s.row_bytes.value(&regs) as usize;
                let rows = self.count(s.rows);
                let (from, to) = (self.stride(s.src_stride, bytes), self.stride(s.dst_stride, bytes));
                let (src, dst) = (s.src.value(&regs) as usize, s.dst.value(&regs) as usize);
                self.stored += (rows * bytes) as u64;
                for r in 0..rows {
                    let row = self.sp[src + r * from..][..bytes].to_vec();
                    self.dram[dst + r * to..][..bytes].copy_from_slice(&row);
                }
            }
            Op::Preload(t) => {
                let (k, n) = (t.k.value(&regs) as usize, t.n.value(&regs) as usize);
                self.preload(t.codes, t.tile.value(&regs) as usize, k, n);
                self.tile.1 = vec![1.0; n];
            }
            Op::PreloadScaled(t) => {
                let (k, n) = (t.k.value(&regs) as usize, t.n.value(&regs) as usize);
                self.preload(t.codes, t.tile.value(&regs) as usize, k, n);
                let scales = &self.w[t.scales.value(&regs) as usize..];
                self.tile.1 = (0..n).map(|c| f16::from_le_bytes([scales[2 * c], scales[2 * c + 1]]).to_f32()).collect();
            }
            Op::Pass(p) => {
                let (rows, k) = (p.rows.value(&regs) as usize, p.k.value(&regs) as usize);
                let products = self.products(p.a.value(&regs) as usize, rows, k, self.stride(p.a_stride, k));
                let acc = p.acc.value(&regs) as usize;
                for (i, row) in products.iter().enumerate() {
                    for c in 0..self.cols {
                        let sum = row.get(c).copied();
                        let word = &mut self.acc[(acc + i) * self.cols + c];
                        *word = match (sum, p.accumulate.0) {
                            (Some(sum), true) => word.wrapping_add(sum as u32),
                            (Some(sum), false) => sum as u32,
                            (None, true) => *word,
                            (None, false) => 0,
                        };
                    }
                }
            }
            Op::PassScaled(p) => {
                let (rows, k) = (p.rows.value(&regs) as usize, p.k.value(&regs) as usize);
                let products = self.products(p.a.value(&regs) as usize, rows, k, self.stride(p.a_stride, k));
                let (sums, acc) = (p.sums.value(&regs) as usize, p.acc.value(&regs) as usize);
                for (i, row) in products.iter().enumerate() {
                    for (c, product) in row.iter().enumerate() {
                        let before = self.acc[(sums + i) * self.cols + c] as i32;
                        let sum = if p.accumulate.0 { product.wrapping_add(before) } else { *product };
                        let word = &mut self.acc[(acc + i) * self.cols + c];
                        let t = if p.append.0 { f32::from_bits(*word) } else { 0.0 };
                        *word = (sum as f32).mul_add(self.tile.1[c], t).to_bits();
                    }
                }
            }
            Op::Rescale(v) => {
                let (rows, cols) = (self.count(v.rows), v.cols.value(&regs) as usize);
                let size = v.dst_type.bytes() as usize;
                let stride = self.stride(v.dst_stride, cols * size);
                for i in 0..rows {
                    for j in 0..cols {
                        let sum = self.acc[(v.acc.value(&regs) as usize + i) * self.cols + j] as i32 as f32;
                        let channel = self.f32_at(v.channels.value(&regs) as usize + 4 * j);
                        let token = self.f32_at(v.tokens.value(&regs) as usize + 4 * i);
                        self.put(
                            v.dst.value(&regs) as usize + i * stride + j * size,
                            v.dst_type,
                            sum * channel * token,
                        );
                    }
                }
            }
            Op::RescaleFloats(v) => {
                let (rows, cols) = (self.count(v.rows), v.cols.value(&regs) as usize);
                let size = v.dst_type.bytes() as usize;
                let stride = self.stride(v.dst_stride, cols * size);
                for i in 0..rows {
                    for j in 0..cols {
                        let sum = f32::from_bits(self.acc[(v.acc.value(&regs) as usize + i) * self.cols + j]);
                        let token = self.f32_at(v.tokens.value(&regs) as usize + 4 * i);
                        self.put(v.dst.value(&regs) as usize + i * stride + j * size, v.dst_type, sum * token);
                    }
                }
            }
            Op::Fill(v) => {
                let (rows, cols) = (self.count(v.rows), v.cols.value(&regs) as usize);
                let value = v.value.float(&regs);
                for i in 0..rows * cols {
                    self.put(v.dst.value(&regs) as usize + 4 * i, v.dst_type, value);
                }
            }
            _ => panic!("{op:?}"),
        }
    }

    fn preload(&mut self, codes: Codes, at: usize, k: usize, n: usize) {
        self.preloads += 1;
        let row = codes.row_bytes(n as i64) as usize;
        self.tile.0 = (0..k).map(|r| codes_row(&self.w[at + r * row..], codes, n)).collect();
    }

    fn products(&mut self, a: usize, rows: usize, k: usize, stride: usize) -> Vec<Vec<i32>> {
        if rows > 0 {
            self.passes += 1;
            self.matrix_cycles += rows as u64 + self.array;
        }
        assert_eq!(k, self.tile.0.len(), "k of the pass and of the tile");
        let n = self.tile.1.len();
        (0..rows)
            .map(|i| {
                let mut sums = vec![0i32; n];
                for (r, weights) in self.tile.0.iter().enumerate() {
                    let a = i32::from(self.sp[a + i * stride + r] as i8);
                    sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum = sum.wrapping_add(a * w));
                }
                sums
            })
            .collect()
    }
}

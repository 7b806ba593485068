//! A random multiplication on a random machine, with operands and what has to come out.
#![allow(dead_code)]

use half::f16;
use lapidary_npu_isa::address::{Address, Dram, OnChip, Sp};
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::{LoadBox, ScalarLoad};
use lapidary_npu_isa::operand::{Bound, Dest, Flag, Maybe, Size};
use lapidary_npu_isa::program::Segment;
use lapidary_npu_isa::{Machine, Op, Program, Queue};
use lapidary_target_npu::gemm::Codes;
use lapidary_target_npu::matmul::pack::pack;
use lapidary_target_npu::matmul::{
    Activations, Destination, Matmul, Output, Plan, Rows, Scales, Scratch, Tiling, WeightFormat, matmul,
};
use lapidary_target_npu::{Builder, LowerError, Place};
use proptest::prelude::*;

/// Where operands or results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Dram,
    Scratchpad,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub machine: Machine,
    pub m: u32,
    /// `Some`: M is loaded at run time, and this is the most that it could have been.
    pub most: Option<u32>,
    pub k: u32,
    pub n: u32,
    pub format: WeightFormat,
    pub element: Type,
    pub operand: At,
    pub result: At,
    pub tokens: Option<At>,
    pub channels: Option<At>,
    pub seed: u64,
}

/// Codes row by row, factors of rows, of columns, and of groups of inputs.
struct Operands {
    a: Vec<i8>,
    w: Vec<i8>,
    tokens: Vec<f32>,
    channels: Vec<f32>,
    groups: Vec<f16>,
}

/// A program for a case, and where things are.
pub struct Built {
    pub program: Program,
    pub plan: Plan,
    pub dram_bytes: u64,
    pub out: u64,
    pub expected: Vec<u8>,
}

pub fn machine(settings: &[(&str, u64)]) -> Option<Machine> {
    let mut machine = Machine::preset("edge-16").expect("a preset");
    // Small before large: every step has to be a machine.
    machine.set("dram.preset", "ideal").expect("a preset");
    machine.set("scratchpad.banks", "1").expect("banks");
    machine.set("accumulators.bytes", "1048576").expect("accumulators");
    machine.set("weights.bytes", "65536").expect("weights");
    for (key, value) in settings {
        machine.set(key, &value.to_string()).ok()?;
    }
    Some(machine)
}

/// Machines of arrays up to 24 × 24, sometimes taller than the groups of int4, with memories from much too small to ample.
pub fn machines() -> impl Strategy<Value = Machine> {
    let array = (prop_oneof![4 => 1u64..=24, 1 => 33u64..=160], 1u64..=24);
    let sizes = (0u64..=5, 1u64..=40, 0u64..=8, 0u64..=3);
    (array, sizes, any::<(bool, bool)>(), 1u64..=16).prop_filter_map(
        "a machine",
        |((r, c), (w, acc, sp, banks), (overlap, ideal), depth)| {
            let mut machine = machine(&[
                ("matrix.rows", r),
                ("matrix.cols", c),
                ("accumulators.bytes", 4 * c * acc.max(16u64.div_ceil(c))),
                ("weights.bytes", (r * c * (1 << w)).max(256)),
                ("scratchpad.bytes", 1024 << sp),
                ("scratchpad.banks", 1 << banks),
                ("queue.depth", depth),
            ])?;
            machine.set("matrix.weight_overlap", &overlap.to_string()).ok()?;
            machine.set("dram.preset", if ideal { "ideal" } else { "lpddr4" }).ok()?;
            Some(machine)
        },
    )
}

/// 1 to a few tiles, often just a tile, and one more or less.
fn extent(tile: u64) -> impl Strategy<Value = u32> {
    let tile = tile as u32;
    prop_oneof![1..=5 * tile, (1u32..=5, 0u32..=2).prop_map(move |(n, d)| (n * tile + d).saturating_sub(1).max(1))]
}

pub fn cases() -> impl Strategy<Value = Case> {
    machines()
        .prop_flat_map(|machine| {
            let (r, c) = (machine.matrix.rows, machine.matrix.cols);
            let format = prop_oneof![
                3 => Just(WeightFormat::Int8),
                3 => prop::sample::select(vec![32, 64, 128]).prop_map(|group| WeightFormat::Int4 { group }),
            ];
            let element = prop::sample::select(vec![Type::F32, Type::F16, Type::I8, Type::I32]);
            let at = || prop::sample::select(vec![At::Dram, At::Scratchpad]);
            let scales = || prop::sample::select(vec![None, Some(At::Dram), Some(At::Scratchpad)]);
            let rows = (1u32..=70, prop_oneof![2 => Just(None), 1 => (0u32..=70).prop_map(Some)]);
            let places = (at(), at(), scales(), scales());
            let k = prop_oneof![extent(r), extent(32)];
            (Just(machine), rows, (k, extent(c)), format, element, places, any::<u64>())
        })
        .prop_map(|(machine, (m, actual), (k, n), format, element, (operand, result, tokens, channels), seed)| {
            let channels = if format == WeightFormat::Int8 { channels } else { None };
            let (m, most) = match actual {
                Some(actual) => (actual.min(m), Some(m)),
                None => (m, None),
            };
            Case { machine, m, most, k, n, format, element, operand, result, tokens, channels, seed }
        })
}

impl Case {
    fn operands(&self) -> Operands {
        let rows = self.most.unwrap_or(self.m) as usize;
        let (k, n) = (self.k as usize, self.n as usize);
        let mut codes = Codes::new(self.seed);
        let a = codes.by_ref().take(rows * k).collect();
        let limit = |code: i8| if self.format == WeightFormat::Int8 { code } else { code >> 4 };
        let w = codes.by_ref().take(k * n).map(limit).collect();
        let float = |code: i8| (f32::from(code) + 0.3) / 1000.0;
        let tokens = codes.by_ref().take(rows).map(float).collect();
        let channels = codes.by_ref().take(n).map(float).collect();
        let groups = codes.take(k.div_ceil(32) * n).map(|c| f16::from_f32(float(c))).collect();
        Operands { a, w, tokens, channels, groups }
    }

    /// Bytes of the result, by docs/quantization.md.
    fn reference(&self) -> Vec<u8> {
        let Operands { a, w, tokens, channels, groups: scales } = self.operands();
        let (k, n) = (self.k as usize, self.n as usize);
        let mut out = Vec::new();
        for i in 0..self.m as usize {
            for j in 0..n {
                let sum = |range: std::ops::Range<usize>| -> i64 {
                    range.map(|r| i64::from(a[i * k + r]) * i64::from(w[r * n + j])).sum()
                };
                let token = if self.tokens.is_some() { tokens[i] } else { 1.0 };
                let y = match self.format {
                    WeightFormat::Int8 => {
                        let channel = if self.channels.is_some() { channels[j] } else { 1.0 };
                        (sum(0..k) as i32 as f32 * channel) * token
                    }
                    WeightFormat::Int4 { group } => {
                        let group = group as usize;
                        let mut t = 0f32;
                        for g in 0..k.div_ceil(group) {
                            let s = scales[g * n + j].to_f32();
                            t = (sum(g * group..k.min((g + 1) * group)) as i32 as f32).mul_add(s, t);
                        }
                        t * token
                    }
                };
                match self.element {
                    Type::F32 => out.extend(y.to_le_bytes()),
                    Type::F16 => out.extend(f16::from_f32(y).to_le_bytes()),
                    Type::I8 => out.push(y.round_ties_even().clamp(-127.0, 127.0) as i8 as u8),
                    Type::I32 => out.extend((y.round_ties_even() as i32).to_le_bytes()),
                }
            }
        }
        out
    }

    /// The program, with what is in the scratchpad loaded there first.
    pub fn build(&self) -> Result<Built, LowerError> {
        let Operands { a, w, tokens, channels, groups } = self.operands();
        let rows = self.most.unwrap_or(self.m);
        let (k, n) = (u64::from(self.k), u64::from(self.n));
        let size = u64::from(self.element.bytes());
        let tiling = Tiling::new(&self.machine, self.k, self.n, self.format);
        let packed = pack(&tiling, |k, c| w[(k * self.n + c) as usize], |g, c| groups[(g * self.n + c) as usize]);
        assert_eq!(packed.len() as u64, tiling.packed_bytes());
        let float_bytes = |list: &[f32]| list.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>();
        let out_bytes = u64::from(rows) * n * size;
        let mut at = 64;
        let mut segments =
            vec![Segment { address: 0, len_bytes: 4, bytes: self.m.to_le_bytes().to_vec(), name: "rows_of_a".into() }];
        let mut segment = |bytes: Vec<u8>, len_bytes: u64, name: &str| {
            let address = at;
            at = (at + len_bytes).next_multiple_of(64) + 64;
            segments.push(Segment { address, len_bytes, bytes, name: name.into() });
            address
        };
        let out = segment(Vec::new(), out_bytes, "out_matrix");
        let a_at = segment(a.iter().map(|c| *c as u8).collect(), a.len() as u64, "a_matrix");
        let tokens_at = segment(float_bytes(&tokens), 4 * tokens.len() as u64, "row_factors");
        let channels_at = segment(float_bytes(&channels), 4 * channels.len() as u64, "col_factors");
        let w_at = segment(packed, tiling.packed_bytes(), "w_matrix");
        let dram_bytes = at + (1 << 16);

        let mut b = Builder::new();
        // The top of the scratchpad holds what the caller keeps there.
        let mut end = self.machine.scratchpad.bytes;
        let mut given: Vec<(u64, u64, u64)> = Vec::new();
        // Areas of rows have room for whole blocks.
        let mut keep = |from: u64, bytes: u64| -> Option<u64> {
            let place = end.checked_sub((2 * bytes).next_multiple_of(32))? / 32 * 32;
            end = place;
            given.push((place, from, bytes));
            Some(place)
        };
        let small = || LowerError::Argument { what: "test", wanted: "room".into(), found: "none".into() };
        let rows_at = keep(0, 4).ok_or_else(small)?;
        let scales = |place: Option<At>, from: u64, count: u64, keep: &mut dyn FnMut(u64, u64) -> Option<u64>| {
            Ok::<Scales, LowerError>(match place {
                None => Scales::One,
                Some(At::Dram) => Scales::Dram(Place::at(from)),
                Some(At::Scratchpad) => Scales::Scratchpad(Place::at(keep(from, 4 * count).ok_or_else(small)?)),
            })
        };
        let token_scales = scales(self.tokens, tokens_at, rows.into(), &mut keep)?;
        let channel_scales = scales(self.channels, channels_at, n, &mut keep)?;
        let activations = match self.operand {
            At::Dram => Activations::Dram { at: Place::at(a_at), stride: k },
            At::Scratchpad => {
                let at = Place::at(keep(a_at, a.len() as u64).ok_or_else(small)?);
                Activations::Scratchpad { at, stride: k }
            }
        };
        let (to, result_at) = match self.result {
            At::Dram => (Destination::Dram { at: Place::at(out), stride: n * size }, None),
            At::Scratchpad => {
                let at = keep(out, out_bytes).ok_or_else(small)?;
                (Destination::Scratchpad { at: Place::at(at), stride: n * size }, Some(at))
            }
        };
        let load = |b: &mut Builder, to: u64, from: u64, bytes: u64| {
            b.scope(|b| {
                let (dst, src) = (b.constant("to", to as i64)?, b.constant("from", from as i64)?);
                let len = b.constant("length", bytes as i64)?;
                b.push(Op::Load(LoadBox {
                    dst: OnChip::Scratchpad(Sp(Address { base: Some(dst), offset: 0 })),
                    src: Dram(Address { base: Some(src), offset: 0 }),
                    row_bytes: Size::Reg(len),
                    rows: Maybe(None),
                    src_stride: Maybe(None),
                    dst_stride: Maybe(None),
                    planes: Maybe(None),
                    src_plane: Maybe(None),
                    dst_plane: Maybe(None),
                    unpack: Flag(false),
                }));
                Ok(())
            })
        };
        for (to, from, bytes) in &given {
            load(&mut b, *to, *from, *bytes)?;
        }
        b.barrier(&[Queue::Load])?;
        let rows = match self.most {
            None => Rows::Const(self.m),
            Some(most) => {
                let reg = b.reg("M")?;
                let at = b.constant("where M is", rows_at as i64)?;
                let src = Sp(Address { base: Some(at), offset: 0 });
                b.push(Op::Lds(ScalarLoad { rd: Dest(reg), src, max: Bound(most) }));
                Rows::Register { reg, most }
            }
        };
        let op = Matmul {
            rows,
            k: self.k,
            n: self.n,
            format: self.format,
            weights: Place::at(w_at),
            activations,
            output: Output { element: self.element, tokens: token_scales, channels: channel_scales, to },
            scratch: Scratch { begin: 0, bytes: end },
        };
        let emitted = matmul(&mut b, &self.machine, &op, None)?;
        let plan = emitted.plan.clone();
        emitted.release(&mut b, None);
        if let Some(at) = result_at {
            b.barrier(&[Queue::Load, Queue::Store, Queue::Matrix, Queue::Vector])?;
            b.scope(|b| {
                let (src, dst) = (b.constant("from", at as i64)?, b.constant("to", out as i64)?);
                let len = b.constant("length", out_bytes as i64)?;
                b.push(Op::Store(lapidary_npu_isa::format::StoreBox {
                    dst: Dram(Address { base: Some(dst), offset: 0 }),
                    src: Sp(Address { base: Some(src), offset: 0 }),
                    row_bytes: Size::Reg(len),
                    rows: Maybe(None),
                    src_stride: Maybe(None),
                    dst_stride: Maybe(None),
                    planes: Maybe(None),
                    src_plane: Maybe(None),
                    dst_plane: Maybe(None),
                }));
                Ok(())
            })?;
        }
        let mut program = b.finish()?;
        program.segments = segments;
        Ok(Built { program, plan, dram_bytes, out, expected: self.reference() })
    }

    /// DMA bytes that are not the multiplication's.
    pub fn extra_bytes(&self) -> (u64, u64) {
        let rows = u64::from(self.most.unwrap_or(self.m));
        let (k, n) = (u64::from(self.k), u64::from(self.n));
        let mut loaded = 4;
        for (at, bytes) in [
            (Some(self.operand), rows * k),
            (self.tokens, 4 * rows),
            (self.channels, 4 * n),
            (Some(self.result), rows * n * u64::from(self.element.bytes())),
        ] {
            if at == Some(At::Scratchpad) {
                loaded += bytes;
            }
        }
        let stored = if self.result == At::Scratchpad { rows * n * u64::from(self.element.bytes()) } else { 0 };
        (loaded, stored)
    }
}

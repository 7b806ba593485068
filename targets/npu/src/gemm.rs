//! One matrix multiplication as a program: int8 × int8, M × K times K × N.
//!
//! ```
//! use lapidary_npu_isa::Machine;
//! use lapidary_target_npu::gemm::gemm_program;
//!
//! let machine = Machine::preset("edge-32").unwrap();
//! let mut gemm = gemm_program(&machine, 1, 1536, 384).unwrap();
//! gemm.fill(7);
//! assert_eq!(gemm.program.segments.len(), 3);
//! ```

use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::program::Segment;
use lapidary_npu_isa::{Machine, Program};

use crate::builder::{Builder, Place};
use crate::error::LowerError;
use crate::matmul::pack::pack;
use crate::matmul::{
    Activations, Destination, Matmul, Output, Plan, Rows, Scales, Scratch, Summary, Tiling, WeightFormat, matmul,
};

/// A list of multiplications as text: the 180 of a MiniLM forward of 128 tokens (six blocks, hidden size 384, 12 heads, FFN 1536).
pub const MINILM_128: &str = include_str!("../gemms/minilm-128.csv");

/// Where operands and the result are in DRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// M.
    pub m: u32,
    /// N.
    pub n: u32,
    /// K.
    pub k: u32,
    /// Result, M × N of i32, dense.
    pub output: u64,
    /// Activations, M × K of i8, dense.
    pub activations: u64,
    /// Weights, packed.
    pub weights: u64,
    /// How they are packed.
    pub tiling: Tiling,
    /// One past the last byte of all that.
    pub end: u64,
}

/// A program with its layout.
#[derive(Clone, Debug)]
pub struct Gemm {
    /// It has segments for operands and result; without [`Gemm::fill`] they are zeros.
    pub program: Program,
    /// Where they are.
    pub layout: Layout,
    /// What it moves, and the closed forms of its cycles.
    pub summary: Summary,
    /// How it is done.
    pub plan: Plan,
}

/// The program that multiplies M × K activations by K × N weights on a machine: what `--gemm M,N,K` times.
///
/// Results are i32, as the vector unit stores them: f32(sum), exact up to 2²⁴.
pub fn gemm_program(machine: &Machine, m: u32, n: u32, k: u32) -> Result<Gemm, LowerError> {
    let burst = machine.dma.burst_bytes.max(64);
    if m == 0 || n == 0 || k == 0 {
        return Err(LowerError::argument("M, N and K", "each at least 1", format!("{m},{n},{k}")));
    }
    let tiling = Tiling::new(machine, k, n, WeightFormat::Int8);
    let output = 0;
    let activations = (4 * u64::from(m) * u64::from(n)).next_multiple_of(burst);
    let weights = (activations + u64::from(m) * u64::from(k)).next_multiple_of(burst);
    let end = weights + tiling.packed_bytes();
    if end > machine.dram.bytes {
        return Err(LowerError::TooSmall {
            what: format!("operands and result of {m}×{n}×{k}"),
            memory: lapidary_npu_isa::address::Memory::Dram,
            wanted: end,
            found: machine.dram.bytes,
        });
    }
    let layout = Layout { m, n, k, output, activations, weights, tiling, end };
    let op = Matmul {
        rows: Rows::Const(m),
        k,
        n,
        format: WeightFormat::Int8,
        weights: Place::at(weights),
        activations: Activations::Dram { at: Place::at(activations), stride: k.into() },
        output: Output {
            element: Type::I32,
            tokens: Scales::One,
            channels: Scales::One,
            to: Destination::Dram { at: Place::at(output), stride: 4 * u64::from(n) },
        },
        scratch: Scratch::all(machine),
    };
    let mut b = Builder::new();
    b.op_label(&format!("gemm {m},{n},{k}"), None);
    let emitted = matmul(&mut b, machine, &op, None)?;
    let mut program = b.finish()?;
    let segment = |address, end: u64, name: &str| Segment {
        address,
        len_bytes: end - address,
        bytes: Vec::new(),
        name: name.into(),
    };
    program.segments = vec![
        segment(output, 4 * u64::from(m) * u64::from(n), "result"),
        segment(activations, activations + u64::from(m) * u64::from(k), "activations"),
        segment(weights, end, "weights"),
    ];
    program.machine_hash = Some(machine.hash());
    Ok(Gemm { program, layout, summary: emitted.plan.summary.clone(), plan: emitted.plan })
}

/// Codes from −127 to 127 that look random, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Codes(u64);

impl Codes {
    /// From a seed.
    pub const fn new(seed: u64) -> Codes {
        Codes(seed)
    }
}

impl Iterator for Codes {
    type Item = i8;

    fn next(&mut self) -> Option<i8> {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some((((z ^ z >> 31) % 255) as i32 - 127) as i8)
    }
}

impl Gemm {
    /// Random operands, the same for the same seed: activations M × K, then weights K × N, row by row.
    pub fn operands(&self, seed: u64) -> (Vec<i8>, Vec<i8>) {
        let Layout { m, n, k, .. } = self.layout;
        let mut codes = Codes::new(seed);
        let activations = codes.by_ref().take(m as usize * k as usize).collect();
        (activations, codes.take(k as usize * n as usize).collect())
    }

    /// Puts operands into the program's segments: activations M × K, weights K × N, row by row.
    pub fn set_operands(&mut self, activations: &[i8], weights: &[i8]) {
        let Layout { m, n, k, .. } = self.layout;
        assert_eq!(
            (activations.len(), weights.len()),
            (m as usize * k as usize, k as usize * n as usize),
            "M·K and K·N codes"
        );
        let packed =
            pack(&self.layout.tiling, |k, col| weights[k as usize * n as usize + col as usize], |_, _| half::f16::ONE);
        for segment in &mut self.program.segments {
            if segment.address == self.layout.weights {
                segment.bytes = packed.clone();
            } else if segment.address == self.layout.activations {
                segment.bytes = activations.iter().map(|code| *code as u8).collect();
            }
        }
    }

    /// Random operands into the program's segments.
    pub fn fill(&mut self, seed: u64) {
        let (activations, weights) = self.operands(seed);
        self.set_operands(&activations, &weights);
    }

    /// The result, row by row, from the bytes of DRAM from [`Layout::output`] on.
    pub fn result(&self, dram: &[u8]) -> Vec<i32> {
        let count = self.layout.m as usize * self.layout.n as usize;
        dram.chunks_exact(4).take(count).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// What [`Gemm::result`] has to be: sums of products, as f32 and back.
    pub fn expected(&self, activations: &[i8], weights: &[i8]) -> Vec<i32> {
        let n = self.layout.n as usize;
        let rows = activations.chunks_exact(self.layout.k as usize);
        rows.flat_map(|row| {
            let mut sums = vec![0i32; n];
            for (a, weights) in row.iter().zip(weights.chunks_exact(n)) {
                sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += i32::from(*a) * i32::from(*w));
            }
            sums.into_iter().map(|sum| sum as f32 as i32)
        })
        .collect()
    }
}

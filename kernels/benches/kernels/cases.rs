//! What is measured of each operation: sizes of a small routed model (d = 768, heads of 64, 64 clusters).

use crate::Work;
use lapidary_kernels::args::*;
use lapidary_kernels::{
    KernelFn, KernelOp, KernelRow, QuantLayout, WeightType, kv_row_bytes, packed_bytes, quantized_row_bytes,
};
use std::ptr::{from_ref, null};

/// Hidden size.
const D: usize = 768;
/// Tokens of a prefill.
const ROWS: usize = 128;
const CLUSTERS: usize = 64;
const HEAD: usize = 64;
/// Query heads that share a key head.
const HEADS: usize = 4;
/// Inputs that share a scale of int4 weights.
const GROUP: usize = 32;
/// Outputs of the GEMV: its weights (192 MiB as f16) fit no cache of one core.
const GEMV_OUTPUTS: usize = 131_072;

/// A cache line, to which the runtime aligns all tensors.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// Leaks an aligned buffer: the process measures and ends.
fn floats(n: usize) -> &'static mut [f32] {
    let value = |i: usize| ((i * 7919) % 1009) as f32 / 1009.0 - 0.4;
    let line = |at: usize| Line(std::array::from_fn(|lane| value(16 * at + lane)));
    let lines: &'static mut [Line] = (0..n.div_ceil(16)).map(line).collect::<Vec<_>>().leak();
    // SAFETY: the lines hold n floats or more.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), n) }
}

fn indices(n: usize, below: usize) -> &'static [u32] {
    let values: Vec<u32> = (0..n).map(|i| (i * 31 % below) as u32).collect();
    values.leak()
}

/// Calls a kernel with a block that lives as long as the closure.
fn work<A: 'static>(function: KernelFn, shape: String, flops: usize, bytes: usize, args: A) -> Work {
    let run = Box::new(move || {
        // SAFETY: the function was resolved for this machine, and `of` builds valid arguments of leaked buffers.
        unsafe { function(from_ref(&args).cast()) }
    });
    Work { shape, flops: flops as f64, bytes: bytes as f64, run }
}

/// `group` of a kernel's quantized weights.
fn group(row: &KernelRow) -> usize {
    if row.weight == WeightType::I4 { GROUP } else { 0 }
}

/// Aligned bytes, of a value that as codes and as scales (0.01 in f32, 1.06 in binary16) is ordinary.
fn bytes(n: usize) -> &'static mut [u8] {
    let lines = vec![Line([f32::from_ne_bytes([0x3c; 4]); 16]); n.div_ceil(64)].leak();
    // SAFETY: the lines are n bytes or more.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), n) }
}

fn matrices(row: &KernelRow) -> usize {
    match row.op {
        KernelOp::GemmSwiglu | KernelOp::GemvSwiglu => 2,
        _ => 1,
    }
}

fn quantized_product(row: &KernelRow, function: KernelFn, m: usize, n: usize, k: usize) -> Work {
    let matrices = matrices(row);
    let layout = row.quant_layout(group(row)).expect("a quantized kernel has a layout");
    let weight_bytes = matrices * layout.packed_bytes(n, k);
    let a = bytes(m * quantized_row_bytes(k));
    for record in a.chunks_exact_mut(quantized_row_bytes(k)) {
        // A scale that makes results of about 1: silu of large ones is slow, because its exp vanishes.
        record[k.next_multiple_of(64)..][..4].copy_from_slice(&1.0e-7f32.to_ne_bytes());
    }
    let args = QGemmArgs {
        a: a.as_ptr(),
        lda_bytes: quantized_row_bytes(k) as u64,
        a_rows: null(),
        m: m as u64,
        k: k as u64,
        w: bytes(weight_bytes).as_ptr(),
        group: layout.group() as u64,
        n: n as u64,
        panel_begin: 0,
        panel_end: n.div_ceil(layout.nr()) as u64,
        c: floats(m * n).as_mut_ptr(),
        ldc: n as u64,
        c_rows: null(),
        row_scale: null(),
        accumulate: 0,
    };
    let moved = weight_bytes + m * (4 * n + quantized_row_bytes(k));
    work(function, format!("m={m} k={k} n={n}"), 2 * matrices * m * n * k, moved, args)
}

fn product(row: &KernelRow, function: KernelFn, m: usize, n: usize, k: usize) -> Work {
    if matches!(row.weight, WeightType::I8 | WeightType::I4) {
        return quantized_product(row, function, m, n, k);
    }
    let matrices = matrices(row);
    let nr = row.tile.nr;
    let bytes = matrices * packed_bytes(n, k, nr, row.weight);
    let weights = floats(bytes / 4);
    let args = GemmArgs {
        a: floats(m * k).as_ptr(),
        lda: k as u64,
        a_rows: null(),
        m: m as u64,
        k: k as u64,
        w: weights.as_ptr().cast(),
        n: n as u64,
        panel_begin: 0,
        panel_end: n.div_ceil(nr) as u64,
        c: floats(m * n).as_mut_ptr(),
        ldc: n as u64,
        c_rows: null(),
        row_scale: null(),
        accumulate: 0,
    };
    work(function, format!("m={m} k={k} n={n}"), 2 * matrices * m * n * k, bytes + 4 * m * (n + k), args)
}

/// Row stride in stored elements, and bytes of a row, of a cache.
fn cache_row(cache: WeightType) -> (usize, usize) {
    match cache {
        WeightType::F16 => (HEAD, 2 * HEAD),
        WeightType::I8 => (kv_row_bytes(HEAD), kv_row_bytes(HEAD)),
        _ => (HEAD, 4 * HEAD),
    }
}

/// Keys or values of a head.
fn cache(cache: WeightType, positions: usize) -> &'static [u8] {
    match cache {
        WeightType::F16 | WeightType::I8 => bytes(positions * cache_row(cache).1),
        _ => {
            let floats = floats(positions * HEAD);
            // SAFETY: any bits are bytes.
            unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
        }
    }
}

fn attend(row: &KernelRow, function: KernelFn, rows: usize, first_position: usize) -> Work {
    let positions = first_position + rows;
    let clustered = row.op == KernelOp::AttendClustered;
    let (window, sinks, cluster_cap) = (128, 4, 64);
    let previous: Vec<i32> = (0..positions as i32).map(|t| (t - 16).max(-1)).collect();
    // Each cluster has every 16th position.
    let keys_of = |t: usize| {
        if !clustered {
            return t + 1;
        }
        let chain = (0..cluster_cap).map_while(|i| t.checked_sub(16 * i));
        (window + sinks).min(t + 1) + chain.filter(|&i| i + window <= t && i >= sinks).count()
    };
    let keys: usize = (first_position..positions).map(keys_of).sum();
    let (ld_kv, row_bytes) = cache_row(row.weight);
    let args = AttendArgs {
        q: floats(rows * HEADS * HEAD).as_ptr(),
        ldq: (HEADS * HEAD) as u64,
        k: cache(row.weight, positions).as_ptr(),
        v: cache(row.weight, positions).as_ptr(),
        ld_kv: ld_kv as u64,
        y: floats(rows * HEADS * HEAD).as_mut_ptr(),
        ldy: (HEADS * HEAD) as u64,
        rows: rows as u64,
        first_position: first_position as u64,
        num_keys: positions as u64,
        heads_per_group: HEADS as u64,
        head_dim: HEAD as u64,
        causal: 1,
        window: if clustered { window as u64 } else { 0 },
        sinks: sinks as u64,
        cluster_cap: cluster_cap as u64,
        previous: previous.leak().as_ptr(),
        scale: F32Arg::new(0.125),
        keys_read: null(),
    };
    let shape = format!("rows={rows} at {first_position}, {HEADS} heads of {HEAD}");
    work(function, shape, 4 * keys * HEADS * HEAD, 2 * positions * row_bytes, args)
}

/// Element-wise or row-wise, `flops` per element as usually counted.
fn unary(function: KernelFn, flops: usize) -> Work {
    let args = UnaryArgs {
        x: floats(ROWS * D).as_ptr(),
        ldx: D as u64,
        y: floats(ROWS * D).as_mut_ptr(),
        ldy: D as u64,
        rows: ROWS as u64,
        n: D as u64,
    };
    work(function, format!("rows={ROWS} n={D}"), flops * ROWS * D, 8 * ROWS * D, args)
}

fn select(function: KernelFn) -> Work {
    let args = RouteSelectArgs {
        a: floats(ROWS * CLUSTERS).as_ptr(),
        rows: ROWS as u64,
        num_clusters: CLUSTERS as u64,
        mask: vec![0u8; ROWS * CLUSTERS].leak().as_mut_ptr(),
        gates: floats(ROWS * CLUSTERS).as_mut_ptr(),
        k_min: 1,
        k_max: 4,
        p: F32Arg::new(0.6),
        tau: F32Arg::new(0.1),
        capacity_factor: F32Arg::new(1.25),
        norm_gates: 1,
        scratch: vec![0u32; ROWS].leak().as_mut_ptr(),
    };
    work(function, format!("rows={ROWS} C={CLUSTERS} k=4"), 0, 9 * ROWS * CLUSTERS, args)
}

fn indexed(function: KernelFn, flops: usize, accesses: usize) -> Work {
    let args = IndexedRowsArgs {
        x: floats(ROWS * D).as_ptr(),
        ldx: D as u64,
        y: floats(ROWS * D).as_mut_ptr(),
        ldy: D as u64,
        index: indices(ROWS, ROWS).as_ptr(),
        gate: floats(ROWS).as_ptr(),
        rows: ROWS as u64,
        n: D as u64,
    };
    work(function, format!("rows={ROWS} n={D}"), flops * ROWS * D, 4 * accesses * ROWS * D, args)
}

fn mask() -> *const u8 {
    (0..ROWS * CLUSTERS).map(|i| u8::from(i % 16 == 0)).collect::<Vec<_>>().leak().as_ptr()
}

fn embed(row: &KernelRow, function: KernelFn) -> Work {
    let vocab = 32_000;
    if matches!(row.weight, WeightType::I8 | WeightType::I4) {
        let layout = match row.op {
            KernelOp::EmbedRows => row.quant_layout(group(row)),
            _ => find_layout(row.weight),
        };
        let layout = layout.expect("a table of quantized weights has a layout");
        let args = QEmbedArgs {
            ids: indices(ROWS, vocab).as_ptr(),
            table: vec![1u8; layout.packed_bytes(vocab, D)].leak().as_ptr(),
            y: floats(ROWS * D).as_mut_ptr(),
            ldy: D as u64,
            rows: ROWS as u64,
            n: D as u64,
            group: layout.group() as u64,
            nr: layout.nr() as u64,
            kr: layout.kr() as u64,
            code_offset: u64::from(layout.code_offset()),
        };
        let moved = ROWS * (layout.packed_bytes(vocab, D) / vocab + 4 * D);
        return work(function, format!("rows={ROWS} n={D}"), 0, moved, args);
    }
    let bytes = row.weight.bytes();
    let args = EmbedArgs {
        ids: indices(ROWS, vocab).as_ptr(),
        table: vec![1u8; vocab * D * bytes].leak().as_ptr(),
        y: floats(ROWS * D).as_mut_ptr(),
        ldy: D as u64,
        rows: ROWS as u64,
        n: D as u64,
        nr: 32,
    };
    work(function, format!("rows={ROWS} n={D}"), 0, (4 + bytes) * ROWS * D, args)
}

/// Layout of the GEMM that dispatch picks here.
fn find_layout(weight: WeightType) -> Option<QuantLayout> {
    let row = lapidary_kernels::select(KernelOp::Gemm, &crate::here(), weight)?;
    row.quant_layout(group(row))
}

/// The measurements of a row.
pub fn of(row: &KernelRow, function: KernelFn) -> Vec<Work> {
    let one = match row.op {
        KernelOp::Gemm => {
            return [(ROWS, 2048, D), (16, 2048, D), (ROWS, D, 2048)]
                .map(|(m, n, k)| product(row, function, m, n, k))
                .into();
        }
        // Half the columns of each of the two matrices: as much work as a GEMM.
        KernelOp::GemmSwiglu => {
            return [(ROWS, 1024, D), (16, 1024, D)].map(|(m, n, k)| product(row, function, m, n, k)).into();
        }
        KernelOp::Gemv | KernelOp::GemvSwiglu => {
            return [2048, GEMV_OUTPUTS].map(|n| product(row, function, 1, n, D)).into();
        }
        KernelOp::AttendRange | KernelOp::AttendClustered => {
            return [(1, 1023), (ROWS, 0), (ROWS, 896)].map(|(rows, first)| attend(row, function, rows, first)).into();
        }
        KernelOp::QuantizeRows => {
            let args = QuantizeRowsArgs {
                x: floats(ROWS * D).as_ptr(),
                ldx: D as u64,
                x_rows: null(),
                y: bytes(ROWS * quantized_row_bytes(D)).as_mut_ptr(),
                ldy_bytes: quantized_row_bytes(D) as u64,
                rows: ROWS as u64,
                k: D as u64,
            };
            work(function, format!("rows={ROWS} n={D}"), 4 * ROWS * D, ROWS * (4 * D + quantized_row_bytes(D)), args)
        }
        KernelOp::RmsNorm => {
            let args = RmsNormArgs {
                x: floats(ROWS * D).as_ptr(),
                ldx: D as u64,
                w: floats(D).as_ptr(),
                y: floats(ROWS * D).as_mut_ptr(),
                ldy: D as u64,
                rows: ROWS as u64,
                n: D as u64,
                eps: F32Arg::new(1e-5),
            };
            work(function, format!("rows={ROWS} n={D}"), 4 * ROWS * D, 8 * ROWS * D, args)
        }
        KernelOp::Softmax => unary(function, 4),
        KernelOp::Silu => unary(function, 4),
        KernelOp::Gelu => unary(function, 8),
        KernelOp::L2Normalize => unary(function, 3),
        KernelOp::SiluMul => {
            let args = SiluMulArgs {
                gate: floats(ROWS * D).as_ptr(),
                ld_gate: D as u64,
                up: floats(ROWS * D).as_ptr(),
                ld_up: D as u64,
                y: floats(ROWS * D).as_mut_ptr(),
                ldy: D as u64,
                rows: ROWS as u64,
                n: D as u64,
            };
            work(function, format!("rows={ROWS} n={D}"), 5 * ROWS * D, 12 * ROWS * D, args)
        }
        KernelOp::Rope => {
            let args = RopeArgs {
                x: floats(ROWS * D).as_ptr(),
                x_row_stride: D as u64,
                x_head_stride: HEAD as u64,
                y: floats(ROWS * D).as_mut_ptr(),
                y_row_stride: D as u64,
                y_head_stride: HEAD as u64,
                rows: ROWS as u64,
                heads: (D / HEAD) as u64,
                head_dim: HEAD as u64,
                first_position: 0,
                cos_sin: floats(ROWS * HEAD).as_ptr(),
            };
            work(function, format!("rows={ROWS} heads={} of {HEAD}", D / HEAD), 3 * ROWS * D, 8 * ROWS * D, args)
        }
        KernelOp::CopyRows => {
            let (heads, (stride, row_bytes)) = (D / HEAD, cache_row(row.weight));
            let args = CopyRowsArgs {
                x: floats(ROWS * D).as_ptr(),
                x_row_stride: D as u64,
                x_head_stride: HEAD as u64,
                y: bytes(ROWS * heads * row_bytes).as_mut_ptr(),
                y_row_stride: (heads * stride) as u64,
                y_head_stride: stride as u64,
                rows: ROWS as u64,
                heads: heads as u64,
                n: HEAD as u64,
            };
            let moved = ROWS * (4 * D + heads * row_bytes);
            work(function, format!("rows={ROWS} heads={heads} of {HEAD}"), 0, moved, args)
        }
        KernelOp::ClusterAppend => {
            let args = ClusterAppendArgs {
                cluster: indices(ROWS, CLUSTERS).as_ptr(),
                rows: ROWS as u64,
                first_position: 0,
                num_clusters: CLUSTERS as u64,
                previous: vec![0i32; ROWS].leak().as_mut_ptr(),
                last: vec![0i32; CLUSTERS].leak().as_mut_ptr(),
            };
            work(function, format!("rows={ROWS} C={CLUSTERS}"), 0, 8 * ROWS, args)
        }
        KernelOp::RouteScores => {
            let args = RouteScoresArgs {
                q: floats(ROWS * HEAD).as_ptr(),
                ldq: HEAD as u64,
                keys: floats(CLUSTERS * HEAD).as_ptr(),
                domains: vec![0.125f32; ROWS * 8].leak().as_ptr(),
                a: floats(ROWS * CLUSTERS).as_mut_ptr(),
                rows: ROWS as u64,
                dim: HEAD as u64,
                num_clusters: CLUSTERS as u64,
                num_domains: 8,
                scale: F32Arg::new(0.125),
                lambda: F32Arg::new(1.0),
            };
            let flops = 2 * ROWS * CLUSTERS * HEAD;
            work(function, format!("rows={ROWS} C={CLUSTERS} d_s={HEAD}"), flops, 4 * ROWS * (CLUSTERS + HEAD), args)
        }
        KernelOp::RouteCluster => {
            let args = RouteClusterArgs {
                a: floats(ROWS * CLUSTERS).as_ptr(),
                rows: ROWS as u64,
                num_clusters: CLUSTERS as u64,
                cluster: vec![0u32; ROWS].leak().as_mut_ptr(),
            };
            work(function, format!("rows={ROWS} C={CLUSTERS}"), 0, 4 * ROWS * CLUSTERS, args)
        }
        KernelOp::SelectTopK
        | KernelOp::SelectTopP
        | KernelOp::SelectThreshold
        | KernelOp::SelectExpertChoice
        | KernelOp::SelectBidirectional => select(function),
        KernelOp::RouteGroup => {
            let args = RouteGroupArgs {
                mask: mask(),
                gates: floats(ROWS * CLUSTERS).as_ptr(),
                rows: ROWS as u64,
                num_modules: CLUSTERS as u64,
                offsets: vec![0u32; CLUSTERS + 1].leak().as_mut_ptr(),
                tokens: vec![0u32; ROWS * CLUSTERS].leak().as_mut_ptr(),
                token_gates: floats(ROWS * CLUSTERS).as_mut_ptr(),
                rows_routed: null(),
            };
            work(function, format!("rows={ROWS} E={CLUSTERS}"), 0, ROWS * CLUSTERS, args)
        }
        KernelOp::RouteMemory => {
            let args = RouteMemoryArgs {
                mask: mask(),
                gates: floats(ROWS * CLUSTERS).as_ptr(),
                values: floats(CLUSTERS * HEAD).as_ptr(),
                y: floats(ROWS * HEAD).as_mut_ptr(),
                ldy: HEAD as u64,
                rows: ROWS as u64,
                num_clusters: CLUSTERS as u64,
                dim: HEAD as u64,
            };
            let flops = 2 * ROWS * CLUSTERS / 16 * HEAD;
            work(function, format!("rows={ROWS} C={CLUSTERS} d_s={HEAD}"), flops, 4 * ROWS * HEAD, args)
        }
        KernelOp::GatherRows => indexed(function, 0, 2),
        KernelOp::ScatterAdd => indexed(function, 2, 3),
        KernelOp::EmbedRows | KernelOp::EmbedPanels => embed(row, function),
        KernelOp::MeanRows => {
            let args = MeanRowsArgs {
                x: floats(ROWS * D).as_ptr(),
                ldx: D as u64,
                y: floats(D).as_mut_ptr(),
                rows: ROWS as u64,
                n: D as u64,
            };
            work(function, format!("rows={ROWS} n={D}"), ROWS * D, 4 * ROWS * D, args)
        }
    };
    vec![one]
}

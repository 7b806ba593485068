//! `lapidary kernels bench`: the candidates for one matrix product, fastest first.

use std::process::ExitCode;
use std::ptr::null;

use anyhow::{Context, anyhow};
use lapidary_kernels::args::{GemmArgs, QGemmArgs, QuantizeRowsArgs};
use lapidary_kernels::{
    FeatureSet, KernelFn, KernelOp, KernelRow, QuantLayout, QuantSource, Source, WeightType, kernels, pack,
    pack_quantized, packed_bytes, panel_bytes, quantized_row_bytes, select,
};
use lapidary_runtime::Host;
use memmap2::MmapMut;
use serde_json::json;

use crate::cli::{Format, KernelsBenchArgs, Product};
use crate::limits;
use crate::ui::table;

/// All candidates take turns, so that a change in the machine's mood meets them all.
const ROUNDS: usize = 9;
/// Least time of one candidate in one round.
const ROUND_SECONDS: f64 = 0.01;
/// Inputs that share a scale of int4 weights.
const GROUP: usize = 32;

/// A kernel and what it is to compute.
struct Candidate {
    row: &'static KernelRow,
    function: KernelFn,
    block: Block,
    /// Held for the block, which points into them.
    _buffers: Vec<MmapMut>,
    /// Bytes that must be read or written.
    bytes: usize,
    /// Whether dispatch takes this kernel for this product.
    dispatched: bool,
    calls: u32,
    seconds: Vec<f64>,
}

/// An argument block of a product.
enum Block {
    Float(GemmArgs),
    Quantized(QGemmArgs),
}

impl Candidate {
    /// CPU seconds of `calls` calls: time that other programs take does not count.
    fn time(&self, calls: u32) -> f64 {
        let args = match &self.block {
            Block::Float(args) => std::ptr::from_ref(args).cast(),
            Block::Quantized(args) => std::ptr::from_ref(args).cast(),
        };
        let start = limits::thread_seconds();
        for _ in 0..calls {
            // SAFETY: the CPU has what the row requires, and the block describes the buffers that this value holds.
            unsafe { (self.function)(args) }
        }
        limits::thread_seconds() - start
    }

    /// Finds how many calls fill a round; warms up.
    fn calibrate(&mut self) {
        while self.time(self.calls) < ROUND_SECONDS && self.calls < 1 << 24 {
            self.calls *= 2;
        }
    }

    fn median(&mut self) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        self.seconds[self.seconds.len() / 2]
    }
}

/// Times the candidates and prints them.
pub fn run(args: &KernelsBenchArgs) -> anyhow::Result<ExitCode> {
    let features = Host::detect().features();
    let product = &args.product;
    let mut candidates = Vec::new();
    for row in kernels() {
        let wanted = matches!(row.op, KernelOp::Gemm | KernelOp::Gemv) && product.types.contains(&row.weight);
        let function = row.function().filter(|_| wanted && features.contains(row.required()));
        if let Some(function) = function {
            candidates.push(candidate(row, function, product, &features)?);
        }
    }
    for candidate in &mut candidates {
        candidate.calibrate();
    }
    for _ in 0..ROUNDS {
        for candidate in &mut candidates {
            let seconds = candidate.time(candidate.calls) / f64::from(candidate.calls);
            candidate.seconds.push(seconds);
        }
    }
    let limits = limits::measure(1)?;
    let int8 = limits::int8_multiply_adds_per_s(1);
    let multiply_adds = (product.m * product.k * product.n) as f64;
    let mut results: Vec<_> = candidates
        .iter_mut()
        .map(|candidate| {
            let seconds = candidate.median();
            let quantized = matches!(candidate.row.weight, WeightType::I8 | WeightType::I4);
            let peak = if quantized { int8 } else { limits.multiply_adds_per_s };
            let least = (multiply_adds / peak).max(candidate.bytes as f64 / limits.bytes_per_s);
            (candidate.row, candidate.dispatched, seconds, candidate.bytes as f64 / seconds, seconds / least)
        })
        .collect();
    results.sort_by(|a, b| a.2.total_cmp(&b.2));
    match args.format {
        Format::Text => {
            let rows = results.iter().map(|(row, dispatched, seconds, bytes_per_s, ratio)| {
                vec![
                    row.name.into(),
                    if *dispatched { "dispatched".into() } else { String::new() },
                    format!("{:.1}", seconds * 1e6),
                    format!("{:.1}", multiply_adds / seconds / 1e9),
                    format!("{:.1}", bytes_per_s / 1e9),
                    format!("{ratio:.2}"),
                ]
            });
            println!("{}", table(&["kernel", "", "µs", "GMAC/s", "GB/s", "× limit"], rows));
            println!(
                "m={} k={} n={}, one thread; limits: {:.1} GMAC/s f32, {:.1} GMAC/s int8, {:.1} GB/s read from memory",
                product.m,
                product.k,
                product.n,
                limits.multiply_adds_per_s / 1e9,
                int8 / 1e9,
                limits.bytes_per_s / 1e9
            );
        }
        Format::Json => {
            let rows: Vec<_> = results
                .iter()
                .map(|(row, dispatched, seconds, bytes_per_s, ratio)| {
                    json!({
                        "name": row.name,
                        "op": row.op.name(),
                        "isa": row.isa.name(),
                        "weights": row.weight.name(),
                        "dispatched": dispatched,
                        "median_us": seconds * 1e6,
                        "gmacs_per_s": multiply_adds / seconds / 1e9,
                        "gbytes_per_s": bytes_per_s / 1e9,
                        "limit_ratio": ratio,
                    })
                })
                .collect();
            let object = json!({
                "schema": "lapidary.kernels-bench/1",
                "m": product.m,
                "k": product.k,
                "n": product.n,
                "limits": {
                    "f32_gmacs_per_s": limits.multiply_adds_per_s / 1e9,
                    "int8_gmacs_per_s": int8 / 1e9,
                    "gbytes_per_s": limits.bytes_per_s / 1e9,
                },
                "kernels": rows,
            });
            println!("{object:#}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Zeroed memory that begins at a page.
fn zeros(bytes: usize) -> anyhow::Result<MmapMut> {
    MmapMut::map_anon(bytes.max(1)).with_context(|| format!("no memory for {bytes} bytes of operands"))
}

/// Numbers in −1..1 that are the same every time.
fn numbers(count: usize) -> impl Iterator<Item = f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
}

fn floats(count: usize) -> anyhow::Result<MmapMut> {
    let mut buffer = zeros(4 * count)?;
    for (place, x) in buffer.chunks_exact_mut(4).zip(numbers(count)) {
        place.copy_from_slice(&x.to_ne_bytes());
    }
    Ok(buffer)
}

/// Packed weights of `panels` panels, all like the one that `fill` fills.
fn weights(
    panels: usize,
    panel_bytes: usize,
    fill: impl FnOnce(&mut [u8]) -> anyhow::Result<()>,
) -> anyhow::Result<MmapMut> {
    let mut buffer = zeros(panels * panel_bytes)?;
    let (first, rest) = buffer.split_at_mut(panel_bytes);
    fill(first)?;
    for panel in rest.chunks_exact_mut(panel_bytes) {
        panel.copy_from_slice(first);
    }
    Ok(buffer)
}

fn candidate(
    row: &'static KernelRow,
    function: KernelFn,
    product: &Product,
    features: &FeatureSet,
) -> anyhow::Result<Candidate> {
    let &Product { m, k, n, .. } = product;
    let x = floats(m * k)?;
    let mut c = zeros(4 * m * n)?;
    let panels = n.div_ceil(row.tile.nr);
    let best = select(if m == 1 { KernelOp::Gemv } else { KernelOp::Gemm }, features, row.weight);
    let group = if row.weight == WeightType::I4 { GROUP } else { 0 };
    let (block, buffers, read_bytes) = match row.quant_layout(group) {
        Some(layout) => {
            let w = weights(panels, layout.panel_bytes(k), |panel| quantized_panel(&layout, k, panel))?;
            let record = quantized_row_bytes(k);
            let mut a = zeros(m * record)?;
            quantize(&x, m, k, &mut a, features)?;
            let args = QGemmArgs {
                a: a.as_ptr(),
                lda_bytes: record as u64,
                a_rows: null(),
                m: m as u64,
                k: k as u64,
                w: w.as_ptr(),
                group: group as u64,
                n: n as u64,
                panel_begin: 0,
                panel_end: panels as u64,
                c: c.as_mut_ptr().cast(),
                ldc: n as u64,
                c_rows: null(),
                row_scale: null(),
                accumulate: 0,
            };
            let bytes = m * record + layout.packed_bytes(n, k);
            (Block::Quantized(args), vec![a, w, c], bytes)
        }
        None => {
            let (nr, weight) = (row.tile.nr, row.weight);
            let w = weights(panels, panel_bytes(k, nr, weight), |panel| {
                let source: Vec<f32> = numbers(nr * k).collect();
                Ok(pack(Source::F32(&source), k, nr, weight, panel)?)
            })?;
            let args = GemmArgs {
                a: x.as_ptr().cast(),
                lda: k as u64,
                a_rows: null(),
                m: m as u64,
                k: k as u64,
                w: w.as_ptr(),
                n: n as u64,
                panel_begin: 0,
                panel_end: panels as u64,
                c: c.as_mut_ptr().cast(),
                ldc: n as u64,
                c_rows: null(),
                row_scale: null(),
                accumulate: 0,
            };
            let bytes = 4 * m * k + packed_bytes(n, k, nr, weight);
            (Block::Float(args), vec![x, w, c], bytes)
        }
    };
    Ok(Candidate {
        row,
        function,
        block,
        _buffers: buffers,
        bytes: read_bytes + 4 * m * n,
        dispatched: best.is_some_and(|best| best.name == row.name),
        calls: 1,
        seconds: Vec::new(),
    })
}

/// One full panel of some codes and scales.
fn quantized_panel(layout: &QuantLayout, k: usize, panel: &mut [u8]) -> anyhow::Result<()> {
    let most = if layout.weight() == WeightType::I8 { 127.0 } else { 7.0 };
    let codes: Vec<i8> = numbers(layout.nr() * k).map(|x| (x * most) as i8).collect();
    let scales = layout.nr() * layout.scales(k);
    /// 0.01 as binary16.
    const SCALE_BITS: u16 = 0x211f;
    match layout.weight() {
        WeightType::I8 => {
            pack_quantized(QuantSource::I8 { codes: &codes, scales: &vec![0.01; scales] }, k, layout, panel)?;
        }
        _ => pack_quantized(QuantSource::I4 { codes: &codes, scales: &vec![SCALE_BITS; scales] }, k, layout, panel)?,
    }
    Ok(())
}

/// Quantizes the rows of `x` `[m, k]`.
fn quantize(x: &MmapMut, m: usize, k: usize, records: &mut MmapMut, features: &FeatureSet) -> anyhow::Result<()> {
    let row = select(KernelOp::QuantizeRows, features, WeightType::None);
    let function = row.and_then(KernelRow::function).ok_or_else(|| anyhow!("no kernel quantizes rows"))?;
    let args = QuantizeRowsArgs {
        x: x.as_ptr().cast(),
        ldx: k as u64,
        x_rows: null(),
        y: records.as_mut_ptr(),
        ldy_bytes: quantized_row_bytes(k) as u64,
        rows: m as u64,
        k: k as u64,
    };
    // SAFETY: the CPU has what the row requires, x has m rows of k, and `records` room for as many records.
    unsafe { function(std::ptr::from_ref(&args).cast()) }
    Ok(())
}

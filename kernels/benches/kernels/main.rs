//! How fast every row of the kernel table is, against the measured limits of the machine.
//!
//! `cargo bench -p lapidary-kernels -- [part of a name]…`. A star marks the row that dispatch would pick here. GFLOP/s are of
//! the arithmetic that the operation needs, GB/s of the bytes that it must read and write; `% peak` is of the instruction
//! set's fused multiply-add peak, `% mem` of the bandwidth of reading memory. CPU time of the
//! thread, best of many runs.
#![allow(clippy::print_stdout, reason = "names what is measured and what is skipped")]

mod cases;
mod limits;

use lapidary_kernels::{FeatureSet, Isa, WeightType, kernels, resolve_for, select};

/// Work of one call.
pub struct Work {
    /// What was measured: `m=1 k=768 n=2048`.
    pub shape: String,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that must be read or written at least once.
    pub bytes: f64,
    /// The call.
    pub run: Box<dyn FnMut()>,
}

/// CPU seconds that this thread has used: other programs on the machine take time, but do not count.
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds of one call: the best of many short runs, of which each takes 2 ms at least.
pub fn seconds(run: &mut dyn FnMut()) -> f64 {
    const LEAST: f64 = 0.002;
    run();
    let mut calls = 1u32;
    let mut best = f64::INFINITY;
    let (mut runs, mut total) = (0, 0.0);
    while runs < 5 || (runs < 50 && total < 0.3) {
        let start = thread_seconds();
        for _ in 0..calls {
            run();
        }
        let elapsed = thread_seconds() - start;
        if elapsed < LEAST {
            calls *= 2;
            continue;
        }
        best = best.min(elapsed / f64::from(calls));
        runs += 1;
        total += elapsed;
    }
    best
}

/// What this machine offers; on AArch64 only NEON, which is all that the kernels ask for.
fn here() -> FeatureSet {
    FeatureSet::detect()
}

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let features = here();
    let memory = limits::memory_bytes_per_second();
    println!("memory: {:.1} GB/s read", memory / 1e9);
    let mut peaks = Vec::new();
    for &isa in Isa::ALL.iter().filter(|isa| features.contains(isa.required())) {
        let (flops, int8) = (limits::flops_per_second(isa), limits::int8_ops_per_second(isa));
        println!("{}: {:.1} GFLOP/s peak, int8 {:.1} GOP/s peak", isa.name(), flops / 1e9, int8 / 1e9);
        peaks.push((isa, flops, int8));
    }
    println!(
        "{:1} {:36} {:34} {:>10} {:>9} {:>6} {:>8} {:>6}",
        "", "kernel", "shape", "µs", "GFLOP/s", "% peak", "GB/s", "% mem"
    );
    let (mut run, mut skipped) = (0, Vec::new());
    for row in kernels() {
        if !filters.is_empty() && !filters.iter().any(|filter| row.name.contains(filter.as_str())) {
            continue;
        }
        let Some(function) = resolve_for(row.name, &features) else {
            skipped.push(row.name);
            continue;
        };
        run += 1;
        let picked = select(row.op, &features, row.weight).is_some_and(|best| best.name == row.name);
        let quantized = row.tile.mr > 0 && matches!(row.weight, WeightType::I8 | WeightType::I4);
        let peak = peaks.iter().find(|(isa, ..)| *isa == row.isa);
        let peak = peak.map_or(0.0, |&(_, flops, int8)| if quantized { int8 } else { flops });
        for mut work in cases::of(row, function) {
            let seconds = seconds(&mut work.run);
            let (flops, bytes) = (work.flops / seconds, work.bytes / seconds);
            println!(
                "{:1} {:36} {:34} {:>10.2} {:>9.1} {:>6.0} {:>8.2} {:>6.0}",
                if picked { "*" } else { "" },
                row.name,
                work.shape,
                seconds * 1e6,
                flops / 1e9,
                100.0 * flops / peak,
                bytes / 1e9,
                100.0 * bytes / memory,
            );
        }
    }
    println!("{run} kernels measured; {} not for this machine: {}", skipped.len(), skipped.join(" "));
}

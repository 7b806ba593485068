//! What this machine can do at most, measured: multiply-adds per second and bytes read per second.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::Context;
use lapidary_kernels::{Isa, limits};
use lapidary_runtime::Host;
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

/// Measured limits of a number of threads together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// f32 multiply-adds per second.
    pub multiply_adds_per_s: f64,
    /// int8 multiply-adds per second.
    pub int8_multiply_adds_per_s: f64,
    /// Bytes read per second from a buffer far larger than the caches of a small machine.
    pub bytes_per_s: f64,
}

/// Bytes that each thread reads.
const BUFFER_BYTES: usize = 256 << 20;
/// Iterations of the multiply-add loop: some 50 ms.
const ITERATIONS: u64 = 20_000_000;

/// Iterations of the int8 loops: some milliseconds.
const INT8_ITERATIONS: u64 = 500_000;

/// Measures all three; the best of five rounds, since the machine may be shared.
pub fn measure(threads: usize) -> anyhow::Result<Limits> {
    let per_second = |work: &(dyn Fn() -> u64 + Sync)| (0..5).map(|_| together(threads, work)).fold(0.0, f64::max);
    let multiply_adds_per_s = per_second(&|| limits::multiply_adds(ITERATIONS));
    // Large pages, so that the limit is memory and not the translation of addresses.
    let mut buffer = MmapMut::map_anon(BUFFER_BYTES).context("no memory to measure its bandwidth with")?;
    #[cfg(target_os = "linux")]
    buffer
        .advise(Advice::HugePage)
        .or_else(|e| if e.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(e) })?;
    buffer.fill(1);
    let bytes_per_s = per_second(&|| {
        std::hint::black_box(limits::read(&buffer));
        BUFFER_BYTES as u64
    });
    Ok(Limits { multiply_adds_per_s, int8_multiply_adds_per_s: int8_multiply_adds_per_s(threads), bytes_per_s })
}

/// int8 multiply-adds per second of that many threads together, by the best way that this machine has; the best of five
/// rounds.
pub fn int8_multiply_adds_per_s(threads: usize) -> f64 {
    let features = Host::detect().features();
    let ways = Isa::ALL.iter().filter_map(|&isa| limits::int8_multiply_adds(isa, &features));
    ways.flat_map(|run| {
        (0..5).map(move |_| {
            together(threads, &|| {
                // SAFETY: the features are this machine's.
                unsafe { run(INT8_ITERATIONS) }
            })
        })
    })
    .fold(0.0, f64::max)
}

/// Runs `work` on all threads at once; units of work per second, all threads together.
fn together(threads: usize, work: &(dyn Fn() -> u64 + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = Instant::now();
                    let done = work();
                    (done, start, Instant::now())
                })
            })
            .collect();
        let results: Vec<_> = handles.into_iter().filter_map(|h| h.join().ok()).collect();
        let done: u64 = results.iter().map(|(done, ..)| done).sum();
        let begin = results.iter().map(|(_, begin, _)| *begin).min();
        let end = results.iter().map(|(.., end)| *end).max();
        match (begin, end) {
            (Some(begin), Some(end)) => done as f64 / (end - begin).as_secs_f64(),
            _ => 0.0,
        }
    })
}

/// CPU seconds that this thread has used.
pub fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

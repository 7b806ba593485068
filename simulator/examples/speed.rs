//! Simulated cycles per CPU-second on the 180 products of a MiniLM forward (six blocks, hidden 384, 12 heads, FFN 1536, 128 tokens).
//!
//! `cargo run --release -p lapidary-simulator --example speed -- [MACHINE] [KEY=VALUE…]`

#[path = "../tests/common/gemm.rs"]
#[allow(dead_code)]
mod gemm;

use std::time::Instant;

use gemm::Gemm;
use lapidary_npu_isa::Machine;
use lapidary_simulator::{Options, Simulator};

/// The products of one block, with how often each comes.
const BLOCK: [(u64, Gemm); 5] = [
    (4, Gemm { m: 128, n: 384, k: 384 }),
    (12, Gemm { m: 128, n: 128, k: 32 }),
    (12, Gemm { m: 128, n: 32, k: 128 }),
    (1, Gemm { m: 128, n: 1536, k: 384 }),
    (1, Gemm { m: 128, n: 384, k: 1536 }),
];

/// Seconds of this process on a CPU where the system says so, otherwise on the wall.
fn seconds(begin: Instant) -> f64 {
    let on_cpu = std::fs::read_to_string("/proc/self/schedstat").ok();
    let nanos = on_cpu.as_deref().and_then(|text| text.split(' ').next()).and_then(|first| first.parse::<u64>().ok());
    nanos.map_or_else(|| begin.elapsed().as_secs_f64(), |nanos| nanos as f64 / 1e9)
}

#[allow(clippy::print_stdout)]
fn main() {
    let begin = Instant::now();
    let mut arguments = std::env::args().skip(1);
    let mut machine = Machine::preset(&arguments.next().unwrap_or("edge-32".into())).expect("a preset");
    for pair in arguments {
        let (key, value) = Machine::pair(&pair).expect("key=value");
        machine.set(key, value).expect("a setting");
    }
    for values in [false, true] {
        let (mut cycles, mut requests, mut products) = (0, 0, 0);
        let before = seconds(begin);
        for _ in 0..6 {
            for (count, gemm) in BLOCK {
                for _ in 0..count {
                    let program = gemm::product(gemm, &machine);
                    let options = Options { values, ..Options::default() };
                    let run = Simulator::new(&program, &machine, options).and_then(Simulator::run).expect("a run");
                    cycles += run.report.cycles;
                    requests += run.report.dram.requests;
                    products += 1;
                }
            }
        }
        let seconds = seconds(begin) - before;
        let what = if values { "values and cycles" } else { "cycles only" };
        let rate = cycles as f64 / seconds / 1e6;
        println!(
            "{what}: {products} products, {cycles} cycles, {requests} requests in {seconds:.3} s: {rate:.1} M cycles/s"
        );
    }
}

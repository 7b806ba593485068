//! An independent reference for instruction values, written from ISA.md alone, and what the simulator is held to with it.
//!
//! Of ours it uses `lapidary-npu-isa` for machines and to hand words to the simulator; opcodes and operand bits come from
//! the text of ISA.md ([`spec`]). `LAPIDARY_TEST=full` runs the large counts.

mod builder;
mod cases;
mod dice;
mod dma;
mod matrix;
mod memory;
mod numbers;
mod products;
mod programs;
mod route;
mod sequencer;
mod simulated;
mod spec;
mod vector;

mod tests_numbers;
mod tests_oracle;
mod tests_quantization;
mod tests_sequencer;
mod tests_simulator;

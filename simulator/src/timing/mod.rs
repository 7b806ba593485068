//! The timing model: what happens when, by the rules of `ISA.md`.
//!
//! * [`engine`]: the clock, which jumps from event to event; queues, tokens, units, the sequencer's turns.
//! * [`dma`]: channels and their requests; [`requests`]: which bursts; [`dram`]: what a burst costs.
//! * [`banks`]: who holds which bank of the scratchpad.
//!
//! It executes nothing: instructions come with everything that time depends on ([`work`]).

pub(crate) mod banks;
pub(crate) mod dma;
pub(crate) mod dram;
pub(crate) mod engine;
pub(crate) mod requests;
pub(crate) mod work;

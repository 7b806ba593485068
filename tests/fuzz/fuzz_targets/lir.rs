//! Any `.lir` text: parser, verifier, passes, memory plan.
#![no_main]

use lapidary_fuzz::{consume, hold};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hold(consume::lir(bytes)));

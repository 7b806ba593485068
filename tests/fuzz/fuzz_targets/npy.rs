//! Any `.npy` of token ids.
#![no_main]

use lapidary_fuzz::{consume, hold};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hold(consume::npy(bytes)));

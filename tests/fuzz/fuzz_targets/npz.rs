//! Any `.npz` of reference outputs, and comparing with them.
#![no_main]

use lapidary_fuzz::{consume, hold};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hold(consume::npz(bytes)));

//! Artifacts whose checksums are right: structure, tables, padding. Nothing is executed.
#![no_main]

use lapidary_fuzz::{consume, hold, mutate};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    mutate::reseal(&mut bytes, true);
    hold(consume::artifact(&bytes));
});

//! Any `tokenizer.json`: reading, encoding, decoding, streaming. The library's own panics are errors, and the hook that ends
//! the fuzzer at a panic is told so.
#![no_main]

use lapidary_fuzz::{consume, hold};

libfuzzer_sys::fuzz_target!(
    init: {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !lapidary_runtime::panic_is_contained() {
                hook(info);
            }
        }));
    },
    |bytes: &[u8]| hold(consume::tokenizer(bytes))
);

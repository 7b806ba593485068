//! A tiny model's folder with any `model.safetensors`.
#![no_main]

use std::sync::LazyLock;

use lapidary_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new("model.safetensors"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| FOLDER.import(bytes));

//! A tiny model's folder with any `config.json`.
#![no_main]

use std::sync::LazyLock;

use lapidary_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new("config.json"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| FOLDER.import(bytes));

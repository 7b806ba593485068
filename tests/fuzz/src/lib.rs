//! What the fuzz targets share with the test of damaged files (`tests/hostile`): the readers of each format, and small
//! good files.

#[path = "../../hostile/consume.rs"]
pub mod consume;
#[path = "../../../src/difference.rs"]
pub mod difference;
#[path = "../../hostile/fixtures.rs"]
pub mod fixtures;
#[path = "../../hostile/mutate.rs"]
pub mod mutate;
#[path = "../../../src/npy.rs"]
pub mod npy;
#[path = "../../../src/reference.rs"]
pub mod reference;

use std::path::PathBuf;

/// Panics when a reader broke a rule.
pub fn hold(outcome: consume::Outcome) {
    if let Err(rule) = outcome {
        panic!("{rule}");
    }
}

/// A tiny model's folder, one file of which the fuzzer replaces.
pub struct Folder {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Folder {
    /// With good files.
    pub fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fixtures::write_model(folder.path(), &fixtures::VARIANTS[0]);
        let file = folder.path().join(name);
        Self { folder, file }
    }

    /// Imports the model with these bytes in place of the file.
    pub fn import(&self, bytes: &[u8]) {
        std::fs::write(&self.file, bytes).expect("a writable folder");
        hold(consume::folder(self.folder.path(), &self.file));
    }
}

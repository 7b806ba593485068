//! What several test files need: the models in `tests/models` and their reference outputs.

use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadableElement};

/// `tests/models` of the repository.
pub fn models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models")
}

/// All random models, by name; panics when there are none.
#[allow(dead_code, reason = "each test file is a crate of its own")]
pub fn random_models() -> Vec<PathBuf> {
    let dir = models_dir().join("random");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut out: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    out.sort();
    assert!(!out.is_empty(), "{}: no models", dir.display());
    out
}

/// The arrays of an `.npz` file.
pub struct Npz {
    reader: NpzReader<File>,
    names: Vec<String>,
}

#[allow(dead_code, reason = "each test file is a crate of its own")]
impl Npz {
    pub fn open(path: &Path) -> Npz {
        let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut reader = NpzReader::new(file).unwrap();
        let names = reader.names().unwrap();
        Npz { reader, names }
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// Keys `prompt.000`, `prompt.001`, …
    pub fn prompts(&self) -> Vec<String> {
        let all = (0..1000).map(|i| format!("prompt.{i:03}"));
        all.take_while(|p| self.has(&format!("{p}.ids"))).collect()
    }

    pub fn get<T: ReadableElement>(&mut self, name: &str) -> Vec<T> {
        let array: ArrayD<T> =
            self.reader.by_name::<OwnedRepr<T>, IxDyn>(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        array.into_iter().collect()
    }

    pub fn ids(&mut self, prompt: &str) -> Vec<u32> {
        self.get::<i64>(&format!("{prompt}.ids")).into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }
}

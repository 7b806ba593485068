//! Where a model comes from: a GEM folder, a preset, or `.lir` text.
//!
//! ```
//! use lapidary_compiler::import::{ImportOptions, load};
//! let model = load("preset:gem-tiny", &ImportOptions::default()).unwrap();
//! assert_eq!(model.graph.info.num_layers, 2);
//! ```

pub mod checkpoint;
mod config;
mod emit;
mod presets;
mod tensors;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::interp::Interpreter;
use crate::ir::{Graph, NoSource, ParseError, Storage, VerifyError, WeightDef, WeightSource, parse};
use checkpoint::Checkpoint;
pub use config::{AttentionConfig, ConfigError, GemConfig, ScarConfig, TokenRouterConfig};
pub use emit::{ImportOptions, emit};
pub use presets::{PRESETS, Preset, PresetWeights, Sizes, preset, preset_config};
pub use tensors::{TensorSpec, tensor_count, tensors};

/// Largest `config.json` and `tokenizer.json`, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TOKENIZER_BYTES: u64 = 1 << 28;

/// Why a model could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// `what: wanted …, found …`.
        message: String,
    },
    /// A config value that cannot be.
    #[error("{}: {error}", path.display())]
    Config {
        /// The folder, or the preset.
        path: PathBuf,
        /// Which value.
        error: ConfigError,
    },
    /// A tensor is missing, unknown, or not as the config promises.
    #[error("{}: tensor {name}: wanted {wanted}, found {found}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What would do.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// A `.lir` file does not parse.
    #[error("{}:{error}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Where and what.
        error: ParseError,
    },
    /// A graph that is not valid.
    #[error("{}: {error}", path.display())]
    Graph {
        /// The file or the preset.
        path: PathBuf,
        /// Where and what.
        error: VerifyError,
    },
    /// No such preset.
    #[error("preset {name}: wanted one of {known}, found no such preset")]
    UnknownPreset {
        /// Asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// A model, ready for the passes.
#[derive(Clone)]
pub struct ImportedModel {
    /// Verified.
    pub graph: Graph,
    /// The numbers of its stored weights.
    pub source: Arc<dyn WeightSource>,
    /// The bytes of `tokenizer.json`, if there is one.
    pub tokenizer: Option<Vec<u8>>,
}

impl ImportedModel {
    /// The reference interpreter on the imported graph.
    pub fn interpreter(&self) -> Interpreter<'_> {
        Interpreter::new(&self.graph, &*self.source)
    }
}

/// Imports `preset:NAME`, a `.lir` file, or a model's folder.
pub fn load(model: &str, options: &ImportOptions) -> Result<ImportedModel, ImportError> {
    let path = Path::new(model);
    match model.strip_prefix("preset:") {
        Some(name) => preset(name, options),
        None if path.extension().is_some_and(|e| e == "lir") => load_lir(path),
        None => load_gem(path, options),
    }
}

/// Imports a GEM folder: `config.json`, `*.safetensors`, `tokenizer.json` if there is one.
pub fn load_gem(folder: &Path, options: &ImportOptions) -> Result<ImportedModel, ImportError> {
    let config_path = folder.join("config.json");
    let text = read_text(&config_path, MAX_CONFIG_BYTES)?;
    let in_config = |error| ImportError::Config { path: folder.into(), error };
    let config = GemConfig::parse(&text).map_err(in_config)?;
    let checkpoint = Checkpoint::open(folder)?;
    // Before the list of what is wanted, which a small config can make very long, is made.
    check_tensor_count(folder, &checkpoint, tensor_count(&config))?;
    let specs = tensors(&config).map_err(in_config)?;
    check_tensors(folder, &checkpoint, &specs)?;

    let name = folder.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    let mut graph = emit(&config, &specs, &name.unwrap_or_default(), options, |_, spec| {
        let stored = checkpoint.get(&spec.name).expect("checked above");
        (Storage::of_dtype(stored.dtype).expect("a checkpoint has floats only"), WeightDef::Stored)
    })
    .map_err(|error| ImportError::Graph { path: folder.into(), error })?;
    graph.info.config_json = text;
    graph.info.source_digest = digest_of(&graph.info.config_json, &checkpoint);

    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = match tokenizer_path.exists() {
        true => Some(read_bytes(&tokenizer_path, MAX_TOKENIZER_BYTES)?),
        false => None,
    };
    Ok(ImportedModel { graph, source: Arc::new(checkpoint), tokenizer })
}

/// The digest of a model's folder, [`ModelInfo::source_digest`](crate::ir::ModelInfo::source_digest): BLAKE3 over, for
/// `config.json` and then each safetensors file by name, the file's length in bytes as u64 (little-endian) and its bytes.
pub fn source_digest(folder: &Path) -> Result<[u8; 32], ImportError> {
    let config = read_text(&folder.join("config.json"), MAX_CONFIG_BYTES)?;
    Ok(digest_of(&config, &Checkpoint::open(folder)?))
}

fn digest_of(config: &str, checkpoint: &Checkpoint) -> [u8; 32] {
    let mut digest = Digest::default();
    digest.add(config.as_bytes());
    checkpoint.file_bytes().for_each(|bytes| digest.add(bytes));
    digest.finish()
}

/// More tensors may be wanted than there are, which is then said by name, but not by far.
fn check_tensor_count(folder: &Path, checkpoint: &Checkpoint, wanted: u64) -> Result<(), ImportError> {
    const FEW: u64 = 1000;
    let found = checkpoint.tensors().count() as u64;
    match wanted <= found + FEW {
        true => Ok(()),
        false => Err(ImportError::File {
            path: folder.into(),
            message: format!("tensors: wanted {wanted}, as config.json says, found {found}"),
        }),
    }
}

/// Every expected tensor is there with its shape, and no other.
fn check_tensors(folder: &Path, checkpoint: &Checkpoint, specs: &[TensorSpec]) -> Result<(), ImportError> {
    let error = |path: &Path, name: &str, wanted: &str, found: String| {
        let name = name.chars().take(200).collect();
        Err(ImportError::Tensor { path: path.into(), name, wanted: wanted.into(), found })
    };
    let known: std::collections::HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    if let Some((name, stored)) = checkpoint.tensors().find(|(name, _)| !known.contains(name)) {
        let found = format!("{}{:?}", stored.dtype, stored.shape);
        return error(checkpoint.path_of(stored), name, "no such tensor for this config.json", found);
    }
    for spec in specs {
        match checkpoint.get(&spec.name) {
            Some(stored) if stored.shape == spec.shape => {}
            Some(stored) => {
                let found = format!("{:?}", stored.shape);
                return error(checkpoint.path_of(stored), &spec.name, &format!("shape {:?}", spec.shape), found);
            }
            None => {
                return error(folder, &spec.name, &format!("a tensor of shape {:?}", spec.shape), "none".into());
            }
        }
    }
    Ok(())
}

/// Imports a `.lir` file. Stored weights come from the `.safetensors` file of the same stem beside it, or else from the
/// safetensors files of its folder. A file that names no digest gets BLAKE3 of its text.
pub fn load_lir(path: &Path) -> Result<ImportedModel, ImportError> {
    let text = read_text(path, crate::ir::limits::MAX_TEXT_BYTES as u64)?;
    let mut graph = parse(&text).map_err(|error| ImportError::Text { path: path.into(), error })?;
    graph.verify().map_err(|error| ImportError::Graph { path: path.into(), error })?;
    if graph.info.source_digest == [0; 32] {
        graph.info.source_digest = *blake3::hash(text.as_bytes()).as_bytes();
    }
    let stored: Vec<_> = graph.weights.iter().filter(|w| w.def == WeightDef::Stored).collect();
    if stored.is_empty() {
        return Ok(ImportedModel { graph, source: Arc::new(NoSource), tokenizer: None });
    }
    let beside = path.with_extension("safetensors");
    let checkpoint = match beside.is_file() {
        true => Checkpoint::open_files(vec![beside])?,
        false => Checkpoint::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?,
    };
    for weight in stored {
        let found = checkpoint.get(&weight.name).map(|t| t.shape.clone());
        if found.as_ref() != Some(&weight.shape) {
            let found = found.map_or("no such tensor beside the file".into(), |s| format!("shape {s:?}"));
            let wanted = format!("shape {:?}", weight.shape);
            return Err(ImportError::Tensor { path: path.into(), name: weight.name.clone(), wanted, found });
        }
    }
    Ok(ImportedModel { graph, source: Arc::new(checkpoint), tokenizer: None })
}

/// A digest over several byte strings, each with its length.
#[derive(Default)]
pub(crate) struct Digest(blake3::Hasher);

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// Opens a file and nothing else: a pipe would be waited for, and a device may never end.
fn open_file(path: &Path) -> std::io::Result<std::fs::File> {
    let metadata = std::fs::metadata(path)?;
    match metadata.is_file() {
        true => std::fs::File::open(path),
        false => {
            let found = if metadata.is_dir() { "a folder" } else { "a device or a pipe" };
            Err(std::io::Error::other(format!("wanted a regular file, found {found}")))
        }
    }
}

fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ImportError> {
    let io = |source| ImportError::Io { path: path.into(), source };
    let mut out = Vec::new();
    let file = open_file(path).map_err(io)?;
    file.take(max_bytes + 1).read_to_end(&mut out).map_err(io)?;
    match out.len() as u64 > max_bytes {
        true => Err(ImportError::File {
            path: path.into(),
            message: format!("size: wanted at most {max_bytes} bytes, found more"),
        }),
        false => Ok(out),
    }
}

fn read_text(path: &Path, max_bytes: u64) -> Result<String, ImportError> {
    String::from_utf8(read_bytes(path, max_bytes)?)
        .map_err(|e| ImportError::File { path: path.into(), message: format!("text: wanted UTF-8, found: {e}") })
}

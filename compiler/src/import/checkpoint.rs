//! Tensors in `*.safetensors` files, mapped into memory and read row by row.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::ImportError;
use crate::ir::{DType, WeightSource};

/// Name of the index of a sharded checkpoint.
const INDEX: &str = "model.safetensors.index.json";
/// Largest index file, in bytes.
const MAX_INDEX_BYTES: u64 = 1 << 27;

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub struct Stored {
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// As in the file.
    pub shape: Vec<u64>,
    file: usize,
    /// Of its data in the file.
    bytes: std::ops::Range<usize>,
}

/// All tensors of a folder. Names are checked against a model by the importer.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Maps the safetensors files of a folder: those that the index names, or, without an index, all.
    pub fn open(folder: &Path) -> Result<Checkpoint, ImportError> {
        let index = folder.join(INDEX);
        if !index.is_file() {
            return Self::open_files(safetensors_files(folder)?);
        }
        let map = read_index(&index)?;
        let mut names: Vec<&String> = map.values().collect();
        names.sort();
        names.dedup();
        let checkpoint = Self::open_files(names.into_iter().map(|n| folder.join(n)).collect())?;
        for (tensor, file) in &map {
            let found = checkpoint.tensors.get(tensor).map(|t| &checkpoint.files[t.file].0);
            if found != Some(&folder.join(file)) {
                let found = found.map_or("in none".into(), |f| format!("in {}", f.display()));
                return Err(tensor_error(&index, tensor, &format!("in {file}"), &found));
            }
        }
        match checkpoint.tensors.keys().find(|name| !map.contains_key(*name)) {
            Some(name) => Err(tensor_error(&index, name, "a line for each tensor of its files", "none")),
            None => Ok(checkpoint),
        }
    }

    /// Maps these files.
    pub fn open_files(paths: Vec<PathBuf>) -> Result<Checkpoint, ImportError> {
        let mut out = Checkpoint { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            out.add_file(path)?;
        }
        Ok(out)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), ImportError> {
        let io = |source| ImportError::Io { path: path.clone(), source };
        let file = super::open_file(&path).map_err(io)?;
        // SAFETY: the map is only ever read as bytes. Changing the file meanwhile is outside of what can be guarded
        // against, as for every program that maps its input; every access stays within the length mapped here.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let bad = |message: String| ImportError::File { path: path.clone(), message };
        let (header_len, header) = SafeTensors::read_metadata(&map)
            .map_err(|e| bad(format!("safetensors header: wanted a valid one, found: {e}")))?;
        let data = header_len.saturating_add(8);
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let dtype = match info.dtype {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(tensor_error(&path, &name, "F32, F16 or BF16", &format!("{other:?}"))),
            };
            let shape: Vec<u64> = info.shape.iter().map(|n| *n as u64).collect();
            let (begin, end) = info.data_offsets;
            let bytes = data.saturating_add(begin)..data.saturating_add(end);
            let size = shape.iter().try_fold(dtype.bytes(), |size, n| size.checked_mul(*n));
            let len = bytes.end.checked_sub(bytes.start).map(|n| n as u64);
            if bytes.end > map.len() || size.is_none() || size != len {
                let found = format!("bytes {begin}..{end} of {}", map.len().saturating_sub(data));
                return Err(tensor_error(&path, &name, &format!("data for {dtype}{shape:?} in the file"), &found));
            }
            let stored = Stored { dtype, shape, file: self.files.len(), bytes };
            if let Some(first) = self.tensors.insert(name.clone(), stored) {
                let found = format!("it in {} too", self.files[first.file].0.display());
                return Err(tensor_error(&path, &name, "each tensor once", &found));
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    /// All tensors by name, in order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// The file that a tensor lies in.
    pub fn path_of(&self, tensor: &Stored) -> &Path {
        &self.files[tensor.file].0
    }

    /// The whole files' bytes, in the order of their names.
    pub fn file_bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|(_, map)| &map[..])
    }

    /// Bytes of `elems` elements of a tensor from the first of a row on.
    fn row_bytes(&self, name: &str, first_row: u64, elems: usize) -> Result<(DType, &[u8]), String> {
        let t = self.tensors.get(name).ok_or_else(|| format!("tensor {name}: wanted it, found none"))?;
        let cols = t.shape.last().copied().unwrap_or(1);
        let size = t.dtype.bytes() as usize;
        let begin = usize::try_from(first_row.saturating_mul(cols)).unwrap_or(usize::MAX).saturating_mul(size);
        let end = begin.saturating_add(elems.saturating_mul(size));
        let bytes = self.files[t.file].1.get(t.bytes.clone()).and_then(|all| all.get(begin..end));
        let bytes = bytes.ok_or_else(|| {
            format!(
                "tensor {name}: wanted rows of {:?}, found {elems} elements from row {first_row} asked for",
                t.shape
            )
        })?;
        Ok((t.dtype, bytes))
    }
}

impl WeightSource for Checkpoint {
    fn read_rows(&self, name: &str, first_row: u64, out: &mut [f32]) -> Result<(), String> {
        let (dtype, bytes) = self.row_bytes(name, first_row, out.len())?;
        match dtype {
            DType::F32 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
            DType::F16 => {
                let mut block = [f16::ZERO; 256];
                for (out, bytes) in out.chunks_mut(256).zip(bytes.chunks(512)) {
                    let block = &mut block[..out.len()];
                    block.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(x, b)| *x = f16::from_le_bytes(*b));
                    block.convert_to_f32_slice(out);
                }
            }
            DType::BF16 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = bf16::from_le_bytes(*b).to_f32();
                }
            }
            DType::U32 | DType::U8 => return Err(format!("tensor {name}: wanted a float type, found {dtype}")),
        }
        Ok(())
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).map(|t| t.dtype)
    }

    fn read_f16_bits(&self, name: &str, first_row: u64, out: &mut [u16]) -> Result<bool, String> {
        if self.stored_dtype(name) != Some(DType::F16) {
            return Ok(false);
        }
        let (_, bytes) = self.row_bytes(name, first_row, out.len())?;
        out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(x, b)| *x = u16::from_le_bytes(*b));
        Ok(true)
    }
}

fn tensor_error(path: &Path, name: &str, wanted: &str, found: &str) -> ImportError {
    ImportError::Tensor {
        path: path.into(),
        name: name.chars().take(200).collect(),
        wanted: wanted.into(),
        found: found.into(),
    }
}

/// The folder's `*.safetensors`, by name; at least one.
fn safetensors_files(folder: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let io = |source| ImportError::Io { path: folder.into(), source };
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    match out.is_empty() {
        false => Ok(out),
        true => {
            Err(ImportError::File { path: folder.into(), message: "weights: wanted *.safetensors, found none".into() })
        }
    }
}

/// `weight_map` of an index: tensor → file, files being plain names within the folder.
fn read_index(path: &Path) -> Result<HashMap<String, String>, ImportError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let text = super::read_text(path, MAX_INDEX_BYTES)?;
    let bad = |message: String| ImportError::File { path: path.into(), message };
    let index: Index =
        serde_json::from_str(&text).map_err(|e| bad(format!("index: wanted a weight_map, found: {e}")))?;
    let plain = |f: &String| f.ends_with(".safetensors") && Path::new(f).file_name().is_some_and(|n| n == f.as_str());
    match index.weight_map.values().find(|f| !plain(f)) {
        Some(file) => Err(bad(format!("weight_map: wanted names of safetensors files in the folder, found {file:?}"))),
        None => Ok(index.weight_map),
    }
}

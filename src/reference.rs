//! Reference outputs of a model: a `.npz` of prompts with what PyTorch (or another run) gave for each.
//!
//! Arrays are named `prompt.NNN.NAME`, or just `NAME` for a file of one prompt; names are those of the plain outputs (`logits`,
//! `domains`, `modules.l`, `gates.l`, `output`) with, beside them, `ids` (int64 `[T]`), `logits_rows` (which rows
//! of the logits are stored; absent: all), `scores.l` (the scores that modules were selected by), `greedy` (greedy
//! continuation) and `greedy_margin` (how far apart the two best logits were at each step).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use crate::npy;

/// Longest file that is read.
const MAX_FILE_BYTES: u64 = u32::MAX as u64;

/// Rows of numbers: what every output becomes for comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Elements of a row.
    pub cols: usize,
    /// Row-major.
    pub data: Vec<f32>,
}

impl Rows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.cols).unwrap_or(0)
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }
}

/// One prompt and what is known of it.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// `000`, or empty.
    pub name: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// `logits`, `domains`, `modules.l`, `gates.l`, `scores.l`, `output`.
    pub outputs: BTreeMap<String, Rows>,
    /// Rows of the logits that are stored; `None`: all.
    pub logits_rows: Option<Vec<usize>>,
    /// Greedy continuation.
    pub greedy: Vec<u32>,
    /// Distance of the two best logits at each step of it.
    pub greedy_margin: Vec<f32>,
}

/// Token ids of a `.npy` file's bytes: int64 `[T]`.
pub fn token_ids(file: &[u8]) -> anyhow::Result<Vec<u32>> {
    let array = npy::parse(file)?;
    if array.shape.len() != 1 {
        bail!("shape: wanted int64 [T], found {:?}", array.shape);
    }
    let ids = array.integers()?.into_iter().enumerate();
    ids.map(|(i, id)| u32::try_from(id).with_context(|| format!("element {i}: wanted a token id, found {id}")))
        .collect()
}

/// Reads all prompts of a file, in order.
pub fn read(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let file = npy::read_file(path, MAX_FILE_BYTES)?;
    parse(&file).with_context(|| path.display().to_string())
}

/// [`read`] from the file's bytes.
pub fn parse(file: &[u8]) -> anyhow::Result<Vec<Prompt>> {
    let mut prompts: BTreeMap<String, Prompt> = BTreeMap::new();
    for entry in npy::archive(file)? {
        let array = entry.name;
        let (prompt, name) = split_name(array);
        let slot =
            prompts.entry(prompt.to_string()).or_insert_with(|| Prompt { name: prompt.into(), ..Prompt::default() });
        let place = || format!("array {array}");
        let bytes = entry.read().with_context(place)?;
        let value = npy::parse(&bytes).with_context(place)?;
        match name {
            "ids" | "greedy" => {
                let ids = value.integers().with_context(place)?;
                let ids = ids.into_iter().map(u32::try_from).collect::<Result<_, _>>();
                let ids = ids.with_context(|| format!("{}: wanted token ids", place()))?;
                if name == "ids" { slot.ids = ids } else { slot.greedy = ids }
            }
            "logits_rows" => {
                let rows = value.integers().with_context(place)?;
                let rows = rows.into_iter().map(usize::try_from).collect::<Result<_, _>>();
                slot.logits_rows = Some(rows.with_context(|| format!("{}: wanted row numbers", place()))?);
            }
            "greedy_margin" => slot.greedy_margin = value.floats().with_context(place)?,
            _ => {
                slot.outputs.insert(name.to_string(), rows(name, &value).with_context(place)?);
            }
        }
    }
    let prompts: Vec<Prompt> = prompts.into_values().collect();
    for prompt in &prompts {
        check(prompt).with_context(|| format!("prompt {}", prompt.name))?;
    }
    if prompts.is_empty() {
        bail!("wanted arrays named prompt.NNN.NAME or NAME, found none");
    }
    Ok(prompts)
}

/// `prompt.000.logits` → (`000`, `logits`).
fn split_name(array: &str) -> (&str, &str) {
    array.strip_prefix("prompt.").and_then(|rest| rest.split_once('.')).unwrap_or(("", array))
}

fn check(prompt: &Prompt) -> anyhow::Result<()> {
    let tokens = prompt.ids.len();
    if tokens == 0 {
        bail!("ids: wanted at least one token, found none");
    }
    for (name, value) in &prompt.outputs {
        let stored = prompt.logits_rows.as_ref().map(Vec::len);
        let wanted = match name.as_str() {
            "logits" => stored.unwrap_or(tokens),
            "output" => 1,
            _ => tokens,
        };
        if value.rows() != wanted {
            bail!("{name}: wanted {wanted} rows, found {}", value.rows());
        }
    }
    if let Some(row) = prompt.logits_rows.iter().flatten().find(|row| **row >= tokens) {
        bail!("logits_rows: wanted rows below {tokens}, found {row}");
    }
    Ok(())
}

/// Floats or bytes as rows; a vector is one row per element, but for `output`, which is one per sequence.
fn rows(name: &str, array: &npy::Array<'_>) -> anyhow::Result<Rows> {
    let cols = match *array.shape.as_slice() {
        [n] if name == "output" => n,
        [_, cols] => cols,
        _ => 1,
    };
    Ok(Rows { cols, data: array.floats()? })
}

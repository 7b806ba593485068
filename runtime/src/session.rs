//! One sequence: its memory, its position, its calls.

use std::{
    boxed::Box,
    io,
    path::Path,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use lapidary_format::{Dtype, Head, ManifestFlags, Port, abi::Counter};
use thiserror::Error;

use crate::{Call, Executor, LoadError, Model, Observer, ParallelFor, RunError, ShortText, View, mapping::Pages};

/// Why a session cannot begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The operating system has not the memory.
    #[error(
        "{}: {what}, wanted {wanted} bytes of memory, found: {source}\n\
         hint: compile the model with a smaller `--max-tokens`", path.display()
    )]
    Memory {
        /// The artifact.
        path: Box<Path>,
        /// Arena or state.
        what: &'static str,
        /// Its size.
        wanted: u64,
        /// The answer of the operating system.
        source: io::Error,
    },
    /// Memory or code do not fit the program.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// One sequence of a model. Several sessions share a model and a pool.
pub struct Session {
    // Borrows from all the others, and is dropped first.
    executor: Executor<'static>,
    _arena: Pages,
    _state: Pages,
    _parallel: Arc<dyn ParallelFor + Send>,
    model: Arc<Model>,
}

impl Session {
    /// Begins a sequence. Memory is taken from the operating system as it is touched.
    ///
    /// `parallel` brings the threads: a [`ThreadPool`](crate::ThreadPool), or what else there is.
    pub fn new(model: Arc<Model>, parallel: Arc<dyn ParallelFor + Send>) -> Result<Self, SessionError> {
        let plan = *model.artifact().plan();
        let pages = |what, wanted| {
            Pages::new(wanted).map_err(|source| SessionError::Memory {
                path: model.file().path().into(),
                what,
                wanted,
                source,
            })
        };
        let mut arena = pages("arena", plan.arena_bytes)?;
        let mut state = pages("state", plan.state_bytes)?;
        let threads: *const (dyn ParallelFor + Send) = Arc::as_ptr(&parallel);
        // SAFETY: the executor below lives beside the model, in this structure, and is dropped first.
        let (program, code) = unsafe { model.parts() };
        // SAFETY: likewise, and each is called once.
        let (arena_bytes, state_bytes) = unsafe { (arena.bytes(), state.bytes()) };
        // SAFETY: likewise; an `Arc` keeps its contents at their address.
        let threads: &'static dyn ParallelFor = unsafe { &*threads };
        Ok(Self {
            executor: Executor::new(program, code, arena_bytes, state_bytes, threads)?,
            _arena: arena,
            _state: state,
            _parallel: parallel,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens of the sequence so far.
    pub fn position(&self) -> u64 {
        self.executor.position()
    }

    /// Begins a new sequence.
    pub fn reset(&mut self) {
        self.executor.reset();
    }

    /// Appends tokens, in as many calls as the compiled chunk demands; the last token goes through the head.
    ///
    /// All is checked before the first call: after an error the sequence is as it was.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<(), RunError> {
        self.prefill_with(ids, None, &mut |_, _| ())
    }

    /// [`Session::prefill`] with an observer of the steps; `after_call` sees the session with the outputs of each
    /// call, and the tokens of that call.
    pub fn prefill_with(
        &mut self,
        ids: &[u32],
        observer: Option<&dyn Observer>,
        after_call: &mut dyn FnMut(&Self, &[u32]),
    ) -> Result<(), RunError> {
        let manifest = *self.manifest();
        let whole = manifest.flags.contains(ManifestFlags::WHOLE_SEQUENCE);
        check_whole(ids, self.position(), manifest.vocab_size, manifest.max_tokens)?;
        let chunk = if whole { ids.len() } else { manifest.max_chunk_tokens as usize };
        for chunk in ids.chunks(chunk) {
            self.call(Call::Prefill, chunk, 1, observer)?;
            after_call(self, chunk);
        }
        Ok(())
    }

    /// Appends one token; [`Session::logits`] are those of the next.
    pub fn decode(&mut self, token: u32) -> Result<(), RunError> {
        self.call(Call::Decode, &[token], 1, None)
    }

    /// [`Session::decode`] with an observer of the steps.
    pub fn decode_with(&mut self, token: u32, observer: &dyn Observer) -> Result<(), RunError> {
        self.call(Call::Decode, &[token], 1, Some(observer))
    }

    fn call(
        &mut self,
        call: Call,
        ids: &[u32],
        output_rows: u64,
        observer: Option<&dyn Observer>,
    ) -> Result<(), RunError> {
        let position = self.position();
        match observer {
            Some(observer) => self.executor.run_observed(call, ids, position, output_rows, observer),
            None => self.executor.run(call, ids, position, output_rows),
        }
    }

    /// Logits of the last token; `None` before the first call and for heads without logits.
    pub fn logits(&self) -> Option<&[f32]> {
        self.executor.logits()
    }

    /// An output of the last call: rows of that call only, when prefill took several.
    pub fn output(&self, name: &str) -> Option<View<'_>> {
        self.executor.output(name)
    }

    /// A work counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.executor.counter(counter)
    }

    /// Sets all work counters to zero.
    pub fn reset_counters(&mut self) {
        self.executor.reset_counters();
    }

    /// Runs a new sequence with every token through the head, and gathers all outputs over its calls.
    pub fn forward_all(&mut self, ids: &[u32]) -> Result<Vec<Tensor>, RunError> {
        self.forward_all_with(ids, &mut |_, _| ())
    }

    /// [`Session::forward_all`]; `after_call` sees the session with the outputs of each call, and the tokens of that call.
    pub fn forward_all_with(
        &mut self,
        ids: &[u32],
        after_call: &mut dyn FnMut(&Self, &[u32]),
    ) -> Result<Vec<Tensor>, RunError> {
        let manifest = *self.manifest();
        let whole = manifest.flags.contains(ManifestFlags::WHOLE_SEQUENCE);
        let with_logits = manifest.head == Head::CausalLm;
        let chunk = match (whole, with_logits) {
            (true, _) => ids.len().max(1),
            (false, true) => manifest.max_output_rows as usize,
            (false, false) => manifest.max_chunk_tokens as usize,
        };
        check_whole(ids, 0, manifest.vocab_size, manifest.max_tokens)?;
        let model = Arc::clone(&self.model);
        let ports: Vec<_> = model.program().outputs().collect();
        let mut tensors: Vec<_> = ports.iter().map(Tensor::empty).collect();
        self.reset();
        for chunk in ids.chunks(chunk) {
            let rows = if with_logits { chunk.len() as u64 } else { 1 };
            self.call(Call::Prefill, chunk, rows, None)?;
            for (tensor, port) in tensors.iter_mut().zip(&ports) {
                tensor.append(self.executor.view(port))?;
            }
            after_call(self, chunk);
        }
        Ok(tensors)
    }

    fn manifest(&self) -> &lapidary_format::Manifest<'_> {
        self.model.manifest()
    }
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Session").field("executor", &self.executor).finish_non_exhaustive()
    }
}

/// What the executor would find in a later chunk.
fn check_whole(ids: &[u32], position: u64, vocab_size: u32, max_tokens: u32) -> Result<(), RunError> {
    let tokens = ids.len() as u64;
    if tokens == 0 {
        return Err(RunError::Empty);
    }
    if position.saturating_add(tokens) > u64::from(max_tokens) {
        return Err(RunError::ContextLength { position, tokens, max_tokens });
    }
    match ids.iter().enumerate().find(|(_, id)| **id >= vocab_size) {
        Some((index, found)) => Err(RunError::TokenId { index, found: *found, vocab_size }),
        None => Ok(()),
    }
}

/// Elements of a gathered output.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Floats.
    F32(Vec<f32>),
    /// Bytes.
    U8(Vec<u8>),
    /// Unsigned integers.
    U32(Vec<u32>),
}

/// An output gathered over the calls of [`Session::forward_all`]: `[rows, columns]`, dense.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Name of the output.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements.
    pub data: TensorData,
}

impl Tensor {
    fn empty(port: &Port<'_>) -> Self {
        Self {
            name: port.name.to_string(),
            rows: 0,
            columns: port.columns as usize,
            data: match port.dtype {
                Dtype::U8 => TensorData::U8(Vec::new()),
                Dtype::U32 => TensorData::U32(Vec::new()),
                Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::I8 | Dtype::I4 | Dtype::I32 | Dtype::I64 => {
                    TensorData::F32(Vec::new())
                }
            },
        }
    }

    fn append(&mut self, view: View<'_>) -> Result<(), RunError> {
        fn gather<'v, T: Copy + 'v>(
            to: &mut Vec<T>,
            rows: usize,
            row: impl Fn(usize) -> Option<&'v [T]>,
        ) -> Option<()> {
            for index in 0..rows {
                to.extend_from_slice(row(index)?);
            }
            Some(())
        }
        let rows = view.rows();
        self.rows += rows;
        let gathered = match &mut self.data {
            TensorData::F32(data) => gather(data, rows, |row| view.row_f32(row)),
            TensorData::U8(data) => gather(data, rows, |row| view.row_u8(row)),
            TensorData::U32(data) => gather(data, rows, |row| view.row_u32(row)),
        };
        gathered.ok_or_else(|| RunError::OutputType { name: ShortText::new(&self.name), dtype: view.dtype() })
    }
}

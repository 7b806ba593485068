//! A sequence in the simulator: what a host does with a compiled model, call by call.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use lapidary_format::{Dtype, ENTRY_DECODE, ENTRY_PREFILL};
use lapidary_npu_isa::Program;
use lapidary_runtime::{Tensor, TensorData, greedy};
use lapidary_simulator::observe::Observer;
use lapidary_simulator::routing::{Routed, Routing};
use lapidary_simulator::{Device, Options, Report};

use super::compiled::Compiled;
use crate::failure::Unsupported;

/// One call of a program, as it went.
#[derive(Clone, Debug)]
pub struct Call {
    /// `prefill` or `decode`.
    pub entry: &'static str,
    /// Position of its first token.
    pub first: u64,
    /// Its tokens.
    pub tokens: u64,
    /// Cycles and all else.
    pub report: Report,
}

/// A model in the simulator, and the sequence that it is at.
pub struct Session<'m> {
    compiled: &'m Compiled,
    device: Device,
    /// Who decides where tokens go; nobody: the model.
    routing: Option<Box<dyn Routing>>,
    position: u64,
    /// Tokens and output rows of the last call.
    last: (u64, u64),
}

impl<'m> Session<'m> {
    /// Without weights: they are zeros, or not known where no values are computed.
    pub fn new(compiled: &'m Compiled, options: Options, routing: Option<Box<dyn Routing>>) -> anyhow::Result<Self> {
        let mut device = Device::new(&compiled.machine, options);
        if compiled.weight_bytes > 0 {
            device.forget(&compiled.prefill, "weights")?;
        }
        Ok(Session { compiled, device, routing, position: 0, last: (0, 0) })
    }

    /// Whether the model generates.
    pub fn can_decode(&self) -> bool {
        self.compiled.decode.is_some()
    }

    /// Writes the image of weights.
    pub fn load(&mut self, image: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let wanted = self.compiled.weight_bytes;
        if wanted == 0 {
            return Ok(());
        }
        let mut writer = self.device.writer(&self.compiled.prefill, "weights");
        image(&mut writer)?;
        let found = writer.len_bytes();
        ensure!(found == wanted, "weights: wanted {wanted} bytes, found {found}");
        Ok(())
    }

    /// Tokens of the sequence so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Lets a routing decide in what follows.
    pub fn route(&mut self, routing: Option<Box<dyn Routing>>) {
        self.routing = routing;
    }

    /// Begins a new sequence.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        if self.compiled.segment("state").is_some() {
            self.device.zero(&self.compiled.prefill, "state")?;
        }
        (self.position, self.last) = (0, (0, 0));
        Ok(())
    }

    /// Runs the next tokens of the sequence, at most a chunk; so many of the last rows go through the head.
    pub fn prefill(&mut self, ids: &[u32], rows: u64, observer: &mut impl Observer) -> anyhow::Result<Call> {
        let (tokens, chunk) = (ids.len() as u64, self.compiled.chunk_tokens);
        ensure!((1..=chunk).contains(&tokens), "prefill: tokens of a call, wanted 1 to {chunk}, found {tokens}");
        ensure!((1..=tokens).contains(&rows), "prefill: output rows, wanted 1 to {tokens}, found {rows}");
        let compiled = self.compiled;
        self.call((ENTRY_PREFILL, &compiled.prefill), ids, rows, observer)
    }

    /// Runs one token.
    pub fn decode(&mut self, id: u32, observer: &mut impl Observer) -> anyhow::Result<Call> {
        let compiled = self.compiled;
        let Some(program) = &compiled.decode else {
            bail!(Unsupported(format!("{} cannot decode: {}", compiled.model, compiled.cannot_decode)));
        };
        self.call((ENTRY_DECODE, program), &[id], 1, observer)
    }

    fn call(
        &mut self,
        (entry, program): (&'static str, &Program),
        ids: &[u32],
        rows: u64,
        observer: &mut impl Observer,
    ) -> anyhow::Result<Call> {
        let compiled = self.compiled;
        let (first, tokens, max_tokens) = (self.position, ids.len() as u64, compiled.max_tokens);
        ensure!(
            first.saturating_add(tokens) <= max_tokens,
            "{entry}: length of the sequence, wanted at most {max_tokens} tokens, found {first} and {tokens} more"
        );
        if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id >= compiled.vocab_size) {
            bail!("{entry}: id {at} of the call, wanted it below {}, found {id}", compiled.vocab_size);
        }
        // A chunk, and with it a sequence, is not longer than 32 bits say.
        let words = [tokens as u32, rows as u32, u32::try_from(first)?, 0];
        let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        self.device.write(program, "call", &bytes(&words))?;
        self.device.write(program, "ids", &bytes(ids))?;
        let ran = match &mut self.routing {
            Some(routing) => {
                let routed = Routed { routing: routing.as_mut(), first_token: first };
                self.device.run_routed(program, routed, observer)
            }
            None => self.device.run(program, observer),
        };
        let report = ran.with_context(|| format!("{entry} of {tokens} tokens at {first}"))?;
        self.position = first + tokens;
        self.last = (tokens, rows);
        Ok(Call { entry, first, tokens, report })
    }

    /// An output of the last call.
    pub fn output(&self, name: &str) -> anyhow::Result<Tensor> {
        let output = self.compiled.output(name);
        let output =
            output.with_context(|| format!("output {name}: wanted it in {}, found none", self.compiled.model))?;
        let rows = output.rows_of(self.last.0, self.last.1);
        let bytes =
            self.device.read(&self.compiled.prefill, &output.segment(), output.row_bytes().saturating_mul(rows))?;
        let data = match output.dtype {
            Dtype::U8 => TensorData::U8(bytes),
            _ => TensorData::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        };
        Ok(Tensor { name: name.to_string(), rows: rows as usize, columns: output.cols as usize, data })
    }

    /// Logits of the last row.
    pub fn logits(&self) -> anyhow::Result<Vec<f32>> {
        let tensor = self.output("logits")?;
        let TensorData::F32(data) = tensor.data else { bail!("output logits: wanted f32, found another type") };
        let last = data.len().saturating_sub(tensor.columns);
        Ok(data.get(last..).unwrap_or_default().to_vec())
    }

    /// Adds the outputs of the last call below those of calls before it.
    pub fn gather(&self, tensors: &mut Vec<Tensor>) -> anyhow::Result<()> {
        for output in &self.compiled.outputs {
            let new = self.output(&output.name)?;
            match tensors.iter_mut().find(|t| t.name == new.name) {
                Some(tensor) => append(tensor, new),
                None => tensors.push(new),
            }
        }
        Ok(())
    }

    /// Runs ids as a new sequence, every token through the head, and gathers all outputs over its calls.
    pub fn forward_all(&mut self, ids: &[u32]) -> anyhow::Result<Vec<Tensor>> {
        self.check_sequence(ids)?;
        self.reset()?;
        let mut tensors: Vec<Tensor> = Vec::new();
        for chunk in ids.chunks(self.compiled.chunk_tokens as usize) {
            self.prefill(chunk, chunk.len() as u64, &mut ())?;
            self.gather(&mut tensors)?;
        }
        Ok(tensors)
    }

    /// How a new sequence goes on greedily, by `max_new` tokens at most, up to `end_token` or a full context; each call is shown.
    pub fn continuation(
        &mut self,
        ids: &[u32],
        max_new: usize,
        end_token: Option<u32>,
        after_call: &mut dyn FnMut(&Call) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<u32>> {
        self.check_sequence(ids)?;
        self.reset()?;
        for chunk in ids.chunks(self.compiled.chunk_tokens as usize) {
            after_call(&self.prefill(chunk, 1, &mut ())?)?;
        }
        let mut new = Vec::new();
        while new.len() < max_new {
            let token = greedy(&self.logits()?);
            if Some(token) == end_token {
                break;
            }
            new.push(token);
            if new.len() == max_new || self.position >= self.compiled.max_tokens {
                break;
            }
            after_call(&self.decode(token, &mut ())?)?;
        }
        Ok(new)
    }

    /// What the calls would find later.
    fn check_sequence(&self, ids: &[u32]) -> anyhow::Result<()> {
        let (compiled, tokens) = (self.compiled, ids.len() as u64);
        let longest = if compiled.whole_sequence { compiled.chunk_tokens } else { compiled.max_tokens };
        ensure!((1..=longest).contains(&tokens), "ids: wanted 1 to {longest} tokens, found {tokens}");
        match ids.iter().enumerate().find(|(_, id)| **id >= compiled.vocab_size) {
            Some((at, id)) => bail!("ids: id {at}, wanted it below {}, found {id}", compiled.vocab_size),
            None => Ok(()),
        }
    }
}

/// Adds rows below.
fn append(tensor: &mut Tensor, more: Tensor) {
    tensor.rows += more.rows;
    match (&mut tensor.data, more.data) {
        (TensorData::F32(data), TensorData::F32(more)) => data.extend(more),
        (TensorData::U8(data), TensorData::U8(more)) => data.extend(more),
        (TensorData::U32(data), TensorData::U32(more)) => data.extend(more),
        // An output keeps its type.
        (TensorData::F32(_) | TensorData::U8(_) | TensorData::U32(_), _) => (),
    }
}

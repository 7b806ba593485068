//! A model as programs for an NPU: what an artifact holds, checked before anything is run.

use std::ops::Range;

use anyhow::{Context, bail, ensure};
use lapidary_format::abi::NPU_PROTOCOL_VERSION;
use lapidary_format::{
    Artifact, Direction, Dtype, ENTRY_DECODE, ENTRY_PREFILL, Head, Isa, Manifest, ManifestFlags, NO_INDEX, Rows,
};
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program};
use sha2::{Digest, Sha256};

/// Bytes of the segment `call`: tokens, output rows, position of the first token, 0.
pub const CALL_BYTES: u64 = 16;
/// Bytes of a program's header in front of its words, and of a word.
pub const WORDS_AT: u64 = 80;
/// Bytes of an instruction word.
pub const WORD_BYTES: u64 = 16;
/// Where a program says how long it is.
const LENGTH_AT: usize = 64;
/// Programs begin at multiples of that in the code section.
pub const PROGRAM_ALIGN: u64 = 16;

/// A result that the host may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name: `logits`.
    pub name: String,
    /// F32 or U8.
    pub dtype: Dtype,
    /// How many rows it has.
    pub rows: Rows,
    /// Elements of a row.
    pub cols: u64,
}

impl Output {
    /// Name of its segment.
    pub fn segment(&self) -> String {
        format!("out.{}", self.name)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.cols.saturating_mul(u64::from(self.dtype.bits() / 8))
    }

    /// Rows of a call of `tokens` tokens, `rows` of which go through the head.
    pub fn rows_of(&self, tokens: u64, rows: u64) -> u64 {
        match self.rows {
            Rows::Tokens => tokens,
            Rows::OutputRows => rows,
            Rows::One => 1,
        }
    }
}

/// A model compiled for an NPU. Both programs agree on their segments, which lie in the machine's DRAM.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Name of the model.
    pub model: String,
    /// What it is compiled for.
    pub machine: Machine,
    /// Up to `chunk_tokens` tokens.
    pub prefill: Program,
    /// One token.
    pub decode: Option<Program>,
    /// Why there is no program for one token; empty if there is.
    pub cannot_decode: String,
    /// What calls give.
    pub outputs: Vec<Output>,
    /// Length of the image of weights.
    pub weight_bytes: u64,
    /// What the model ends in.
    pub head: Head,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Names of the domains: all or none.
    pub domain_names: Vec<String>,
    /// Layers.
    pub num_layers: u32,
    /// Modules of a layer.
    pub num_clusters: u32,
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
    /// Whether a sequence must be one call.
    pub whole_sequence: bool,
    /// Token that ends a text.
    pub end_token: Option<u32>,
    /// The model's `config.json`, or nothing.
    pub config: String,
    /// `tokenizer.json`.
    pub tokenizer: Option<Vec<u8>>,
}

/// Address and length of a program's segment.
pub fn segment(program: &Program, name: &str) -> Option<Range<u64>> {
    let found = program.segments.iter().find(|s| s.name == name)?;
    Some(found.address..found.address.saturating_add(found.len_bytes))
}

impl Compiled {
    /// What an artifact holds; nothing of it is trusted, the weights are not looked at.
    pub fn parse(artifact: &Artifact<'_>) -> anyhow::Result<Compiled> {
        let m = artifact.manifest();
        ensure!(m.isa == Isa::Npu, "manifest: isa, wanted {}, found {}", Isa::Npu, m.isa);
        let (wanted, found) = (NPU_PROTOCOL_VERSION, m.abi_version);
        ensure!(found == wanted, "manifest: version of the host protocol, wanted {wanted}, found {found}");
        let (prefill, decode) = programs(artifact)?;
        let outputs = artifact.ports().iter().filter(|port| port.direction == Direction::Output);
        let outputs = outputs.map(|port| Output {
            name: port.name.to_string(),
            dtype: port.dtype,
            rows: port.rows,
            cols: port.columns,
        });
        let compiled = Compiled {
            model: m.model.to_string(),
            machine: machine(artifact)?,
            prefill,
            decode,
            cannot_decode: m.cannot_decode.to_string(),
            outputs: outputs.collect(),
            weight_bytes: artifact.plan().weights_bytes,
            head: m.head,
            vocab_size: m.vocab_size,
            domain_names: artifact.domain_names().iter().map(|d| d.name.to_string()).collect(),
            num_layers: m.num_layers,
            num_clusters: m.num_clusters,
            max_tokens: m.max_tokens.into(),
            chunk_tokens: m.max_chunk_tokens.into(),
            whole_sequence: m.flags.contains(ManifestFlags::WHOLE_SEQUENCE),
            end_token: Some(m.end_token).filter(|token| *token != NO_INDEX),
            config: m.source_config.to_string(),
            tokenizer: artifact.tokenizer().map(<[u8]>::to_vec),
        };
        compiled.check()?;
        let plan = artifact.plan();
        for (name, wanted) in [("arena", plan.arena_bytes), ("state", plan.state_bytes)] {
            let found = compiled.segment(name).map_or(0, |range| range.end - range.start);
            ensure!(found == wanted, "prefill: segment {name}, wanted {wanted} bytes (the plan), found {found}");
        }
        Ok(compiled)
    }

    /// Address and length of a segment that the host and both programs know.
    pub fn segment(&self, name: &str) -> Option<Range<u64>> {
        segment(&self.prefill, name)
    }

    /// An output by its name.
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// Most modules that a token takes in a layer, as far as the config says.
    pub fn most_modules(&self) -> u32 {
        let config: serde_json::Value = serde_json::from_str(&self.config).unwrap_or_default();
        let most = config["scar"]["k_max"].as_u64().and_then(|k| u32::try_from(k).ok());
        most.unwrap_or(u32::MAX).min(self.num_clusters)
    }

    /// Both programs with their names.
    pub fn programs(&self) -> impl Iterator<Item = (&'static str, &Program)> {
        [Some((ENTRY_PREFILL, &self.prefill)), self.decode.as_ref().map(|p| (ENTRY_DECODE, p))].into_iter().flatten()
    }

    /// Whether host and programs understand each other.
    pub fn check(&self) -> anyhow::Result<()> {
        let hash = self.machine.hash();
        for (entry, program) in self.programs() {
            let is_same = program.machine_hash.is_none_or(|found| found == hash);
            ensure!(is_same, "{entry}: machine, wanted {}, found another's hash", self.machine.name());
        }
        self.check_segments()?;
        let (name, rows, cols) = match self.head {
            Head::CausalLm => ("logits", Rows::OutputRows, Some(u64::from(self.vocab_size))),
            Head::SequenceClassification | Head::Embedding => ("output", Rows::One, None),
        };
        let Some(output) = self.output(name) else {
            bail!("outputs: wanted `{name}` of a head {}, found none", self.head);
        };
        let is_head = output.dtype == Dtype::F32 && output.rows == rows && cols.is_none_or(|cols| output.cols == cols);
        ensure!(
            is_head,
            "output {name}: wanted f32 [{rows}, {}], found {} [{}, {}]",
            cols.map_or("labels or hidden size".into(), |n| n.to_string()),
            output.dtype,
            output.rows,
            output.cols
        );
        Ok(())
    }

    fn check_segments(&self) -> anyhow::Result<()> {
        let mut wanted = vec![("call".to_string(), CALL_BYTES), ("ids".into(), 4 * self.chunk_tokens)];
        if self.weight_bytes > 0 {
            wanted.push(("weights".into(), self.weight_bytes));
            let found = self.segment("weights").map(|range| range.start);
            ensure!(found == Some(0), "prefill: segment weights, wanted it at address 0, found {found:?}");
        }
        for output in &self.outputs {
            let name = &output.name;
            let is_known = matches!(output.dtype, Dtype::F32 | Dtype::U8);
            ensure!(is_known, "output {name}: wanted f32 or u8, found {}", output.dtype);
            let twice = self.outputs.iter().filter(|o| o.name == *name).count() > 1;
            ensure!(!twice, "output {name}: wanted it once, found it several times");
            let rows = output.rows_of(self.chunk_tokens, self.chunk_tokens);
            wanted.push((output.segment(), output.row_bytes().saturating_mul(rows)));
        }
        for (name, bytes) in wanted {
            let found = self.segment(&name).map_or(0, |range| range.end - range.start);
            ensure!(found >= bytes, "prefill: segment {name}, wanted at least {bytes} bytes, found {found}");
        }
        let dram_bytes = self.machine.dram.bytes;
        for (entry, program) in self.programs() {
            for s in &program.segments {
                let end = s.address.saturating_add(s.len_bytes);
                ensure!(
                    end <= dram_bytes,
                    "{entry}: segment {}, wanted its end within {dram_bytes} bytes of DRAM, found {end}",
                    s.name
                );
                // What is in one program alone is its own.
                let (mine, others) = (segment(program, &s.name), self.segment(&s.name));
                let is_hosts = matches!(s.name.as_str(), "weights" | "call" | "ids" | "state" | "arena")
                    || s.name.starts_with("out.");
                ensure!(
                    !is_hosts || mine == others,
                    "{entry}: segment {}, wanted it where prefill has it, at {others:?}, found it at {mine:?}",
                    s.name
                );
                ensure!(
                    s.name != "weights" || s.bytes.is_empty(),
                    "{entry}: segment weights, wanted it without contents, found {} bytes",
                    s.bytes.len()
                );
            }
        }
        Ok(())
    }

    /// Checks that both programs can run on a machine, the one that they were compiled for or another.
    pub fn verify(&self, machine: &Machine) -> anyhow::Result<()> {
        let array = |m: &Machine| (m.matrix.rows, m.matrix.cols);
        let (wanted, found) = (array(&self.machine), array(machine));
        ensure!(
            wanted == found,
            "machine {}: array, wanted {} × {} (what {} is compiled for), found {} × {}\nhint: compile the model for that machine",
            machine.name(),
            wanted.0,
            wanted.1,
            self.model,
            found.0,
            found.1
        );
        for (entry, program) in self.programs() {
            verify(program, machine).with_context(|| format!("{entry}, for {}", machine.name()))?;
        }
        Ok(())
    }

    /// Makes the programs those of a machine, the same or another: checks that they can run there, and lets them name it.
    pub fn move_to(&mut self, machine: Machine) -> anyhow::Result<()> {
        let hash = machine.hash();
        for program in [Some(&mut self.prefill), self.decode.as_mut()].into_iter().flatten() {
            program.machine_hash = program.machine_hash.map(|_| hash);
        }
        self.verify(&machine)?;
        self.machine = machine;
        self.check()
    }
}

/// The machine whose description an artifact carries.
fn machine(artifact: &Artifact<'_>) -> anyhow::Result<Machine> {
    let target = artifact.target().context("target: wanted the description of an NPU, found none")?;
    let found: [u8; 32] = Sha256::digest(target.description.as_bytes()).into();
    ensure!(found == target.digest, "target: digest of the description, wanted that of its text, found another");
    Machine::parse(target.description).context("target: description")
}

/// The programs in the code section: one after the other, and nothing else.
fn programs(artifact: &Artifact<'_>) -> anyhow::Result<(Program, Option<Program>)> {
    let manifest: &Manifest<'_> = artifact.manifest();
    let code = artifact.code();
    let decodes = manifest.flags.contains(ManifestFlags::CAN_DECODE);
    let decode_at = artifact.decode_offset();
    ensure!(
        decode_at.is_some() == decodes,
        "code: entry decode, wanted it exactly with CAN_DECODE, found it {}",
        if decodes { "missing" } else { "without" }
    );
    let mut end = 0;
    let mut read = |entry: &str, offset: u64| -> anyhow::Result<Program> {
        let wanted = u64::next_multiple_of(end, PROGRAM_ALIGN);
        ensure!(offset == wanted, "code: entry {entry}, wanted it at {wanted}, found it at {offset}");
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let gap = code.get(end as usize..begin).unwrap_or_default();
        ensure!(gap.iter().all(|b| *b == 0), "code: bytes in front of {entry}, wanted zeros, found others");
        let rest = code.get(begin..).unwrap_or_default();
        let length = rest.get(LENGTH_AT..).and_then(|b| b.first_chunk::<8>()).map(|b| u64::from_le_bytes(*b));
        let length = length.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let bytes = rest.get(..length);
        let bytes = bytes.with_context(|| format!("code: {entry}, wanted {length} bytes, found {}", rest.len()))?;
        end = offset + bytes.len() as u64;
        Program::from_bytes(bytes).with_context(|| format!("code: {entry}"))
    };
    let prefill = read(ENTRY_PREFILL, artifact.prefill_offset())?;
    let decode = decode_at.map(|offset| read(ENTRY_DECODE, offset)).transpose()?;
    ensure!(end == code.len() as u64, "code: length, wanted {end} (its programs), found {}", code.len());
    Ok((prefill, decode))
}

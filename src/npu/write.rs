//! From a planned model to programs, and to the artifact that holds them.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use lapidary_compiler::ir::{DType, Graph, HeadKind, SymbolId, WeightReader};
use lapidary_compiler::plan::{cost, why_whole_sequence};
use lapidary_format::abi::NPU_PROTOCOL_VERSION;
use lapidary_format::{
    self as format, ArtifactBuilder, Direction, Dtype, Entry, Head, Isa, Manifest, ManifestFlags, NO_INDEX, Plan, Port,
    Region, Rows, Step,
};
use lapidary_npu_isa::{Machine, Program};
use lapidary_target_cpu::component_name;
use lapidary_target_npu::LowerError;
use lapidary_target_npu::model::{ModelOptions, ModelOutput, NpuModel, OutputRows, lower_model};
use sha2::{Digest, Sha256};

use super::compiled::{Compiled, Output, PROGRAM_ALIGN, WORD_BYTES, WORDS_AT};
use super::machine::machine_toml;
use crate::failure::Unsupported;
use crate::model::{Planned, storages};
use crate::ui::Ui;

/// A model that has just been lowered.
pub struct Lowered {
    /// Its programs, checked.
    pub compiled: Compiled,
    /// What can write its weights.
    pub model: NpuModel,
}

/// Lowers a planned model for a machine and verifies its programs.
pub fn lower(planned: &Planned, machine: &Machine, ui: &Ui) -> anyhow::Result<Lowered> {
    let spinner = ui.spinner("lowering");
    let options = ModelOptions { max_tokens: planned.plan.max_tokens, chunk_tokens: planned.plan.chunk_tokens };
    let model = lower_model(&planned.graph, machine, &options).map_err(|error| lower_error(error, machine))?;
    let compiled = compiled(planned, &model)?;
    let place = || format!("{} for {}: its programs", planned.graph.info.name, machine.name());
    compiled.check().with_context(place)?;
    compiled.verify(machine).with_context(place)?;
    spinner.finish_and_clear();
    Ok(Lowered { compiled, model })
}

/// What the NPU cannot do at all is [`Unsupported`].
fn lower_error(error: LowerError, machine: &Machine) -> anyhow::Error {
    match error {
        LowerError::Op { .. } => anyhow::Error::new(Unsupported(format!("npu:{}: {error}", machine.name()))),
        LowerError::TooSmall { .. } => anyhow::Error::new(error).context(format!(
            "npu:{}: a memory is too small\nhint: take a larger machine, or fewer --max-tokens or --chunk-tokens",
            machine.name()
        )),
        error => anyhow::Error::new(error).context(format!("npu:{}", machine.name())),
    }
}

fn compiled(planned: &Planned, npu: &NpuModel) -> anyhow::Result<Compiled> {
    let info = &planned.graph.info;
    Ok(Compiled {
        model: info.name.clone(),
        machine: npu.machine.clone(),
        prefill: npu.prefill.clone(),
        decode: npu.decode.clone(),
        cannot_decode: info.why_no_decode.clone().unwrap_or_default(),
        outputs: npu.outputs.iter().map(output).collect(),
        weight_bytes: npu.weight_bytes,
        head: match info.head {
            HeadKind::CausalLm => Head::CausalLm,
            HeadKind::SequenceClassification => Head::SequenceClassification,
            HeadKind::Embedding => Head::Embedding,
        },
        vocab_size: number("vocab_size", info.vocab_size)?,
        domain_names: info.domain_names.clone(),
        num_layers: number("num_hidden_layers", info.num_layers)?,
        num_clusters: number("scar.num_clusters", info.num_clusters)?,
        max_tokens: npu.max_tokens,
        chunk_tokens: npu.chunk_tokens,
        whole_sequence: why_whole_sequence(&planned.graph).is_some(),
        end_token: planned.end_token()?,
        config: info.config_json.clone(),
        tokenizer: planned.model.tokenizer.clone(),
    })
}

fn number(what: &str, n: u64) -> anyhow::Result<u32> {
    u32::try_from(n).with_context(|| format!("{what}: wanted at most {}, found {n}", u32::MAX))
}

fn output(output: &ModelOutput) -> Output {
    Output {
        name: output.name.clone(),
        dtype: dtype(output.element),
        rows: match output.rows {
            OutputRows::Tokens => Rows::Tokens,
            OutputRows::OutputRows => Rows::OutputRows,
            OutputRows::One => Rows::One,
        },
        cols: output.cols,
    }
}

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
    }
}

/// Writes the artifact; gives its size.
pub fn write(planned: &Planned, lowered: &Lowered, path: &Path, ui: &Ui) -> anyhow::Result<u64> {
    let builder = builder(planned, &lowered.compiled)?;
    planned.write_with(lowered.compiled.weight_bytes, path, ui, |reader, progress| {
        let written = builder.write_file(path, |out| {
            lowered.model.write_weights(reader, out, progress).map_err(|error| io::Error::other(error.to_string()))
        });
        Ok(written?)
    })
}

/// Writes the image of weights of a model that is run without being written.
pub fn write_weights(planned: &Planned, lowered: &Lowered, out: &mut dyn Write, ui: &Ui) -> anyhow::Result<()> {
    planned.check_splat("add --timing-only with --routing, which needs no weights")?;
    let reader = WeightReader::new(&planned.graph, planned.model.source.as_ref());
    let bar = ui.bytes_bar("weights", lowered.compiled.weight_bytes);
    // Many small writes become few.
    let mut out = BufWriter::with_capacity(1 << 20, out);
    lowered.model.write_weights(&reader, &mut out, &|done| bar.set_position(done))?;
    out.flush()?;
    bar.finish_and_clear();
    Ok(())
}

/// All tables of the artifact.
fn builder(planned: &Planned, compiled: &Compiled) -> anyhow::Result<ArtifactBuilder> {
    let (graph, info) = (&planned.graph, &planned.graph.info);
    let work = planned.work_per_token();
    let mut flags = ManifestFlags::empty();
    flags.set(ManifestFlags::IS_CAUSAL, info.is_causal);
    flags.set(ManifestFlags::CAN_DECODE, compiled.decode.is_some());
    flags.set(ManifestFlags::WHOLE_SEQUENCE, compiled.whole_sequence);
    let recipe = planned.options.recipe.to_toml(&[]);
    let chunk = number("--chunk-tokens", compiled.chunk_tokens)?;
    let manifest = Manifest {
        model: &compiled.model,
        quantization: &planned.options.recipe.name,
        recipe: &recipe,
        cannot_decode: &compiled.cannot_decode,
        source_config: &info.config_json,
        source_digest: info.source_digest,
        abi_version: NPU_PROTOCOL_VERSION,
        isa: Isa::Npu,
        head: compiled.head,
        flags,
        vocab_size: compiled.vocab_size,
        hidden_size: number("hidden_size", info.hidden_size)?,
        num_layers: compiled.num_layers,
        num_clusters: compiled.num_clusters,
        num_domains: number("num_domains", info.domain_names.len() as u64)?,
        num_labels: number("num_labels", info.num_labels)?,
        max_tokens: number("--max-tokens", compiled.max_tokens)?,
        max_chunk_tokens: chunk,
        max_output_rows: chunk,
        end_token: compiled.end_token.unwrap_or(NO_INDEX),
        bytes_touched_per_token: work.weight_bytes.max + work.kv_bytes,
        macs_per_token: work.multiply_adds.max,
        parameters: planned.parameters(),
        ..Manifest::default()
    };
    let bytes_of = |name: &str| compiled.segment(name).map_or(0, |range| range.end - range.start);
    let plan = Plan {
        arena_bytes: bytes_of("arena"),
        state_bytes: bytes_of("state"),
        weights_bytes: compiled.weight_bytes,
        stack_bytes: 0,
    };
    let mut builder = ArtifactBuilder::new(manifest, plan);
    for name in &info.domain_names {
        builder.push(format::DomainName { name });
    }
    ports(&mut builder, graph, compiled);
    programs(&mut builder, compiled)?;
    components(&mut builder, planned);
    let description = machine_toml(&compiled.machine)?;
    let name = format!("npu:{}", compiled.machine.name());
    let digest = Sha256::digest(description.as_bytes()).into();
    builder.push(format::Target { name: &name, description: &description, digest });
    if let Some(json) = &compiled.tokenizer {
        builder.set_tokenizer(json.clone());
    }
    Ok(builder)
}

fn ports(builder: &mut ArtifactBuilder, graph: &Graph, compiled: &Compiled) {
    for (name, value) in &graph.inputs {
        let ty = graph.ty(*value);
        debug_assert_eq!(ty.rows(), lapidary_compiler::ir::Dim::Sym(SymbolId::TOKENS));
        builder.push(Port {
            name,
            direction: Direction::Input,
            dtype: dtype(ty.dtype),
            rows: Rows::Tokens,
            region: Region::Ids,
            columns: ty.cols(),
            offset: 0,
            row_stride_bytes: ty.cols() * ty.dtype.bytes(),
        });
    }
    for output in &compiled.outputs {
        builder.push(Port {
            name: &output.name,
            direction: Direction::Output,
            dtype: output.dtype,
            rows: output.rows,
            region: Region::Segment,
            columns: output.cols,
            offset: 0,
            row_stride_bytes: output.row_bytes(),
        });
    }
}

/// The code section: both programs, and which op each run of instructions belongs to.
fn programs(builder: &mut ArtifactBuilder, compiled: &Compiled) -> anyhow::Result<()> {
    let mut code: Vec<u8> = Vec::new();
    for (index, (name, program)) in compiled.programs().enumerate() {
        code.resize(code.len().next_multiple_of(PROGRAM_ALIGN as usize), 0);
        let offset = code.len() as u64;
        builder.push(Entry { name, offset });
        steps(builder, program, (index as u32, name), offset)?;
        code.extend(program.to_bytes().with_context(|| name.to_string())?);
    }
    builder.set_code(code);
    Ok(())
}

fn steps(
    builder: &mut ArtifactBuilder,
    program: &Program,
    (entry, name): (u32, &str),
    offset: u64,
) -> anyhow::Result<()> {
    let ends = program.op_labels.iter().skip(1).map(|label| u64::from(label.at));
    let ends = ends.chain([program.instructions.len() as u64]);
    for (i, (label, end)) in program.op_labels.iter().zip(ends).enumerate() {
        builder.push(Step {
            name: &format!("{name}/{i}"),
            op: &label.name,
            offset: offset + WORDS_AT + WORD_BYTES * u64::from(label.at),
            bytes: number("code of an op", WORD_BYTES * (end - u64::from(label.at)))?,
            entry,
        });
    }
    Ok(())
}

fn components(builder: &mut ArtifactBuilder, planned: &Planned) {
    for stored in cost::weight_bytes(&planned.graph) {
        let before = planned.before.iter().find(|c| c.component == stored.component);
        builder.push(format::Component {
            name: component_name(Some(stored.component)),
            quantization: &storages(&planned.graph, stored.component),
            parameters: before.map_or(0, |c| c.elems),
            bytes: stored.bytes,
        });
    }
}

//! A compiled program as an artifact: code, weights, tables.

use std::io::{Seek, Write};
use std::path::Path;

use lapidary_compiler::ir::{Component, DType, Dim, Graph, HeadKind, Storage, SymbolId, TensorType, WeightReader};
use lapidary_compiler::plan::{Plan, Region, ScratchRole, why_whole_sequence};
use lapidary_format::{
    self as format, ArtifactBuilder, Direction, Manifest, ManifestFlags, NO_INDEX, Port, Rows, WriteError,
};
use sha2::{Digest, Sha256};

use crate::LowerError;
use crate::layout::{Packing, WeightLayout};
use crate::lower::Entry;
use crate::program::{self, Program};
use crate::targets::{Architecture, CpuTarget};

/// What the manifest says beyond graph and plan.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Name of the quantization recipe.
    pub quantization: String,
    /// The recipe as TOML.
    pub recipe: String,
    /// Bytes of `tokenizer.json`.
    pub tokenizer: Option<Vec<u8>>,
    /// Token that ends a text.
    pub end_token: Option<u32>,
    /// Bytes read per decoded token, from the plan.
    pub bytes_touched_per_token: u64,
    /// Multiply-adds per decoded token, from the plan.
    pub macs_per_token: u64,
    /// Parameters of the model.
    pub parameters: u64,
}

/// A lowered model, ready to be written.
pub struct Lowered<'a> {
    graph: &'a Graph,
    layout: WeightLayout,
    program: Program,
    builder: ArtifactBuilder,
}

/// Lowers a planned graph for a target: code for both entry points (decode only where the model can), weight layout, tables.
pub fn lower<'a>(graph: &'a Graph, plan: &Plan, target: &CpuTarget, about: &About) -> Result<Lowered<'a>, LowerError> {
    check_inputs(graph)?;
    check_head(graph)?;
    let layout = WeightLayout::build(graph, plan.max_tokens, target)?;
    let entries: &[Entry] =
        if graph.info.why_no_decode.is_none() { &[Entry::Prefill, Entry::Decode] } else { &[Entry::Prefill] };
    let program = program::compile(graph, plan, &layout, target, entries)?;
    let builder = tables(graph, plan, target, about, &layout, &program)?;
    Ok(Lowered { graph, layout, program, builder })
}

/// The context has one pointer for inputs, to ids; any other input would be read past its end.
fn check_inputs(graph: &Graph) -> Result<(), LowerError> {
    let ids = TensorType::vector(DType::U32, Dim::Sym(SymbolId::TOKENS));
    let types: Vec<&TensorType> = graph.inputs.iter().map(|(_, value)| graph.ty(*value)).collect();
    if types == [&ids] {
        return Ok(());
    }
    let listed: Vec<String> =
        graph.inputs.iter().map(|(name, value)| format!("{name}: {}", graph.show_type(graph.ty(*value)))).collect();
    Err(LowerError::Inputs { found: if listed.is_empty() { "none".into() } else { listed.join(", ") } })
}

/// Runtimes refuse an artifact without the output that its head ends in.
fn check_head(graph: &Graph) -> Result<(), LowerError> {
    let info = &graph.info;
    let (name, rows, cols) = match info.head {
        HeadKind::CausalLm => ("logits", Dim::Sym(SymbolId::OUTPUT_ROWS), info.vocab_size),
        HeadKind::SequenceClassification => ("output", Dim::Const(1), info.num_labels),
        HeadKind::Embedding => ("output", Dim::Const(1), info.hidden_size),
    };
    let wanted = TensorType::matrix(DType::F32, rows, cols);
    let found = graph.outputs.iter().find(|output| output.name == name).map(|output| graph.ty(output.value));
    if found == Some(&wanted) {
        return Ok(());
    }
    let found = found.map_or("none".into(), |ty| graph.show_type(ty));
    Err(LowerError::HeadOutput { name, wanted: graph.show_type(&wanted), head: info.head.name(), found })
}

impl Lowered<'_> {
    /// The code, its map and the kernels it calls.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Where the weights lie.
    pub fn layout(&self) -> &WeightLayout {
        &self.layout
    }

    /// Writes the artifact: under another name first, then renamed. Returns its size in bytes; `progress` is told how many
    /// bytes of weights are written.
    pub fn write_file(
        &self,
        path: &Path,
        reader: &WeightReader<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<u64, WriteError> {
        self.builder.write_file(path, |out| self.layout.write(reader, self.graph, out, progress))
    }

    /// Writes the artifact at the end of a stream, where it stands. Returns its size in bytes.
    pub fn write_to<W: Write + Seek>(
        &self,
        out: &mut W,
        reader: &WeightReader<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<u64, WriteError> {
        self.builder.write_to(out, |out| self.layout.write(reader, self.graph, out, progress))
    }

    /// The artifact in memory.
    pub fn to_vec(&self, reader: &WeightReader<'_>) -> Result<Vec<u8>, WriteError> {
        self.builder.to_vec(|out| self.layout.write(reader, self.graph, out, &|_| ()))
    }
}

fn count(what: &'static str, n: u64) -> Result<u32, LowerError> {
    u32::try_from(n).map_err(|_| LowerError::TooLarge { what, found: n })
}

fn tables(
    graph: &Graph,
    plan: &Plan,
    target: &CpuTarget,
    about: &About,
    layout: &WeightLayout,
    program: &Program,
) -> Result<ArtifactBuilder, LowerError> {
    let info = &graph.info;
    let mut flags = ManifestFlags::empty();
    flags.set(ManifestFlags::IS_CAUSAL, info.is_causal);
    flags.set(ManifestFlags::CAN_DECODE, info.why_no_decode.is_none());
    flags.set(ManifestFlags::WHOLE_SEQUENCE, why_whole_sequence(graph).is_some());
    let manifest = Manifest {
        model: &info.name,
        quantization: &about.quantization,
        recipe: &about.recipe,
        cannot_decode: info.why_no_decode.as_deref().unwrap_or(""),
        source_config: &info.config_json,
        source_digest: info.source_digest,
        isa: match target.architecture {
            Architecture::X86_64 => format::Isa::X86_64,
            Architecture::Aarch64 => format::Isa::Aarch64,
        },
        head: match info.head {
            HeadKind::CausalLm => format::Head::CausalLm,
            HeadKind::SequenceClassification => format::Head::SequenceClassification,
            HeadKind::Embedding => format::Head::Embedding,
        },
        flags,
        vocab_size: count("vocab_size", info.vocab_size)?,
        hidden_size: count("hidden_size", info.hidden_size)?,
        num_layers: count("num_hidden_layers", info.num_layers)?,
        num_clusters: count("scar.num_clusters", info.num_clusters)?,
        num_domains: count("num_domains", info.domain_names.len() as u64)?,
        num_labels: count("num_labels", info.num_labels)?,
        max_tokens: count("--max-tokens", plan.max_tokens)?,
        max_chunk_tokens: count("chunk", plan.chunk_tokens)?,
        max_output_rows: count("chunk", plan.chunk_tokens)?,
        end_token: about.end_token.unwrap_or(NO_INDEX),
        bytes_touched_per_token: about.bytes_touched_per_token,
        macs_per_token: about.macs_per_token,
        parameters: about.parameters,
        ..Manifest::default()
    };
    let sizes = format::Plan {
        arena_bytes: plan.arena_bytes,
        state_bytes: plan.state_bytes,
        weights_bytes: layout.size_bytes(),
        stack_bytes: program.stack_bytes,
    };
    let mut builder = ArtifactBuilder::new(manifest, sizes);
    for name in &info.domain_names {
        builder.push(format::DomainName { name });
    }
    for feature in required_features(program) {
        builder.push(format::Feature { name: feature });
    }
    for name in &program.kernels {
        builder.kernel(name);
    }
    code_tables(&mut builder, program)?;
    plan_tables(&mut builder, graph, plan, program)?;
    weight_tables(&mut builder, graph, layout)?;
    let description = target.description();
    builder.push(format::Target {
        name: target.name,
        description: &description,
        digest: Sha256::digest(description.as_bytes()).into(),
    });
    builder.set_code(program.code.clone());
    if let Some(json) = &about.tokenizer {
        builder.set_tokenizer(json.clone());
    }
    Ok(builder)
}

/// What the machine must have: the features of the kernels that are called. The generated code itself uses no more than the
/// kernels of its target do.
fn required_features(program: &Program) -> Vec<&'static str> {
    let rows = program.kernels.iter().filter_map(|name| lapidary_kernels::find(name));
    let all = rows.fold(lapidary_kernels::FeatureSet::EMPTY, |set, row| set.union(row.isa.required()));
    all.iter().map(|f| f.name()).collect()
}

fn code_tables(builder: &mut ArtifactBuilder, program: &Program) -> Result<(), LowerError> {
    for (name, offset) in &program.entries {
        builder.push(format::Entry { name, offset: *offset as u64 });
    }
    for range in &program.ranges {
        let entry = program.entries.iter().position(|(name, _)| *name == range.entry.name()).unwrap_or_default();
        builder.push(format::Step {
            name: &range.name,
            op: &range.op,
            offset: range.offset as u64,
            bytes: count("code of a step", range.size_bytes as u64)?,
            entry: entry as u32,
        });
    }
    Ok(())
}

fn format_dtype(dtype: DType) -> format::Dtype {
    match dtype {
        DType::F32 => format::Dtype::F32,
        DType::F16 => format::Dtype::F16,
        DType::BF16 => format::Dtype::Bf16,
        DType::U32 => format::Dtype::U32,
        DType::U8 => format::Dtype::U8,
    }
}

fn stored_dtype(storage: Storage) -> format::Dtype {
    match storage {
        Storage::F32 => format::Dtype::F32,
        Storage::F16 => format::Dtype::F16,
        Storage::Bf16 => format::Dtype::Bf16,
        Storage::Int8 => format::Dtype::I8,
        Storage::Int4(_) => format::Dtype::I4,
    }
}

fn plan_tables(builder: &mut ArtifactBuilder, graph: &Graph, plan: &Plan, program: &Program) -> Result<(), LowerError> {
    for (name, value) in &graph.inputs {
        let ty = graph.ty(*value);
        builder.push(Port {
            name,
            direction: Direction::Input,
            dtype: format_dtype(ty.dtype),
            rows: Rows::Tokens,
            region: format::Region::Ids,
            columns: ty.cols(),
            offset: 0,
            row_stride_bytes: ty.cols() * ty.dtype.bytes(),
        });
    }
    for output in &graph.outputs {
        let (ty, place) = (graph.ty(output.value), plan.place(output.value));
        let rows = match ty.rows() {
            Dim::Sym(SymbolId::TOKENS) => Rows::Tokens,
            Dim::Sym(SymbolId::OUTPUT_ROWS) => Rows::OutputRows,
            Dim::Const(1) => Rows::One,
            Dim::Const(_) | Dim::Sym(_) => {
                return Err(LowerError::OutputRows { name: output.name.clone() });
            }
        };
        builder.push(Port {
            name: &output.name,
            direction: Direction::Output,
            dtype: format_dtype(ty.dtype),
            rows,
            region: format::Region::Arena,
            columns: ty.cols(),
            offset: place.offset_bytes,
            row_stride_bytes: place.row_stride * ty.dtype.bytes(),
        });
    }
    // Lifetimes are in nodes; the artifact counts records of its step table.
    let steps: Vec<(u32, u32)> = (0..)
        .zip(&program.ranges)
        .filter(|(_, range)| range.entry == Entry::Prefill)
        .filter_map(|(step, range)| Some((step, range.node?)))
        .collect();
    let last = steps.last().map_or(0, |(step, _)| *step);
    let first_step_of = |node: u32| steps.iter().find(|(_, n)| *n >= node).map_or(last, |(step, _)| *step);
    let last_step_of = |node: u32| steps.iter().rev().find(|(_, n)| *n <= node).map_or(0, |(step, _)| *step);
    for buffer in &plan.buffers {
        let (first_step, last_step) = (first_step_of(buffer.first.0), last_step_of(buffer.last.0));
        builder.push(format::Buffer {
            name: &buffer.name,
            offset: buffer.offset_bytes,
            bytes: buffer.size_bytes,
            first_step,
            last_step: last_step.max(first_step),
        });
    }
    for scratch in plan.scratch.iter().filter(|s| s.region == Region::State) {
        let role = match scratch.role {
            ScratchRole::Keys => "keys",
            ScratchRole::Values => "values",
            ScratchRole::Previous => "previous",
            ScratchRole::Last => "last",
            ScratchRole::Hidden => "hidden",
            ScratchRole::QuantizedRows => "quantized_rows",
            ScratchRole::QuantizedHidden => "quantized_hidden",
            ScratchRole::Ranking => "ranking",
        };
        let name = format!("{}.{role}", graph.node(scratch.node).label);
        builder.push(format::StateBuffer { name: &name, offset: scratch.offset_bytes, bytes: scratch.size_bytes });
    }
    Ok(())
}

/// Name of a component in the artifact's tables.
pub fn component_name(component: Option<Component>) -> &'static str {
    match component {
        Some(Component::Embedding) => "embedding",
        Some(Component::Head) => "head",
        Some(Component::Norm) => "norms",
        Some(Component::TokenRouter) => "token_router",
        Some(Component::Routing) => "routing",
        Some(Component::Attention) => "attention",
        Some(Component::General) => "general",
        Some(Component::Modules) => "modules",
        None => "tables",
    }
}

fn weight_tables(builder: &mut ArtifactBuilder, graph: &Graph, layout: &WeightLayout) -> Result<(), LowerError> {
    let tensors = layout.tensors(graph);
    for row in &tensors {
        let (packing, panel_width) = match row.piece.packing {
            Packing::Rows => (format::Packing::RowMajor, 0),
            Packing::Panels { nr } | Packing::PanelPairs { nr } => (format::Packing::Panels, nr as u32),
        };
        builder.push(format::Tensor {
            name: &row.name,
            component: component_name(row.component),
            dtype: stored_dtype(row.piece.format.storage),
            packing,
            panel_width,
            group: count("group of a weight", row.piece.format.group())?,
            rows: row.rows,
            cols: row.cols,
            offset: row.piece.offset_bytes,
            bytes: row.piece.size_bytes,
        });
    }
    for extent in layout.extents() {
        builder.push(format::Extent {
            layer: extent.layer,
            module: extent.module,
            offset: extent.offset_bytes,
            bytes: extent.size_bytes,
        });
    }
    let mut components: Vec<ComponentSum> = Vec::new();
    for row in &tensors {
        let parameters = if row.component.is_some() { row.rows * row.cols } else { 0 };
        let (storage, bytes) = (row.piece.format.storage, row.piece.size_bytes);
        let at = components.iter().position(|c| c.component == row.component).unwrap_or_else(|| {
            components.push(ComponentSum { component: row.component, parameters: 0, bytes: 0, storages: Vec::new() });
            components.len() - 1
        });
        let sum = &mut components[at];
        sum.parameters += parameters;
        sum.bytes += bytes;
        match sum.storages.iter_mut().find(|(s, _)| *s == storage) {
            Some((_, total)) => *total += bytes,
            None => sum.storages.push((storage, bytes)),
        }
    }
    for mut sum in components {
        sum.storages.sort_by_key(|(_, bytes)| core::cmp::Reverse(*bytes));
        let names: Vec<&str> = sum.storages.iter().map(|(storage, _)| storage.name()).collect();
        builder.push(format::Component {
            name: component_name(sum.component),
            quantization: &names.join(" + "),
            parameters: sum.parameters,
            bytes: sum.bytes,
        });
    }
    Ok(())
}

/// A row of the artifact's table of components.
struct ComponentSum {
    component: Option<Component>,
    parameters: u64,
    bytes: u64,
    /// How its weights are stored, with bytes.
    storages: Vec<(Storage, u64)>,
}

//! Every record of the format, in the order of its fields in the file.

use bitflags::bitflags;

use crate::{
    abi::ABI_VERSION,
    field::{coded_enum, flags_field},
    record::records,
};

/// Stands for "no layer", "no module" or "no token" in a `u32` field.
pub const NO_INDEX: u32 = u32::MAX;

coded_enum! {
    /// Instruction set of the code section.
    Isa: "1 (x86-64), 2 (aarch64) or 3 (npu)" {
        /// x86-64, System V calling convention.
        X86_64 = 1, "x86-64";
        /// AArch64, AAPCS64.
        Aarch64 = 2, "aarch64";
        /// The project's NPU: the code section is its program, and no CPU runs it.
        Npu = 3, "npu";
    }
}

coded_enum! {
    /// What the model ends in.
    Head: "1 (CausalLm), 2 (SequenceClassification) or 3 (Embedding)" {
        /// `logits` `[S, V]`.
        CausalLm = 1, "CausalLm";
        /// `output` `[1, labels]`.
        SequenceClassification = 2, "SequenceClassification";
        /// `output` `[1, d]`, pooled and normalised.
        Embedding = 3, "Embedding";
    }
}

coded_enum! {
    /// Element type.
    Dtype: "1 to 9" {
        /// IEEE single.
        F32 = 1, "f32";
        /// IEEE half.
        F16 = 2, "f16";
        /// bfloat16.
        Bf16 = 3, "bf16";
        /// Signed byte.
        I8 = 4, "i8";
        /// Signed nibble, two to a byte.
        I4 = 5, "i4";
        /// Unsigned byte.
        U8 = 6, "u8";
        /// Unsigned 32-bit integer.
        U32 = 7, "u32";
        /// Signed 32-bit integer.
        I32 = 8, "i32";
        /// Signed 64-bit integer.
        I64 = 9, "i64";
    }
}

impl Dtype {
    /// Bits of an element.
    pub const fn bits(self) -> u32 {
        match self {
            Dtype::I4 => 4,
            Dtype::I8 | Dtype::U8 => 8,
            Dtype::F16 | Dtype::Bf16 => 16,
            Dtype::F32 | Dtype::U32 | Dtype::I32 => 32,
            Dtype::I64 => 64,
        }
    }
}

coded_enum! {
    /// Whether a port is read or written by the model.
    Direction: "1 (input) or 2 (output)" {
        /// Read by the model.
        Input = 1, "input";
        /// Written by the model.
        Output = 2, "output";
    }
}

coded_enum! {
    /// How many rows a port has in one call.
    Rows: "1 (tokens), 2 (output rows) or 3 (one)" {
        /// T, the tokens of the call.
        Tokens = 1, "T";
        /// S, the rows that go through the head.
        OutputRows = 2, "S";
        /// One.
        One = 3, "1";
    }
}

coded_enum! {
    /// Where a port lies.
    Region: "1 (arena), 2 (ids) or 3 (segment)" {
        /// At an offset of the arena.
        Arena = 1, "arena";
        /// The token ids that the execution context points to; the segment `ids` of an NPU's programs.
        Ids = 2, "ids";
        /// An NPU's segment `out.NAME`.
        Segment = 3, "segment";
    }
}

coded_enum! {
    /// How a tensor's elements lie.
    Packing: "1 (row-major) or 2 (panels)" {
        /// `[rows, cols]`, dense.
        RowMajor = 1, "row-major";
        /// Panels of [`Tensor::panel_width`] rows, as the GEMM kernels read them.
        Panels = 2, "panels";
    }
}

bitflags! {
    /// Properties of a model.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ManifestFlags: u32 {
        /// No token depends on a later one.
        const IS_CAUSAL = 1;
        /// The `decode` entry point exists; otherwise [`Manifest::cannot_decode`] says why not.
        const CAN_DECODE = 2;
        /// `prefill` must get the whole input in one call, at position 0.
        const WHOLE_SEQUENCE = 4;
    }
}

flags_field!(ManifestFlags, "a combination of 1, 2 and 4");

records! {
    /// What the artifact is: one record.
    Manifest<'a> in Manifest[0] {
        /// Name of the model, such as `gem-mini`.
        model: &'a str,
        /// Program and version that wrote the artifact.
        producer: &'a str,
        /// Name of the quantization recipe, such as `fp32`.
        quantization: &'a str,
        /// The recipe itself, as TOML, so that others can compute the same numbers; may be empty.
        recipe: &'a str,
        /// Why tokens cannot be generated one at a time; empty when they can.
        cannot_decode: &'a str,
        /// The model's `config.json`, for `inspect`; may be empty.
        source_config: &'a str,
        /// SHA-256 of the model's config and weights.
        source_digest: [u8; 32],
        /// [`ABI_VERSION`] that the code was compiled for.
        abi_version: u32,
        /// Instruction set of the code.
        isa: Isa,
        /// What the model ends in.
        head: Head,
        /// Properties.
        flags: ManifestFlags,
        /// Token ids are below this.
        vocab_size: u32,
        /// d.
        hidden_size: u32,
        /// L.
        num_layers: u32,
        /// C, clusters and modules of a layer.
        num_clusters: u32,
        /// D.
        num_domains: u32,
        /// Classes of a classification head, otherwise 0.
        num_labels: u32,
        /// Longest sequence, in tokens.
        max_tokens: u32,
        /// Largest T of one prefill call, at most `max_tokens`.
        max_chunk_tokens: u32,
        /// Largest S of one call, at most `max_chunk_tokens`.
        max_output_rows: u32,
        /// Token that ends a text, or [`NO_INDEX`].
        end_token: u32,
        /// Estimated bytes read per decoded token.
        bytes_touched_per_token: u64,
        /// Estimated multiply-accumulates per decoded token.
        macs_per_token: u64,
        /// Parameters of the source model.
        parameters: u64,
    }

    /// Name of a domain; empty table, or one per domain.
    DomainName<'a> in Manifest[1] {
        /// The name.
        name: &'a str,
    }

    /// A CPU feature that the code or its kernels need.
    Feature<'a> in Manifest[2] {
        /// Name, as Rust's `target_feature` spells it: `avx2`, `dotprod`.
        name: &'a str,
    }

    /// Memory that a run needs: one record.
    #[derive(Default)]
    Plan in Plan[0] {
        /// Bytes of the arena.
        arena_bytes: u64,
        /// Bytes of the state.
        state_bytes: u64,
        /// Bytes of the weights section.
        weights_bytes: u64,
        /// Most bytes of stack that one call of an entry point takes: generated code and kernels. What the runtime's
        /// `parallel_for` and `mark` take comes on top.
        stack_bytes: u64,
    }

    /// An input or output of the model.
    Port<'a> in Plan[1] {
        /// Name, such as `logits` or `modules.0`.
        name: &'a str,
        /// Input or output.
        direction: Direction,
        /// Element type.
        dtype: Dtype,
        /// Number of rows.
        rows: Rows,
        /// Where it lies.
        region: Region,
        /// Elements of a row.
        columns: u64,
        /// Offset of row 0 in its region.
        offset: u64,
        /// Distance of rows.
        row_stride_bytes: u64,
    }

    /// A buffer of the arena, for `inspect`.
    Buffer<'a> in Plan[2] {
        /// Name of the value it holds.
        name: &'a str,
        /// Offset in the arena.
        offset: u64,
        /// Size.
        bytes: u64,
        /// First step that uses it.
        first_step: u32,
        /// Last step that uses it.
        last_step: u32,
    }

    /// A part of the state, for `inspect`.
    StateBuffer<'a> in Plan[3] {
        /// Name, such as `layers.0.kv`.
        name: &'a str,
        /// Offset in the state.
        offset: u64,
        /// Size.
        bytes: u64,
    }

    /// A kernel that the code calls; the order is that of the context's kernel table.
    Kernel<'a> in Kernels[0] {
        /// Name, as `lapidary_kernels::resolve` knows it.
        name: &'a str,
    }

    /// An entry point.
    Entry<'a> in CodeMap[0] {
        /// `prefill` or `decode`.
        name: &'a str,
        /// Offset in the code section.
        offset: u64,
    }

    /// A step: a range of the code and the source op it computes, in the order of execution.
    Step<'a> in CodeMap[1] {
        /// Name of the step's function.
        name: &'a str,
        /// Source op, such as `layers.0.attn.q_proj`.
        op: &'a str,
        /// Offset in the code section.
        offset: u64,
        /// Size of the code.
        bytes: u32,
        /// Index of the entry point that runs it.
        entry: u32,
    }

    /// A packed tensor.
    Tensor<'a> in WeightTable[0] {
        /// Name in the source model.
        name: &'a str,
        /// Component: `embedding`, `attention`, `general`, `modules`, `router`, `norms`, `head`.
        component: &'a str,
        /// Element type.
        dtype: Dtype,
        /// How the elements lie.
        packing: Packing,
        /// Rows of a panel; 0 when row-major.
        panel_width: u32,
        /// Inputs that share a scale; 0 when a row does, or there is none.
        group: u32,
        /// Rows (outputs).
        rows: u64,
        /// Columns (inputs).
        cols: u64,
        /// Offset in the weights section, a multiple of 64.
        offset: u64,
        /// Stored size, scales and padding included.
        bytes: u64,
    }

    /// The contiguous weights of one module of one layer, or of what a layer always reads.
    Extent in WeightTable[1] {
        /// Layer, or [`NO_INDEX`] for what no layer owns.
        layer: u32,
        /// Module, or [`NO_INDEX`] for what every token reads.
        module: u32,
        /// Offset in the weights section, a multiple of [`crate::EXTENT_ALIGN`].
        offset: u64,
        /// Size.
        bytes: u64,
    }

    /// What a component of the model became.
    Component<'a> in WeightTable[2] {
        /// Name, see [`Tensor::component`].
        name: &'a str,
        /// Its format, such as `fp16` or `int4 groups of 32`.
        quantization: &'a str,
        /// Parameters of the source model.
        parameters: u64,
        /// Stored size.
        bytes: u64,
    }

    /// The machine that the artifact was compiled for: at most one record.
    Target<'a> in Target[0] {
        /// Name, such as `rpi4`.
        name: &'a str,
        /// The description that the compiler worked from.
        description: &'a str,
        /// SHA-256 of the description.
        digest: [u8; 32],
    }
}

impl Default for Manifest<'_> {
    fn default() -> Self {
        Self {
            model: "",
            producer: concat!("lapidary ", env!("CARGO_PKG_VERSION")),
            quantization: "fp32",
            recipe: "",
            cannot_decode: "",
            source_config: "",
            source_digest: [0; 32],
            abi_version: ABI_VERSION,
            isa: Isa::X86_64,
            head: Head::CausalLm,
            flags: ManifestFlags::empty(),
            vocab_size: 1,
            hidden_size: 1,
            num_layers: 1,
            num_clusters: 0,
            num_domains: 0,
            num_labels: 0,
            max_tokens: 1,
            max_chunk_tokens: 1,
            max_output_rows: 1,
            end_token: NO_INDEX,
            bytes_touched_per_token: 0,
            macs_per_token: 0,
            parameters: 0,
        }
    }
}

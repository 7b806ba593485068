//! Argument blocks: what generated code hands to a kernel.
//!
//! Every kernel has one signature, [`KernelFn`]: a pointer to the `#[repr(C)]` block of its operation. Generated
//! code fills the block on its stack and calls through the kernel table, so that adding an operand never
//! changes a calling convention. All fields are 8 bytes (`f32` fields are stored as `f32` followed by padding that
//! [`F32Arg`] makes explicit), so the offsets are the same on every 64-bit target and the compiler can take them
//! with `core::mem::offset_of!` on the host.
//!
//! Lengths are in elements unless the name ends in `_bytes`; `ld*` are row strides in elements. A pointer that "may
//! be null" says so. Kernels read no memory beyond what the block describes, except packed weights, whose last panel
//! is padded to the panel width.

use core::sync::atomic::AtomicU64;

/// A kernel: takes the address of its operation's argument block.
pub type KernelFn = unsafe extern "C" fn(*const core::ffi::c_void);

/// An `f32` in an 8-byte slot.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct F32Arg {
    /// The value.
    pub value: f32,
    /// Always 0.
    pub pad: u32,
}

impl F32Arg {
    /// Wraps a value.
    pub const fn new(value: f32) -> Self {
        Self { value, pad: 0 }
    }
}

/// `C[m, n] (+)= scale · A[m, k] · Wᵀ`, `W` packed in panels of `NR` outputs (see `pack`).
///
/// Row `i` of A is `a + row(i)·lda` with `row(i) = a_rows[i]`, or `i` when `a_rows` is null; rows of C likewise through
/// `c_rows`. `row_scale[i]` multiplies the product of row i before it is stored or added. Only panels
/// `panel_begin..panel_end` are computed: columns `panel_begin·NR .. min(panel_end·NR, n)`.
///
/// Also the block of `gemm_swiglu`, which computes `silu(A·W_gateᵀ) ⊙ (A·W_upᵀ)`: its packed weights alternate panel by
/// panel (gate panel p, up panel p), `n` is the number of columns of *one* of them and panels count pairs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GemmArgs {
    /// Activations.
    pub a: *const f32,
    /// Row stride of A.
    pub lda: u64,
    /// Row numbers of A; may be null.
    pub a_rows: *const u32,
    /// Rows.
    pub m: u64,
    /// Inner dimension.
    pub k: u64,
    /// Packed weights, panel 0.
    pub w: *const u8,
    /// Valid columns of C.
    pub n: u64,
    /// First panel to compute.
    pub panel_begin: u64,
    /// One past the last panel to compute.
    pub panel_end: u64,
    /// Result, column 0.
    pub c: *mut f32,
    /// Row stride of C.
    pub ldc: u64,
    /// Row numbers of C; may be null.
    pub c_rows: *const u32,
    /// Factor per row `[m]`; may be null (1).
    pub row_scale: *const f32,
    /// 0: store, 1: add to what C holds.
    pub accumulate: u64,
}

/// [`GemmArgs`] over quantized rows and quantized weights: the block of `gemm`, `gemv`, `gemm_swiglu` and `gemv_swiglu`
/// with int8 or int4 weights.
///
/// A is records of [`crate::quantized_row_bytes`], written by `quantize_rows`; record `i` is at
/// `a + row(i)·lda_bytes`. The weights are packed by [`crate::pack_quantized`] for the layout of the kernel's row. With `a`
/// the i8 inputs of a record and `s` its scale, `q` the codes of an output:
/// * int8: `y = (f32(Σ a·q) · scale) · s`, scale f32 per output;
/// * int4: `t = 0; for each group, ascending: t = fma(f32(Σ a·q), scale, t); y = t · s`, scale f16 per output and group.
///
/// Sums are exact in i32 for k ≤ 131072. Up to here the result is the same bits on every instruction set. Then, as in
/// [`GemmArgs`]: `silu(y_gate)·y_up`, row scale, accumulation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QGemmArgs {
    /// Quantized rows, record 0; 64-byte aligned.
    pub a: *const u8,
    /// Bytes from one record to the next, a multiple of 64.
    pub lda_bytes: u64,
    /// Row numbers of A; may be null.
    pub a_rows: *const u32,
    /// Rows.
    pub m: u64,
    /// Inner dimension.
    pub k: u64,
    /// Packed weights, panel 0.
    pub w: *const u8,
    /// int4: inputs that share a scale, 32, 64 or 128. int8: 0.
    pub group: u64,
    /// Valid columns of C.
    pub n: u64,
    /// First panel to compute.
    pub panel_begin: u64,
    /// One past the last panel to compute.
    pub panel_end: u64,
    /// Result, column 0.
    pub c: *mut f32,
    /// Row stride of C.
    pub ldc: u64,
    /// Row numbers of C; may be null.
    pub c_rows: *const u32,
    /// Factor per row `[m]`; may be null (1).
    pub row_scale: *const f32,
    /// 0: store, 1: add to what C holds.
    pub accumulate: u64,
}

/// `quantize_rows`: one record of [`crate::quantized_row_bytes`] per row, for [`QGemmArgs`].
///
/// With amax = max |x|: below 2⁻¹⁰⁰ the scale and all codes are 0; else scale = amax / 127 and
/// `q = clamp(round_half_to_even(x · (127 / amax)), −127, 127)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QuantizeRowsArgs {
    /// Input.
    pub x: *const f32,
    /// Row stride of x.
    pub ldx: u64,
    /// Row numbers of x; may be null.
    pub x_rows: *const u32,
    /// Records, 64-byte aligned: row i goes to `y + i·ldy_bytes`.
    pub y: *mut u8,
    /// Bytes from one record to the next, a multiple of 64.
    pub ldy_bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Elements of a row.
    pub k: u64,
}

/// `y[r, :] = x[r, :] / sqrt(mean(x[r, :]²) + eps) · w`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RmsNormArgs {
    /// Input.
    pub x: *const f32,
    /// Row stride of x.
    pub ldx: u64,
    /// Weight `[n]`; may be null (1).
    pub w: *const f32,
    /// Result; may be `x` itself.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub n: u64,
    /// Added to the mean square.
    pub eps: F32Arg,
}

/// Row-wise or element-wise function of one input: `softmax`, `silu`, `gelu` (tanh form), `l2_normalize`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnaryArgs {
    /// Input.
    pub x: *const f32,
    /// Row stride of x.
    pub ldx: u64,
    /// Result; may be `x` itself.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub n: u64,
}

/// `y = silu(gate) ⊙ up`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SiluMulArgs {
    /// Gate.
    pub gate: *const f32,
    /// Row stride of the gate.
    pub ld_gate: u64,
    /// Up.
    pub up: *const f32,
    /// Row stride of up.
    pub ld_up: u64,
    /// Result; may be `gate` or `up`.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub n: u64,
}

/// Llama's half rotation of every head of every row, positions `first_position + r`.
///
/// With `c, s` the cosine and sine at (position, i): `y[i] = x[i]·c − x[i+h]·s`, `y[i+h] = x[i+h]·c + x[i]·s`, h = head_dim/2.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RopeArgs {
    /// Input, head h of row r at `x + r·x_row_stride + h·x_head_stride`.
    pub x: *const f32,
    /// Row stride of x.
    pub x_row_stride: u64,
    /// Head stride of x.
    pub x_head_stride: u64,
    /// Result; may be `x` itself (with the same strides).
    pub y: *mut f32,
    /// Row stride of y.
    pub y_row_stride: u64,
    /// Head stride of y.
    pub y_head_stride: u64,
    /// Rows.
    pub rows: u64,
    /// Heads.
    pub heads: u64,
    /// Elements of a head, even.
    pub head_dim: u64,
    /// Position of row 0.
    pub first_position: u64,
    /// `[positions, head_dim]`: the head_dim/2 cosines of a position, then its head_dim/2 sines.
    pub cos_sin: *const f32,
}

/// Strided copy of `rows × heads` runs of `n` elements: `copy_rows`; what `rope` does without the rotation.
///
/// The kernel's weight type says how runs are stored. None: as they are. f16: rounded to binary16, nearest even. i8: each
/// as a record of [`crate::kv_row_bytes`], quantized as [`QuantizeRowsArgs`] says; its y has no alignment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CopyRowsArgs {
    /// Input.
    pub x: *const f32,
    /// Row stride of x.
    pub x_row_stride: u64,
    /// Head stride of x.
    pub x_head_stride: u64,
    /// Result.
    pub y: *mut u8,
    /// Row stride of y, in stored elements (i8: bytes).
    pub y_row_stride: u64,
    /// Head stride of y, as the row stride.
    pub y_head_stride: u64,
    /// Rows.
    pub rows: u64,
    /// Heads (runs) of a row.
    pub heads: u64,
    /// Elements of a run.
    pub n: u64,
}

/// Attention of `rows` consecutive queries of the heads that share one key/value head: `attend_range` and
/// `attend_clustered`.
///
/// Query row r stands at position `first_position + r` =: t. Keys and values of the shared head are `[positions,
/// head_dim]` with row stride `ld_kv`, stored as the kernel's weight type says: none: f32; f16: binary16; i8: records of
/// [`crate::kv_row_bytes`], each element its code times the record's scale.
/// * `attend_range`: keys `lo..hi` with hi = `causal` ? t+1 : `num_keys`, and lo = `window` > 0 ? max(0, t+1−window) : 0.
/// * `attend_clustered`: keys j ≤ t with t − j < `window` (a window of 0 admits none), or j < `sinks`, or j among the
///   `cluster_cap` most recent positions of t's cluster, t included, found by walking `previous` from t. A key admitted
///   twice is read once.
///
/// Scores are `scale·q·k`; the softmax is over the admitted keys; a query with no key gets zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttendArgs {
    /// Queries, the group's first head: head h of row r at `q + r·ldq + h·head_dim`.
    pub q: *const f32,
    /// Row stride of q.
    pub ldq: u64,
    /// Keys of the shared head, position 0.
    pub k: *const u8,
    /// Values of the shared head, position 0.
    pub v: *const u8,
    /// Row stride of k and v, in stored elements (i8: bytes).
    pub ld_kv: u64,
    /// Result, laid out as q.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Query rows.
    pub rows: u64,
    /// Position of query row 0.
    pub first_position: u64,
    /// Keys present (not causal).
    pub num_keys: u64,
    /// Query heads that share this key/value head.
    pub heads_per_group: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// 1: keys after the query are masked.
    pub causal: u64,
    /// See above.
    pub window: u64,
    /// Clustered: the first positions, seen by all.
    pub sinks: u64,
    /// Clustered: most recent positions of the query's own cluster.
    pub cluster_cap: u64,
    /// Clustered: `previous[t]` = the latest position before t in t's cluster, −1 if none.
    pub previous: *const i32,
    /// Factor of the scores.
    pub scale: F32Arg,
    /// Grows by the number of keys read (once per query row); may be null.
    pub keys_read: *const AtomicU64,
}

/// `cluster_append`: chains the positions of each cluster. For r in 0..rows, t = first_position + r, `c = cluster[r]`:
/// `previous[t] = last[c]; last[c] = t`. When `first_position` is 0, `last` is first reset to −1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ClusterAppendArgs {
    /// Cluster of each row `[rows]`.
    pub cluster: *const u32,
    /// Rows.
    pub rows: u64,
    /// Position of row 0.
    pub first_position: u64,
    /// Clusters.
    pub num_clusters: u64,
    /// `[positions]`, see [`AttendArgs::previous`].
    pub previous: *mut i32,
    /// `[num_clusters]`: latest position of each cluster, −1 if none.
    pub last: *mut i32,
}

/// `a[r, c] = softmax_c(scale·q[r]·keys[c] + lambda·ln(domains[r, c mod D] + 1e-6))`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteScoresArgs {
    /// Router queries `[rows, dim]`.
    pub q: *const f32,
    /// Row stride of q.
    pub ldq: u64,
    /// Cluster keys `[num_clusters, dim]`, dense.
    pub keys: *const f32,
    /// Domain probabilities `[rows, num_domains]`, dense; null: uniform.
    pub domains: *const f32,
    /// Result `[rows, num_clusters]`, dense.
    pub a: *mut f32,
    /// Rows.
    pub rows: u64,
    /// Router dimension d_s.
    pub dim: u64,
    /// Clusters C.
    pub num_clusters: u64,
    /// Domains D.
    pub num_domains: u64,
    /// Factor of the dot product.
    pub scale: F32Arg,
    /// Factor of the domain prior.
    pub lambda: F32Arg,
}

/// `cluster[r] = argmax_c a[r, c]`, the lowest index winning a tie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteClusterArgs {
    /// Scores `[rows, num_clusters]`.
    pub a: *const f32,
    /// Rows.
    pub rows: u64,
    /// Clusters.
    pub num_clusters: u64,
    /// Result `[rows]`.
    pub cluster: *mut u32,
}

/// Selection of modules, one kernel per policy: `select_top_k`, `select_top_p`, `select_threshold`,
/// `select_expert_choice`, `select_bidirectional`.
///
/// Ties go to the lower index (module or token). The last two look across rows and use `cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteSelectArgs {
    /// Scores `[rows, num_clusters]`, dense.
    pub a: *const f32,
    /// Rows.
    pub rows: u64,
    /// Clusters C = modules.
    pub num_clusters: u64,
    /// Result: 1 where selected `[rows, num_clusters]`, dense.
    pub mask: *mut u8,
    /// Result: gates, 0 where not selected `[rows, num_clusters]`, dense.
    pub gates: *mut f32,
    /// Fewest modules (top_p).
    pub k_min: u64,
    /// Most modules.
    pub k_max: u64,
    /// Mass (top_p).
    pub p: F32Arg,
    /// Smallest score (threshold).
    pub tau: F32Arg,
    /// Tokens a module takes = min(rows, ⌈capacity_factor·rows·k_max/C⌉), computed in f64 by the kernel.
    pub capacity_factor: F32Arg,
    /// 1: gates are renormalised over the selected set (not for expert_choice).
    pub norm_gates: u64,
    /// Scratch `[rows]` of u32 (cross-token policies); may be null for the others.
    pub scratch: *mut u32,
}

/// `route_group`: counting sort of (token, module) pairs by module.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteGroupArgs {
    /// Selected `[rows, num_modules]`, dense.
    pub mask: *const u8,
    /// Gates `[rows, num_modules]`, dense.
    pub gates: *const f32,
    /// Rows.
    pub rows: u64,
    /// Modules.
    pub num_modules: u64,
    /// Result `[num_modules + 1]`: first entry of each module in `tokens`, then the total.
    pub offsets: *mut u32,
    /// Result `[Σ|R|]`: row of each entry, ascending within a module. Room for rows × num_modules.
    pub tokens: *mut u32,
    /// Result `[Σ|R|]`: gate of each entry.
    pub token_gates: *mut f32,
    /// Grows by the number of entries; may be null.
    pub rows_routed: *const AtomicU64,
}

/// `gather_rows`: `y[i, :] = x[index[i], :]`, and `scatter_add`: `y[index[i], :] += gate[i]·x[i, :]`, in order of i.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IndexedRowsArgs {
    /// Input.
    pub x: *const f32,
    /// Row stride of x.
    pub ldx: u64,
    /// Result.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Row numbers `[rows]`.
    pub index: *const u32,
    /// Factors `[rows]` (scatter_add); may be null (1).
    pub gate: *const f32,
    /// Rows of the index list.
    pub rows: u64,
    /// Columns.
    pub n: u64,
}

/// `route_memory`: `y[r, :] = Σ_{c: mask[r,c]} gates[r,c]·values[c, :]`, c ascending, only the selected rows read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteMemoryArgs {
    /// Selected `[rows, num_clusters]`, dense.
    pub mask: *const u8,
    /// Gates `[rows, num_clusters]`, dense.
    pub gates: *const f32,
    /// Cluster memory `[num_clusters, dim]`, dense.
    pub values: *const f32,
    /// Result.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Rows.
    pub rows: u64,
    /// Clusters.
    pub num_clusters: u64,
    /// Dimension d_s.
    pub dim: u64,
}

/// `embed_rows_*` (table `[vocab, n]` row-major) and `embed_panels_*` (table packed for a GEMM of panel width `nr`, when
/// the LM head is tied to it).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EmbedArgs {
    /// Token ids `[rows]`, each < vocab (checked by the runtime).
    pub ids: *const u32,
    /// Table.
    pub table: *const u8,
    /// Result.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Rows.
    pub rows: u64,
    /// Hidden size.
    pub n: u64,
    /// Panel width (embed_panels).
    pub nr: u64,
}

/// `embed_rows` and `embed_panels` of int8 and int4 tables `[vocab, n]`: `y = f32(code) · scale`. The table is packed by
/// [`crate::pack_quantized`]; for `embed_rows` as the kernel's own row says, for `embed_panels` as the row of the LM head's
/// GEMM says.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QEmbedArgs {
    /// Token ids `[rows]`, each < vocab (checked by the runtime).
    pub ids: *const u32,
    /// Table.
    pub table: *const u8,
    /// Result.
    pub y: *mut f32,
    /// Row stride of y.
    pub ldy: u64,
    /// Rows.
    pub rows: u64,
    /// Hidden size.
    pub n: u64,
    /// int4: hidden elements that share a scale, 32, 64 or 128. int8: 0.
    pub group: u64,
    /// [`crate::QuantLayout::nr`] of the table.
    pub nr: u64,
    /// [`crate::QuantLayout::kr`] of the table.
    pub kr: u64,
    /// [`crate::QuantLayout::code_offset`] of the table.
    pub code_offset: u64,
}

/// `mean_rows`: `y[0, :] = mean_r x[r, :]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MeanRowsArgs {
    /// Input.
    pub x: *const f32,
    /// Row stride of x.
    pub ldx: u64,
    /// Result `[n]`.
    pub y: *mut f32,
    /// Rows, at least 1.
    pub rows: u64,
    /// Columns.
    pub n: u64,
}

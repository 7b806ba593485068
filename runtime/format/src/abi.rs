//! The contract between generated code and whoever runs it.
//!
//! Generated code is position-independent and self-contained: it reaches weights, memory, kernels and threads through
//! the [`ExecContext`] alone. An entry point has the type [`EntryFn`]; it runs the steps of the model in order. A
//! step that can be split calls `parallel_for` with its [`StepFn`], which computes units `begin..end` and
//! may be called from several threads at once for disjoint ranges. Every result is independent of how a range is split.

use core::ffi::c_void;

/// One entry point of the code section: `decode`, `prefill`, or one of their twins for profiling.
pub type EntryFn = unsafe extern "C" fn(ctx: *const ExecContext);

/// One step: computes units `begin..end` of its parallel range.
pub type StepFn = unsafe extern "C" fn(ctx: *const ExecContext, begin: u64, end: u64);

/// Runs `step` over `0..units`, on as many threads as the runtime has; returns when all units are done.
pub type ParallelForFn = unsafe extern "C" fn(ctx: *const ExecContext, step: StepFn, units: u64);

/// Told by the profiling entry points, and by nothing else, that a step has ended: `step` is its record in the artifact's
/// step table. Steps that work module by module also tell, on the thread that did the work, that `module`'s part of their
/// range has ended; otherwise `module` is [`NO_MODULE`].
pub type MarkFn = unsafe extern "C" fn(ctx: *const ExecContext, step: u64, module: u64);

/// A whole step, see [`MarkFn`].
pub const NO_MODULE: u64 = u64::MAX;

/// A kernel: takes the address of its argument block (`lapidary_kernels::args`).
pub type KernelFn = unsafe extern "C" fn(*const c_void);

/// Version of this contract; an artifact names the one it was compiled for.
pub const ABI_VERSION: u32 = 2;

/// Version of the contract between a host and an NPU's programs (docs/npu-models.md): what an artifact for the NPU names
/// instead.
pub const NPU_PROTOCOL_VERSION: u32 = 1;

/// What generated code sees. All fields are 8 bytes, so that offsets agree on every 64-bit target.
#[repr(C)]
#[derive(Debug)]
pub struct ExecContext {
    /// Weights section, aligned to 64 bytes at least.
    pub weights: *const u8,
    /// Arena: activations, valid during one call. 64-byte aligned.
    pub arena: *mut u8,
    /// State: KV caches and cluster history, kept between calls of one sequence. 64-byte aligned.
    pub state: *mut u8,
    /// Kernels in the order of the artifact's kernel table.
    pub kernels: *const KernelFn,
    /// See [`ParallelForFn`].
    pub parallel_for: ParallelForFn,
    /// Tokens of this call: T. The decode entry point is for T = 1.
    pub tokens: u64,
    /// Position of the first token of this call in its sequence.
    pub first_position: u64,
    /// How many of the last rows go through the head: S, 1 ≤ S ≤ T. Heads that pool ignore it.
    pub output_rows: u64,
    /// Token ids `[T]`, each < vocab.
    pub ids: *const u32,
    /// Work counters, in the order of [`Counter`]; never null.
    pub counters: *const core::sync::atomic::AtomicU64,
    /// See [`MarkFn`].
    pub mark: MarkFn,
    /// The runtime's own.
    pub runtime: *mut c_void,
}

/// Work counters that generated code and kernels keep, for proof that only selected work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Rows through module FFNs: Σ over layers and tokens of |R|.
    RowsRouted = 0,
    /// Keys read by `attn.clustered`, per query row and key/value head.
    ClusteredKeysRead = 1,
    /// Query rows × key/value heads of `attn.clustered`.
    ClusteredQueries = 2,
    /// Keys read by `attn.range`, per query row and key/value head.
    RangeKeysRead = 3,
    /// Query rows × key/value heads of `attn.range`.
    RangeQueries = 4,
    /// Modules whose weights were read: Σ over layers and calls of modules with at least one token.
    ModulesRead = 5,
}

/// Number of [`Counter`]s.
pub const COUNTERS: usize = 6;

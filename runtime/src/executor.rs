//! Calling the code of a program, after checking what it relies on.

use core::{
    ffi::c_void,
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use lapidary_format::{
    ENTRY_DECODE_PROFILE, ENTRY_PREFILL_PROFILE, Head, ManifestFlags, Port,
    abi::{COUNTERS, Counter, EntryFn, ExecContext, NO_MODULE, StepFn},
};

use crate::{
    LoadError, ParallelFor, Program, RunError, ShortText, View,
    program::{Call, LOGITS, check_aligned, rows_of},
};

/// Watches a call, see [`Executor::run_observed`].
///
/// Methods are called from generated code and must not unwind; those that panic end the process.
pub trait Observer: Sync {
    /// A call of so many tokens begins, of which the last `output_rows` go through the head.
    fn begin_call(&self, tokens: u64, output_rows: u64);

    /// The current thread begins a part of a step.
    fn begin_part(&self);

    /// The call has ended a step: a record of the artifact's step table. `arena` is as the step left it.
    fn end_step(&self, step: u64, arena: &[u8]);

    /// The current thread has ended a module's share of its part of a step.
    fn end_module(&self, step: u64, module: u64);
}

/// The code section, executable.
#[derive(Clone, Copy, Debug)]
pub struct CodeImage<'a> {
    base: NonNull<u8>,
    len: usize,
    mapping: PhantomData<&'a [u8]>,
}

impl CodeImage<'_> {
    /// Names the executable memory that holds a program's code.
    ///
    /// # Safety
    /// For the lifetime, `base..base + len` is mapped executable, holds the bytes of the code section of the program
    /// it will be used with, written by this project's compiler, and instruction caches are coherent with it.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, mapping: PhantomData }
    }
}

// SAFETY: the mapping is only read and executed.
unsafe impl Send for CodeImage<'_> {}
// SAFETY: as above.
unsafe impl Sync for CodeImage<'_> {}

/// Memory that an executor has for itself.
#[derive(Debug)]
struct Exclusive<'a> {
    base: NonNull<u8>,
    len: usize,
    owner: PhantomData<&'a mut [u8]>,
}

impl<'a> Exclusive<'a> {
    fn new(what: &'static str, memory: &'a mut [u8], wanted: u64) -> Result<Self, LoadError> {
        if (memory.len() as u64) < wanted {
            return Err(LoadError::TooSmall { what, wanted, found: memory.len() as u64 });
        }
        // Code does not touch memory that the plan has none of.
        if wanted > 0 {
            check_aligned(what, memory.as_ptr())?;
        }
        let len = memory.len();
        Ok(Self { base: NonNull::from(memory).cast(), len, owner: PhantomData })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: base and length came from a slice borrowed for 'a; code writes to it only while `run` borrows the
        // executor mutably.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

/// Runs one sequence of a program.
pub struct Executor<'a> {
    program: Program<'a>,
    code: CodeImage<'a>,
    arena: Exclusive<'a>,
    state: Exclusive<'a>,
    parallel: &'a dyn ParallelFor,
    counters: [AtomicU64; COUNTERS],
    position: u64,
    last_tokens: u64,
    last_output_rows: u64,
}

// SAFETY: the executor has its memory for itself, the code is only read, and `ParallelFor` is `Sync`.
unsafe impl Send for Executor<'_> {}
// SAFETY: through a shared reference memory is only read, and counters are atomic.
unsafe impl Sync for Executor<'_> {}

impl<'a> Executor<'a> {
    /// Joins a program with its executable code and memory, at the begin of a sequence.
    ///
    /// `arena` and `state` are 64-byte aligned and at least as large as the plan says; their contents do not matter.
    pub fn new(
        program: Program<'a>,
        code: CodeImage<'a>,
        arena: &'a mut [u8],
        state: &'a mut [u8],
        parallel: &'a dyn ParallelFor,
    ) -> Result<Self, LoadError> {
        let wanted = program.artifact().code().len();
        if code.len < wanted {
            return Err(LoadError::TooSmall { what: "executable code", wanted: wanted as u64, found: code.len as u64 });
        }
        let plan = program.artifact().plan();
        Ok(Self {
            arena: Exclusive::new("arena", arena, plan.arena_bytes)?,
            state: Exclusive::new("state", state, plan.state_bytes)?,
            program,
            code,
            parallel,
            counters: [const { AtomicU64::new(0) }; COUNTERS],
            position: 0,
            last_tokens: 0,
            last_output_rows: 0,
        })
    }

    /// The program.
    pub fn program(&self) -> &Program<'a> {
        &self.program
    }

    /// Tokens of the sequence so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Begins a new sequence.
    pub fn reset(&mut self) {
        self.position = 0;
        self.last_tokens = 0;
        self.last_output_rows = 0;
    }

    /// A work counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Sets all work counters to zero.
    pub fn reset_counters(&mut self) {
        self.counters = [const { AtomicU64::new(0) }; COUNTERS];
    }

    /// Runs `ids` through the model.
    ///
    /// `first_position` is [`Executor::position`], or 0 to begin again. The last `output_rows` tokens go through the
    /// head; heads that pool over tokens take 1. Outputs are in [`Executor::output`] until the next call.
    pub fn run(&mut self, call: Call, ids: &[u32], first_position: u64, output_rows: u64) -> Result<(), RunError> {
        let entry = self.check(call, ids, first_position, output_rows)?;
        self.enter(entry, ids, first_position, output_rows, None);
        Ok(())
    }

    /// [`Executor::run`] through the entry point's twin, which tells `observer` of every step.
    pub fn run_observed(
        &mut self,
        call: Call,
        ids: &[u32],
        first_position: u64,
        output_rows: u64,
        observer: &dyn Observer,
    ) -> Result<(), RunError> {
        self.check(call, ids, first_position, output_rows)?;
        let name = match call {
            Call::Prefill => ENTRY_PREFILL_PROFILE,
            Call::Decode => ENTRY_DECODE_PROFILE,
        };
        let entry = self.program.artifact().entries().iter().find(|entry| entry.name == name);
        // Below the length of the code, which is in memory.
        let entry = entry.ok_or(RunError::NoEntry { name })?.offset as usize;
        self.enter(entry, ids, first_position, output_rows, Some(observer));
        Ok(())
    }

    /// Calls the code at offset `entry` with arguments that `check` has passed.
    fn enter(
        &mut self,
        entry: usize,
        ids: &[u32],
        first_position: u64,
        output_rows: u64,
        observer: Option<&dyn Observer>,
    ) {
        let tokens = ids.len() as u64;
        let link = Link { parallel: self.parallel, observer, arena_bytes: self.arena.len };
        let context = ExecContext {
            weights: self.program.artifact().weights().as_ptr(),
            arena: self.arena.base.as_ptr(),
            state: self.state.base.as_ptr(),
            // An `Option` of a function pointer that is `Some` is that pointer.
            kernels: self.program.kernels().as_ptr().cast(),
            parallel_for,
            tokens,
            first_position,
            output_rows,
            ids: ids.as_ptr(),
            counters: self.counters.as_ptr(),
            mark,
            runtime: (&raw const link).cast_mut().cast::<c_void>(),
        };
        if let Some(observer) = observer {
            observer.begin_call(tokens, output_rows);
        }
        // SAFETY: the offset lies in the code section (the format's check), the image holds that section
        // (`CodeImage::new`), and it was compiled for this ABI and these CPU features (`Program::load`).
        let entry: EntryFn = unsafe { core::mem::transmute(self.code.base.as_ptr().add(entry)) };
        // SAFETY: every field of the context is as the ABI says: memory is as large as the plan and exclusive, all
        // kernels were found, and `check` has bounded tokens, positions, rows and ids.
        unsafe { entry(&raw const context) };
        self.position = first_position + tokens;
        self.last_tokens = tokens;
        self.last_output_rows = output_rows;
    }

    /// Checks all that generated code relies on and returns the entry point's offset.
    fn check(&self, call: Call, ids: &[u32], first_position: u64, output_rows: u64) -> Result<usize, RunError> {
        let manifest = self.program.manifest();
        let tokens = ids.len() as u64;
        if tokens == 0 {
            return Err(RunError::Empty);
        }
        let artifact = self.program.artifact();
        let mut offset = artifact.prefill_offset();
        if call == Call::Decode {
            let can_decode = manifest.flags.contains(ManifestFlags::CAN_DECODE);
            let decode = artifact.decode_offset().filter(|_| can_decode);
            offset = decode.ok_or_else(|| RunError::CannotDecode { why: ShortText::new(manifest.cannot_decode) })?;
            if tokens != 1 {
                return Err(RunError::DecodeTokens { found: tokens });
            }
        }
        let whole = manifest.flags.contains(ManifestFlags::WHOLE_SEQUENCE);
        if whole && first_position != 0 {
            return Err(RunError::WholeSequence { found: first_position });
        }
        if first_position != 0 && first_position != self.position {
            return Err(RunError::Position { wanted: self.position, found: first_position });
        }
        if first_position.saturating_add(tokens) > u64::from(manifest.max_tokens) {
            return Err(RunError::ContextLength { position: first_position, tokens, max_tokens: manifest.max_tokens });
        }
        if tokens > u64::from(manifest.max_chunk_tokens) {
            return Err(RunError::ChunkLength { wanted: manifest.max_chunk_tokens, found: tokens });
        }
        let rows = tokens.min(u64::from(manifest.max_output_rows));
        if output_rows == 0 || output_rows > rows {
            return Err(RunError::OutputRows { wanted: rows, found: output_rows });
        }
        if let Some(index) = ids.iter().position(|id| *id >= manifest.vocab_size) {
            return Err(RunError::TokenId {
                index,
                found: ids.get(index).copied().unwrap_or_default(),
                vocab_size: manifest.vocab_size,
            });
        }
        // Below the length of the code, which is in memory.
        Ok(offset as usize)
    }

    /// An output of the last call.
    pub fn output(&self, name: &str) -> Option<View<'_>> {
        let port = self.program.outputs().find(|port| port.name == name)?;
        Some(self.view(&port))
    }

    /// The rows that the last call wrote of a port, which must be one of [`Program::outputs`].
    pub fn view(&self, port: &Port<'_>) -> View<'_> {
        let rows = match self.last_tokens {
            0 => 0,
            tokens => rows_of(port, tokens, self.last_output_rows),
        };
        View::new(port, rows, self.arena.bytes())
    }

    /// Logits of the last token of the last call; `None` before the first call and for heads without logits.
    pub fn logits(&self) -> Option<&[f32]> {
        if self.program.manifest().head != Head::CausalLm {
            return None;
        }
        let view = self.output(LOGITS)?;
        view.row_f32(view.rows().checked_sub(1)?)
    }
}

impl core::fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Executor")
            .field("model", &self.program.manifest().model)
            .field("position", &self.position)
            .field("threads", &self.parallel.threads())
            .finish_non_exhaustive()
    }
}

/// What [`ExecContext::runtime`] points to.
struct Link<'l> {
    parallel: &'l dyn ParallelFor,
    observer: Option<&'l dyn Observer>,
    arena_bytes: usize,
}

/// Carries the context to other threads.
#[derive(Clone, Copy)]
struct SharedContext(*const ExecContext);

// SAFETY: the ABI lets several threads use one context for disjoint ranges of a step.
unsafe impl Sync for SharedContext {}

impl SharedContext {
    fn get(&self) -> *const ExecContext {
        self.0
    }
}

unsafe extern "C" fn parallel_for(context: *const ExecContext, step: StepFn, units: u64) {
    // SAFETY: generated code passes on the context that `Executor::run` made, and it is on that call's stack.
    let link = unsafe { &*(*context).runtime.cast::<Link<'_>>() };
    let context = SharedContext(context);
    link.parallel.run(units, &|begin, end| {
        if let Some(observer) = link.observer {
            observer.begin_part();
        }
        // SAFETY: `ParallelFor` gives disjoint ranges within `0..units` and ends before this function returns.
        unsafe { step(context.get(), begin, end) };
    });
}

unsafe extern "C" fn mark(context: *const ExecContext, step: u64, module: u64) {
    // SAFETY: as in `parallel_for`.
    let link = unsafe { &*(*context).runtime.cast::<Link<'_>>() };
    if let Some(observer) = link.observer {
        match module {
            NO_MODULE => {
                // SAFETY: the context's arena is the executor's, of that length, and between two steps nobody writes to it.
                let arena = unsafe { core::slice::from_raw_parts((*context).arena, link.arena_bytes) };
                observer.end_step(step, arena);
            }
            module => observer.end_module(step, module),
        }
    }
}

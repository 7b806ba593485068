//! The core as bare metal uses it: everything handed in by the caller.

mod common;

use std::{
    ffi::c_void,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use common::*;
use lapidary_format::{abi::KernelFn, *};
use lapidary_runtime::*;
use memmap2::{Mmap, MmapMut};

static KERNEL_CALLS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn counting_kernel(arguments: *const c_void) {
    assert!(!arguments.is_null());
    KERNEL_CALLS.fetch_add(1, Ordering::Relaxed);
}

fn machine() -> Machine<'static> {
    Machine {
        isa: THIS_ISA,
        has_feature: &|name| name == "present",
        resolve: &|name| (name == "count").then_some(counting_kernel as KernelFn),
    }
}

/// The code of an artifact in executable memory.
fn executable(artifact: &Artifact<'_>) -> Mmap {
    let mut map = MmapMut::map_anon(artifact.code().len()).unwrap();
    map.copy_from_slice(artifact.code());
    flush_instruction_cache(&map);
    map.make_exec().unwrap()
}

#[cfg(target_arch = "aarch64")]
fn flush_instruction_cache(code: &[u8]) {
    for address in code.as_ptr_range().start.addr()..code.as_ptr_range().end.addr() {
        // SAFETY: cache maintenance of mapped memory, which Linux allows in user mode.
        unsafe { std::arch::asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) address) };
    }
}

#[cfg(not(target_arch = "aarch64"))]
fn flush_instruction_cache(_: &[u8]) {}

fn load(bytes: &AlignedBytes) -> Result<(), LoadError> {
    let mut kernels = [None; 4];
    Program::load(bytes.as_ref(), &machine(), &mut kernels).map(|_| ())
}

/// Loads an artifact and hands an executor to `then`.
fn with_executor(builder: &ArtifactBuilder, then: impl FnOnce(&mut Executor<'_>)) {
    let bytes = bytes(builder);
    let mut kernels = [None; 4];
    let program = Program::load(bytes.as_ref(), &machine(), &mut kernels).unwrap();
    let map = executable(program.artifact());
    // SAFETY: the map holds the code that `common` assembled, and outlives the executor.
    let code = unsafe { CodeImage::new(NonNull::from(&map[..]).cast(), map.len()) };
    let mut arena = AlignedBytes::zeroed(ARENA as usize);
    let mut state = AlignedBytes::zeroed(STATE as usize);
    state.as_mut().fill(0xaa);
    let mut executor = Executor::new(program, code, arena.as_mut(), state.as_mut(), &SingleThread).unwrap();
    then(&mut executor);
}

#[test]
fn code_runs_and_its_outputs_are_seen() {
    with_executor(&toy(manifest()), |executor| {
        assert!(executor.logits().is_none());
        assert_eq!(executor.output("echo").unwrap().rows(), 0);
        executor.run(Call::Prefill, &[5, 6, 7], 0, 2).unwrap();
        let echo = executor.output("echo").unwrap();
        assert_eq!((echo.rows(), echo.columns(), echo.dtype()), (3, 1, Dtype::U32));
        assert_eq!(echo.row_u32(2), Some(&[7][..]));
        assert_eq!(echo.row_u32(3), None);
        assert_eq!(echo.row_f32(0), None);
        let logits = executor.output("logits").unwrap();
        assert_eq!(logits.rows(), 2);
        assert_eq!(logits.row_f32(0).unwrap()[7], 1.0);
        assert_eq!(executor.logits().unwrap()[8], 1.0);
        assert_eq!(executor.logits().unwrap().iter().sum::<f32>(), 1.0);
        assert_eq!(executor.position(), 3);
        assert_eq!(executor.counter(abi::Counter::RowsRouted), 3);
        executor.run(Call::Decode, &[256], 3, 1).unwrap();
        assert_eq!(executor.logits().unwrap()[0], 1.0);
        assert_eq!(executor.output("seen").unwrap().row_u32(0), Some(&[4][..]));
        executor.reset();
        executor.reset_counters();
        assert_eq!(executor.counter(abi::Counter::RowsRouted), 0);
        executor.run(Call::Prefill, &[1], 0, 1).unwrap();
        assert_eq!(executor.output("seen").unwrap().row_u32(0), Some(&[1][..]));
        assert!(executor.output("none").is_none());
    });
}

#[test]
fn kernels_are_called_through_the_table() {
    let mut b = builder(manifest());
    b.push(Entry { name: ENTRY_DECODE, offset: decode_with_kernel_offset() });
    b.kernel("count");
    with_executor(&b, |executor| {
        let before = KERNEL_CALLS.load(Ordering::Relaxed);
        executor.run(Call::Decode, &[1], 0, 1).unwrap();
        executor.run(Call::Decode, &[2], 1, 1).unwrap();
        assert_eq!(KERNEL_CALLS.load(Ordering::Relaxed) - before, 2);
        assert_eq!(executor.logits().unwrap()[3], 1.0);
    });
}

#[test]
fn calls_are_checked_before_any_code_runs() {
    with_executor(&toy(manifest()), |executor| {
        let mut refused = |call, ids: &[u32], position, rows, wanted: RunError| {
            assert_eq!(executor.run(call, ids, position, rows), Err(wanted));
            assert_eq!(executor.position(), 0);
        };
        refused(Call::Prefill, &[], 0, 1, RunError::Empty);
        let token = RunError::TokenId { index: 1, found: VOCAB, vocab_size: VOCAB };
        refused(Call::Prefill, &[0, VOCAB], 0, 1, token);
        let chunk = RunError::ChunkLength { wanted: MAX_CHUNK, found: 9 };
        refused(Call::Prefill, &[0; 9], 0, 1, chunk);
        let position = RunError::Position { wanted: 0, found: 3 };
        refused(Call::Prefill, &[0], 3, 1, position);
        let rows = |wanted, found| RunError::OutputRows { wanted, found };
        refused(Call::Prefill, &[0; 2], 0, 3, rows(2, 3));
        refused(Call::Prefill, &[0; 8], 0, 5, rows(4, 5));
        refused(Call::Prefill, &[0; 2], 0, 0, rows(2, 0));
        refused(Call::Decode, &[0; 2], 0, 1, RunError::DecodeTokens { found: 2 });
    });
}

#[test]
fn a_sequence_ends_at_the_compiled_length() {
    with_executor(&toy(manifest()), |executor| {
        for position in (0..u64::from(MAX_TOKENS)).step_by(8) {
            executor.run(Call::Prefill, &[1; 8], position, 1).unwrap();
        }
        let full = executor.run(Call::Decode, &[1], 200, 1).unwrap_err();
        assert_eq!(full, RunError::ContextLength { position: 200, tokens: 1, max_tokens: 200 });
        assert!(full.to_string().contains("wanted at most 200 tokens, found 200 and 1 more"));
        let far = executor.run(Call::Decode, &[1], u64::MAX, 1).unwrap_err();
        assert!(matches!(far, RunError::Position { .. }));
        executor.run(Call::Prefill, &[1], 0, 1).unwrap();
    });
}

#[test]
fn a_whole_sequence_model_takes_one_call_and_does_not_decode() {
    with_executor(&toy(whole_sequence()), |executor| {
        executor.run(Call::Prefill, &[1, 2], 0, 2).unwrap();
        let again = executor.run(Call::Prefill, &[1], 2, 1).unwrap_err();
        assert_eq!(again, RunError::WholeSequence { found: 2 });
        let decode = executor.run(Call::Decode, &[1], 2, 1).unwrap_err();
        assert!(decode.to_string().contains("scar.policy expert_choice looks across tokens"));
    });
}

#[test]
fn an_artifact_for_another_machine_says_so() {
    let error = |b: &ArtifactBuilder| load(&bytes(b)).unwrap_err();
    let other = error(&toy(Manifest { isa: OTHER_ISA, ..manifest() }));
    let text = format!("wanted {THIS_ISA} (this machine), found {OTHER_ISA}");
    assert!(other.to_string().contains(&text), "{other}");
    let mut b = ArtifactBuilder::new(Manifest { isa: Isa::Npu, abi_version: 1, ..manifest() }, Plan::default());
    b.set_code(vec![0; 32]);
    b.push(Entry { name: "prefill", offset: 0 });
    b.push(Entry { name: "decode", offset: 16 });
    let npu = load(&AlignedBytes::new(&b.to_vec(|_| Ok(())).unwrap())).unwrap_err();
    assert!(npu.to_string().contains("`lapidary simulate`"), "{npu}");
    let abi = error(&toy(Manifest { abi_version: 99, ..manifest() }));
    assert!(matches!(abi, LoadError::Abi { found: 99, .. }));
    let mut b = toy(manifest());
    for name in ["present", "absent", "missing"] {
        b.push(Feature { name });
    }
    let text = error(&b).to_string();
    assert!(text.contains("wanted absent, missing, found"), "{text}");
    let mut b = toy(manifest());
    b.kernel("count");
    b.kernel("gemm_of_the_future");
    let text = error(&b).to_string();
    assert!(text.contains("kernel 1, wanted `gemm_of_the_future`"), "{text}");
    let text = error(&toy(Manifest { vocab_size: 300, ..manifest() })).to_string();
    assert!(text.contains("output `logits`, wanted f32 with 300 columns"), "{text}");
    let mut short = bytes(&toy(manifest()));
    short.as_mut()[70] ^= 1;
    assert!(matches!(load(&short), Err(LoadError::Format(_))));
}

#[test]
fn memory_that_does_not_fit_is_refused() {
    let bytes = bytes(&toy(manifest()));
    let mut kernels = [None; 0];
    let program = Program::load(bytes.as_ref(), &machine(), &mut kernels).unwrap();
    let map = executable(program.artifact());
    let try_with = |code_len: usize, arena: &mut [u8], state: &mut [u8]| {
        // SAFETY: the map holds the code that `common` assembled, and outlives the executor.
        let code = unsafe { CodeImage::new(NonNull::from(&map[..]).cast(), code_len) };
        Executor::new(program, code, arena, state, &SingleThread).map(|_| ())
    };
    let mut arena = AlignedBytes::zeroed(ARENA as usize + 64);
    let mut state = AlignedBytes::zeroed(STATE as usize);
    let len = map.len();
    assert_eq!(try_with(len, arena.as_mut(), state.as_mut()), Ok(()));
    let small = try_with(len, &mut arena.as_mut()[..100], state.as_mut());
    assert!(matches!(small, Err(LoadError::TooSmall { what: "arena", wanted: ARENA, found: 100 })));
    let shifted = try_with(len, &mut arena.as_mut()[4..], state.as_mut());
    assert!(matches!(shifted, Err(LoadError::Unaligned { what: "arena", found: 4, .. })));
    let no_state = try_with(len, arena.as_mut(), &mut []);
    assert!(matches!(no_state, Err(LoadError::TooSmall { what: "state", .. })));
    let no_code = try_with(len - 1, arena.as_mut(), state.as_mut());
    assert!(matches!(no_code, Err(LoadError::TooSmall { what: "executable code", .. })));
}

#[test]
fn the_kernel_table_must_have_room() {
    let mut b = toy(manifest());
    b.kernel("count");
    let bytes = bytes(&b);
    let error = Program::load(bytes.as_ref(), &machine(), &mut []).unwrap_err();
    assert!(matches!(error, LoadError::TooSmall { what: "kernel table", wanted: 8, found: 0 }));
    let mut shifted = AlignedBytes::zeroed(bytes.as_ref().len() + 4);
    shifted.as_mut()[4..].copy_from_slice(bytes.as_ref());
    let error = Program::load(&shifted.as_ref()[4..], &machine(), &mut [None]).unwrap_err();
    assert!(matches!(error, LoadError::Unaligned { what: "weights", found: 4, .. }));
}

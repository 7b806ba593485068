//! The stack that kernels take: every run of a kernel in these tests is on a painted stack, and what it dirtied is held
//! against the bound of its operation.

use crate::cache::{element_bytes, row_elements};
use crate::memory::{Guarded, Random};
use crate::{Kernel, runnable};
use lapidary_kernels::args::{AttendArgs, F32Arg, RouteSelectArgs};
use lapidary_kernels::{KernelFn, KernelOp};
use std::cell::RefCell;
use std::ffi::c_void;

/// Bytes of the painted stack: more than any bound.
const STACK_BYTES: usize = 256 << 10;

/// What no kernel writes by chance.
const PAINT: u64 = 0x5afe_57ac_dead_beef;

/// Kernels with vectors of 64 bytes align their frame to that; here it begins aligned, elsewhere only to 16.
const ALIGNMENT_BYTES: u64 = 64 - 16;

thread_local! {
    static STACK: RefCell<Guarded<u64>> = RefCell::new(Guarded::filled(STACK_BYTES / 8, PAINT));
}

/// Calls a kernel on this thread's painted stack, and gives how many bytes of it were written.
///
/// # Safety
/// As the kernel's.
pub unsafe fn call(function: KernelFn, args: *const c_void) -> u64 {
    STACK.with_borrow_mut(|stack| {
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: the stack is this thread's own while the kernel runs, 64-byte aligned (its end is that of a page), and
        // the kernel's caller promises the rest.
        unsafe { switch(function, args, top.cast()) };
        let clean = stack.iter().position(|word| *word != PAINT).unwrap_or(stack.len());
        stack[clean..].fill(PAINT);
        8 * (STACK_BYTES / 8 - clean) as u64
    })
}

/// Calls `function` with the stack pointer at `top`.
///
/// # Safety
/// `top` is the 16-byte aligned end of a stack that is large enough and nobody else's; the rest as the function says.
#[cfg(target_arch = "x86_64")]
unsafe fn switch(function: KernelFn, args: *const c_void, top: *mut c_void) {
    // SAFETY: r12 is preserved by the callee, so the old stack pointer is back in place when the block ends.
    unsafe {
        std::arch::asm!(
            "xchg rsp, r12",
            "call {function}",
            "mov rsp, r12",
            function = in(reg) function,
            inout("r12") top => _,
            in("rdi") args,
            clobber_abi("C"),
        );
    }
}

/// Calls `function` with the stack pointer at `top`.
///
/// # Safety
/// `top` is the 16-byte aligned end of a stack that is large enough and nobody else's; the rest as the function says.
#[cfg(target_arch = "aarch64")]
unsafe fn switch(function: KernelFn, args: *const c_void, top: *mut c_void) {
    // SAFETY: x21 is preserved by the callee, so the old stack pointer is back in place when the block ends.
    unsafe {
        std::arch::asm!(
            "mov x21, sp",
            "mov sp, {top}",
            "blr {function}",
            "mov sp, x21",
            function = in(reg) function,
            top = in(reg) top,
            out("x21") _,
            in("x0") args,
            clobber_abi("C"),
        );
    }
}

/// Holds a run to the bound of its operation.
pub fn check(kernel: &Kernel, found_bytes: u64) {
    let bound = kernel.row.stack_bytes();
    assert!(
        found_bytes + ALIGNMENT_BYTES <= bound,
        "{}: {found_bytes} bytes of stack, wanted at most {bound} less {ALIGNMENT_BYTES}",
        kernel.row.name
    );
}

/// Largest tiles, heads and blocks: every part of the scratch is written. Less than the transposed keys alone (32 KiB)
/// would mean that the paint does not show what a kernel takes.
#[test]
fn attention_at_its_largest_stays_in_its_bound() {
    let random = &mut Random(3);
    let (rows, heads, positions) = (130, 2, 700);
    for op in [KernelOp::AttendRange, KernelOp::AttendClustered] {
        for kernel in runnable(op) {
            for dim in [127, 128, 129, 256] {
                let q = random.floats(rows * heads * dim, 1.0);
                // Whatever the values, the scratch is written: keys and values are zeros in every form of the cache.
                let cache = kernel.row.weight;
                let ld_kv = row_elements(cache, dim);
                let kv = Guarded::filled(positions * ld_kv * element_bytes(cache), 0u8);
                let mut y = Guarded::filled(rows * heads * dim, 0.0);
                let previous = Guarded::from_fn(positions, |t| t as i32 - 3);
                let found = kernel.run(&AttendArgs {
                    q: q.as_ptr(),
                    ldq: (heads * dim) as u64,
                    k: kv.as_ptr(),
                    v: kv.as_ptr(),
                    ld_kv: ld_kv as u64,
                    y: y.as_mut_ptr(),
                    ldy: (heads * dim) as u64,
                    rows: rows as u64,
                    first_position: (positions - rows) as u64,
                    num_keys: positions as u64,
                    heads_per_group: heads as u64,
                    head_dim: dim as u64,
                    causal: 1,
                    window: 200,
                    sinks: 64,
                    cluster_cap: 300,
                    previous: previous.as_ptr(),
                    scale: F32Arg::new(0.1),
                    keys_read: std::ptr::null(),
                });
                assert!(dim != 128 || found > 32 << 10, "{}: only {found} bytes of stack", kernel.row.name);
            }
        }
    }
}

/// Choosing the best of many tokens is the one place whose stack could grow with its input: orders that make quickselect
/// recurse, at rows far beyond any chunk.
#[test]
fn selection_among_many_tokens_stays_in_its_bound() {
    let (rows, clusters) = (40_000, 2);
    let random = &mut Random(4);
    for op in [KernelOp::SelectExpertChoice, KernelOp::SelectBidirectional] {
        for kernel in runnable(op) {
            for order in 0..5 {
                let score = |i: usize, random: &mut Random| match order {
                    0 => 0.5,
                    1 => i as f32,
                    2 => -(i as f32),
                    // Up to the middle and down again: an old killer of medians of three.
                    3 => {
                        if i < rows {
                            i as f32
                        } else {
                            (2 * rows - i) as f32
                        }
                    }
                    _ => random.unit(),
                };
                let a = Guarded::from_fn(rows * clusters, |i| score(i, random));
                let mut mask = Guarded::filled(rows * clusters, 0u8);
                let mut gates = Guarded::filled(rows * clusters, 0.0);
                let mut scratch = Guarded::filled(rows, 0u32);
                kernel.run(&RouteSelectArgs {
                    a: a.as_ptr(),
                    rows: rows as u64,
                    num_clusters: clusters as u64,
                    mask: mask.as_mut_ptr(),
                    gates: gates.as_mut_ptr(),
                    k_min: 1,
                    k_max: 1,
                    p: F32Arg::new(0.5),
                    tau: F32Arg::new(0.1),
                    capacity_factor: F32Arg::new(1.0),
                    norm_gates: 1,
                    scratch: scratch.as_mut_ptr(),
                });
            }
        }
    }
}

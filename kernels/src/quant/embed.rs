//! Embedding lookup in quantized tables: a row is read out of the panel that holds it.

use super::layout::{group_bytes, panel_bytes};
use crate::args::QEmbedArgs;
use crate::simd::{F16, Scalar, Weights};

/// Calls `f(panel, place, y)` for every row: the panel of its id, and the id's place in it.
///
/// # Safety
/// `args` is valid as [`QEmbedArgs`] says, with nr and kr of at least 1.
#[inline(always)]
unsafe fn each_row(args: &QEmbedArgs, f: impl Fn(*const u8, usize, *mut f32)) {
    let (nr, kr) = (args.nr as usize, args.kr as usize);
    let bytes = panel_bytes(args.group as usize, nr, kr, args.n as usize);
    for r in 0..args.rows as usize {
        // SAFETY: ids[r] is a row of the table, and r a row of y.
        unsafe {
            let id = args.ids.add(r).read() as usize;
            f(args.table.add(id / nr * bytes), id % nr, args.y.add(r * args.ldy as usize));
        }
    }
}

/// `y[i, :] = f32(code) · scale`, int8.
///
/// # Safety
/// `args` is valid as [`QEmbedArgs`] says.
#[inline(always)]
pub(crate) unsafe fn embed_i8(_: Scalar, args: &QEmbedArgs) {
    let (n, nr, kr, offset) = (args.n as usize, args.nr as usize, args.kr as usize, args.code_offset as u8);
    let row = |panel: *const u8, place: usize, y: *mut f32| {
        let scales = panel.wrapping_add(n.next_multiple_of(kr) * nr).cast::<f32>();
        // SAFETY: the panel has n inputs of nr outputs, then nr scales; y has n elements.
        unsafe {
            let scale = scales.add(place).read_unaligned();
            for begin in (0..n).step_by(kr) {
                let codes = panel.add(begin * nr + place * kr);
                for i in 0..kr.min(n - begin) {
                    let code = codes.add(i).read().wrapping_sub(offset) as i8;
                    y.add(begin + i).write(f32::from(code) * scale);
                }
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { each_row(args, row) }
}

/// `y[i, :] = f32(code) · scale`, int4.
///
/// # Safety
/// `args` is valid as [`QEmbedArgs`] says.
#[inline(always)]
pub(crate) unsafe fn embed_i4(_: Scalar, args: &QEmbedArgs) {
    let (n, nr, kr, group) = (args.n as usize, args.nr as usize, args.kr as usize, args.group as usize);
    let row = |panel: *const u8, place: usize, y: *mut f32| {
        for first in (0..n).step_by(group) {
            // SAFETY: groups follow each other, each with nr scales and its codes of nr outputs; y has n elements.
            unsafe {
                let scales = panel.add(first / group * group_bytes(group, nr, kr)).cast::<u16>();
                let scale = F16::widen(scales.add(place).read_unaligned());
                let codes = scales.add(nr).cast::<u8>().add(place * kr);
                let end = n.min(first + group);
                for begin in (first..end).step_by(kr) {
                    let half = (begin - first) / kr;
                    let codes = codes.add(half / 2 * nr * kr);
                    for i in 0..kr.min(end - begin) {
                        let code = codes.add(i).read() >> (half % 2 * 4) & 0x0f;
                        y.add(begin + i).write(f32::from(code as i8 - 8) * scale);
                    }
                }
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { each_row(args, row) }
}

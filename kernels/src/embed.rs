//! Embedding lookup, from a row-major table and from one packed for the LM head's GEMM.

use crate::args::EmbedArgs;
use crate::simd::{Scalar, Simd, Weights};

/// `y[i, :] = table[ids[i], :]`, widened.
///
/// # Safety
/// `args` is valid as [`EmbedArgs`] says, with a row-major table.
#[inline(always)]
pub(crate) unsafe fn embed_rows<S: Simd, W: Weights>(s: S, args: &EmbedArgs) {
    let n = args.n as usize;
    for r in 0..args.rows as usize {
        // SAFETY: ids[r] is a row of the table and r a row of y; both have n elements.
        unsafe {
            let id = args.ids.add(r).read() as usize;
            let x = args.table.cast::<W::Elem>().add(id * n);
            let y = args.y.add(r * args.ldy as usize);
            let mut i = 0;
            while i + S::LANES <= n {
                s.store(y.add(i), W::load(s, x.add(i)));
                i += S::LANES;
            }
            while i < n {
                y.add(i).write(W::widen(x.add(i).read()));
                i += 1;
            }
        }
    }
}

/// `y[i, :] = table[ids[i], :]` where row `id` is column `id % nr` of panel `id / nr`.
///
/// # Safety
/// `args` is valid as [`EmbedArgs`] says, with a table in panels of width `nr` ≥ 1.
#[inline(always)]
pub(crate) unsafe fn embed_panels<W: Weights>(_: Scalar, args: &EmbedArgs) {
    let (n, nr) = (args.n as usize, args.nr as usize);
    for r in 0..args.rows as usize {
        // SAFETY: ids[r] is an output of the packed matrix, whose panel holds n rows of nr elements; r is a row of y.
        unsafe {
            let id = args.ids.add(r).read() as usize;
            let x = args.table.cast::<W::Elem>().add(id / nr * n * nr + id % nr);
            let y = args.y.add(r * args.ldy as usize);
            for i in 0..n {
                y.add(i).write(W::widen(x.add(i * nr).read()));
            }
        }
    }
}

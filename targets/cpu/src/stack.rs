//! How much stack a call into a program takes.

use crate::LowerError;
use crate::emit::FunctionId;

/// What one function takes, and whom it calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// Its own frame, return address included.
    pub bytes: u64,
    /// Functions of the program that it calls or hands to the runtime's threads.
    pub callees: Vec<FunctionId>,
}

/// Bytes from the caller's stack pointer to the frame pointer: return address (or link register) and the caller's frame
/// pointer, on both architectures.
pub(crate) const LINKAGE_BYTES: u64 = 16;

/// Bytes of the deepest chain of calls that begins in any function; kernels, which call nothing, take `kernel_bytes`.
///
/// Functions call only those compiled before them, as one that calls must know the other's number.
pub(crate) fn deepest(frames: &[Frame], kernel_bytes: u64) -> Result<u64, LowerError> {
    let mut depths: Vec<u64> = Vec::with_capacity(frames.len());
    for (caller, frame) in frames.iter().enumerate() {
        let mut below = kernel_bytes;
        for callee in &frame.callees {
            let depth = depths.get(callee.0 as usize).ok_or_else(|| LowerError::Codegen {
                function: format!("function {caller}"),
                message: format!("a call of function {}, which is compiled later: the stack has no bound", callee.0),
            })?;
            below = below.max(*depth);
        }
        depths.push(frame.bytes + below);
    }
    Ok(depths.into_iter().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: u64, callees: &[u32]) -> Frame {
        Frame { bytes, callees: callees.iter().map(|id| FunctionId(*id)).collect() }
    }

    #[test]
    fn the_deepest_chain_counts_not_the_sum() {
        // 3 calls 1 and 2, 2 calls 0: 10 + 40 + 16 below 4's 8 bytes, and a kernel at the end.
        let frames = [frame(16, &[]), frame(50, &[]), frame(40, &[0]), frame(10, &[1, 2]), frame(8, &[3])];
        assert_eq!(deepest(&frames, 100).unwrap(), 8 + 10 + 40 + 16 + 100);
        assert_eq!(deepest(&frames[..2], 7).unwrap(), 57);
        assert_eq!(deepest(&[], 7).unwrap(), 0);
    }

    #[test]
    fn a_call_ahead_has_no_bound() {
        assert!(deepest(&[frame(16, &[0])], 0).is_err());
        assert!(deepest(&[frame(16, &[1]), frame(16, &[])], 0).is_err());
    }
}

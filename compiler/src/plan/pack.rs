//! Offsets: buffers that are never needed at the same time share memory.

use super::{ALIGN_BYTES, PlanError};

/// A buffer to be placed: size and lifetime, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub bytes: u64,
    pub first: usize,
    pub last: usize,
}

/// Rounds up to the alignment.
pub(super) fn align(bytes: u64) -> Result<u64, PlanError> {
    bytes
        .checked_next_multiple_of(ALIGN_BYTES)
        .filter(|n| *n < 1 << 63)
        .ok_or_else(|| PlanError::Overflow { what: "arena".into() })
}

/// An offset for each interval, and the size of it all. Largest first, each into the smallest gap that holds it among
/// the buffers that live at the same time; ties go to the earlier and lower, so the result depends on nothing else.
pub(super) fn pack(intervals: &[Interval]) -> Result<(Vec<u64>, u64), PlanError> {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(intervals[*i].bytes), intervals[*i].first, *i));
    let mut offsets = vec![0u64; intervals.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0u64;
    for i in order {
        let wanted = &intervals[i];
        let bytes = align(wanted.bytes)?;
        let contemporary = |j: &&usize| intervals[**j].first <= wanted.last && wanted.first <= intervals[**j].last;
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for j in placed.iter().filter(contemporary) {
            taken.push((offsets[*j], align(offsets[*j] + intervals[*j].bytes)?));
        }
        taken.sort();
        let mut end = 0u64;
        let mut best: Option<(u64, u64)> = None;
        for (from, to) in taken {
            let gap = from.saturating_sub(end);
            if gap >= bytes && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, end));
            }
            end = end.max(to);
        }
        let offset = best.map_or(end, |(_, offset)| offset);
        offsets[i] = offset;
        total = total.max(align(offset.saturating_add(bytes))?);
        placed.push(i);
    }
    Ok((offsets, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(bytes: u64, first: usize, last: usize) -> Interval {
        Interval { bytes, first, last }
    }

    #[test]
    fn what_lives_at_different_times_shares_memory() {
        let (offsets, total) = pack(&[interval(100, 0, 1), interval(100, 2, 3)]).unwrap();
        assert_eq!((offsets, total), (vec![0, 0], 128));
    }

    #[test]
    fn touching_lifetimes_do_not_share() {
        let (offsets, total) = pack(&[interval(64, 0, 1), interval(64, 1, 2)]).unwrap();
        assert_eq!((offsets, total), (vec![0, 64], 128));
    }

    #[test]
    fn the_smallest_gap_that_fits_is_taken() {
        // At node 5 live 0..256 and 640..832; before, 256..640 was one piece and so was what is above 832.
        let intervals =
            [interval(256, 0, 9), interval(384, 0, 4), interval(192, 0, 9), interval(192, 5, 9), interval(128, 5, 9)];
        let (offsets, total) = pack(&intervals).unwrap();
        assert_eq!(total, 832);
        for (i, a) in intervals.iter().enumerate() {
            for (j, b) in intervals.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                assert!(!together || apart, "{i} and {j}: {offsets:?}");
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_an_error() {
        assert!(pack(&[interval(u64::MAX, 0, 0)]).is_err());
        assert!(pack(&[interval(1 << 62, 0, 0), interval(1 << 62, 0, 0)]).is_err());
    }
}

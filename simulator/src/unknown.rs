//! Bytes that a run without values did not compute.

use std::collections::BTreeMap;

/// Ranges of bytes, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// Begin to end.
    ranges: BTreeMap<u64, u64>,
}

impl Unknown {
    /// Whether all of a range is known.
    pub(crate) fn is_known(&self, begin: u64, end: u64) -> bool {
        begin >= end || self.ranges.range(..end).next_back().is_none_or(|(_, last)| *last <= begin)
    }

    /// Adds a range.
    pub(crate) fn add(&mut self, mut begin: u64, mut end: u64) {
        if begin >= end {
            return;
        }
        while let Some((b, e)) = self.ranges.range(..=end).next_back().map(|(b, e)| (*b, *e)) {
            if e < begin {
                break;
            }
            self.ranges.remove(&b);
            (begin, end) = (begin.min(b), end.max(e));
        }
        self.ranges.insert(begin, end);
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, begin: u64, end: u64) {
        if begin >= end {
            return;
        }
        while let Some((b, e)) = self.ranges.range(..end).next_back().map(|(b, e)| (*b, *e)) {
            if e <= begin {
                break;
            }
            self.ranges.remove(&b);
            if e > end {
                self.ranges.insert(end, e);
            }
            if b < begin {
                self.ranges.insert(b, begin);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a table of single bytes.
    #[test]
    fn ranges_are_sets_of_bytes() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (mut set, mut table) = (Unknown::default(), [false; 64]);
        for _ in 0..20_000 {
            let (a, b) = (next(65), next(65));
            let (begin, end) = (a.min(b), a.max(b));
            let bytes = &mut table[begin as usize..end as usize];
            match next(3) {
                0 => {
                    set.add(begin, end);
                    bytes.fill(true);
                }
                1 => {
                    set.remove(begin, end);
                    bytes.fill(false);
                }
                _ => assert_eq!(set.is_known(begin, end), !bytes.contains(&true), "{begin}..{end} of {set:?}"),
            }
        }
    }
}

//! Which bytes belong to which step.

use super::{Code, Flow, Line, Step, decode, follow};

/// A range of the code and the steps that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range<'a> {
    pub begin: usize,
    pub end: usize,
    /// Usually one; none for bytes between steps, and for the rest of a step after another within it.
    pub steps: Vec<Step<'a>>,
    /// Whether it is all of its steps: only then is what its registers hold followed.
    is_whole: bool,
}

/// Longer ranges are cut, so that the listing of one takes little memory; the longest function of a real program has some
/// thousand bytes.
const MOST_BYTES: usize = 1 << 20;

/// A function of the code section.
#[derive(Clone, Copy, Debug)]
pub struct Function<'c> {
    pub(super) code: &'c Code<'c>,
    pub(super) range: &'c Range<'c>,
}

impl<'c> Function<'c> {
    /// The steps that begin here: one, unless the artifact's step table is odd.
    pub fn steps(&self) -> &'c [Step<'c>] {
        &self.range.steps
    }

    /// Offset in the code section.
    pub fn offset(&self) -> u64 {
        self.range.begin as u64
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        (self.range.end - self.range.begin) as u64
    }

    /// Its instructions, in order and without gaps.
    pub fn lines(&self) -> Vec<Line<'c>> {
        let code = self.code;
        let (decoded, convention) = decode(code.architecture, code.bytes, self.range.begin, self.range.end);
        let notes = follow::notes(code, &decoded, convention, self.range.is_whole);
        let line = |(one, note): (super::Decoded, _)| Line {
            offset: one.offset as u64,
            bytes: code.bytes.get(one.offset..one.offset + one.length).unwrap_or_default(),
            text: one.text,
            note,
            is_indirect_call: matches!(one.flow, Flow::CallIndirect(_)),
        };
        decoded.into_iter().zip(notes).map(line).collect()
    }
}

/// Cuts the code where steps begin and end. Steps beyond the code, which no checked artifact has, are cut off.
pub(super) fn ranges<'a>(mut steps: Vec<Step<'a>>, code: &[u8]) -> Vec<Range<'a>> {
    let within = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(code.len());
    steps.sort_by_key(|step| step.offset);
    let ends = steps.iter().map(|step| within(step.offset.saturating_add(step.bytes)));
    let mut cuts: Vec<usize> = steps.iter().map(|step| within(step.offset)).chain(ends).collect();
    cuts.extend([0, code.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut ranges = Vec::new();
    let mut steps = steps.into_iter().peekable();
    let mut covered_to = 0;
    for (i, &begin) in cuts.iter().enumerate() {
        let end = cuts.get(i + 1).copied().unwrap_or(begin);
        let mut here = Vec::new();
        while let Some(step) = steps.next_if(|step| within(step.offset) <= begin) {
            covered_to = covered_to.max(within(step.offset.saturating_add(step.bytes)));
            here.push(step);
        }
        let is_padding = || code.get(begin..end).is_none_or(|bytes| bytes.iter().all(|b| *b == 0));
        if !here.is_empty() || (begin < covered_to && begin < end) || !is_padding() {
            // A step of no bytes lies before what follows it, not around it.
            let end = if begin < covered_to || here.is_empty() { end } else { begin };
            let is_whole = |step: &Step<'_>| within(step.offset.saturating_add(step.bytes)) == end;
            let is_whole = !here.is_empty() && here.iter().all(is_whole);
            ranges.push(Range { begin, end, steps: here, is_whole });
            if end == begin && !is_padding() {
                let end = cuts.get(i + 1).copied().unwrap_or(begin);
                ranges.push(Range { begin, end, steps: Vec::new(), is_whole: false });
            }
        }
    }
    ranges.into_iter().flat_map(pieces).collect()
}

/// A range in pieces that are not too long.
fn pieces(range: Range<'_>) -> Vec<Range<'_>> {
    let Range { begin, end, mut steps, is_whole } = range;
    let is_whole = is_whole && end - begin <= MOST_BYTES;
    let piece = |at| Range { begin: at, end: end.min(at + MOST_BYTES), steps: std::mem::take(&mut steps), is_whole };
    (begin..end.max(begin + 1)).step_by(MOST_BYTES).map(piece).collect()
}

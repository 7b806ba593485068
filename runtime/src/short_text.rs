//! Text of bounded length, for errors that quote a file without allocation.

use core::fmt;

const CAPACITY: usize = 87;

/// Up to 87 bytes of text; what does not fit is cut at a character and marked with `…`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShortText {
    len: u8,
    bytes: [u8; CAPACITY],
}

impl ShortText {
    /// No text.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; CAPACITY] };

    /// `text`, cut when it is too long.
    pub fn new(text: &str) -> Self {
        Self::joined([text])
    }

    /// The texts with `, ` between them, cut when they are too long.
    pub fn joined<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let mut this = Self::EMPTY;
        for (index, text) in texts.into_iter().enumerate() {
            if !(index == 0 || this.push(", ")) || !this.push(text) {
                break;
            }
        }
        this
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Appends what fits; false when something was cut.
    fn push(&mut self, text: &str) -> bool {
        const MARK: &str = "…";
        let begin = usize::from(self.len);
        let room = CAPACITY - MARK.len() - begin.min(CAPACITY - MARK.len());
        let fits = text.len() <= room;
        let mut kept = text.len().min(room);
        while !text.is_char_boundary(kept) {
            kept -= 1;
        }
        let mark = if fits { "" } else { MARK };
        let tail = self.bytes.iter_mut().skip(begin);
        for (to, from) in tail.zip(text.bytes().take(kept).chain(mark.bytes())) {
            *to = from;
        }
        self.len = (begin + kept + mark.len()) as u8;
        fits
    }
}

impl fmt::Display for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_are_kept_and_long_ones_cut_at_a_character() {
        assert_eq!(ShortText::new("avx2").as_str(), "avx2");
        assert_eq!(ShortText::joined(["avx2", "fma"]).as_str(), "avx2, fma");
        assert_eq!(ShortText::joined([]).as_str(), "");
        let long = "ü".repeat(60);
        let cut = ShortText::new(&long);
        assert_eq!(cut.as_str(), std::format!("{}…", "ü".repeat(42)));
        let many = ShortText::joined(core::iter::repeat_n("avx512f", 30));
        assert!(many.as_str().starts_with("avx512f, avx512f"));
        assert!(many.as_str().ends_with('…') && many.as_str().len() <= CAPACITY);
    }
}

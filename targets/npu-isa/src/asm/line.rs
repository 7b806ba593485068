//! Lines cut into labels, statements and operands, each with its column.

use alloc::string::String;
use alloc::vec::Vec;

/// A part of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    /// Byte of the line at which it begins.
    pub at: usize,
}

impl<'a> Piece<'a> {
    pub(super) fn trim(self) -> Piece<'a> {
        let begin = self.text.len() - self.text.trim_start().len();
        Piece { text: self.text.trim(), at: self.at + begin }
    }

    /// The two sides of byte `at`, and without the `skip` bytes between them.
    pub(super) fn cut(self, at: usize, skip: usize) -> (Piece<'a>, Piece<'a>) {
        let right = Piece { text: &self.text[at + skip..], at: self.at + at + skip };
        (Piece { text: &self.text[..at], at: self.at }.trim(), right.trim())
    }
}

/// A statement: what it is called and what follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statement<'a> {
    pub name: Piece<'a>,
    pub rest: Piece<'a>,
}

/// A line of the text.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    /// From 1.
    pub number: usize,
    pub text: &'a str,
    pub labels: Vec<Piece<'a>>,
    pub statement: Option<Statement<'a>>,
}

/// Byte at which the comment begins, `;` outside of quotes.
fn comment(text: &str) -> usize {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ';' if !quoted => return at,
            _ => (),
        }
    }
    text.len()
}

/// One line.
pub(super) fn line(number: usize, text: &str) -> Line<'_> {
    let mut rest = Piece { text: &text[..comment(text)], at: 0 }.trim();
    let mut labels = Vec::new();
    while let Some(at) = rest.text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.') {
        if !rest.text[at..].starts_with(':') {
            break;
        }
        let (label, behind) = rest.cut(at, 1);
        labels.push(label);
        rest = behind;
    }
    let statement = (!rest.text.is_empty()).then(|| {
        let end = rest.text.find(char::is_whitespace).unwrap_or(rest.text.len());
        let (name, rest) = rest.cut(end, 0);
        Statement { name, rest }
    });
    Line { number, text, labels, statement }
}

/// What stands between the commas that are in no brackets and no quotes.
pub(super) fn operands(rest: Piece<'_>) -> Vec<Piece<'_>> {
    let mut out = Vec::new();
    if rest.text.is_empty() {
        return out;
    }
    let (mut depth, mut quoted, mut begin) = (0i32, false, 0);
    for (at, c) in rest.text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' | '(' if !quoted => depth += 1,
            ']' | ')' if !quoted => depth -= 1,
            ',' if depth == 0 && !quoted => {
                out.push(Piece { text: &rest.text[begin..at], at: rest.at + begin }.trim());
                begin = at + 1;
            }
            _ => (),
        }
    }
    out.push(Piece { text: &rest.text[begin..], at: rest.at + begin }.trim());
    out
}

/// A statement's rest without `wait(…)` and `post(…)` behind the operands, and these.
pub(super) fn tokens<'a>(rest: Piece<'a>) -> (Piece<'a>, Vec<(Piece<'a>, Piece<'a>)>) {
    let mut left = rest;
    let mut found = Vec::new();
    while let Some(body) = left.text.strip_suffix(')') {
        let Some(open) = body.rfind('(') else { break };
        let head = left.text[..open].trim_end();
        let begin = head.rfind(|c: char| c.is_whitespace() || c == ',').map_or(0, |at| at + 1);
        let name = Piece { text: &head[begin..], at: left.at + begin };
        if name.text != "wait" && name.text != "post" {
            break;
        }
        let inside = Piece { text: &body[open + 1..], at: left.at + open + 1 }.trim();
        found.push((name, inside));
        left = Piece { text: left.text[..begin].trim_end(), at: left.at };
        // A comma in front of the tokens is allowed, not wanted.
        left.text = left.text.strip_suffix(',').unwrap_or(left.text).trim_end();
    }
    found.reverse();
    (left, found)
}

/// What is between quotes.
pub(super) fn quoted(text: &str) -> Option<String> {
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inside.contains('"')).then(|| inside.into())
}

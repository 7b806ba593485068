//! Constant expressions, and names in operands.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::operand::parse_int;

/// What a name of the program stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Symbol {
    /// A number.
    Number(i64),
    /// A register, a token or another word.
    Word(String),
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoValue {
    /// A result that does not fit.
    Range(String),
    /// It is none.
    Form(String),
}

impl NoValue {
    pub(super) fn message(self) -> String {
        match self {
            NoValue::Range(message) | NoValue::Form(message) => message,
        }
    }
}

pub(super) type Symbols = BTreeMap<String, Symbol>;

/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 32;

/// A number, a name, or a sign.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Word(String),
    Sign(char),
    Shift(char),
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

fn pieces(text: &str) -> Option<Vec<Piece>> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        if is_word(c) {
            let mut word = c.to_string();
            while let Some(next) = chars.next_if(|c| is_word(*c)) {
                word.push(next);
            }
            out.push(Piece::Word(word));
        } else if (c == '<' || c == '>') && chars.next_if_eq(&c).is_some() {
            out.push(Piece::Shift(c));
        } else if "+-*/&|()".contains(c) {
            out.push(Piece::Sign(c));
        } else {
            return None;
        }
    }
    Some(out)
}

struct Parser<'a> {
    pieces: &'a [Piece],
    symbols: &'a Symbols,
}

impl Parser<'_> {
    fn next_if(&mut self, accept: impl Fn(&Piece) -> bool) -> Option<Piece> {
        let (first, rest) = self.pieces.split_first().filter(|(p, _)| accept(p))?;
        self.pieces = rest;
        Some(first.clone())
    }

    /// Operators from the weakest to the strongest: `|`, `&`, shifts, sums, products.
    fn level(&mut self, level: usize, depth: usize) -> Result<i64, NoValue> {
        if level == 5 {
            return self.factor(depth);
        }
        let mut value = self.level(level + 1, depth)?;
        let accept = |p: &Piece| match (level, p) {
            (0, Piece::Sign('|')) | (1, Piece::Sign('&')) | (2, Piece::Shift(_)) => true,
            (3, Piece::Sign(c)) => *c == '+' || *c == '-',
            (4, Piece::Sign(c)) => *c == '*' || *c == '/',
            _ => false,
        };
        while let Some(sign) = self.next_if(accept) {
            let right = self.level(level + 1, depth)?;
            let shift = u32::try_from(right).ok().filter(|n| *n < 64);
            let result = match sign {
                Piece::Sign('|') => Some(value | right),
                Piece::Sign('&') => Some(value & right),
                Piece::Shift('<') => shift.and_then(|n| i64::try_from(i128::from(value) << n).ok()),
                Piece::Shift(_) => shift.map(|n| value >> n),
                Piece::Sign('+') => value.checked_add(right),
                Piece::Sign('-') => value.checked_sub(right),
                Piece::Sign('*') => value.checked_mul(right),
                Piece::Sign(_) => value.checked_div(right),
                Piece::Word(_) => None,
            };
            let found = || NoValue::Range(format!("wanted a result of 64 bits, found {value} and {right}"));
            value = result.ok_or_else(found)?;
        }
        Ok(value)
    }

    fn factor(&mut self, depth: usize) -> Result<i64, NoValue> {
        if depth == MAX_DEPTH {
            let message = format!("wanted at most {MAX_DEPTH} nested signs and parentheses, found more");
            return Err(NoValue::Range(message));
        }
        match self.next_if(|_| true) {
            Some(Piece::Sign('-')) => {
                let value = self.factor(depth + 1)?.checked_neg();
                value.ok_or_else(|| NoValue::Range("wanted a result of 64 bits, found 2^63".into()))
            }
            Some(Piece::Sign('(')) => {
                let value = self.level(0, depth + 1)?;
                match self.next_if(|p| *p == Piece::Sign(')')) {
                    Some(_) => Ok(value),
                    None => Err(NoValue::Form("wanted `)`, found none".into())),
                }
            }
            Some(Piece::Word(word)) => match (parse_int(&word), self.symbols.get(&word)) {
                (Some(value), _) => Ok(value),
                (None, Some(Symbol::Number(value))) => Ok(*value),
                (None, Some(Symbol::Word(other))) => {
                    Err(NoValue::Form(format!("wanted a number, found `{word}`, which is {other}")))
                }
                (None, None) => Err(NoValue::Form(format!("wanted a number or a name of one, found `{word}`"))),
            },
            Some(Piece::Sign(c) | Piece::Shift(c)) => {
                Err(NoValue::Form(format!("wanted a number or a name of one, found `{c}`")))
            }
            None => Err(NoValue::Form("wanted a number or a name of one, found nothing".into())),
        }
    }
}

/// Value of an expression.
pub(super) fn evaluate(text: &str, symbols: &Symbols) -> Result<i64, NoValue> {
    let wrong = || NoValue::Form(format!("wanted a number or an expression of numbers, found `{text}`"));
    let pieces = pieces(text).ok_or_else(wrong)?;
    let mut parser = Parser { pieces: &pieces, symbols };
    let value = parser.level(0, 0)?;
    if parser.pieces.is_empty() { Ok(value) } else { Err(wrong()) }
}

/// A name as what it stands for; other words stay.
fn resolve(word: &str, symbols: &Symbols) -> String {
    match symbols.get(word) {
        Some(Symbol::Word(other)) => other.clone(),
        Some(Symbol::Number(n)) => n.to_string(),
        None => word.into(),
    }
}

/// An operand's text with names and expressions replaced, so that [`crate::operand::Operand::parse`] reads it. Text that is no expression stays as it is.
pub(super) fn canonical(text: &str, symbols: &Symbols) -> String {
    let text = text.trim();
    if let Some((memory, inside)) = text.strip_suffix(']').and_then(|t| t.split_once('[')) {
        let memory = memory.trim();
        // A register at the front, then `+` and a constant.
        let (first, rest) = match inside.find(['+', '-', '*', '/', '&', '|', '<', '>', '(']) {
            Some(at) if inside[at..].starts_with('+') => (&inside[..at], Some(&inside[at + 1..])),
            Some(_) => ("", Some(inside)),
            None => (inside, None),
        };
        let base = resolve(first.trim(), symbols);
        let is_register = crate::operand::parse_reg(&base).is_some();
        return match (is_register, rest) {
            (true, Some(rest)) => match evaluate(rest, symbols) {
                Ok(value) => format!("{memory}[{base}+{value}]"),
                Err(_) => text.into(),
            },
            (true, None) => format!("{memory}[{base}]"),
            (false, _) => evaluate(inside, symbols).map_or_else(|_| text.into(), |value| format!("{memory}[{value}]")),
        };
    }
    match evaluate(text, symbols) {
        Ok(value) => value.to_string(),
        Err(_) => resolve(text, symbols),
    }
}

//! Text → tokens.

use super::ParseError;
use crate::ops::{mismatch, shortened};

/// A token. Names are without their sigil.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// `rms_norm`, `attn.range`, `_`.
    Word(&'a str),
    /// `%12`.
    Value(&'a str),
    /// `@model.norm.weight`, `@"any name"`.
    Weight(String),
    /// `12`, `-1e-6`; not yet read as a number.
    Number(&'a str),
    /// `"text"`, escapes resolved.
    Str(String),
    /// `( ) [ ] { } , : =`.
    Punct(char),
    /// `<=`.
    AtMost,
    /// End of the text.
    End,
}

impl Token<'_> {
    /// The token in a message, not too long.
    pub fn show(&self) -> String {
        let short = |s: &str| s.chars().take(40).collect::<String>();
        match self {
            Token::Word(s) | Token::Number(s) => short(s),
            Token::Value(s) => format!("%{}", short(s)),
            Token::Weight(s) => format!("@{}", short(s)),
            Token::Str(s) => format!("{:?}", short(s)),
            Token::Punct(c) => c.to_string(),
            Token::AtMost => "<=".into(),
            Token::End => "the end of the text".into(),
        }
    }
}

/// Whether a weight's name needs no quotes.
pub(super) fn is_plain_weight_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_weight_byte)
}

fn is_weight_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"_.-/".contains(&b)
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'.'
}

#[derive(Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    pos: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, pos: 0 }
    }

    /// An error at a byte position.
    pub fn error(&self, at: usize, message: String) -> ParseError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        ParseError { line, column, message: shortened(message) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a str {
        let begin = self.pos;
        while self.peek().is_some_and(&accept) {
            self.pos += 1;
        }
        // Everything accepted is ASCII, so both ends are character boundaries.
        &self.text[begin..self.pos]
    }

    /// The next token and where it begins. `;` begins a comment that ends with the line.
    pub fn next(&mut self) -> Result<(Token<'a>, usize), ParseError> {
        loop {
            self.take_while(|b| b.is_ascii_whitespace());
            if self.peek() != Some(b';') {
                break;
            }
            self.pos = self.text[self.pos..].find('\n').map_or(self.text.len(), |n| self.pos + n);
        }
        let begin = self.pos;
        let Some(first) = self.peek() else { return Ok((Token::End, begin)) };
        let token = match first {
            b'%' => {
                self.pos += 1;
                Token::Value(self.name(begin, "value", is_word_byte)?)
            }
            b'@' => {
                self.pos += 1;
                match self.peek() {
                    Some(b'"') => Token::Weight(self.string()?),
                    Some(_) | None => Token::Weight(self.name(begin, "weight", is_weight_byte)?.to_owned()),
                }
            }
            b'"' => Token::Str(self.string()?),
            b'0'..=b'9' | b'-' => Token::Number(self.take_while(|b| is_word_byte(b) || b == b'-' || b == b'+')),
            b'(' | b')' | b'[' | b']' | b'{' | b'}' | b',' | b':' | b'=' => {
                self.pos += 1;
                Token::Punct(char::from(first))
            }
            b'<' if self.text[self.pos..].starts_with("<=") => {
                self.pos += 2;
                Token::AtMost
            }
            b if b.is_ascii_alphabetic() || b == b'_' => Token::Word(self.take_while(is_word_byte)),
            _ => {
                let found = self.text[begin..].chars().next().unwrap_or(' ');
                return Err(self.error(begin, mismatch("character", "one of the text form", format!("{found:?}"))));
            }
        };
        Ok((token, begin))
    }

    fn name(&mut self, begin: usize, what: &str, accept: impl Fn(u8) -> bool) -> Result<&'a str, ParseError> {
        match self.take_while(accept) {
            "" => Err(self.error(begin, mismatch(what, "a name", "none"))),
            name => Ok(name),
        }
    }

    /// A string, from its opening quote.
    fn string(&mut self) -> Result<String, ParseError> {
        let begin = self.pos;
        let mut out = String::new();
        let mut chars = self.text[begin..].char_indices();
        chars.next();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.pos = begin + at + 1;
                    return Ok(out);
                }
                '\\' => {
                    let escaped = match chars.next().map(|(_, c)| c) {
                        Some('n') => Some('\n'),
                        Some('r') => Some('\r'),
                        Some('t') => Some('\t'),
                        Some(c @ ('"' | '\\')) => Some(c),
                        Some('u') => unicode_escape(&mut chars),
                        Some(_) | None => None,
                    };
                    match escaped {
                        Some(c) => out.push(c),
                        None => {
                            let wanted = r#"\n, \r, \t, \", \\ or \u{hex}"#;
                            return Err(self.error(begin + at, mismatch("escape", wanted, "another")));
                        }
                    }
                }
                c if c.is_control() => {
                    return Err(
                        self.error(begin + at, mismatch("string", "control characters escaped", format!("{c:?}")))
                    );
                }
                c => out.push(c),
            }
        }
        Err(self.error(begin, mismatch("string", "a closing quote", "the end of the text")))
    }
}

/// `{hex}` after `\u`.
fn unicode_escape(chars: &mut std::str::CharIndices<'_>) -> Option<char> {
    if chars.next()?.1 != '{' {
        return None;
    }
    let mut code = 0u32;
    for _ in 0..7 {
        match chars.next()?.1 {
            '}' => return char::from_u32(code),
            c => code = code.checked_mul(16)?.checked_add(c.to_digit(16)?)?,
        }
    }
    None
}

//! What is wrong with assembly text, and where.

use alloc::string::String;
use core::fmt;

/// A place in the text, a sentence that says what is wrong, and the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsmError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Characters that are wrong, at least 1.
    pub length: usize,
    /// Whose text it is: `m.pass, operand rows`.
    pub what: String,
    /// What was wanted and found.
    pub message: String,
    /// The line itself.
    pub text: String,
}

/// A line is shown up to here.
const SHOWN: usize = 160;

impl fmt::Display for AsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AsmError { line, column, length, what, message, text } = self;
        write!(f, "line {line}, column {column}: {what}: {message}")?;
        if *column > SHOWN {
            return Ok(());
        }
        let shown: String = text.chars().take(SHOWN).map(|c| if c == '\t' { ' ' } else { c }).collect();
        let carets = (*length).clamp(1, SHOWN + 1 - column);
        write!(f, "\n    {shown}\n    {:indent$}{:^<carets$}", "", "", indent = column - 1)
    }
}

impl core::error::Error for AsmError {}

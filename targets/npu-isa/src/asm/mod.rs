//! The assembler: text to a [`Program`].
//!
//! A line has labels (`name:`), then an instruction or a directive, then a comment behind `;`. Instructions are written as in `ISA.md`.
//! Numbers may be expressions (`+ - * / << >> & |`, parentheses) of decimal and `0x` numbers and names.
//!
//! | directive | what |
//! |---|---|
//! | `.equ NAME, VALUE` | NAME stands for a number, a register or a token |
//! | `.data NAME[, at=ADDRESS]` | a segment of DRAM; without an address behind the last one, at a multiple of 64. NAME stands for its address |
//! | `.f32 .f16 .i8 .u8 .i32 .u32 V, …` | contents of the segment, little-endian |
//! | `.i4 V, …` | contents, two per byte, the first in the low half |
//! | `.fill TYPE, V, N` | V, N times, TYPE one of the six above without point |
//! | `.zero N` | N zero bytes; at the end of a segment they take no place in the file |
//! | `.space NAME, N[, at=ADDRESS]` | a segment of N zero bytes |
//! | `.op "NAME"[, module=REG]` | what the instructions from here on belong to in reports; `.op ""` ends it |
//! | `.machine HASH` | the program is for the machine with this hash (or, with `std`, of this preset) only |
//!
//! ```
//! let text = "loop r1, count=4\n  li r2, 16\nend\nhalt\n";
//! let program = lapidary_npu_isa::asm::assemble(text).unwrap();
//! assert_eq!(program.instructions.len(), 4);
//! let error = lapidary_npu_isa::asm::assemble("li r40, 1\nhalt\n").unwrap_err();
//! assert!(error.to_string().starts_with("line 1, column 4: li, operand rd: wanted a register from r1 to r31, found `r40`"));
//! ```

mod data;
mod error;
mod expression;
mod line;
mod source;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use error::AsmError;
use expression::{Symbol, Symbols, canonical, evaluate};
use line::{Line, Piece, Statement, line, quoted};
use source::Operands;

use crate::choice::{Broadcast, Codes, Condition, Queue, Type};
use crate::instruction::{Instruction, Token, Tokens};
use crate::operand::{Body, Distance, parse_reg};
use crate::program::{Label, OpLabel, Program, is_name, is_title};
use crate::table::{Op, ROWS};

/// Longest text, in bytes.
const MAX_TEXT: usize = 1 << 28;

/// Whether a word belongs to the language, so that nothing else can be called that.
pub fn is_reserved(word: &str) -> bool {
    parse_reg(word).is_some()
        || parse_token(word).is_some()
        || matches!(word, "sp" | "w" | "acc" | "dram" | "wait" | "post")
        || ROWS.iter().any(|row| row.mnemonic == word || row.fields.iter().any(|f| f.kind == "flag" && f.name == word))
        || Type::ALL.iter().any(|v| v.name() == word)
        || Broadcast::ALL.iter().any(|v| v.name() == word)
        || Codes::ALL.iter().any(|v| v.name() == word)
        || Condition::ALL.iter().any(|v| v.name() == word)
        || Queue::ALL.iter().any(|v| v.name() == word)
}

fn parse_token(text: &str) -> Option<Token> {
    let digits = text.strip_prefix('t')?;
    let plain = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    Token::new(digits.parse().ok().filter(|_| plain)?)
}

/// What is wrong at a piece of the line that is being read.
struct Wrong<'a> {
    piece: Piece<'a>,
    what: String,
    message: String,
}

impl<'a> Wrong<'a> {
    fn new(piece: Piece<'a>, what: impl Into<String>, message: impl Into<String>) -> Self {
        Self { piece, what: what.into(), message: message.into() }
    }

    fn at(self, line: &Line<'_>) -> AsmError {
        let (begin, end) = (self.piece.at, self.piece.at + self.piece.text.len());
        let count = |to: usize| line.text.get(..to).map_or(0, |t| t.chars().count());
        AsmError {
            line: line.number,
            column: count(begin) + 1,
            length: count(end).saturating_sub(count(begin)).max(1),
            what: self.what,
            message: self.message,
            text: line.text.chars().take(400).collect(),
        }
    }
}

/// Assembles a text.
pub fn assemble(text: &str) -> Result<Program, AsmError> {
    if text.len() > MAX_TEXT {
        let nowhere = line(1, "");
        let message = format!("wanted at most {MAX_TEXT} bytes, found {}", text.len());
        return Err(Wrong::new(Piece { text: "", at: 0 }, "text", message).at(&nowhere));
    }
    let lines: Vec<Line<'_>> = text.lines().enumerate().map(|(i, text)| line(i + 1, text)).collect();
    let mut assembler = Assembler::default();
    for line in &lines {
        assembler.names(line).map_err(|wrong| wrong.at(line))?;
    }
    assembler.begin_second_pass();
    for line in &lines {
        assembler.line(line).map_err(|wrong| wrong.at(line))?;
    }
    assembler.finish(&lines)
}

#[derive(Default)]
struct Assembler {
    symbols: Symbols,
    /// Labels by name: position of the instruction.
    labels: BTreeMap<String, u32>,
    program: Program,
    /// Number of the line of each instruction.
    line_of: Vec<usize>,
    /// Instructions of the first pass.
    count: u32,
    /// Positions of the loops that are open.
    open: Vec<usize>,
    segment: data::Open,
}

impl Assembler {
    /// First pass: positions of labels.
    fn names<'a>(&mut self, line: &Line<'a>) -> Result<(), Wrong<'a>> {
        for label in &line.labels {
            if !is_name(label.text) {
                let message = format!("wanted a name that is no word of the language, found `{}`", label.text);
                return Err(Wrong::new(*label, "label", message));
            }
            if self.labels.insert(label.text.into(), self.count).is_some() {
                return Err(Wrong::new(
                    *label,
                    "label",
                    format!("wanted a new name, found `{}` a second time", label.text),
                ));
            }
            self.program.labels.push(Label { at: self.count, name: label.text.into() });
        }
        self.count += u32::from(line.statement.is_some_and(|s| !s.name.text.starts_with('.')));
        Ok(())
    }

    fn begin_second_pass(&mut self) {
        self.count = 0;
    }

    fn line<'a>(&mut self, line: &Line<'a>) -> Result<(), Wrong<'a>> {
        match line.statement {
            None => Ok(()),
            Some(statement) if statement.name.text.starts_with('.') => self.directive(statement),
            Some(statement) => {
                self.instruction(statement)?;
                self.line_of.push(line.number);
                Ok(())
            }
        }
    }

    fn define<'a>(&mut self, name: Piece<'a>, what: &str, symbol: Symbol) -> Result<(), Wrong<'a>> {
        if !is_name(name.text) {
            let message = format!("wanted a name that is no word of the language, found `{}`", name.text);
            return Err(Wrong::new(name, what, message));
        }
        if self.labels.contains_key(name.text) || self.symbols.insert(name.text.into(), symbol).is_some() {
            return Err(Wrong::new(name, what, format!("wanted a new name, found `{}` a second time", name.text)));
        }
        Ok(())
    }

    /// A number of at least 0.
    fn size<'a>(&self, piece: Piece<'a>, what: &str) -> Result<u64, Wrong<'a>> {
        let value = evaluate(piece.text, &self.symbols).map_err(|e| Wrong::new(piece, what, e.message()))?;
        let found = || Wrong::new(piece, what, format!("wanted 0 or more, found {value}"));
        u64::try_from(value).map_err(|_| found())
    }

    fn directive<'a>(&mut self, Statement { name, rest }: Statement<'a>) -> Result<(), Wrong<'a>> {
        let operands = line::operands(rest);
        let few = |n: &str| Wrong::new(name, name.text, format!("wanted {n}, found {}", operands.len()));
        match (name.text, &operands[..]) {
            (".equ", [what, value]) => {
                let text = canonical(value.text, &self.symbols);
                let symbol = match crate::operand::parse_int(&text) {
                    Some(number) => Symbol::Number(number),
                    None if is_reserved(&text) => Symbol::Word(text),
                    None => {
                        let message = format!("wanted a number, a register or a token, found `{}`", value.text);
                        return Err(Wrong::new(*value, ".equ", message));
                    }
                };
                self.define(*what, ".equ", symbol)
            }
            (".equ", _) => Err(few("a name and a value")),
            (".op", [title, rest @ ..]) if rest.len() < 2 => self.op_label(*title, rest.first().copied()),
            (".op", _) => Err(few("a name in quotes and at most a module")),
            (".machine", [machine]) => self.machine(*machine),
            (".machine", _) => Err(few("a hash of 64 hexadecimal digits")),
            _ => self.data(name, &operands),
        }
    }

    fn op_label<'a>(&mut self, title: Piece<'a>, module: Option<Piece<'a>>) -> Result<(), Wrong<'a>> {
        let name = quoted(title.text).filter(|t| is_title(t)).ok_or_else(|| {
            Wrong::new(title, ".op", format!("wanted a printable name in quotes, found `{}`", title.text))
        })?;
        let module = match module {
            None => None,
            Some(piece) => {
                let reg = piece.text.strip_prefix("module").and_then(|t| t.trim_start().strip_prefix('='));
                let reg = reg.and_then(|r| parse_reg(&canonical(r, &self.symbols))).and_then(crate::operand::Reg::new);
                let message = || format!("wanted module=r1 to module=r31, found `{}`", piece.text);
                Some(reg.ok_or_else(|| Wrong::new(piece, ".op", message()))?)
            }
        };
        let at = self.program.instructions.len() as u32;
        // The later of two that name the same instruction holds.
        self.program.op_labels.retain(|l| l.at != at);
        self.program.op_labels.push(OpLabel { at, name, module });
        Ok(())
    }

    fn machine<'a>(&mut self, piece: Piece<'a>) -> Result<(), Wrong<'a>> {
        let digits = |i: usize| piece.text.get(2 * i..2 * i + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
        let hash: Option<Vec<u8>> = (0..32).map(digits).collect();
        let hash = hash.filter(|_| piece.text.len() == 64 && piece.text.bytes().all(|b| b.is_ascii_hexdigit()));
        #[cfg(feature = "std")]
        let hash = hash.or_else(|| crate::Machine::preset(piece.text).ok().map(|m| m.hash().to_vec()));
        let hash = hash.and_then(|h| <[u8; 32]>::try_from(h).ok());
        let message = || format!("wanted a hash of 64 hexadecimal digits or a preset, found `{}`", piece.text);
        self.program.machine_hash = Some(hash.ok_or_else(|| Wrong::new(piece, ".machine", message()))?);
        Ok(())
    }

    fn instruction<'a>(&mut self, Statement { name, rest }: Statement<'a>) -> Result<(), Wrong<'a>> {
        let (rest, tokens) = line::tokens(rest);
        let at = self.program.instructions.len();
        let mut operands = Operands::new(name, rest, &self.symbols, &self.labels, at);
        let op = Op::build(name.text, &mut operands).ok_or_else(|| {
            let near = ROWS.iter().map(|r| r.mnemonic).filter(|m| m.rsplit('.').next() == name.text.rsplit('.').next());
            let near: Vec<&str> = near.collect();
            let hint = if near.is_empty() { String::new() } else { format!(" (there is {})", near.join(", ")) };
            Wrong::new(name, "instruction", format!("wanted a mnemonic of ISA.md, found `{}`{hint}", name.text))
        })??;
        operands.finish()?;
        let row = op.row();
        let mut instruction = Instruction { op, tokens: Tokens::NONE };
        for (kind, list) in tokens {
            if !row.has_tokens() {
                let message = format!("wanted none on this instruction, found `{}`", kind.text);
                return Err(Wrong::new(kind, format!("{}, tokens", row.mnemonic), message));
            }
            let pair = match kind.text {
                "wait" => &mut instruction.tokens.wait,
                _ => &mut instruction.tokens.post,
            };
            for piece in line::operands(list) {
                let message = |wanted: &str| format!("wanted {wanted}, found `{}`", piece.text);
                let wrong = |wanted| Wrong::new(piece, format!("{}, {}", row.mnemonic, kind.text), message(wanted));
                let token = parse_token(&canonical(piece.text, &self.symbols));
                let token = token.ok_or_else(|| wrong("a token from t1 to t31"))?;
                let place = pair.iter_mut().find(|p| p.is_none());
                *place.ok_or_else(|| wrong("at most two tokens"))? = Some(token);
            }
        }
        self.program.instructions.push(instruction);
        self.structure(name, at)
    }

    /// Fills in the lengths of loop bodies.
    fn structure<'a>(&mut self, name: Piece<'a>, at: usize) -> Result<(), Wrong<'a>> {
        match &mut self.program.instructions[at].op {
            Op::Loop(_) => self.open.push(at),
            Op::End(tail) => {
                let head = self.open.pop();
                let head = head.ok_or_else(|| Wrong::new(name, "end", "wanted a `loop` before it, found none"))?;
                let body = Body((at - head - 1) as u32);
                tail.body = body;
                if let Op::Loop(loop_head) = &mut self.program.instructions[head].op {
                    loop_head.body = body;
                }
            }
            _ => (),
        }
        Ok(())
    }

    fn finish(mut self, lines: &[Line<'_>]) -> Result<Program, AsmError> {
        let end = Piece { text: "", at: 0 };
        let at_end = |wrong: Wrong<'_>| wrong.at(lines.last().unwrap_or(&line(1, "")));
        let line_at = |number: usize| &lines[number - 1];
        let name_of = |line: &Line<'_>| line.statement.map_or((0, 1), |s| (s.name.at, s.name.text.len()));
        let at_instruction = |at: usize, what: &str, message: String| match self.line_of.get(at) {
            Some(number) => {
                let line = line_at(*number);
                let (at, len) = name_of(line);
                Wrong::new(Piece { text: &line.text[at..at + len], at }, what, message).at(line)
            }
            None => at_end(Wrong::new(end, what, message)),
        };
        if let Some(head) = self.open.last() {
            return Err(at_instruction(*head, "loop", "wanted an `end` further down, found none".into()));
        }
        if let Err(e) = self.program.check_structure() {
            return Err(at_instruction(e.at, "program", format!("{}: wanted {}, found {}", e.what, e.wanted, e.found)));
        }
        self.segment.close(&mut self.program);
        self.program.segments.sort_by_key(|s| s.address);
        // Names behind the last instruction name nothing.
        let len = self.program.instructions.len() as u32;
        self.program.op_labels.retain(|l| l.at < len);
        match self.program.check() {
            Ok(()) => Ok(self.program),
            Err(error) => Err(at_end(Wrong::new(end, "program", error.to_string()))),
        }
    }
}

/// `label` as a distance from instruction `at`.
fn distance(label: &str, labels: &BTreeMap<String, u32>, at: usize) -> Result<Option<Distance>, String> {
    match labels.get(label) {
        None => Ok(None),
        Some(target) => match (*target as usize).checked_sub(at + 1) {
            Some(skipped) => Ok(Some(Distance(skipped as u32))),
            None => Err(format!("wanted a label further down, found `{label}`, which is behind: use `loop`")),
        },
    }
}

//! Operands of an instruction from its text.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::expression::{NoValue, Symbols, canonical, evaluate};
use super::line::{Piece, operands};
use super::{Wrong, distance};
use crate::format::OperandSource;
use crate::operand::{Operand, Position};

pub(super) struct Operands<'a, 's> {
    mnemonic: Piece<'a>,
    /// In order, those that are taken as `None`.
    positional: Vec<Option<Piece<'a>>>,
    named: Vec<(Piece<'a>, Option<Piece<'a>>)>,
    symbols: &'s Symbols,
    labels: &'s BTreeMap<String, u32>,
    at: usize,
    /// Operand `count`, once it is taken.
    count: Option<Piece<'a>>,
}

impl<'a, 's> Operands<'a, 's> {
    pub(super) fn new(
        mnemonic: Piece<'a>,
        rest: Piece<'a>,
        symbols: &'s Symbols,
        labels: &'s BTreeMap<String, u32>,
        at: usize,
    ) -> Self {
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        for piece in operands(rest) {
            match piece.text.find('=') {
                Some(equals) => {
                    let (name, value) = piece.cut(equals, 1);
                    named.push((name, Some(value)));
                }
                None => positional.push(Some(piece)),
            }
        }
        Operands { mnemonic, positional, named, symbols, labels, at, count: None }
    }

    fn what(&self, name: &str) -> String {
        format!("{}, operand {name}", self.mnemonic.text)
    }

    fn find(&mut self, name: &str) -> Option<Piece<'a>> {
        let found = self.named.iter_mut().find(|(n, v)| n.text == name && v.is_some()).and_then(|(_, v)| v.take());
        self.count = found.filter(|_| name == "count").or(self.count);
        found
    }

    /// The bound of a loop that gives none: a constant count.
    fn implied(&self, name: &str) -> Option<Piece<'a>> {
        let count = self.count.filter(|_| self.mnemonic.text == "loop" && name == "max")?;
        evaluate(count.text, self.symbols).is_ok().then_some(count)
    }

    /// No operand may be left.
    pub(super) fn finish(self) -> Result<(), Wrong<'a>> {
        let positional = self.positional.iter().flatten().next().copied();
        let left = positional.or_else(|| self.named.iter().find(|(_, v)| v.is_some()).map(|(name, _)| *name));
        match left {
            None => Ok(()),
            Some(piece) => {
                let message = format!("wanted no such operand, found `{}`", piece.text);
                Err(Wrong::new(piece, self.mnemonic.text, message))
            }
        }
    }

    fn parse<T: Operand>(&self, name: &'static str, piece: Piece<'a>) -> Result<T, Wrong<'a>> {
        let wrong = |message| Wrong::new(piece, self.what(name), message);
        if T::KIND == "label"
            && let Some(d) = distance(piece.text, self.labels, self.at).map_err(wrong)?
        {
            return T::parse(&d.print()).map_err(wrong);
        }
        let text = canonical(piece.text, self.symbols);
        T::parse(&text).map_err(|message| {
            // An expression that has no value says more about the mistake than the operand does.
            let inside = piece.text.rsplit_once(['[', '+']).map_or(piece.text, |(_, t)| t.trim_end_matches(']'));
            match evaluate(inside, self.symbols) {
                Err(NoValue::Range(why)) => wrong(why),
                Err(NoValue::Form(_)) | Ok(_) => wrong(message),
            }
        })
    }

    fn missing(&self, name: &'static str, form: &str) -> Wrong<'a> {
        Wrong::new(self.mnemonic, self.what(name), format!("wanted {form}, found none"))
    }
}

impl<'a> OperandSource for Operands<'a, '_> {
    type Error = Wrong<'a>;

    fn operand<T: Operand>(&mut self, name: &'static str) -> Result<T, Wrong<'a>> {
        let default = |this: &Self| T::decode(0).map_err(|bad| this.missing(name, bad.wanted));
        match T::POSITION {
            Position::Implied => default(self),
            Position::Positional => match self.positional.iter_mut().find(|p| p.is_some()).and_then(Option::take) {
                Some(piece) => self.parse(name, piece),
                None => Err(self.missing(name, "one")),
            },
            Position::Named => match self.find(name) {
                Some(piece) => self.parse(name, piece),
                None => match self.implied(name) {
                    Some(count) => self.parse(name, count),
                    None => Err(self.missing(name, &format!("{name}=…"))),
                },
            },
            Position::Optional if T::KIND == "flag" => {
                match self.positional.iter_mut().find(|p| p.is_some_and(|p| p.text == name)).and_then(Option::take) {
                    Some(piece) => T::parse("").map_err(|message| Wrong::new(piece, self.what(name), message)),
                    None => default(self),
                }
            }
            Position::Optional => match self.find(name) {
                Some(piece) => self.parse(name, piece),
                None => default(self),
            },
        }
    }
}

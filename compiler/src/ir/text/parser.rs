//! Tokens → graph.

use std::collections::HashMap;

use super::super::verify::{check_weight_shape, is_identifier};
use super::super::{
    AttrKind, AttrValue, Attrs, Component, DType, Dim, Graph, HeadKind, ModelInfo, Node, NodeId, Op, Operand, Output,
    Phase, Storage, SymbolId, TensorType, ValueId, Weight, WeightDef, WeightId, limits,
};
use super::ParseError;
use super::lexer::{Lexer, Token};
use crate::ops::{check_schema, mismatch};

/// Reads a `.lir` text. What comes back has the form of a graph; [`Graph::verify`] says whether it is a valid one.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    if text.len() > limits::MAX_TEXT_BYTES {
        let message = mismatch("text", format!("at most {} bytes", limits::MAX_TEXT_BYTES), text.len());
        return Err(ParseError { line: 1, column: 1, message });
    }
    let mut lexer = Lexer::new(text);
    let (token, at) = lexer.next()?;
    let mut parser = Parser {
        lexer,
        token,
        at,
        graph: Graph::new(ModelInfo::default()),
        symbols: HashMap::from([("T".into(), SymbolId::TOKENS), ("S".into(), SymbolId::OUTPUT_ROWS)]),
        weights: HashMap::new(),
        values: HashMap::new(),
        definitions: Vec::new(),
        operands: 0,
    };
    parser.file()?;
    Ok(parser.graph)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token and its position.
    token: Token<'a>,
    at: usize,
    graph: Graph,
    symbols: HashMap<String, SymbolId>,
    weights: HashMap<String, WeightId>,
    values: HashMap<&'a str, ValueId>,
    definitions: Vec<Option<NodeId>>,
    operands: usize,
}

type Parsed<T> = Result<T, ParseError>;

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Parsed<Token<'a>> {
        let (token, at) = self.lexer.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, token))
    }

    /// An error at the present token.
    fn unexpected<T>(&self, what: &str, wanted: impl std::fmt::Display) -> Parsed<T> {
        Err(self.lexer.error(self.at, mismatch(what, wanted, self.token.show())))
    }

    fn fail<T>(&self, at: usize, message: String) -> Parsed<T> {
        Err(self.lexer.error(at, message))
    }

    fn punct(&mut self, what: &str, c: char) -> Parsed<()> {
        match self.eat(c)? {
            true => Ok(()),
            false => self.unexpected(what, c),
        }
    }

    fn eat(&mut self, c: char) -> Parsed<bool> {
        let is = self.token == Token::Punct(c);
        if is {
            self.advance()?;
        }
        Ok(is)
    }

    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        match self.token {
            Token::Word(word) => {
                self.advance()?;
                Ok(word)
            }
            _ => self.unexpected(what, "a word"),
        }
    }

    /// A word that `of` knows.
    fn known<T>(&mut self, what: &str, wanted: impl std::fmt::Display, of: impl Fn(&str) -> Option<T>) -> Parsed<T> {
        match self.token {
            Token::Word(word) if of(word).is_some() => {
                self.advance()?;
                of(word).map_or_else(|| self.unexpected(what, &wanted), Ok)
            }
            _ => self.unexpected(what, wanted),
        }
    }

    fn integer(&mut self, what: &str) -> Parsed<u64> {
        match self.token {
            Token::Number(text) if text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u64>().is_ok() => {
                self.advance()?;
                Ok(text.parse().unwrap_or(0))
            }
            _ => self.unexpected(what, "an integer of at most 64 bits"),
        }
    }

    fn float(&mut self, what: &str) -> Parsed<f32> {
        let number = match self.token {
            Token::Number(text) => text.parse::<f32>().ok().filter(|x| x.is_finite()),
            _ => None,
        };
        match number {
            Some(x) => {
                self.advance()?;
                Ok(x)
            }
            None => self.unexpected(what, "a finite number"),
        }
    }

    fn string(&mut self, what: &str) -> Parsed<String> {
        match &self.token {
            Token::Str(_) => match self.advance()? {
                Token::Str(text) => Ok(text),
                _ => self.unexpected(what, "a string"),
            },
            _ => self.unexpected(what, "a string"),
        }
    }

    fn room(&self, what: &str, len: usize) -> Parsed<()> {
        match len < limits::MAX_ENTITIES {
            true => Ok(()),
            false => self.fail(self.at, mismatch(what, format!("at most {}", limits::MAX_ENTITIES), "more")),
        }
    }

    fn file(&mut self) -> Parsed<()> {
        match (self.word("file")?, self.token.clone()) {
            ("lir", Token::Number("1")) => self.advance()?,
            _ => return self.fail(0, mismatch("file", "lir 1", "another first line")),
        };
        loop {
            match self.token {
                Token::End => return Ok(()),
                Token::Value(_) => self.node()?,
                Token::Word("model") => self.model()?,
                Token::Word("phase") => {
                    self.advance()?;
                    let names: Vec<&str> = Phase::ALL.iter().map(|p| p.name()).collect();
                    self.graph.phase = self.known("phase", format!("one of {}", names.join(", ")), Phase::by_name)?;
                }
                Token::Word("symbol") => self.symbol()?,
                Token::Word("weight") => self.weight()?,
                Token::Word("input") => self.input()?,
                Token::Word("output") => self.output()?,
                _ => return self.unexpected("line", "model, phase, symbol, weight, input, output or a value"),
            }
        }
    }

    fn model(&mut self) -> Parsed<()> {
        self.advance()?;
        self.punct("model", '{')?;
        while !self.eat('}')? {
            let at = self.at;
            let key = self.word("key of model")?;
            self.punct(key, '=')?;
            match key {
                "name" => self.graph.info.name = self.string(key)?,
                "head" => {
                    let names: Vec<&str> = HeadKind::ALL.iter().map(|h| h.name()).collect();
                    self.graph.info.head =
                        self.known(key, format!("one of {}", names.join(", ")), HeadKind::by_name)?;
                }
                "vocab_size" => self.graph.info.vocab_size = self.integer(key)?,
                "hidden_size" => self.graph.info.hidden_size = self.integer(key)?,
                "num_layers" => self.graph.info.num_layers = self.integer(key)?,
                "num_clusters" => self.graph.info.num_clusters = self.integer(key)?,
                "num_labels" => self.graph.info.num_labels = self.integer(key)?,
                "max_position_embeddings" => self.graph.info.max_position_embeddings = self.integer(key)?,
                "domain_names" => self.graph.info.domain_names = self.strings(key)?,
                "is_causal" => self.graph.info.is_causal = self.boolean(key)?,
                "why_no_decode" => self.graph.info.why_no_decode = Some(self.string(key)?),
                "config_json" => self.graph.info.config_json = self.string(key)?,
                "source_digest" => {
                    let at = self.at;
                    let hex = self.string(key)?;
                    match digest_of(&hex) {
                        Some(digest) => self.graph.info.source_digest = digest,
                        None => return self.fail(at, mismatch(key, "64 hexadecimal digits", hex.len())),
                    }
                }
                other => return self.fail(at, mismatch("key of model", "a known one", other)),
            }
            if !self.eat(',')? && self.token != Token::Punct('}') {
                return self.unexpected("model", ", or }");
            }
        }
        Ok(())
    }

    fn boolean(&mut self, what: &str) -> Parsed<bool> {
        let of = |word: &str| match word {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        self.known(what, "true or false", of)
    }

    fn strings(&mut self, what: &str) -> Parsed<Vec<String>> {
        self.punct(what, '[')?;
        let mut out = Vec::new();
        while !self.eat(']')? {
            out.push(self.string(what)?);
            if !self.eat(',')? && self.token != Token::Punct(']') {
                return self.unexpected(what, ", or ]");
            }
        }
        Ok(out)
    }

    fn symbol(&mut self) -> Parsed<()> {
        self.advance()?;
        self.room("symbols", self.graph.symbols.len())?;
        let at = self.at;
        let name = self.word("symbol")?;
        if !is_identifier(name) || self.symbols.contains_key(name) {
            return self.fail(at, mismatch("symbol", "a new name of letters, digits and _", name));
        }
        match self.token {
            Token::AtMost => self.advance()?,
            _ => return self.unexpected("symbol", "<="),
        };
        let bound = self.integer("bound")?;
        let id = self.graph.add_symbol(name, bound);
        self.symbols.insert(name.into(), id);
        Ok(())
    }

    fn weight(&mut self) -> Parsed<()> {
        self.advance()?;
        self.room("weights", self.graph.weights.len())?;
        let at = self.at;
        let name = match self.advance()? {
            Token::Weight(name) => name,
            other => return self.fail(at, mismatch("weight", "a name like @w", other.show())),
        };
        if self.weights.contains_key(&name) {
            return self.fail(at, mismatch("weight", "a new name", format!("@{name}")));
        }
        self.punct("weight", ':')?;
        let storage = self.storage()?;
        self.punct("shape", '[')?;
        let mut shape = vec![self.integer("shape")?];
        if self.eat(',')? {
            shape.push(self.integer("shape")?);
        }
        self.punct("shape", ']')?;
        let names: Vec<&str> = Component::ALL.iter().map(|c| c.name()).collect();
        let component = self.known("component", format!("one of {}", names.join(", ")), Component::by_name)?;
        self.punct("weight", '=')?;
        let def = self.definition()?;
        let weight = Weight { name: name.clone(), storage, shape, def, component };
        if let Err(message) = check_weight_shape(&weight) {
            return self.fail(at, message);
        }
        let id = self.graph.add_weight(weight);
        self.weights.insert(name, id);
        Ok(())
    }

    fn definition(&mut self) -> Parsed<WeightDef> {
        let at = self.at;
        let kind = self.word("definition")?;
        if kind == "stored" {
            return Ok(WeightDef::Stored);
        }
        self.punct("definition", '(')?;
        let def = match kind {
            "splat" => WeightDef::Splat(self.float("value")?),
            "random" => {
                let seed = self.integer("seed")?;
                self.punct("definition", ',')?;
                WeightDef::Random { seed, std: self.float("std")? }
            }
            "concat" => {
                let mut parts = vec![self.weight_ref()?];
                while self.eat(',')? {
                    parts.push(self.weight_ref()?);
                }
                WeightDef::Concat(parts)
            }
            "scale_columns" => {
                let base = self.weight_ref()?;
                self.punct("definition", ',')?;
                WeightDef::ScaleColumns { base, columns: self.weight_ref()? }
            }
            "scale" => {
                let base = self.weight_ref()?;
                self.punct("definition", ',')?;
                WeightDef::Scale { base, factor: self.float("factor")? }
            }
            other => {
                let wanted = "stored, splat, random, concat, scale_columns or scale";
                return self.fail(at, mismatch("definition", wanted, other));
            }
        };
        self.punct("definition", ')')?;
        Ok(def)
    }

    fn weight_ref(&mut self) -> Parsed<WeightId> {
        self.operands += 1;
        if self.operands > limits::MAX_OPERANDS {
            return self.fail(self.at, mismatch("operands", format!("at most {}", limits::MAX_OPERANDS), "more"));
        }
        match &self.token {
            Token::Weight(name) => match self.weights.get(name).copied() {
                Some(id) => {
                    self.advance()?;
                    Ok(id)
                }
                None => self.unexpected("weight", "one that was declared before"),
            },
            _ => self.unexpected("weight", "a name like @w"),
        }
    }

    fn dtype(&mut self) -> Parsed<DType> {
        let names: Vec<&str> = DType::ALL.iter().map(|d| d.name()).collect();
        self.known("element type", format!("one of {}", names.join(", ")), DType::by_name)
    }

    /// `f16`, `int8`, `int4:32`.
    fn storage(&mut self) -> Parsed<Storage> {
        let at = self.at;
        let mut name = match self.token {
            Token::Word(word) => word.to_owned(),
            _ => self.token.show(),
        };
        self.advance()?;
        if name == "int4" && self.eat(':')? {
            name = format!("int4:{}", self.integer("group")?);
        }
        let names: Vec<&str> = Storage::ALL.iter().map(|s| s.name()).collect();
        match Storage::by_name(&name) {
            Some(storage) => Ok(storage),
            None => self.fail(at, mismatch("storage", format!("one of {}", names.join(", ")), name)),
        }
    }

    /// `f32[T, 64]`.
    fn tensor_type(&mut self) -> Parsed<TensorType> {
        let dtype = self.dtype()?;
        self.punct("type", '[')?;
        let rows = match self.token {
            Token::Word(name) => match self.symbols.get(name).copied() {
                Some(id) => {
                    self.advance()?;
                    Dim::Sym(id)
                }
                None => return self.unexpected("dimension", "a declared symbol"),
            },
            _ => Dim::Const(self.dimension()?),
        };
        let mut shape = vec![rows];
        if self.eat(',')? {
            shape.push(Dim::Const(self.dimension()?));
        }
        self.punct("type", ']')?;
        Ok(TensorType { dtype, shape })
    }

    fn dimension(&mut self) -> Parsed<u64> {
        let at = self.at;
        match self.integer("dimension")? {
            n if (1..=limits::MAX_COLS).contains(&n) => Ok(n),
            n => self.fail(at, mismatch("dimension", format!("1 to {}", limits::MAX_COLS), n)),
        }
    }

    fn input(&mut self) -> Parsed<()> {
        self.advance()?;
        let name = self.string("input")?;
        self.punct("input", '=')?;
        let (value, at) = self.new_value_name()?;
        self.punct("input", ':')?;
        let ty = self.tensor_type()?;
        let id = self.define(value, at, ty, None)?;
        self.graph.inputs.push((name, id));
        Ok(())
    }

    fn output(&mut self) -> Parsed<()> {
        self.advance()?;
        self.room("outputs", self.graph.outputs.len())?;
        let name = self.string("output")?;
        self.punct("output", '=')?;
        let value = self.value_ref()?;
        self.graph.outputs.push(Output { name, value });
        Ok(())
    }

    fn value_ref(&mut self) -> Parsed<ValueId> {
        match self.token {
            Token::Value(name) => match self.values.get(name).copied() {
                Some(id) => {
                    self.advance()?;
                    Ok(id)
                }
                None => self.unexpected("value", "one that was defined before"),
            },
            _ => self.unexpected("value", "a name like %1"),
        }
    }

    fn new_value_name(&mut self) -> Parsed<(&'a str, usize)> {
        let at = self.at;
        match self.token {
            Token::Value(name) if !self.values.contains_key(name) => {
                self.advance()?;
                Ok((name, at))
            }
            Token::Value(_) => self.unexpected("value", "a new name"),
            _ => self.unexpected("value", "a name like %1"),
        }
    }

    fn define(&mut self, name: &'a str, at: usize, ty: TensorType, node: Option<NodeId>) -> Parsed<ValueId> {
        self.room("values", self.graph.values.len())?;
        let id = self.graph.add_value(ty);
        self.definitions.push(node);
        match self.values.insert(name, id) {
            None => Ok(id),
            Some(_) => self.fail(at, mismatch("value", "a new name", format!("%{name}"))),
        }
    }

    /// `%1: f32[T, 8], %2: u8[T, 8] = op(%0, @w, _) {k = 1} "label"`; without types, they are inferred.
    fn node(&mut self) -> Parsed<()> {
        self.room("nodes", self.graph.nodes.len())?;
        let begin = self.at;
        let mut names = Vec::new();
        let mut types = Vec::new();
        loop {
            names.push(self.new_value_name()?);
            if self.eat(':')? {
                types.push(self.tensor_type()?);
            }
            if !self.eat(',')? {
                break;
            }
        }
        if !types.is_empty() && types.len() != names.len() {
            return self.fail(begin, mismatch("types", "one for each result or none", types.len()));
        }
        self.punct("node", '=')?;
        let op = self.known("op", "a known op", Op::by_name)?;
        if names.len() != op.row().results.len() {
            return self.fail(begin, mismatch("results", op.row().results.len(), names.len()));
        }
        let operands = self.operand_list()?;
        let attrs = self.attr_block(op)?;
        let label = match self.token {
            Token::Str(_) => self.string("label")?,
            _ => String::new(),
        };
        if let Err(message) = check_schema(&self.graph, op, &operands, &attrs) {
            return self.fail(begin, format!("{}: {message}", op.row().name));
        }
        if types.is_empty() {
            types = self.inferred(begin, op, &operands, &attrs)?;
        }
        let id = NodeId(self.graph.nodes.len() as u32);
        let mut results = Vec::with_capacity(names.len());
        for ((name, at), ty) in names.into_iter().zip(types) {
            results.push(self.define(name, at, ty, Some(id))?);
        }
        self.graph.nodes.push(Node { op, operands, attrs, results, label });
        Ok(())
    }

    fn inferred(&mut self, begin: usize, op: Op, operands: &[Operand], attrs: &Attrs) -> Parsed<Vec<TensorType>> {
        self.room("symbols", self.graph.symbols.len())?;
        let mut name = format!("N{}", self.graph.symbols.len() - 2);
        while self.symbols.contains_key(&name) {
            name.push('_');
        }
        let symbols = self.graph.symbols.len();
        match self.graph.infer_results(op, operands, attrs, Some(&self.definitions), &name) {
            Ok(types) => {
                if self.graph.symbols.len() > symbols {
                    self.symbols.insert(name, SymbolId(symbols as u32));
                }
                Ok(types)
            }
            Err(message) => self.fail(begin, format!("{}: {message}", op.row().name)),
        }
    }

    fn operand_list(&mut self) -> Parsed<Vec<Operand>> {
        self.punct("operands", '(')?;
        let mut out = Vec::new();
        while !self.eat(')')? {
            out.push(match self.token {
                Token::Value(_) => Operand::Value(self.value_ref()?),
                Token::Weight(_) => Operand::Weight(self.weight_ref()?),
                Token::Word("_") => {
                    self.advance()?;
                    Operand::None
                }
                _ => return self.unexpected("operand", "a value, a weight or _"),
            });
            if !self.eat(',')? && self.token != Token::Punct(')') {
                return self.unexpected("operands", ", or )");
            }
        }
        Ok(out)
    }

    fn attr_block(&mut self, op: Op) -> Parsed<Attrs> {
        let rows = op.row().attrs;
        let mut found: Vec<Option<AttrValue>> = vec![None; rows.len()];
        if self.eat('{')? {
            while !self.eat('}')? {
                let at = self.at;
                let name = self.word("attribute")?;
                let Some(i) = rows.iter().position(|r| r.name == name) else {
                    let known: Vec<&str> = rows.iter().map(|r| r.name).collect();
                    return self.fail(at, mismatch("attribute", format!("one of [{}]", known.join(", ")), name));
                };
                if found[i].is_some() {
                    return self.fail(at, mismatch("attribute", "each once", name));
                }
                self.punct(name, '=')?;
                found[i] = Some(match rows[i].kind {
                    AttrKind::Int => AttrValue::Int(self.integer(name)?),
                    AttrKind::Float => AttrValue::Float(self.float(name)?),
                    AttrKind::Bool => AttrValue::Bool(self.boolean(name)?),
                    AttrKind::Word(words) => {
                        let of = |word: &str| words.iter().copied().find(|w| *w == word);
                        AttrValue::Word(self.known(name, format!("one of {}", words.join(", ")), of)?)
                    }
                });
                if !self.eat(',')? && self.token != Token::Punct('}') {
                    return self.unexpected("attributes", ", or }");
                }
            }
        }
        // Missing ones are left out, and the schema check names them.
        Ok(Attrs(rows.iter().zip(found).filter_map(|(row, value)| Some((row.name, value?))).collect()))
    }
}

/// 64 hexadecimal digits → 32 bytes.
fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(out)
}

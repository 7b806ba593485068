//! Attributes of a node: constants by name, in the order of the op's schema.

use core::fmt;

/// The kind of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    /// A non-negative integer.
    Int,
    /// A finite number, held as `f32`.
    Float,
    /// `true` or `false`.
    Bool,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// See [`AttrKind::Int`].
    Int(u64),
    /// See [`AttrKind::Float`].
    Float(f32),
    /// See [`AttrKind::Bool`].
    Bool(bool),
    /// See [`AttrKind::Word`].
    Word(&'static str),
}

impl fmt::Display for AttrValue {
    /// As in the text form: floats in the shortest form that reads back as the same bits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttrValue::Int(n) => write!(f, "{n}"),
            AttrValue::Float(x) => write!(f, "{x:?}"),
            AttrValue::Bool(b) => write!(f, "{b}"),
            AttrValue::Word(w) => f.write_str(w),
        }
    }
}

/// Attributes by name. The verifier holds every node's to its op's schema: each present, each of its kind.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Attrs(pub Vec<(&'static str, AttrValue)>);

impl Attrs {
    /// No attributes.
    pub fn none() -> Self {
        Self::default()
    }

    /// These attributes, in this order.
    pub fn of(pairs: &[(&'static str, AttrValue)]) -> Self {
        Self(pairs.to_vec())
    }

    /// The value of `name`, if present.
    pub fn get(&self, name: &str) -> Option<&AttrValue> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Sets or adds `name`.
    pub fn set(&mut self, name: &'static str, value: AttrValue) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// An integer that the schema guarantees.
    ///
    /// # Panics
    /// If the node was not verified against its schema.
    pub fn int(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(AttrValue::Int(n)) => *n,
            other => panic!("attribute {name}: found {other:?}, the verifier wants an integer"),
        }
    }

    /// A float that the schema guarantees; panics like [`Self::int`].
    pub fn float(&self, name: &str) -> f32 {
        match self.get(name) {
            Some(AttrValue::Float(x)) => *x,
            other => panic!("attribute {name}: found {other:?}, the verifier wants a number"),
        }
    }

    /// A flag that the schema guarantees; panics like [`Self::int`].
    pub fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            Some(AttrValue::Bool(b)) => *b,
            other => panic!("attribute {name}: found {other:?}, the verifier wants true or false"),
        }
    }

    /// A word that the schema guarantees; panics like [`Self::int`].
    pub fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            Some(AttrValue::Word(w)) => w,
            other => panic!("attribute {name}: found {other:?}, the verifier wants a word"),
        }
    }
}

//! Operands that are one of a few words, and the machine's queues.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::operand::{BadBits, Operand, Position};

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident: $bits:literal bits, $position:ident, $kind:literal {
        $($(#[$vdoc:meta])* $variant:ident = $text:literal,)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum $name {
                $($(#[$vdoc])* $variant,)*
            }

            impl $name {
                /// Every one, in the order of the encoding.
                pub const ALL: &[$name] = &[$($name::$variant),*];

                /// Its word in the text.
                pub const fn name(self) -> &'static str {
                    match self {
                        $($name::$variant => $text,)*
                    }
                }
            }

            impl Default for $name {
                fn default() -> Self {
                    Self::ALL[0]
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(self.name())
                }
            }

            impl Operand for $name {
                const BITS: u32 = $bits;
                const POSITION: Position = Position::$position;
                const KIND: &'static str = $kind;

                fn encode(&self) -> Result<u64, &'static str> {
                    Ok(*self as u64)
                }
                fn decode(bits: u64) -> Result<Self, BadBits> {
                    let wanted = concat!("one of" $(, " ", $text)*);
                    usize::try_from(bits).ok().and_then(|b| Self::ALL.get(b).copied()).ok_or(BadBits { wanted, found: bits })
                }
                fn print(&self) -> String {
                    self.name().into()
                }
                fn parse(text: &str) -> Result<Self, String> {
                    let found = Self::ALL.iter().copied().find(|v| v.name() == text);
                    found.ok_or_else(|| {
                        let names: Vec<String> = Self::ALL.iter().map(|v| format!("`{v}`")).collect();
                        format!("wanted one of {}, found `{text}`", names.join(", "))
                    })
                }
                fn is_default(&self) -> bool {
                    Position::$position == Position::Optional && *self as u64 == 0
                }
            }
        )*
    };
}

choices! {
    /// How an element of an operand of the vector unit is stored. Arithmetic is in f32 whatever it is.
    Type: 2 bits, Optional, "type" {
        /// IEEE binary32.
        F32 = "f32",
        /// IEEE binary16.
        F16 = "f16",
        /// Signed byte.
        I8 = "i8",
        /// Signed 32-bit integer.
        I32 = "i32",
    }
    /// Which elements of the second operand belong to row i, column j.
    Broadcast: 2 bits, Optional, "broadcast" {
        /// `b[i, j]`.
        Full = "full",
        /// `b[0, j]`: the same row for all.
        Row = "row",
        /// `b[i, 0]`: one element per row.
        Column = "column",
        /// `b[0, 0]`.
        Scalar = "scalar",
    }
    /// How weights of a tile are stored.
    Codes: 1 bits, Positional, "codes" {
        /// A signed byte each.
        I8 = "i8",
        /// Two per byte, the even column in the low half.
        I4 = "i4",
    }
    /// Condition of a branch.
    Condition: 2 bits, Positional, "condition" {
        /// a = b.
        Eq = "eq",
        /// a ≠ b.
        Ne = "ne",
        /// a < b, signed.
        Lt = "lt",
        /// a ≥ b, signed.
        Ge = "ge",
    }
    /// Who executes an instruction: one of the five in-order queues, or the sequencer that feeds them.
    Queue: 3 bits, Positional, "queue" {
        /// Fetches, decodes, issues; scalar arithmetic and control.
        Sequencer = "sequencer",
        /// DMA from DRAM.
        Load = "load",
        /// DMA to DRAM.
        Store = "store",
        /// The array.
        Matrix = "matrix",
        /// The vector unit.
        Vector = "vector",
        /// The routing unit.
        Route = "route",
    }
}

impl Type {
    /// Bytes of an element.
    pub const fn bytes(self) -> u32 {
        match self {
            Type::F32 | Type::I32 => 4,
            Type::F16 => 2,
            Type::I8 => 1,
        }
    }
}

impl Codes {
    /// Bytes of a row of `n` codes.
    pub const fn row_bytes(self, n: i64) -> i64 {
        match self {
            Codes::I8 => n,
            Codes::I4 => n / 2 + n % 2,
        }
    }
}

impl Queue {
    /// Position in a table of six.
    pub const fn index(self) -> usize {
        self as usize
    }
}

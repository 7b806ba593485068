//! Fields of records: how a value lies in the file.

use crate::Fault;

/// A value with a fixed size in the file.
pub trait Field<'a>: Copy {
    /// Size in the file.
    const BYTES: usize;

    /// Reads the value from exactly [`Field::BYTES`] bytes; `what` names it in errors.
    fn read(what: &'static str, bytes: &'a [u8], strings: &'a str) -> Result<Self, Fault>;

    /// Appends the value to a record.
    #[cfg(feature = "std")]
    fn write(self, out: &mut std::vec::Vec<u8>, strings: &mut crate::record::StringPool);
}

/// The bytes of one field as an array.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Fault> {
    match bytes.first_chunk::<N>() {
        Some(chunk) => Ok(*chunk),
        None => Err(Fault::Truncated { wanted: N as u64, found: bytes.len() as u64 }),
    }
}

macro_rules! integer_field {
    ($($ty:ty),+) => {$(
        impl<'a> Field<'a> for $ty {
            const BYTES: usize = size_of::<$ty>();

            fn read(_: &'static str, bytes: &'a [u8], _: &'a str) -> Result<Self, Fault> {
                Ok(<$ty>::from_le_bytes(array(bytes)?))
            }

            #[cfg(feature = "std")]
            fn write(self, out: &mut std::vec::Vec<u8>, _: &mut crate::record::StringPool) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )+};
}

integer_field!(u32, u64);

impl<'a> Field<'a> for [u8; 32] {
    const BYTES: usize = 32;

    fn read(_: &'static str, bytes: &'a [u8], _: &'a str) -> Result<Self, Fault> {
        array(bytes)
    }

    #[cfg(feature = "std")]
    fn write(self, out: &mut std::vec::Vec<u8>, _: &mut crate::record::StringPool) {
        out.extend_from_slice(&self);
    }
}

/// Offset and length in the section's string pool, 4 bytes each.
impl<'a> Field<'a> for &'a str {
    const BYTES: usize = 8;

    fn read(what: &'static str, bytes: &'a [u8], strings: &'a str) -> Result<Self, Fault> {
        let packed = u64::from_le_bytes(array(bytes)?);
        let (offset, len) = (packed & 0xffff_ffff, packed >> 32);
        let end = offset + len;
        if end > strings.len() as u64 {
            return Err(Fault::AtMost { what, wanted: strings.len() as u64, found: end });
        }
        strings.get(offset as usize..end as usize).ok_or(Fault::Text { what })
    }

    #[cfg(feature = "std")]
    fn write(self, out: &mut std::vec::Vec<u8>, strings: &mut crate::record::StringPool) {
        let (offset, len) = strings.intern(self);
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
    }
}

/// An enumeration stored as a `u32`; the names are those that `inspect` prints.
macro_rules! coded_enum {
    ($(#[$meta:meta])* $name:ident: $wanted:literal { $( $(#[$vmeta:meta])* $variant:ident = $code:literal, $text:literal; )+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name {
            $( $(#[$vmeta])* $variant = $code, )+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name that `inspect` prints.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => $text, )+
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }

        impl<'a> $crate::field::Field<'a> for $name {
            const BYTES: usize = 4;

            fn read(what: &'static str, bytes: &'a [u8], _: &'a str) -> Result<Self, $crate::Fault> {
                let code = u32::from_le_bytes($crate::field::array(bytes)?);
                match code {
                    $( $code => Ok(Self::$variant), )+
                    found => Err($crate::Fault::Value { what, wanted: $wanted, found: u64::from(found) }),
                }
            }

            #[cfg(feature = "std")]
            fn write(self, out: &mut std::vec::Vec<u8>, _: &mut $crate::record::StringPool) {
                out.extend_from_slice(&(self as u32).to_le_bytes());
            }
        }
    };
}

/// Flags stored as a `u32`; an unknown bit is an error.
macro_rules! flags_field {
    ($name:ident, $wanted:literal) => {
        impl<'a> $crate::field::Field<'a> for $name {
            const BYTES: usize = 4;

            fn read(what: &'static str, bytes: &'a [u8], _: &'a str) -> Result<Self, $crate::Fault> {
                let bits = u32::from_le_bytes($crate::field::array(bytes)?);
                Self::from_bits(bits).ok_or($crate::Fault::Value { what, wanted: $wanted, found: u64::from(bits) })
            }

            #[cfg(feature = "std")]
            fn write(self, out: &mut std::vec::Vec<u8>, _: &mut $crate::record::StringPool) {
                out.extend_from_slice(&self.bits().to_le_bytes());
            }
        }
    };
}

pub(crate) use {coded_enum, flags_field};

//! Records: rows of a table, fixed in size, declared once for reading, writing and checking.

use crate::{Fault, SectionKind};

/// A row of a table.
///
/// Implemented by the record types of this crate only; the compiler writes them with `ArtifactBuilder::push`, readers
/// get them from [`crate::Table`].
pub trait Record<'a>: Copy + sealed::Sealed {
    /// Section of the table.
    const SECTION: SectionKind;
    /// Index of the table in its section.
    const TABLE: usize;
    /// Name of the record in errors.
    const NAME: &'static str;
    /// Size of a record in the file, a multiple of 8.
    const BYTES: usize;

    /// Reads a record from at least [`Record::BYTES`] bytes. An error comes with its offset in the record.
    fn decode(bytes: &'a [u8], strings: &'a str) -> Result<Self, (usize, Fault)>;

    /// Appends the record.
    #[cfg(feature = "std")]
    #[doc(hidden)]
    fn encode(self, out: &mut std::vec::Vec<u8>, strings: &mut StringPool);
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// Strings of a section, each stored once, in the order of their first use.
#[cfg(feature = "std")]
#[derive(Debug, Default)]
pub struct StringPool {
    pub(crate) bytes: std::vec::Vec<u8>,
    known: std::collections::HashMap<std::string::String, (u32, u32)>,
}

#[cfg(feature = "std")]
impl StringPool {
    /// Offset and length of `text`. A pool past 4 GiB saturates, which the check before writing reports.
    pub(crate) fn intern(&mut self, text: &str) -> (u32, u32) {
        if text.is_empty() {
            return (0, 0);
        }
        if let Some(&place) = self.known.get(text) {
            return place;
        }
        let place =
            (u32::try_from(self.bytes.len()).unwrap_or(u32::MAX), u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(text.as_bytes());
        self.known.insert(text.into(), place);
        place
    }
}

/// Declares record types: `Name in Section[table index]` with fields in file order.
macro_rules! records {
    ($(
        $(#[$meta:meta])*
        $name:ident $(<$lt:lifetime>)? in $section:ident[$table:literal] {
            $( $(#[$fmeta:meta])* $field:ident: $ty:ty, )+
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name $(<$lt>)? {
            $( $(#[$fmeta])* pub $field: $ty, )+
        }

        impl $(<$lt>)? $crate::record::sealed::Sealed for $name $(<$lt>)? {}

        impl<'a> $crate::record::Record<'a> for $name $(<$lt>)? {
            const SECTION: $crate::SectionKind = $crate::SectionKind::$section;
            const TABLE: usize = $table;
            const NAME: &'static str = stringify!($name);
            const BYTES: usize = 0 $( + <$ty as $crate::field::Field<'a>>::BYTES )+;

            #[allow(unused_assignments, reason = "the end of the last field")]
            fn decode(bytes: &'a [u8], strings: &'a str) -> Result<Self, (usize, $crate::Fault)> {
                let mut at = 0;
                $(
                    let size = <$ty as $crate::field::Field<'a>>::BYTES;
                    let $field = bytes
                        .get(at..at + size)
                        .ok_or($crate::Fault::Truncated { wanted: size as u64, found: 0 })
                        .and_then(|field| {
                            <$ty as $crate::field::Field<'a>>::read(
                                concat!(stringify!($name), ".", stringify!($field)), field, strings)
                        })
                        .map_err(|fault| (at, fault))?;
                    at += size;
                )+
                Ok(Self { $($field),+ })
            }

            #[cfg(feature = "std")]
            fn encode(self, out: &mut std::vec::Vec<u8>, strings: &mut $crate::record::StringPool) {
                $( $crate::field::Field::write(self.$field, out, strings); )+
            }
        }

        const _: () = assert!(<$name as $crate::record::Record<'static>>::BYTES % 8 == 0);
    )+};
}

pub(crate) use records;

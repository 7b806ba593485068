//! NumPy's files, read strictly: `.npy` arrays and the `.npz` archives that `numpy.savez` and `savez_compressed` write.
//!
//! Own readers, because the libraries for both formats trust what a file says of itself: they allocate what a header
//! declares before they look whether the file has it, and recurse as deep as a header nests. These read from a file's
//! bytes in place: every length and offset is held to the file first, and nothing but results is allocated.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use flate2::read::DeflateDecoder;

/// Element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `<i8`: signed, 8 bytes.
    I64,
    /// `<f4`.
    F32,
    /// `|u1`.
    U8,
    /// `<u4`.
    U32,
}

impl Element {
    const ALL: [(&'static str, Element); 4] =
        [("<i8", Element::I64), ("<f4", Element::F32), ("|u1", Element::U8), ("<u4", Element::U32)];

    const fn bytes(self) -> usize {
        match self {
            Element::I64 => 8,
            Element::F32 | Element::U32 => 4,
            Element::U8 => 1,
        }
    }
}

/// A vector or matrix in a file's bytes.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    /// Element type.
    pub element: Element,
    /// One or two dimensions.
    pub shape: Vec<usize>,
    column_major: bool,
    data: &'a [u8],
}

impl Array<'_> {
    /// The elements as integers, row-major.
    pub fn integers(&self) -> anyhow::Result<Vec<i64>> {
        match self.element {
            Element::I64 => Ok(self.elements(i64::from_le_bytes)),
            found => bail!("wanted int64, found {found:?}"),
        }
    }

    /// Floats, bytes or unsigned integers as floats, row-major.
    #[cfg(feature = "compiler")]
    pub fn floats(&self) -> anyhow::Result<Vec<f32>> {
        match self.element {
            Element::F32 => Ok(self.elements(f32::from_le_bytes)),
            Element::U8 => Ok(self.elements(|[byte]| f32::from(byte))),
            Element::U32 => Ok(self.elements(|bytes| u32::from_le_bytes(bytes) as f32)),
            Element::I64 => bail!("wanted float32, uint8 or uint32, found I64"),
        }
    }

    /// Row-major, however the file orders them. `N` is the element's size.
    fn elements<const N: usize, T>(&self, of: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (stored, _) = self.data.as_chunks::<N>();
        match *self.shape.as_slice() {
            [rows, cols] if self.column_major => {
                let at = (0..rows).flat_map(|row| (0..cols).map(move |col| col * rows + row));
                at.filter_map(|i| stored.get(i)).map(|bytes| of(*bytes)).collect()
            }
            _ => stored.iter().map(|bytes| of(*bytes)).collect(),
        }
    }
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own readers refuse longer headers.
const MAX_HEADER_BYTES: usize = 10_000;

/// Reads the bytes of a `.npy` file.
pub fn parse(bytes: &[u8]) -> anyhow::Result<Array<'_>> {
    let rest = bytes.strip_prefix(MAGIC).context("byte 0: magic: wanted \\x93NUMPY, found another")?;
    let (version, rest) = rest.split_first_chunk::<2>().context("byte 6: version: wanted 2 bytes, found the end")?;
    let (len, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(len, rest)| (usize::from(u16::from_le_bytes(*len)), rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(len, rest)| (u32::from_le_bytes(*len) as usize, rest)),
        found => bail!("byte 6: version: wanted 1, 2 or 3, found {found}"),
    }
    .context("byte 8: length of the header: wanted it, found the end")?;
    ensure!(
        len <= MAX_HEADER_BYTES,
        "byte 8: length of the header: wanted at most {MAX_HEADER_BYTES} bytes, found {len}"
    );
    let found = rest.len();
    let (header, data) =
        rest.split_at_checked(len).with_context(|| format!("header: wanted {len} bytes, found {found}"))?;
    let header = std::str::from_utf8(header).context("header: wanted text, found other bytes")?;
    let (element, column_major, shape) = Header { text: header, at: 0 }.dictionary()?;
    ensure!(matches!(shape.len(), 1 | 2), "shape: wanted 1 or 2 dimensions, found {}", shape.len());
    let wanted = shape.iter().try_fold(element.bytes(), |bytes, n| bytes.checked_mul(*n));
    let wanted = wanted.with_context(|| format!("shape: wanted a size of at most 64 bits, found {shape:?}"))?;
    ensure!(data.len() == wanted, "data: wanted {wanted} bytes for {element:?} {shape:?}, found {}", data.len());
    Ok(Array { element, shape, column_major, data })
}

/// Token ids of a `.npy` file's bytes: int64 `[T]`.
pub fn token_ids(file: &[u8]) -> anyhow::Result<Vec<u32>> {
    let array = parse(file)?;
    if array.shape.len() != 1 {
        bail!("shape: wanted int64 [T], found {:?}", array.shape);
    }
    let ids = array.integers()?.into_iter().enumerate();
    ids.map(|(i, id)| u32::try_from(id).with_context(|| format!("element {i}: wanted a token id, found {id}")))
        .collect()
}

/// The header's Python dictionary: strings, `True`, `False`, and a tuple of integers; nothing nests.
struct Header<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Header<'a> {
    fn error(&self, wanted: &str) -> anyhow::Error {
        let found: String = self.rest().chars().take(20).collect();
        anyhow!("header, byte {}: wanted {wanted}, found {found:?}", self.at)
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Whether `word` comes next, after white space; takes it.
    fn eat(&mut self, word: &str) -> bool {
        let rest = self.rest().trim_start();
        let next = rest.strip_prefix(word);
        self.at = self.text.len() - next.unwrap_or(rest).len();
        next.is_some()
    }

    fn want(&mut self, word: &str) -> anyhow::Result<()> {
        if self.eat(word) { Ok(()) } else { Err(self.error(word)) }
    }

    fn string(&mut self) -> anyhow::Result<&'a str> {
        let quote = if self.eat("'") {
            '\''
        } else if self.eat("\"") {
            '"'
        } else {
            return Err(self.error("a string"));
        };
        let (text, _) = self.rest().split_once(quote).ok_or_else(|| self.error("the end of a string"))?;
        self.at += text.len() + 1;
        Ok(text)
    }

    fn tuple(&mut self) -> anyhow::Result<Vec<usize>> {
        self.want("(")?;
        let mut out = Vec::new();
        while !self.eat(")") {
            let rest = self.rest();
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            out.push(rest[..digits].parse().map_err(|_| self.error("a dimension"))?);
            self.at += digits;
            if !self.eat(",") && !self.rest().starts_with(')') {
                return Err(self.error(", or )"));
            }
        }
        Ok(out)
    }

    fn dictionary(mut self) -> anyhow::Result<(Element, bool, Vec<usize>)> {
        let (mut element, mut order, mut shape) = (None, None, None);
        self.want("{")?;
        while !self.eat("}") {
            let key = self.string()?;
            self.want(":")?;
            let again = match key {
                "descr" => {
                    let found = self.string()?;
                    let known = Element::ALL.into_iter().find(|(name, _)| *name == found);
                    let (_, known) = known
                        .with_context(|| format!("descr: wanted <i8, <f4, |u1 or <u4, found {:?}", shorten(found)))?;
                    element.replace(known).is_some()
                }
                "fortran_order" => {
                    let column_major = self.eat("True");
                    if !column_major {
                        self.want("False")?;
                    }
                    order.replace(column_major).is_some()
                }
                "shape" => shape.replace(self.tuple()?).is_some(),
                other => bail!("header: wanted descr, fortran_order and shape, found {:?}", shorten(other)),
            };
            ensure!(!again, "header: wanted each key once, found {key} twice");
            if !self.eat(",") && !self.rest().starts_with('}') {
                return Err(self.error(", or }"));
            }
        }
        ensure!(self.rest().trim().is_empty(), self.error("its end"));
        match (element, order, shape) {
            (Some(element), Some(order), Some(shape)) => Ok((element, order, shape)),
            _ => bail!("header: wanted descr, fortran_order and shape, found not all of them"),
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

/// All arrays of an archive may take so many bytes, and so many times the file's: reference outputs compress little.
const MAX_ARCHIVE_BYTES: usize = 1 << 20;
const MAX_ARCHIVE_GROWTH: usize = 16;

/// An array of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Without `.npy`.
    pub name: &'a str,
    stored: &'a [u8],
    compressed: bool,
    bytes: usize,
    crc: u32,
}

impl<'a> Entry<'a> {
    /// The bytes of the `.npy` file.
    pub fn read(&self) -> anyhow::Result<Cow<'a, [u8]>> {
        let data = match self.compressed {
            false => Cow::Borrowed(self.stored),
            true => {
                let mut data = Vec::with_capacity(self.bytes);
                let inflated = DeflateDecoder::new(self.stored).take(self.bytes as u64 + 1).read_to_end(&mut data);
                inflated.context("wanted deflated data, found other bytes")?;
                Cow::Owned(data)
            }
        };
        ensure!(data.len() == self.bytes, "wanted {} bytes, found {}", self.bytes, data.len());
        let found = crc32fast::hash(&data);
        ensure!(found == self.crc, "checksum: wanted {:08x}, found {found:08x}", self.crc);
        Ok(data)
    }
}

/// The arrays of a `.npz` archive in the order of its directory.
///
/// Archives have one part of less than 4 GiB. All arrays together are not much longer than the file, whether it says so
/// by compression or by naming the same bytes again and again.
pub fn archive(file: &[u8]) -> anyhow::Result<Vec<Entry<'_>>> {
    let end = end_of_directory(file).context("wanted an .npz file, found no end of a zip directory")?;
    let count = u16_at(file, end + 10)?;
    let mut at = u32_at(file, end + 16)? as usize;
    let mut out = Vec::new();
    let mut total = 0_usize;
    let most = file.len().saturating_mul(MAX_ARCHIVE_GROWTH).saturating_add(MAX_ARCHIVE_BYTES);
    for _ in 0..count {
        ensure!(
            file.get(at..).is_some_and(|rest| rest.starts_with(DIRECTORY_ENTRY)),
            "byte {at}: wanted an entry of the zip directory, found other bytes"
        );
        let (flags, method, crc) = (u16_at(file, at + 8)?, u16_at(file, at + 10)?, u32_at(file, at + 16)?);
        let (stored, bytes) = (u32_at(file, at + 20)? as usize, u32_at(file, at + 24)? as usize);
        let name_bytes = usize::from(u16_at(file, at + 28)?);
        ensure!(
            name_bytes <= MAX_NAME_BYTES,
            "byte {}: name of an array: wanted at most {MAX_NAME_BYTES} bytes, found {name_bytes}",
            at + 28
        );
        let skip = usize::from(u16_at(file, at + 30)?) + usize::from(u16_at(file, at + 32)?);
        let begin = u32_at(file, at + 42)? as usize;
        let name = file.get(at + 46..at + 46 + name_bytes).context("name of an array: wanted it, found the end")?;
        let name =
            std::str::from_utf8(name).with_context(|| format!("byte {}: name of an array: wanted text", at + 46))?;
        let name = name.strip_suffix(".npy").unwrap_or(name);
        ensure!(
            matches!(method, 0 | 8) && flags & 1 == 0,
            "array {name}: wanted it stored or deflated, found method {method}\nhint: write it with numpy.savez"
        );
        let stored = entry(file, begin, stored).with_context(|| format!("array {name}"))?;
        total += bytes;
        ensure!(total <= most, "array {name}: wanted arrays of at most {most} bytes together, found more");
        out.push(Entry { name, stored, compressed: method == 8, bytes, crc });
        at += 46 + name_bytes + skip;
    }
    Ok(out)
}

/// Longest name of an array, which errors quote.
const MAX_NAME_BYTES: usize = 200;
const END_OF_DIRECTORY: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL_HEADER: &[u8] = b"PK\x03\x04";

/// Where the last record of the archive begins: its comment, of at most 64 KiB, ends the file.
fn end_of_directory(file: &[u8]) -> Option<usize> {
    let last = file.len().checked_sub(END_BYTES)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    (first..=last).rev().find(|at| file[*at..].starts_with(END_OF_DIRECTORY))
}

/// The bytes of an entry behind its local header.
fn entry(file: &[u8], begin: usize, bytes: usize) -> anyhow::Result<&[u8]> {
    let header = file.get(begin..).filter(|rest| rest.starts_with(LOCAL_HEADER));
    ensure!(header.is_some(), "byte {begin}: wanted a local header, found other bytes");
    let skip = 30 + usize::from(u16_at(file, begin + 26)?) + usize::from(u16_at(file, begin + 28)?);
    let data = file.get(begin + skip..).and_then(|rest| rest.get(..bytes));
    data.with_context(|| format!("byte {begin}: wanted {bytes} bytes, found the end of the file"))
}

fn u16_at(file: &[u8], at: usize) -> anyhow::Result<u16> {
    let bytes = file.get(at..).and_then(|rest| rest.first_chunk());
    bytes
        .map(|b| u16::from_le_bytes(*b))
        .with_context(|| format!("byte {at}: wanted 2 bytes, found the end of the file"))
}

fn u32_at(file: &[u8], at: usize) -> anyhow::Result<u32> {
    let bytes = file.get(at..).and_then(|rest| rest.first_chunk());
    bytes
        .map(|b| u32::from_le_bytes(*b))
        .with_context(|| format!("byte {at}: wanted 4 bytes, found the end of the file"))
}

/// The bytes of a regular file, which has at most `max_bytes`. Pipes and devices, which may never end, are refused.
pub fn read_file(path: &Path, max_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let place = || format!("{}: wanted a readable file", path.display());
    let metadata = std::fs::metadata(path).with_context(place)?;
    ensure!(metadata.is_file(), "{}: wanted a regular file, found a directory, a pipe or a device", path.display());
    let found = metadata.len();
    ensure!(found <= max_bytes, "{}: wanted at most {max_bytes} bytes, found {found}", path.display());
    let mut bytes = Vec::with_capacity(found as usize);
    File::open(path).with_context(place)?.take(max_bytes).read_to_end(&mut bytes).with_context(place)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend([version, 0]);
        match version {
            1 => file.extend((header.len() as u16).to_le_bytes()),
            _ => file.extend((header.len() as u32).to_le_bytes()),
        }
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    #[track_caller]
    fn refused(file: &[u8], names: &str) {
        let error = parse(file).expect_err("a broken file").to_string();
        assert!(error.contains(names), "wanted `{names}` in {error}");
        assert!(error.len() < 300, "{error}");
    }

    #[test]
    fn arrays_are_read_in_both_orders() {
        let data: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        for version in 1..=3 {
            let rows = npy(version, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n", &data);
            assert_eq!(parse(&rows).unwrap().floats().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        }
        let columns = npy(1, "{\"shape\":(2,3),\"fortran_order\":True,\"descr\":\"<f4\"}", &data);
        assert_eq!(parse(&columns).unwrap().floats().unwrap(), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        let bytes = npy(1, "{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}", &[7, 255]);
        assert_eq!(parse(&bytes).unwrap().floats().unwrap(), [7.0, 255.0]);
        assert!(parse(&bytes).unwrap().integers().is_err());
    }

    #[test]
    fn headers_that_ask_for_too_much_are_refused() {
        let mut huge = npy(2, "", &[]);
        huge[8..12].fill(0xff);
        refused(&huge, "length of the header");
        refused(&npy(1, &"(".repeat(9000), &[]), "header, byte 0");
        refused(&npy(1, &format!("{{'shape': {}", "(".repeat(9000)), &[]), "a dimension");
        let shape =
            |shape: &str| npy(1, &format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}"), &[0; 16]);
        assert!(parse(&shape("(2,)")).is_ok());
        refused(&shape("(3,)"), "wanted 24 bytes");
        refused(&shape("(1000000000000,)"), "wanted 8000000000000 bytes");
        refused(&shape("(4294967296, 4294967296)"), "at most 64 bits");
        refused(&shape("(99999999999999999999,)"), "a dimension");
        refused(&shape("()"), "dimensions");
        refused(&shape("(1, 1, 2)"), "dimensions");
        refused(&shape("(2,), 'shape': (2,)"), "twice");
    }

    fn npz(mut writer: ndarray_npy::NpzWriter<std::io::Cursor<Vec<u8>>>, zeros: usize) -> Vec<u8> {
        writer.add_array("a", &ndarray::Array1::from(vec![1_i64, 2])).unwrap();
        writer.add_array("b", &ndarray::Array1::<f32>::zeros(zeros)).unwrap();
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn archives_are_what_their_directory_says() {
        use ndarray_npy::NpzWriter;

        let memory = || std::io::Cursor::new(Vec::new());
        let good = npz(NpzWriter::new(memory()), 500);
        for file in [&good, &npz(NpzWriter::new_compressed(memory()), 500)] {
            let arrays = archive(file).unwrap();
            assert_eq!(arrays.iter().map(|a| a.name).collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(parse(&arrays[0].read().unwrap()).unwrap().integers().unwrap(), [1, 2]);
            assert_eq!(parse(&arrays[1].read().unwrap()).unwrap().floats().unwrap(), [0.0; 500]);
        }

        // Zeros compress a thousandfold; the directory's second entry many times over is right each time.
        let bomb = npz(NpzWriter::new_compressed(memory()), 1_000_000);
        assert!(bomb.len() < 10_000);
        assert!(archive(&bomb).unwrap_err().to_string().contains("found more"));
        let end = end_of_directory(&good).unwrap();
        let second = good[..end].windows(4).rposition(|w| w == DIRECTORY_ENTRY).unwrap();
        let mut again = good[..end].to_vec();
        (0..60_000).for_each(|_| again.extend(&good[second..end]));
        again.extend(&good[end..end + 10]);
        again.extend(60_002_u16.to_le_bytes());
        again.extend(&good[end + 12..]);
        assert!(archive(&again).unwrap_err().to_string().contains("found more"));
        // Sizes that are not those of the data.
        for size in [0_u32, 100, 700_000] {
            let mut compressed = npz(NpzWriter::new_compressed(memory()), 500);
            let first = compressed.windows(4).position(|w| w == DIRECTORY_ENTRY).unwrap();
            compressed[first + 24..first + 28].copy_from_slice(&size.to_le_bytes());
            let error = archive(&compressed).unwrap()[0].read().unwrap_err().to_string();
            assert!(error.contains(&format!("wanted {size} bytes")), "{error}");
        }

        let mut damaged = good.clone();
        damaged[100] ^= 1;
        assert!(archive(&damaged).unwrap()[0].read().unwrap_err().to_string().contains("checksum"));
        let mut unknown = good.clone();
        unknown[second + 10] = 99;
        assert!(archive(&unknown).unwrap_err().to_string().contains("numpy.savez"));
    }
}

//! The four memories. DRAM costs what is written of it, not what the machine has.

use lapidary_npu_isa::Machine;

use crate::error::{Limit, SimError, Stop};
use crate::unknown::Unknown;

const PAGE_BYTES: u64 = 4096;
const PAGES_PER_TABLE: u64 = 1 << 14;

type Page = Box<[u8; PAGE_BYTES as usize]>;
type PageTable = Box<[Option<Page>]>;

/// Memory off chip: pages that come into being when they are first written.
#[derive(Clone, Debug)]
pub struct DramContents {
    len_bytes: u64,
    tables: Vec<Option<PageTable>>,
    pages: u64,
    most_pages: u64,
}

impl DramContents {
    /// Zeros; at most `most_bytes` of them can be written to.
    pub fn new(len_bytes: u64, most_bytes: u64) -> DramContents {
        let tables = len_bytes.div_ceil(PAGE_BYTES * PAGES_PER_TABLE) as usize;
        DramContents { len_bytes, tables: vec![None; tables], pages: 0, most_pages: most_bytes / PAGE_BYTES }
    }

    /// Its size.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Bytes of memory that it takes.
    pub fn resident_bytes(&self) -> u64 {
        self.pages * PAGE_BYTES
    }

    fn page(&self, number: u64) -> Option<&Page> {
        let table = self.tables.get((number / PAGES_PER_TABLE) as usize)?.as_ref()?;
        table.get((number % PAGES_PER_TABLE) as usize)?.as_ref()
    }

    /// Reads; what lies beyond its end is 0.
    pub fn read(&self, mut at: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let count = out.len().min(PAGE_BYTES as usize - within);
            let (now, rest) = out.split_at_mut(count);
            match self.page(at / PAGE_BYTES) {
                Some(page) => now.copy_from_slice(&page[within..within + count]),
                None => now.fill(0),
            }
            at += count as u64;
            out = rest;
        }
    }

    /// Zeros from `begin` up to `end`; whole pages take no memory any more.
    pub(crate) fn clear(&mut self, begin: u64, end: u64) {
        let end = end.min(self.len_bytes);
        let mut at = begin;
        while at < end {
            let number = at / PAGE_BYTES;
            let next = ((number + 1) * PAGE_BYTES).min(end);
            match self.tables.get_mut((number / PAGES_PER_TABLE) as usize) {
                Some(Some(table)) => {
                    let page = &mut table[(number % PAGES_PER_TABLE) as usize];
                    let within = (at % PAGE_BYTES) as usize;
                    if next - at == PAGE_BYTES {
                        self.pages -= u64::from(page.take().is_some());
                    } else if let Some(page) = page {
                        page[within..within + (next - at) as usize].fill(0);
                    }
                    at = next;
                }
                // Nothing of the whole table was written.
                Some(None) | None => at = (number / PAGES_PER_TABLE + 1) * PAGES_PER_TABLE * PAGE_BYTES,
            }
        }
    }

    /// Writes within its end.
    pub(crate) fn write(&mut self, mut at: u64, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let count = bytes.len().min(PAGE_BYTES as usize - within);
            let (now, rest) = bytes.split_at(count);
            let number = at / PAGE_BYTES;
            let Some(table) = self.tables.get_mut((number / PAGES_PER_TABLE) as usize) else { return Ok(()) };
            let table = table.get_or_insert_with(|| vec![None; PAGES_PER_TABLE as usize].into_boxed_slice());
            let page = &mut table[(number % PAGES_PER_TABLE) as usize];
            if page.is_none() {
                if self.pages >= self.most_pages {
                    return Err(Stop::Limit(Limit::DramBytes, self.most_pages * PAGE_BYTES));
                }
                self.pages += 1;
            }
            let page = page.get_or_insert_with(|| Box::new([0; PAGE_BYTES as usize]));
            page[within..within + count].copy_from_slice(now);
            at += count as u64;
            bytes = rest;
        }
        Ok(())
    }
}

/// What the machine remembers: its memories. Registers and the array's tile do not outlive a program.
#[derive(Clone, Debug)]
pub struct Memories {
    /// Off chip.
    pub dram: DramContents,
    /// The activation scratchpad.
    pub scratchpad: Vec<u8>,
    /// The weight buffer; empty without values.
    pub weights: Vec<u8>,
    /// The accumulators, row by row, each word the pattern of an i32 or an f32; empty without values.
    pub accumulators: Vec<u32>,
    /// Bytes that runs without values did not compute.
    pub(crate) unknown_scratchpad: Unknown,
    pub(crate) unknown_dram: Unknown,
}

impl Memories {
    /// No memory at all.
    pub(crate) fn none() -> Memories {
        Memories {
            dram: DramContents::new(0, 0),
            scratchpad: Vec::new(),
            weights: Vec::new(),
            accumulators: Vec::new(),
            unknown_scratchpad: Unknown::default(),
            unknown_dram: Unknown::default(),
        }
    }

    /// Zeros everywhere.
    pub fn new(machine: &Machine, values: bool, most_dram_bytes: u64) -> Memories {
        let weights = if values { machine.weights.bytes as usize } else { 0 };
        let words = if values { (machine.accumulator_rows() * machine.matrix.cols) as usize } else { 0 };
        Memories {
            dram: DramContents::new(machine.dram.bytes, most_dram_bytes),
            scratchpad: vec![0; machine.scratchpad.bytes as usize],
            weights: vec![0; weights],
            accumulators: vec![0; words],
            unknown_scratchpad: Unknown::default(),
            unknown_dram: Unknown::default(),
        }
    }

    /// Writes bytes of DRAM, which are known from then on.
    pub(crate) fn write_dram(&mut self, at: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.dram.write(at, bytes)?;
        self.unknown_dram.remove(at, at.saturating_add(bytes.len() as u64));
        Ok(())
    }

    /// Whether they are those of a machine.
    pub(crate) fn check(&self, machine: &Machine, values: bool) -> Result<(), SimError> {
        let if_values = |bytes: u64| if values { bytes } else { 0 };
        let sizes = [
            ("dram", machine.dram.bytes, self.dram.len_bytes()),
            ("sp", machine.scratchpad.bytes, self.scratchpad.len() as u64),
            ("w", if_values(machine.weights.bytes), self.weights.len() as u64),
            ("acc", if_values(machine.accumulators.bytes), 4 * self.accumulators.len() as u64),
        ];
        match sizes.into_iter().find(|(_, wanted, found)| wanted != found) {
            Some((memory, wanted, found)) => Err(SimError::OtherMemories { memory, wanted, found }),
            None => Ok(()),
        }
    }
}

/// The u32 at a place of the scratchpad.
pub(crate) fn word(scratchpad: &[u8], at: u64) -> u32 {
    let at = at as usize;
    let bytes = scratchpad.get(at..at + 4).and_then(|b| b.first_chunk::<4>());
    bytes.map_or(0, |b| u32::from_le_bytes(*b))
}

/// Sets the u32 at a place of the scratchpad.
pub(crate) fn set_word(scratchpad: &mut [u8], at: u64, value: u32) {
    let at = at as usize;
    if let Some(bytes) = scratchpad.get_mut(at..at + 4) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_cross_pages_and_tables() {
        let mut dram = DramContents::new(1 << 30, 1 << 20);
        let border = PAGE_BYTES * PAGES_PER_TABLE;
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        dram.write(border - 5000, &bytes).unwrap();
        let mut out = vec![1; 10_004];
        dram.read(border - 5002, &mut out);
        assert_eq!((out[0], out[1], &out[2..10_002], out[10_002]), (0, 0, &bytes[..], 0));
        // 5000 bytes before the border begin in the second page from it; 5000 behind it reach into the second page.
        assert_eq!(dram.resident_bytes(), 4 * PAGE_BYTES);
    }

    #[test]
    fn clearing_is_writing_zeros_without_their_pages() {
        let all = PAGE_BYTES * (PAGES_PER_TABLE + 4);
        let mut dram = DramContents::new(all, 1 << 20);
        let first = PAGE_BYTES * PAGES_PER_TABLE - 10;
        let bytes = vec![7; 3 * PAGE_BYTES as usize];
        dram.write(first, &bytes).unwrap();
        assert_eq!(dram.resident_bytes(), 4 * PAGE_BYTES);
        dram.clear(first + 3, first + 2 * PAGE_BYTES);
        assert_eq!(dram.resident_bytes(), 3 * PAGE_BYTES);
        let mut out = vec![1; bytes.len()];
        dram.read(first, &mut out);
        let (kept, cleared) =
            (out[..3].iter().all(|b| *b == 7), out[3..2 * PAGE_BYTES as usize].iter().all(|b| *b == 0));
        assert!(kept && cleared && out[2 * PAGE_BYTES as usize..].iter().all(|b| *b == 7));
        dram.clear(0, u64::MAX);
        assert_eq!(dram.resident_bytes(), 0);
    }

    #[test]
    fn contents_are_limited() {
        let mut dram = DramContents::new(1 << 40, 2 * PAGE_BYTES);
        dram.write(0, &[1]).unwrap();
        dram.write(1 << 35, &[1]).unwrap();
        dram.write(1 << 35, &[2]).unwrap();
        assert_eq!(dram.write(1 << 36, &[1]), Err(Stop::Limit(Limit::DramBytes, 2 * PAGE_BYTES)));
    }
}

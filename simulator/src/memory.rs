//! The four memories. DRAM costs what is written of it, not what the machine has.

use lapidary_npu_isa::Machine;

use crate::error::{Limit, SimError, Stop};

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
}

impl Memories {
    /// Zeros everywhere.
    pub fn new(machine: &Machine, values: bool, most_dram_bytes: u64) -> Memories {
        let weights = if values { machine.weights.bytes as usize } else { 0 };
        let words = if values { (machine.accumulator_rows() * machine.matrix.cols) as usize } else { 0 };
        Memories {
            dram: DramContents::new(machine.dram.bytes, most_dram_bytes),
            scratchpad: vec![0; machine.scratchpad.bytes as usize],
            weights: vec![0; weights],
            accumulators: vec![0; words],
        }
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
    fn contents_are_limited() {
        let mut dram = DramContents::new(1 << 40, 2 * PAGE_BYTES);
        dram.write(0, &[1]).unwrap();
        dram.write(1 << 35, &[1]).unwrap();
        dram.write(1 << 35, &[2]).unwrap();
        assert_eq!(dram.write(1 << 36, &[1]), Err(Stop::Limit(Limit::DramBytes, 2 * PAGE_BYTES)));
    }
}

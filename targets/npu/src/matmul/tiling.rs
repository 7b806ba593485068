//! How a matrix of weights is cut, and so how it lies in DRAM.
//!
//! * A *strip* is what the array's C columns hold: all K inputs of C outputs (of the last strip: of what is left).
//! * A *unit* is a run of inputs within a strip. Of int8 weights it is one tile of at most R inputs. Of int4 weights it is a group of
//!   inputs that share a scale, which is one tile or several: a pass never mixes groups.
//! * A *chunk* is some units that one DMA instruction loads.
//!
//! In DRAM strips follow each other, each from a multiple of the burst; within a strip units follow each other without a gap; an int4
//! unit is its scales (f16, one per column), then its codes; codes are rows of a tile, input by input. So every tile, every chunk
//! and every strip is one contiguous run.

use lapidary_npu_isa::Machine;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// A byte each.
    Int8,
    /// Half a byte each, with an f16 scale per output and group of inputs.
    Int4 {
        /// Inputs of a group: 32, 64 or 128.
        group: u32,
    },
}

impl WeightFormat {
    /// Bytes of `n` codes of one input.
    pub const fn row_bytes(self, n: u64) -> u64 {
        match self {
            WeightFormat::Int8 => n,
            WeightFormat::Int4 { .. } => n.div_ceil(2),
        }
    }

    /// Bytes of a unit of `rows` inputs and `n` outputs.
    pub const fn unit_bytes(self, rows: u64, n: u64) -> u64 {
        rows * self.row_bytes(n) + self.scale_bytes(n)
    }

    /// Bytes of a unit's scales.
    pub const fn scale_bytes(self, n: u64) -> u64 {
        match self {
            WeightFormat::Int8 => 0,
            WeightFormat::Int4 { .. } => 2 * n,
        }
    }
}

/// A matrix of weights, K inputs × N outputs, cut for a machine's array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// R.
    pub array_rows: u32,
    /// C.
    pub array_cols: u32,
    /// K.
    pub k: u32,
    /// N.
    pub n: u32,
    /// Storage.
    pub format: WeightFormat,
    /// Inputs of every unit but the last of a strip.
    pub unit_rows: u32,
    /// Units of a strip.
    pub units: u32,
    /// Inputs of a strip's last unit.
    pub last_rows: u32,
    /// Strips.
    pub strips: u32,
    /// Strips begin at multiples of it.
    pub align: u32,
}

impl Tiling {
    /// Cuts K × N weights, neither of them 0.
    pub fn new(machine: &Machine, k: u32, n: u32, format: WeightFormat) -> Tiling {
        let (array_rows, array_cols) = (machine.matrix.rows as u32, machine.matrix.cols as u32);
        let unit_rows = match format {
            WeightFormat::Int8 => array_rows,
            WeightFormat::Int4 { group } => group,
        };
        let units = k.div_ceil(unit_rows);
        Tiling {
            array_rows,
            array_cols,
            k,
            n,
            format,
            unit_rows,
            units,
            last_rows: k - (units - 1) * unit_rows,
            strips: n.div_ceil(array_cols),
            align: machine.dma.burst_bytes as u32,
        }
    }

    /// Inputs of a unit.
    pub const fn rows_of(&self, unit: u32) -> u32 {
        if unit + 1 == self.units { self.last_rows } else { self.unit_rows }
    }

    /// Outputs of a strip.
    pub const fn cols_of(&self, strip: u32) -> u32 {
        if strip + 1 == self.strips { self.n - strip * self.array_cols } else { self.array_cols }
    }

    /// Tiles of a unit of so many inputs.
    pub const fn tiles(&self, rows: u32) -> u32 {
        rows.div_ceil(self.array_rows)
    }

    /// Tiles of a strip.
    pub const fn tiles_of_strip(&self) -> u32 {
        (self.units - 1) * self.tiles(self.unit_rows) + self.tiles(self.last_rows)
    }

    /// Bytes of a strip of `n` outputs, from its begin to its end.
    pub const fn strip_bytes(&self, n: u32) -> u64 {
        (self.units as u64 - 1) * self.format.unit_bytes(self.unit_rows as u64, n as u64)
            + self.format.unit_bytes(self.last_rows as u64, n as u64)
    }

    /// From one strip to the next.
    pub const fn strip_stride(&self) -> u64 {
        self.strip_bytes(self.array_cols).next_multiple_of(self.align as u64)
    }

    /// Bytes of all codes and scales: what has to be read at least.
    pub const fn compulsory_bytes(&self) -> u64 {
        let last = self.cols_of(self.strips - 1);
        (self.strips as u64 - 1) * self.strip_bytes(self.array_cols) + self.strip_bytes(last)
    }

    /// Bytes of the packed matrix, gaps between strips included.
    pub const fn packed_bytes(&self) -> u64 {
        (self.strips as u64 - 1) * self.strip_stride() + self.strip_bytes(self.cols_of(self.strips - 1))
    }
}

/// How the units of a strip are loaded: a first chunk, a loop of equal ones, a last chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Units of the first; all, if there is only one chunk.
    pub first: u32,
    /// Chunks between first and last.
    pub mids: u32,
    /// Units of each of them.
    pub mid: u32,
    /// Units of the last; 0 if there is only one chunk.
    pub last: u32,
}

impl Chunks {
    /// Number of chunks.
    pub const fn count(&self) -> u32 {
        1 + self.mids + (self.last > 0) as u32
    }

    /// Units of the largest.
    pub const fn largest(&self) -> u32 {
        let ends = if self.first > self.last { self.first } else { self.last };
        if self.mids > 0 && self.mid > ends { self.mid } else { ends }
    }

    /// One chunk, or an even number of them, so that two slots that take turns are where they were at the end of a strip: then
    /// no register has to remember whose turn it is. Chunks of `mid` units as near to `wanted` as can be and at most `most`; the
    /// first in whole steps of `step` units if that is possible. Fewer than two of the wanted size are one chunk.
    pub fn even(units: u32, wanted: u32, most: u32, step: u32) -> Option<Chunks> {
        if units == 1 || units < 2 * wanted && units <= most {
            return (most > 0).then_some(Chunks { first: units, mids: 0, mid: 0, last: 0 });
        }
        let wanted = wanted.min(most);
        (1..=wanted).rev().chain(wanted + 1..=most.min(units)).find_map(|mid| {
            let pairs = units.saturating_sub(2 * mid).div_ceil(2 * mid);
            // With one pair of chunks less the ends are larger, which may be what fits.
            [pairs, pairs.saturating_sub(1)].into_iter().find_map(|pairs| {
                let rest = units - 2 * mid * pairs;
                // The ends share the rest: a short chunk leaves the next load of its slot little time.
                let half = rest.div_ceil(2);
                let mut ends =
                    [half.next_multiple_of(step), half].into_iter().map(|first| (first, rest.saturating_sub(first)));
                let (first, last) = ends.find(|(f, l)| (1..=most).contains(f) && (1..=most).contains(l))?;
                Some(Chunks { first, mids: 2 * pairs, mid: if pairs > 0 { mid } else { 0 }, last })
            })
        })
    }

    /// Chunks of `wanted` units, the last one of what is left.
    pub const fn plain(units: u32, wanted: u32) -> Chunks {
        let count = units.div_ceil(wanted);
        match count {
            0 | 1 => Chunks { first: units, mids: 0, mid: 0, last: 0 },
            _ => Chunks { first: wanted, mids: count - 2, mid: wanted, last: units - (count - 1) * wanted },
        }
    }
}

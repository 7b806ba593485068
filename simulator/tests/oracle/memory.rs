//! The memories, and operands as places in them.

use lapidary_npu_isa::Machine;

use crate::numbers::{from_f16, pattern, to_f16, to_i8, to_i32};
use crate::spec::Operands;

/// What a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An address, count or stride that is negative, beyond 2^48 or no multiple of the element's size.
    Operand,
    /// An access outside a memory.
    Outside,
    /// k > R, n > C, a k that is not the tile's, cols > C.
    Limit,
    /// An index that is not below its bound.
    Index,
    /// More set elements of a mask than `most`.
    Most,
    /// `lds` or `loop` over its max.
    Max,
    /// A token too many in a counter.
    Post,
}

/// Why an instruction did not start or did not get to its end: every reason that ISA.md gives, which it does not order.
pub type Faults = Vec<Kind>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Dram,
    Scratchpad,
    Weights,
}

/// Contents of all memories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memories {
    pub dram: Vec<u8>,
    pub scratchpad: Vec<u8>,
    pub weights: Vec<u8>,
    /// Rows of C words.
    pub accumulators: Vec<u32>,
    pub array_rows: usize,
    pub array_cols: usize,
}

impl Memories {
    pub fn new(machine: &Machine) -> Self {
        Memories {
            dram: vec![0; machine.dram.bytes as usize],
            scratchpad: vec![0; machine.scratchpad.bytes as usize],
            weights: vec![0; machine.weights.bytes as usize],
            accumulators: vec![0; machine.accumulators.bytes as usize / 4],
            array_rows: machine.matrix.rows as usize,
            array_cols: machine.matrix.cols as usize,
        }
    }

    pub fn bytes(&mut self, place: Place) -> &mut Vec<u8> {
        match place {
            Place::Dram => &mut self.dram,
            Place::Scratchpad => &mut self.scratchpad,
            Place::Weights => &mut self.weights,
        }
    }

    pub fn size(&self, place: Place) -> i128 {
        match place {
            Place::Dram => self.dram.len() as i128,
            Place::Scratchpad => self.scratchpad.len() as i128,
            Place::Weights => self.weights.len() as i128,
        }
    }

    /// u32 of the scratchpad.
    pub fn word(&self, at: i64) -> u32 {
        let at = at as usize;
        u32::from_le_bytes(self.scratchpad[at..at + 4].try_into().expect("four bytes"))
    }

    pub fn put_word(&mut self, at: i64, value: u32) {
        let at = at as usize;
        self.scratchpad[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn float(&self, at: i64) -> f32 {
        f32::from_bits(self.word(at))
    }

    pub fn put_float(&mut self, at: i64, value: f32) {
        self.put_word(at, pattern(value));
    }

    /// Element j of row i, widened.
    pub fn get(&self, m: &Matrix, i: i64, j: i64) -> f32 {
        let at = m.at(i, j);
        match m.ty {
            Type::F32 => self.float(at),
            Type::F16 => {
                let at = at as usize;
                from_f16(u16::from_le_bytes([self.scratchpad[at], self.scratchpad[at + 1]]))
            }
            Type::I8 => f32::from(self.scratchpad[at as usize] as i8),
            Type::I32 => self.word(at) as i32 as f32,
        }
    }

    /// Stores a result.
    pub fn put(&mut self, m: &Matrix, i: i64, j: i64, y: f32) {
        let at = m.at(i, j);
        match m.ty {
            Type::F32 => self.put_float(at, y),
            Type::F16 => {
                let at = at as usize;
                self.scratchpad[at..at + 2].copy_from_slice(&to_f16(y).to_le_bytes());
            }
            Type::I8 => self.scratchpad[at as usize] = to_i8(y) as u8,
            Type::I32 => self.put_word(at, to_i32(y) as u32),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    F32,
    F16,
    I8,
    I32,
}

impl Type {
    pub const ALL: [Type; 4] = [Type::F32, Type::F16, Type::I8, Type::I32];

    pub fn of(operands: &Operands<'_>, name: &str) -> Type {
        Type::ALL[operands.bits(name) as usize]
    }

    pub fn bytes(self) -> i64 {
        match self {
            Type::F32 | Type::I32 => 4,
            Type::F16 => 2,
            Type::I8 => 1,
        }
    }
}

/// rows × cols elements in the scratchpad.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub begin: i64,
    pub rows: i64,
    pub cols: i64,
    pub stride: i64,
    pub ty: Type,
}

impl Matrix {
    /// Operand `name` with its stride in operand `stride`; no name: dense.
    pub fn of(o: &Operands<'_>, name: &str, stride: &str, ty: Type, rows: i64, cols: i64) -> Matrix {
        let dense = cols.saturating_mul(ty.bytes());
        let stride = if stride.is_empty() { None } else { o.maybe(stride) };
        Matrix { begin: o.address(name), rows, cols, stride: stride.unwrap_or(dense), ty }
    }

    pub fn dense(o: &Operands<'_>, name: &str, ty: Type, rows: i64, cols: i64) -> Matrix {
        Matrix::of(o, name, "", ty, rows, cols)
    }

    pub fn at(&self, i: i64, j: i64) -> i64 {
        self.begin + i * self.stride + j * self.ty.bytes()
    }

    pub fn run(&self) -> Run {
        Run {
            place: Place::Scratchpad,
            begin: self.begin,
            bytes: self.cols.saturating_mul(self.ty.bytes()),
            rows: self.rows,
            stride: self.stride,
            planes: 1,
            plane_stride: 0,
            element: self.ty.bytes(),
        }
    }
}

/// planes × rows runs of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub place: Place,
    pub begin: i64,
    pub bytes: i64,
    pub rows: i64,
    pub stride: i64,
    pub planes: i64,
    pub plane_stride: i64,
    pub element: i64,
}

impl Run {
    /// `bytes` bytes in a row.
    pub fn flat(place: Place, begin: i64, bytes: i64, element: i64) -> Run {
        Run { place, begin, bytes, rows: 1, stride: 0, planes: 1, plane_stride: 0, element }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0 || self.rows == 0 || self.planes == 0
    }
}

/// Collects what is wrong with an instruction before it touches anything.
#[derive(Debug, Default)]
pub struct Checks {
    faults: Faults,
    /// Without work nothing is touched: only what no operand can be is a fault.
    idle: bool,
    runs: Vec<Run>,
    acc: Vec<(i64, i64)>,
}

fn absurd(value: i64) -> bool {
    !(0..=1 << 48).contains(&value)
}

impl Checks {
    /// Counts that are in no operand's shape.
    pub fn counts(&mut self, values: &[i64]) -> &mut Self {
        if values.iter().any(|v| absurd(*v)) {
            self.faults.push(Kind::Operand);
        }
        self
    }

    pub fn limit(&mut self, broken: bool) -> &mut Self {
        if broken {
            self.faults.push(Kind::Limit);
        }
        self
    }

    pub fn multiple(&mut self, value: i64, of: i64) -> &mut Self {
        if value % of != 0 {
            self.faults.push(Kind::Operand);
        }
        self
    }

    pub fn run(&mut self, run: Run) -> &mut Self {
        self.runs.push(run);
        self
    }

    pub fn matrices(&mut self, matrices: &[&Matrix]) -> &mut Self {
        self.runs.extend(matrices.iter().map(|m| m.run()));
        self
    }

    /// Whether it has work (ISA.md, Q4).
    pub fn work(&mut self, work: bool) -> &mut Self {
        self.idle = !work;
        self
    }

    /// Rows of accumulators.
    pub fn accumulators(&mut self, begin: i64, rows: i64) -> &mut Self {
        self.acc.push((begin, rows));
        self
    }

    /// The faults, if there are any.
    pub fn finish(&mut self, memories: &Memories) -> Result<(), Faults> {
        for run in &self.runs {
            let numbers = [run.begin, run.bytes, run.rows, run.stride, run.planes, run.plane_stride];
            if numbers.iter().any(|v| absurd(*v)) {
                self.faults.push(Kind::Operand);
            }
            if self.idle || run.is_empty() || [run.bytes, run.rows, run.planes].iter().any(|v| absurd(*v)) {
                continue;
            }
            if run.begin % run.element != 0 {
                self.faults.push(Kind::Operand);
            }
            let strides = [(run.rows, run.stride), (run.planes, run.plane_stride)];
            if strides.iter().any(|(count, stride)| *count > 1 && stride % run.element != 0) {
                self.faults.push(Kind::Operand);
            }
            let spans = strides.iter().map(|(count, stride)| i128::from(count - 1) * i128::from(*stride));
            let span = spans.sum::<i128>() + i128::from(run.bytes);
            if i128::from(run.begin) + span > memories.size(run.place) {
                self.faults.push(Kind::Outside);
            }
            if span > 1 << 48 {
                self.faults.push(Kind::Operand);
            }
        }
        let acc_rows = (memories.accumulators.len() / memories.array_cols) as i128;
        for (begin, rows) in &self.acc {
            if absurd(*rows) || absurd(*begin) {
                self.faults.push(Kind::Operand);
            }
            if !self.idle && *rows > 0 && i128::from(*begin) + i128::from(*rows) > acc_rows {
                self.faults.push(Kind::Outside);
            }
        }
        if self.faults.is_empty() { Ok(()) } else { Err(std::mem::take(&mut self.faults)) }
    }
}

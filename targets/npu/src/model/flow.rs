//! Instructions in order, with the tokens that they need: a [`Builder`] that knows who touches what.

use lapidary_npu_isa::address::{Address, Dram, Sp};
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::ScalarLoad;
use lapidary_npu_isa::operand::{Bound, Dest, Given, Maybe, Size, Source};
use lapidary_npu_isa::{Machine, Op, Queue, Reg, Token};

use super::order::{Area, Order, Space};
use super::scratch::Scratch;
use crate::builder::{Builder, Place, Value, maybe};
use crate::error::LowerError;
use crate::matmul::{self, Activations, Destination, Emitted, Matmul, Scales, WeightStream};

/// Rows of elements in the scratchpad or in DRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Where all of it lies, whatever registers hold.
    pub area: Area,
    /// First element of the first row.
    pub at: Place,
    /// Bytes from row to row.
    pub stride: u64,
    /// Type of an element.
    pub element: Type,
}

impl Matrix {
    /// Dense rows of `cols` elements from the begin of an area on.
    pub const fn dense(area: Area, cols: u64, element: Type) -> Matrix {
        Matrix { area, at: Place::at(area.begin), stride: cols * element.bytes() as u64, element }
    }

    /// From a column on.
    pub const fn at_col(self, col: u64) -> Matrix {
        Matrix { at: self.at.plus((col * self.element.bytes() as u64) as i64), ..self }
    }

    /// From a known row on.
    pub const fn row(self, row: u64) -> Matrix {
        Matrix { at: self.at.plus((row * self.stride) as i64), ..self }
    }

    /// Whether it is in the scratchpad.
    pub fn on_chip(&self) -> bool {
        self.area.space == Space::Scratchpad
    }
}

/// Makes a program.
#[derive(Debug)]
pub struct Flow<'m> {
    /// Instructions, registers, counters.
    pub b: Builder,
    /// The machine.
    pub machine: &'m Machine,
    /// Working memory of the op that is being made.
    pub scratch: Scratch,
    order: Order,
    weights: WeightStream,
    /// What is moved more often than once, and why.
    notes: Vec<String>,
}

impl<'m> Flow<'m> {
    /// Nothing yet.
    pub fn new(machine: &'m Machine, scratch: Scratch) -> Result<Flow<'m>, LowerError> {
        let mut b = Builder::new();
        let weights = WeightStream::open(&mut b)?;
        Ok(Flow { b, machine, scratch, order: Order::default(), weights, notes: Vec::new() })
    }

    /// What has been made, and what was noted.
    pub fn finish(self) -> (Builder, Vec<String>) {
        let Flow { mut b, weights, notes, .. } = self;
        weights.close(&mut b);
        (b, notes)
    }

    /// Something that the op moves more often than once; the same of all layers is noted once.
    pub fn note(&mut self, what: &str) {
        let note = format!("{}: {what}", of_all_layers(self.scratch.op()));
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Registers that are taken inside are free again behind it.
    pub fn scope<T>(&mut self, inside: impl FnOnce(&mut Self) -> Result<T, LowerError>) -> Result<T, LowerError> {
        let then = self.b.taken();
        let result = inside(self);
        self.b.give_back(then);
        result
    }

    /// Executes the body `count` times; it sees how often it has been executed before. `most` bounds a count that is known only
    /// then. The body is made twice: to learn what it touches, and for good.
    pub fn repeat(
        &mut self,
        what: &'static str,
        count: Value,
        most: u64,
        body: impl Fn(&mut Self, Value) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        match count {
            Value::Const(..=0) => return Ok(()),
            Value::Const(1) => return self.scope(|this| body(this, Value::ZERO)),
            Value::Const(_) | Value::Reg(_) => (),
        }
        let most = u32::try_from(most).map_err(|_| LowerError::argument("most repetitions", "32 bits", most))?;
        let mark = self.order.mark();
        let (order, scratch) = (self.order.clone(), self.scratch.clone());
        let snapshot = self.b.snapshot();
        self.scope(|this| {
            let (head, rd) = this.b.begin_loop(what, count, most)?;
            body(this, Value::Reg(rd))?;
            this.b.end_loop(head);
            Ok(())
        })?;
        let touches = self.order.since(mark);
        self.b.restore(snapshot);
        (self.order, self.scratch) = (order, scratch);
        self.scope(|this| {
            let (head, rd) = this.b.begin_loop(what, count, most)?;
            let before = this.order.begin_loop(&touches);
            body(this, Value::Reg(rd))?;
            this.order.end_loop(before, &touches);
            this.b.end_loop(head);
            Ok(())
        })
    }

    /// Executes the body only if the register is not 0.
    pub fn unless_zero(
        &mut self,
        reg: Reg,
        body: impl FnOnce(&mut Self) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let mark = self.b.begin_skip(reg);
        let before = self.order.begin_skip();
        self.scope(body)?;
        self.order.end_skip(before);
        self.b.end_skip(mark);
        Ok(())
    }

    /// The queue waits until it may touch this; gives the tokens that its next instruction has to wait for.
    fn tokens(&mut self, queue: Queue, reads: &[Area], writes: &[Area]) -> Result<Vec<Token>, LowerError> {
        let mut tokens = Vec::new();
        for other in self.order.before(queue, reads, writes) {
            let token = self.b.token("the order of two queues", other, queue)?;
            self.b.sync(other, &[], &[token]);
            // What is posted here is waited for before anything else is posted to it.
            self.b.release(token);
            self.order.waited(queue, other);
            tokens.push(token);
        }
        Ok(tokens)
    }

    /// The queue waits until it may touch this.
    pub fn require(&mut self, queue: Queue, reads: &[Area], writes: &[Area]) -> Result<(), LowerError> {
        let tokens = self.tokens(queue, reads, writes)?;
        self.b.sync(queue, &tokens, &[]);
        Ok(())
    }

    /// The queue's next instruction starts when all before it are done. For transfers that would take turns at different rows of
    /// one DRAM bank, closing each other's, if the DMA's channels worked on them at a time.
    pub fn one_by_one(&mut self, queue: Queue) -> Result<(), LowerError> {
        let token = self.b.token("the end of what a queue did before", queue, queue)?;
        self.b.sync(queue, &[], &[token]);
        self.b.sync(queue, &[token], &[]);
        self.b.release(token);
        Ok(())
    }

    /// Adds an instruction that touches this, behind everything that it meets.
    pub fn issue(&mut self, op: Op, reads: &[Area], writes: &[Area]) -> Result<(), LowerError> {
        let queue = op.row().queue;
        let tokens = self.tokens(queue, reads, writes)?;
        let (last, rest) = tokens.split_at(tokens.len().min(2));
        self.b.sync(queue, rest, &[]);
        self.b.push_with(op, last, &[]);
        self.order.touched(queue, reads, writes);
        Ok(())
    }

    /// A word of the scratchpad into a register of the current scope; larger than `max` is a fault.
    pub fn read_word(&mut self, what: &'static str, word: &Matrix, max: u64) -> Result<Reg, LowerError> {
        let rd = self.b.reg(what)?;
        self.read_into(rd, word, max)?;
        Ok(rd)
    }

    /// A word of the scratchpad into a register; larger than `max` is a fault.
    pub fn read_into(&mut self, rd: Reg, word: &Matrix, max: u64) -> Result<(), LowerError> {
        let max = u32::try_from(max).map_err(|_| LowerError::argument("largest word", "32 bits", max))?;
        self.scope(|this| {
            let load = ScalarLoad { rd: Dest(rd), src: this.sp(word.at)?, max: Bound(max) };
            this.issue(Op::Lds(load), &[word.area], &[])
        })
    }

    /// A multiplication whose results go to the scratchpad, in order with all else.
    pub fn matmul(&mut self, op: &Matmul, areas: MatmulAreas) -> Result<Emitted, LowerError> {
        if !matches!(op.output.to, Destination::Scratchpad { .. }) {
            return Err(LowerError::argument("results of a product", "a place in the scratchpad", "one in DRAM"));
        }
        let own = [Area::new(Space::Scratchpad, op.scratch.begin, op.scratch.bytes)];
        let from_dram = matches!(op.activations, Activations::Dram { .. });
        let (mut load_reads, mut matrix_reads, mut vector_reads) = (Vec::new(), Vec::new(), own.to_vec());
        match from_dram {
            true => {
                load_reads.push(areas.activations);
                matrix_reads.extend(own);
            }
            false => matrix_reads.push(areas.activations),
        }
        match op.output.tokens {
            Scales::Scratchpad(_) => vector_reads.push(areas.tokens),
            Scales::Dram(_) => load_reads.push(areas.tokens),
            Scales::One => (),
        }
        let dram = |scales| matches!(scales, Scales::Dram(_));
        let loads = from_dram || dram(op.output.channels) || dram(op.output.tokens);
        // Who reads and writes what, beside the weight buffer and the accumulators.
        let output = [areas.output];
        let uses: [(Queue, &[Area], &[Area]); 3] = [
            (Queue::Load, &load_reads, if loads { &own } else { &[] }),
            (Queue::Matrix, &matrix_reads, &[]),
            (Queue::Vector, &vector_reads, &output),
        ];
        for (queue, reads, writes) in uses {
            self.require(queue, reads, writes)?;
        }
        let emitted = matmul::matmul(&mut self.b, self.machine, op, Some(&self.weights))?;
        for (queue, reads, writes) in uses {
            if !(reads.is_empty() && writes.is_empty()) {
                self.order.touched(queue, reads, writes);
            }
        }
        Ok(emitted)
    }

    /// Takes a multiplication's tokens back: the queues that fill its buffers are behind those that emptied them.
    pub fn release(&mut self, emitted: Emitted) -> Result<(), LowerError> {
        emitted.release(&mut self.b, Some(&self.weights));
        self.order.waited(Queue::Matrix, Queue::Vector);
        // Without rows VECTOR has not waited for anything.
        let token = self.b.token("the end of a multiplication", Queue::Matrix, Queue::Vector)?;
        self.b.sync(Queue::Matrix, &[], &[token]);
        self.b.sync(Queue::Vector, &[token], &[]);
        self.b.release(token);
        self.order.waited(Queue::Vector, Queue::Matrix);
        Ok(())
    }

    /// An address in the scratchpad; a register of the current scope holds what does not fit.
    pub fn sp(&mut self, place: Place) -> Result<Sp, LowerError> {
        Ok(Sp(self.address(place, 32, 1 << 20)?))
    }

    /// An address in DRAM.
    pub fn dram(&mut self, place: Place) -> Result<Dram, LowerError> {
        Ok(Dram(self.address(place, 64, 1 << 25)?))
    }

    fn address(&mut self, place: Place, unit: i64, end: i64) -> Result<Address, LowerError> {
        if (0..end).contains(&place.offset) && place.offset % unit == 0 {
            return Ok(Address { base: place.base, offset: place.offset as u32 });
        }
        if place.offset == 0 {
            return Ok(Address { base: place.base, offset: 0 });
        }
        let reg = self.b.reg("an address")?;
        self.b.sum(reg, place, &[])?;
        Ok(Address { base: Some(reg), offset: 0 })
    }

    /// A count; one is left out.
    pub fn count(&mut self, count: Value) -> Result<Maybe, LowerError> {
        match count {
            Value::Const(1) => Ok(Maybe(None)),
            count => Ok(maybe(self.b.in_register("a count", count)?)),
        }
    }

    /// A stride; that of dense rows of so many bytes is left out.
    pub fn stride(&mut self, stride: u64, row_bytes: Value) -> Result<Maybe, LowerError> {
        match row_bytes == Value::Const(stride as i64) {
            true => Ok(Maybe(None)),
            false => Ok(maybe(self.b.constant("a stride", stride as i64)?)),
        }
    }

    /// An operand in a register.
    pub fn given(&mut self, value: Value) -> Result<Given, LowerError> {
        match value {
            Value::Const(0) => Ok(Given(Source(None))),
            value => Ok(Given(Source(Some(self.b.in_register("an operand", value)?)))),
        }
    }

    /// The pattern of a float in a register.
    pub fn float(&mut self, value: f32) -> Result<Given, LowerError> {
        self.given(Value::Const(value.to_bits().into()))
    }

    /// A size field.
    pub fn size<const N: u32>(&mut self, value: Value) -> Result<Size<N>, LowerError> {
        self.b.size("a size", value)
    }

    /// From row `index`·`rows` on: the address is in a register of the current scope, unless it is known.
    pub fn at_row(&mut self, matrix: &Matrix, index: Value, rows: u64) -> Result<Matrix, LowerError> {
        let bytes = (rows * matrix.stride) as i64;
        self.moved(matrix, index, bytes)
    }

    /// `index`·`bytes` further on.
    pub fn moved(&mut self, matrix: &Matrix, index: Value, bytes: i64) -> Result<Matrix, LowerError> {
        let at = match index {
            Value::Const(n) => matrix.at.plus(n * bytes),
            Value::Reg(_) => {
                let reg = self.b.reg("a place")?;
                self.b.sum(reg, matrix.at, &[(index, bytes)])?;
                Place { base: Some(reg), offset: 0 }
            }
        };
        Ok(Matrix { at, ..*matrix })
    }
}

/// A label with `*` in the place of numbers.
pub fn of_all_layers(label: &str) -> String {
    let parts = label.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Where a multiplication's operands and results lie.
#[derive(Clone, Copy, Debug)]
pub struct MatmulAreas {
    /// Codes of activations.
    pub activations: Area,
    /// Their scales.
    pub tokens: Area,
    /// Results.
    pub output: Area,
}

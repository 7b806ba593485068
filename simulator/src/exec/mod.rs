//! The functional model: each instruction is executed when it is issued, which is the order in which programs mean what they mean.
//!
//! [`Executor::issue`] checks an instruction, executes it, counts what it moves, and says what the timing model has to know of it.
//! Without values, the array computes nothing and everything else is executed as far as what it reads is known.

pub(crate) mod dma;
mod matrix;
mod route;
mod vector;

use lapidary_npu_isa::access::{Access, AccessKind, OperandFault, Wanted, has_work};
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::{CostClass, Instruction, Machine, Op, Program, Queue, Registers};

use crate::cost::{Extent, bad_count, cost, extent};
use crate::error::{Limit, Stop, Wrong};
use crate::memory::Memories;
use crate::routing::Routed;
use crate::selections::{Decides, Decisions};
use crate::tally::Amounts;
use crate::timing::banks::{BankSet, turns};
use crate::timing::requests::{DramRows, Requests};
use crate::timing::work::{Range, Transfer, Work};

/// Longer than any run.
pub(crate) const MOST_CYCLES: u64 = 1 << 43;

/// Executes instructions.
pub(crate) struct Executor<'a> {
    machine: &'a Machine,
    pub(crate) memories: Memories,
    values: bool,
    tile: matrix::ArrayTile,
    passes: matrix::PassBuffers,
    transfers: dma::DmaBuffers,
    vectors: vector::VectorBuffers,
    pub(crate) decisions: Decisions<'a>,
    steps_left: u64,
    most_steps: u64,
}

/// What executing gave that time depends on.
#[derive(Default)]
struct Outcome {
    /// Rows of an indexed transfer.
    list: Option<Vec<u32>>,
    /// N of a cost class.
    n: u64,
}

impl<'a> Executor<'a> {
    pub(crate) fn new(
        program: &'a Program,
        machine: &'a Machine,
        memories: Memories,
        routed: Option<Routed<'a>>,
        values: bool,
        most_steps: u64,
    ) -> Self {
        Executor {
            machine,
            memories,
            values,
            tile: matrix::ArrayTile::default(),
            passes: matrix::PassBuffers::default(),
            transfers: dma::DmaBuffers::default(),
            vectors: vector::VectorBuffers::default(),
            decisions: Decisions::new(program, routed),
            steps_left: most_steps,
            most_steps,
        }
    }

    /// Spends steps of work.
    pub(crate) fn spend(&mut self, steps: u128) -> Result<(), Stop> {
        match u64::try_from(steps).ok().and_then(|steps| self.steps_left.checked_sub(steps)) {
            Some(left) => {
                self.steps_left = left;
                Ok(())
            }
            None => Err(Stop::Limit(Limit::Steps, self.most_steps)),
        }
    }

    /// The word that `lds` reads.
    pub(crate) fn load_word(&mut self, op: &Op, regs: &Registers) -> Result<u32, Stop> {
        let accesses = op.accesses(regs).map_err(operand_fault)?;
        self.check_bounds(&accesses)?;
        let at = accesses.first().map_or(0, |a| a.begin);
        if !self.values && !self.memories.unknown_scratchpad.is_known(at, at + 4) {
            return Err(Stop::Unknown("the word that it reads"));
        }
        Ok(crate::memory::word(&self.memories.scratchpad, at))
    }

    /// Executes the instruction of a queue that stands at `at`. What it moves and computes is added to `amounts`.
    pub(crate) fn issue(
        &mut self,
        at: usize,
        instruction: &Instruction,
        regs: &Registers,
        amounts: &mut Amounts,
    ) -> Result<Work, Stop> {
        let op = &instruction.op;
        let extent = extent(op, regs);
        let accesses = match op.accesses(regs) {
            Ok(accesses) if has_work(&accesses) && op.row().class != CostClass::Sync => accesses,
            Ok(_) => return Ok(Work::Short),
            // Without work nothing is touched, so nothing has to be aligned.
            Err(OperandFault { wanted: Wanted::MultipleOf(_), .. }) if extent.idle => {
                return match bad_count(op, regs) {
                    Some((operand, found)) => Err(Wrong::new(operand, Wanted::Size, found).into()),
                    None => Ok(Work::Short),
                };
            }
            Err(fault) => return Err(operand_fault(fault)),
        };
        self.check_reference(op, regs)?;
        self.check_bounds(&accesses)?;
        self.spend(extent.work() / 16 + 1)?;
        let outcome = match Decides::of(op, regs) {
            Some(decides) => self.decide(at, op, regs, &accesses, decides)?,
            None => self.execute(op, regs, &accesses)?.0,
        };
        let work = self.work(instruction, regs, &extent, &accesses, outcome.list, outcome.n)?;
        self.count(op, regs, &extent, &accesses, outcome.n, &work, amounts);
        Ok(work)
    }

    /// Faults that the reference names and that no data decide.
    fn check_reference(&self, op: &Op, regs: &Registers) -> Result<(), Wrong> {
        let (rows, cols) = (self.machine.matrix.rows as i64, self.machine.matrix.cols as i64);
        let at_most = |what: &str, most: i64, found: i64| match found <= most {
            true => Ok(()),
            false => Err(Wrong::new(what, format!("at most {most}"), found)),
        };
        let tile = |k, n| at_most("k", rows, k).and_then(|()| at_most("n", cols, n));
        let same_k = |k: i64| match k == self.tile.k as i64 {
            true => Ok(()),
            false => Err(Wrong::new("k", format!("the tile's {}", self.tile.k), k)),
        };
        match op {
            Op::Preload(f) => tile(f.k.value(regs), f.n.value(regs)),
            Op::PreloadScaled(f) => tile(f.k.value(regs), f.n.value(regs)),
            Op::Pass(f) => same_k(f.k.value(regs)),
            Op::PassScaled(f) => same_k(f.k.value(regs)),
            Op::Rescale(f) => at_most("cols", cols, f.cols.value(regs)),
            Op::RescaleFloats(f) => at_most("cols", cols, f.cols.value(regs)),
            _ => Ok(()),
        }
    }

    fn check_bounds(&self, accesses: &[Access]) -> Result<(), Wrong> {
        for access in accesses.iter().filter(|a| !a.is_empty()) {
            let size = match access.memory {
                Memory::Dram => self.machine.dram.bytes,
                Memory::Scratchpad => self.machine.scratchpad.bytes,
                Memory::Weights => self.machine.weights.bytes,
                Memory::Accumulators => self.machine.accumulator_rows(),
            };
            if access.end() > size {
                let (memory, unit) = (access.memory, access.memory.unit());
                let what = format!("{} {} {memory}", access.operand, access.kind.verb());
                let found = format!("{unit}s {} to {}", access.begin, access.end() - 1);
                return Err(Wrong::new(what, format!("{unit}s 0 to {}", size - 1), found));
            }
        }
        Ok(())
    }

    /// Whether all that an instruction reads is known.
    fn knows(&self, accesses: &[Access]) -> bool {
        accesses.iter().filter(|a| a.kind != AccessKind::Write && !a.is_empty()).all(|a| match a.memory {
            Memory::Dram => self.memories.unknown_dram.is_known(a.begin, a.end()),
            Memory::Scratchpad => self.memories.unknown_scratchpad.is_known(a.begin, a.end()),
            Memory::Weights | Memory::Accumulators => false,
        })
    }

    /// Marks what an instruction writes: computed or not.
    fn mark(&mut self, accesses: &[Access], known: bool) {
        for access in accesses.iter().filter(|a| a.kind.writes() && !a.is_empty()) {
            let unknown = match access.memory {
                Memory::Dram => &mut self.memories.unknown_dram,
                Memory::Scratchpad => &mut self.memories.unknown_scratchpad,
                Memory::Weights | Memory::Accumulators => continue,
            };
            if !known {
                unknown.add(access.begin, access.end());
            } else if access.rows == 1 && access.planes == 1 {
                unknown.remove(access.begin, access.end());
            } else if !unknown.is_known(access.begin, access.end()) {
                for plane in 0..access.planes {
                    for row in 0..access.rows {
                        let begin = access.begin + plane * access.plane_stride + row * access.stride;
                        unknown.remove(begin, begin + access.row_units);
                    }
                }
            }
        }
    }

    /// Executes what decides where tokens go, or lets a routing decide.
    fn decide(
        &mut self,
        at: usize,
        op: &Op,
        regs: &Registers,
        accesses: &[Access],
        decides: Decides,
    ) -> Result<Outcome, Stop> {
        let is_given = self.decisions.decide(&mut self.memories.scratchpad, at, decides)?;
        let (outcome, is_known) = match is_given {
            true => {
                // Known, whatever the scores are.
                self.mark(accesses, true);
                (Outcome::default(), true)
            }
            false => self.execute(op, regs, accesses)?,
        };
        self.decisions.decided(&self.memories.scratchpad, at, decides, is_known);
        Ok(outcome)
    }

    /// Executes as far as values are wanted or known; says whether what it wrote is known.
    fn execute(&mut self, op: &Op, regs: &Registers, accesses: &[Access]) -> Result<(Outcome, bool), Stop> {
        if self.values {
            return Ok((self.compute(op, regs)?, true));
        }
        if op.row().queue == Queue::Matrix {
            // Of the array only the size of its tile, which passes have to agree with.
            let size = match op {
                Op::Preload(f) => Some((f.codes, f.k, f.n)),
                Op::PreloadScaled(f) => Some((f.codes, f.k, f.n)),
                _ => None,
            };
            if let Some((codes, k, n)) = size {
                self.tile = matrix::ArrayTile::size_only(codes, k.value(regs) as usize, n.value(regs) as usize);
            }
            return Ok((Outcome::default(), false));
        }
        let to_weights = accesses.iter().any(|a| a.memory == Memory::Weights && a.kind.writes());
        let known = self.knows(accesses) && !to_weights;
        let outcome = match known {
            true => self.compute(op, regs)?,
            false => self.guess(op, regs, accesses)?,
        };
        // Rows by list: which of the table were written is known, which were not is not kept apart.
        let partly = matches!(op, Op::StoreRows(_) | Op::StoreAddRows(_) | Op::VScatterAdd(_));
        if !(known && partly) {
            self.mark(accesses, known);
        }
        Ok((outcome, known))
    }

    /// What time depends on, of an instruction whose operands are not all known.
    fn guess(&self, op: &Op, regs: &Registers, accesses: &[Access]) -> Result<Outcome, Stop> {
        let (index, rows, bound) = match op {
            Op::LoadRows(f) => (f.index.value(regs), f.rows.value_or(regs, 1), f.bound.value(regs)),
            Op::StoreRows(f) => (f.index.value(regs), f.rows.value_or(regs, 1), f.bound.value(regs)),
            Op::StoreAddRows(f) => (f.index.value(regs), f.rows.value_or(regs, 1), f.bound.value(regs)),
            Op::Group(_) | Op::Compact(_) => return Err(Stop::Unknown("the number of set elements of its mask")),
            Op::Admit(_) => return Err(Stop::Unknown("the length of its list")),
            _ => return Ok(Outcome::default()),
        };
        let list_is_known = accesses
            .iter()
            .filter(|a| a.operand == "index")
            .all(|a| self.memories.unknown_scratchpad.is_known(a.begin, a.end()));
        if !list_is_known {
            return Err(Stop::Unknown("the list of its rows"));
        }
        let list = dma::list(&self.memories.scratchpad, index, rows, bound)?;
        Ok(Outcome { list: Some(list), n: 0 })
    }

    /// Executes.
    fn compute(&mut self, op: &Op, regs: &Registers) -> Result<Outcome, Stop> {
        let memories = &mut self.memories;
        let cols = self.machine.matrix.cols as usize;
        let listed = |list| Outcome { list: Some(list), n: 0 };
        match op {
            Op::Load(f) => self.transfers.load(memories, regs, f),
            Op::Store(f) => self.transfers.store(memories, regs, f)?,
            Op::LoadRows(f) => return Ok(listed(self.transfers.load_rows(memories, regs, f)?)),
            Op::StoreRows(f) => return Ok(listed(self.transfers.store_rows(memories, regs, f)?)),
            Op::StoreAddRows(f) => return Ok(listed(self.transfers.store_add_rows(memories, regs, f)?)),
            Op::Preload(f) => self.tile.preload(memories, regs, f),
            Op::PreloadScaled(f) => self.tile.preload_scaled(memories, regs, f),
            Op::Pass(f) => self.passes.pass(memories, &self.tile, cols, regs, f),
            Op::PassScaled(f) => self.passes.pass_scaled(memories, &self.tile, cols, regs, f),
            _ if op.row().queue == Queue::Route => {
                let n = route::execute(&mut memories.scratchpad, regs, op)?;
                return Ok(Outcome { list: None, n });
            }
            _ => self.vectors.execute(memories, cols, regs, op)?,
        }
        Ok(Outcome::default())
    }

    /// What the timing model has to know.
    fn work(
        &mut self,
        instruction: &Instruction,
        regs: &Registers,
        extent: &Extent,
        accesses: &[Access],
        list: Option<Vec<u32>>,
        n: u64,
    ) -> Result<Work, Stop> {
        let op = &instruction.op;
        let banks = || Box::new(BankSet::of(accesses, self.machine));
        let within = |cycles: u128| match u64::try_from(cycles) {
            Ok(cycles) if cycles <= MOST_CYCLES => Ok(cycles),
            Ok(_) | Err(_) => Err(Stop::Limit(Limit::Cycles, MOST_CYCLES)),
        };
        Ok(match instruction.queue() {
            Queue::Sequencer => Work::Short,
            Queue::Load | Queue::Store => {
                self.spend(u128::from(extent.rows) * u128::from(extent.groups))?;
                Work::Transfer(Box::new(self.transfer(op, regs, accesses, list)))
            }
            Queue::Matrix => match op {
                Op::Pass(_) | Op::PassScaled(_) => Work::Pass { rows: within(extent.rows.into())?, banks: banks() },
                _ => Work::Preload,
            },
            Queue::Vector => {
                let cost = cost(op, extent, n, regs, self.machine);
                let step = cost.step_cycles.max(turns(accesses, self.machine));
                let cycles = cost.steps * u128::from(step) + cost.extra_cycles;
                let cycles = within(cycles + u128::from(self.machine.vector.startup_cycles))?.max(1);
                let conflict_cycles = within(cost.steps * u128::from(step - cost.step_cycles))?;
                Work::Fixed { cycles, conflict_cycles, banks: banks() }
            }
            Queue::Route => {
                let cycles = cost(op, extent, n, regs, self.machine).extra_cycles;
                let cycles = within(cycles + u128::from(self.machine.route.startup_cycles))?.max(1);
                Work::Fixed { cycles, conflict_cycles: 0, banks: banks() }
            }
        })
    }

    fn transfer(&self, op: &Op, regs: &Registers, accesses: &[Access], list: Option<Vec<u32>>) -> Transfer {
        let mut ranges = [Range::default(); 3];
        for (range, access) in ranges.iter_mut().zip(accesses) {
            *range = Range::of(access);
        }
        let adds = matches!(op, Op::StoreAddRows(_));
        let list_cycles = list.as_ref().map_or(0, |list| (list.len() as u64).div_ceil(16));
        let rows = match accesses.iter().find(|a| a.memory == Memory::Dram) {
            Some(dram) => DramRows {
                base: dram.begin,
                row_bytes: dram.row_units,
                rows: list.as_ref().map_or(dram.rows, |list| list.len() as u64),
                stride: dram.stride,
                planes: dram.planes,
                plane_stride: dram.plane_stride,
                list,
            },
            None => unreachable!("{op:?} at {regs:?} has no operand in DRAM"),
        };
        let requests = Requests::new(rows, adds, self.machine.dma.burst_bytes.trailing_zeros());
        Transfer { requests, list_cycles, ranges, is_store: op.row().queue == Queue::Store }
    }

    /// Bytes, multiply-adds and energy.
    #[allow(clippy::too_many_arguments)]
    fn count(
        &self,
        op: &Op,
        regs: &Registers,
        extent: &Extent,
        accesses: &[Access],
        n: u64,
        work: &Work,
        amounts: &mut Amounts,
    ) {
        let rows_by_list = |operand: &str| match op {
            Op::VGather(_) | Op::LoadRows(_) => operand == "src",
            Op::VScatterAdd(_) | Op::StoreRows(_) | Op::StoreAddRows(_) => operand == "dst",
            _ => false,
        };
        let remembered = |ring: i64, cap: i64| {
            u128::from(crate::memory::word(&self.memories.scratchpad, ring as u64)).min(cap as u128) * 4
        };
        for access in accesses.iter().filter(|a| !a.is_empty()) {
            let all = u128::from(access.planes) * u128::from(access.rows) * u128::from(access.row_units);
            let (reads, writes) = match (op, access.operand) {
                (Op::Group(_), "list") | (Op::Compact(_), "dst") | (Op::Admit(_), "list") => (0, u128::from(n) * 4),
                (Op::Append(_), "ring") => (4, 8),
                (Op::Admit(f), "ring") => (4 + remembered(f.ring.value(regs), f.cap.value(regs)), 0),
                (_, operand) if rows_by_list(operand) => {
                    let used = u128::from(extent.rows) * u128::from(access.row_units);
                    (used, if access.kind.writes() { used } else { 0 })
                }
                _ => match access.kind {
                    AccessKind::Read => (all, 0),
                    AccessKind::Write => (0, all),
                    AccessKind::Update => (all, all),
                },
            };
            amounts.add_bytes(access.memory, reads, writes, self.machine);
        }
        match work {
            Work::Transfer(transfer) => {
                let counts = transfer.requests.clone().counts(transfer.is_store);
                amounts.add_requests(counts, self.machine);
            }
            Work::Pass { rows, .. } => {
                let macs = u128::from(*rows) * self.tile.k as u128 * self.tile.n as u128;
                amounts.add_macs(macs, self.tile.is_i4, self.machine);
            }
            Work::Fixed { cycles, .. } => {
                let cost = cost(op, extent, n, regs, self.machine);
                match op.row().queue {
                    Queue::Route => amounts.add_route(*cycles, self.machine),
                    _ => amounts.add_vector(cost.steps * u128::from(cost.step_cycles), self.machine),
                }
            }
            Work::Short | Work::Preload => (),
        }
    }
}

fn operand_fault(fault: OperandFault) -> Stop {
    Wrong::new(fault.operand, fault.wanted, fault.found).into()
}

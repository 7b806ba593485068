//! How much an instruction does, and how long that takes its unit: rules V1, R1 and the cost classes of `ISA.md`.

use lapidary_npu_isa::format::OperandVisitor;
use lapidary_npu_isa::operand::{Maybe, Operand, Registers};
use lapidary_npu_isa::{CostClass, Machine, Op};

/// The loops of an instruction. Its vector steps are rows·groups·⌈cols/L⌉.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub rows: u64,
    /// Heads of `v.rope`, rows of b of products; 1.
    pub groups: u64,
    /// Elements per step's direction; of bytes that are moved, groups of 4.
    pub cols: u64,
    /// Whether a count of 0 says that nothing is written or no list is read (rule Q4).
    pub idle: bool,
}

impl Extent {
    /// Elements, no fewer than rows; for limits.
    pub(crate) fn work(&self) -> u128 {
        u128::from(self.rows.max(1)) * u128::from(self.groups.max(1)) * u128::from(self.cols.max(1))
    }
}

fn count(value: i64) -> u64 {
    value.max(0) as u64
}

/// Loops of an instruction that a queue executes. Counts below 0 are faults elsewhere and 0 here.
pub(crate) fn extent(op: &Op, regs: &Registers) -> Extent {
    let of = |rows: i64, groups: i64, cols: i64| {
        let (rows, groups, cols) = (count(rows), count(groups), count(cols));
        Extent { rows, groups, cols, idle: rows == 0 || groups == 0 || cols == 0 }
    };
    // Rows alone decide whether anything is written.
    let rowwise = |e: Extent| Extent { idle: e.rows == 0, ..e };
    // Without places to write to there is no work either.
    let without = |e: Extent, places: i64| Extent { idle: e.idle || places == 0, ..e };
    let always = |e: Extent| Extent { idle: false, ..e };
    let select = |rows: Maybe, cols: i64| of(rows.value_or(regs, 1), 1, cols);
    match op {
        Op::Halt(_)
        | Op::Li(_)
        | Op::Add(_)
        | Op::Sub(_)
        | Op::Mul(_)
        | Op::Shl(_)
        | Op::Shr(_)
        | Op::Min(_)
        | Op::Max(_)
        | Op::And(_)
        | Op::Loop(_)
        | Op::End(_)
        | Op::Branch(_)
        | Op::SkipIfZero(_)
        | Op::Lds(_) => always(of(1, 1, 1)),
        Op::Sync(_) => of(0, 0, 0),
        Op::Load(f) => of(f.rows.value_or(regs, 1), f.planes.value_or(regs, 1), f.row_bytes.value(regs)),
        Op::Store(f) => of(f.rows.value_or(regs, 1), f.planes.value_or(regs, 1), f.row_bytes.value(regs)),
        Op::LoadRows(f) => of(f.rows.value_or(regs, 1), 1, f.row_bytes.value(regs)),
        Op::StoreRows(f) => without(of(f.rows.value_or(regs, 1), 1, f.row_bytes.value(regs)), f.bound.value(regs)),
        Op::StoreAddRows(f) => without(of(f.rows.value_or(regs, 1), 1, f.row_bytes.value(regs)), f.bound.value(regs)),
        Op::Preload(f) => always(of(f.k.value(regs), 1, f.n.value(regs))),
        Op::PreloadScaled(f) => always(of(f.k.value(regs), 1, f.n.value(regs))),
        Op::Pass(f) => rowwise(of(f.rows.value(regs), 1, f.k.value(regs))),
        Op::PassScaled(f) => rowwise(of(f.rows.value(regs), 1, f.k.value(regs))),
        Op::Rescale(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::RescaleFloats(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::Copy(f)
        | Op::Exp(f)
        | Op::Ln(f)
        | Op::Reciprocal(f)
        | Op::Sqrt(f)
        | Op::Rsqrt(f)
        | Op::Silu(f)
        | Op::Gelu(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::Affine(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::Fill(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::VAdd(f) | Op::VSub(f) | Op::VMul(f) | Op::VDiv(f) | Op::VMax(f) | Op::VMin(f) | Op::SiluMul(f) => {
            of(f.rows.value_or(regs, 1), 1, f.cols.value(regs))
        }
        Op::RowSum(f) | Op::RowSumSquares(f) | Op::RowMax(f) | Op::RowArgmax(f) => {
            rowwise(of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)))
        }
        Op::ColumnSum(f) => {
            let e = of(f.rows.value_or(regs, 1), 1, f.cols.value(regs));
            Extent { idle: e.cols == 0, ..e }
        }
        Op::SoftmaxRows(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::RmsNorm(f) => of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)),
        Op::Rope(f) => of(f.rows.value_or(regs, 1), f.heads.value_or(regs, 1), f.half.value(regs)),
        Op::QuantizeRows(f) => rowwise(of(f.rows.value_or(regs, 1), 1, f.cols.value(regs))),
        Op::DotRows(f) => {
            let e = of(f.rows.value_or(regs, 1), f.b_rows.value_or(regs, 1), f.cols.value(regs));
            Extent { idle: e.rows == 0 || e.groups == 0, ..e }
        }
        Op::MixRows(f) => {
            let e = of(f.rows.value_or(regs, 1), f.b_rows.value_or(regs, 1), f.cols.value(regs));
            Extent { idle: e.rows == 0 || e.cols == 0, ..e }
        }
        Op::VGather(f) => {
            let e = of(f.rows.value_or(regs, 1), 1, f.row_bytes.value(regs));
            Extent { cols: e.cols.div_ceil(4), ..e }
        }
        Op::VScatterAdd(f) => without(of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)), f.bound.value(regs)),
        Op::TopK(f) => select(f.rows, f.cols.value(regs)),
        Op::Threshold(f) => select(f.rows, f.cols.value(regs)),
        Op::TopP(f) => select(f.rows, f.cols.value(regs)),
        Op::ExpertChoice(f) => select(f.rows, f.cols.value(regs)),
        Op::Bidirectional(f) => select(f.rows, f.cols.value(regs)),
        // Its table is written in any case.
        Op::Group(f) => always(of(f.rows.value_or(regs, 1), 1, f.cols.value(regs))),
        Op::Compact(f) => without(of(f.rows.value_or(regs, 1), 1, f.cols.value(regs)), f.most.value_or(regs, 1)),
        Op::Append(_) | Op::Admit(_) => always(of(1, 1, 1)),
        Op::Iota(f) => of(1, 1, f.count.value(regs)),
    }
}

/// Whether a count or a stride of an instruction without work is negative or too large: of its addresses nothing is wanted.
pub(crate) fn bad_count(op: &Op, regs: &Registers) -> Option<(&'static str, i64)> {
    struct Counts<'a>(&'a Registers, Option<(&'static str, i64)>);
    impl OperandVisitor for Counts<'_> {
        fn operand<T: Operand>(&mut self, name: &'static str, value: &T) {
            let is_address = matches!(T::KIND, "sp" | "w" | "sp|w" | "acc" | "dram");
            let is_number =
                ["scale", "begin", "end", "mul", "add", "value", "eps", "tau", "p", "start"].contains(&name);
            if let (false, false, Some(reg)) = (is_address, is_number, value.register()) {
                let held = self.0.get(reg);
                if !(0..=1 << 48).contains(&held) {
                    self.1 = self.1.or(Some((name, held)));
                }
            }
        }
    }
    let mut counts = Counts(regs, None);
    op.visit(&mut counts);
    counts.1
}

/// The value of the operand with a name; 0 if the instruction has none.
fn operand(op: &Op, regs: &Registers, name: &'static str) -> u64 {
    struct Find<'a>(&'a Registers, &'static str, i64);
    impl OperandVisitor for Find<'_> {
        fn operand<T: Operand>(&mut self, name: &'static str, value: &T) {
            if let (true, Some(reg)) = (name == self.1, value.register()) {
                self.2 = self.0.get(reg);
            }
        }
    }
    let mut find = Find(regs, name, 0);
    op.visit(&mut find);
    count(find.2)
}

/// Time of an instruction of VECTOR or ROUTE: startup + s·max(c, f) + e, f of rule S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// s of rule V1; of ROUTE 0.
    pub steps: u128,
    /// c.
    pub step_cycles: u64,
    /// e.
    pub extra_cycles: u128,
}

/// The cost class of an instruction of VECTOR or ROUTE as a formula; `n` is the N of ISA.md, the elements that were found.
pub(crate) fn cost(op: &Op, extent: &Extent, n: u64, regs: &Registers, machine: &Machine) -> Cost {
    let (unit, lanes) = (&machine.vector, machine.route.lanes);
    let (div, exp, tree) = (unit.divide_cycles, unit.exp_cycles, u128::from(unit.tree_cycles));
    let (rows, cols, n) = (u128::from(extent.rows), u128::from(extent.cols), u128::from(n));
    let steps = rows * u128::from(extent.groups) * u128::from(extent.cols.div_ceil(unit.lanes));
    let vector = |step_cycles, extra_cycles| Cost { steps, step_cycles, extra_cycles };
    let route = |extra_cycles| Cost { steps: 0, step_cycles: 0, extra_cycles };
    let per_row = u128::from(2 * div) * rows;
    let turns = |name| u128::from(operand(op, regs, name).min(32) + 1);
    let along_rows = || rows * u128::from(extent.cols.div_ceil(lanes)) * turns("k");
    let along_cols = || cols * u128::from(extent.rows.div_ceil(lanes)) * turns("cap");
    let all = (rows * cols).div_ceil(u128::from(lanes));
    match op.row().class {
        CostClass::Simple | CostClass::Rescale | CostClass::Mix | CostClass::Rows => vector(1, 0),
        CostClass::Divide => vector(div, 0),
        CostClass::Exp => vector(exp, 0),
        CostClass::Ln => vector(unit.ln_cycles, 0),
        CostClass::Sigmoid => vector(exp + div + 1, 0),
        CostClass::Reduce | CostClass::Dot => vector(1, tree),
        CostClass::Softmax => vector(exp + div + 3, 2 * tree),
        CostClass::Norm => vector(3, tree + per_row),
        CostClass::Rotate => vector(4, 0),
        CostClass::Quantize => vector(2, tree + per_row),
        CostClass::SelectRows => route(along_rows()),
        CostClass::SelectColumns => route(along_cols()),
        CostClass::SelectBoth => route(along_rows() + along_cols()),
        CostClass::Group => route(2 * all + cols + n),
        CostClass::Compact => route(all + n),
        CostClass::Ring => route(2),
        CostClass::Admit => route(1 + n),
        CostClass::Iota => route(u128::from(extent.cols.div_ceil(lanes))),
        CostClass::Scalar
        | CostClass::ScalarLoad
        | CostClass::Sync
        | CostClass::Dma
        | CostClass::DmaIndexed
        | CostClass::DmaAdd
        | CostClass::Preload
        | CostClass::Pass => route(0),
    }
}

//! Random programs that can be decoded, and mutations of the examples: never a panic, never without end, never much memory.
//!
//! `LAPIDARY_TEST=full` runs 100,000 of each.

mod common;

use lapidary_npu_isa::format::{Branch, LoopEnd, LoopHead, Nothing};
use lapidary_npu_isa::operand::{Body, Bound, Dest, Distance, Reg, Size, Source, Term, Wide};
use lapidary_npu_isa::{Instruction, Machine, Op, Program, ROWS, format};
use lapidary_simulator::routing::{Drawn, ModulesPerToken, Popularity, Recorder, Routed};
use lapidary_simulator::{Limits, Options, Run, SimError, Simulator};
use proptest::prelude::*;

const LIMITS: Limits = Limits { cycles: 1 << 24, steps: 1 << 18, dram_bytes: 1 << 22 };

fn rounds() -> u64 {
    if std::env::var_os("LAPIDARY_TEST").is_some() { 100_000 } else { 4_000 }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Values that registers come to hold: sizes, addresses, and what should not be.
    fn value(&mut self) -> i64 {
        match self.below(12) {
            0..=4 => self.below(40) as i64,
            5..=7 => (self.below(64) * 32) as i64,
            8 => (self.below(1 << 16) * 64) as i64,
            9 => i64::from(f32::to_bits(self.below(100) as f32 / 7.0)),
            10 => [0, -1, i64::MIN, i64::MAX, 1 << 48, (1 << 48) + 1, u32::MAX as i64][self.below(7) as usize],
            _ => 1 << self.below(63),
        }
    }

    /// Any instruction without structure of its own.
    fn instruction(&mut self) -> Instruction {
        loop {
            if self.below(3) == 0 {
                let rd = Reg::new(1 + self.below(31) as u8).unwrap();
                return Op::Li(format::Constant { rd: Dest(rd), value: Wide(self.value()) }).into();
            }
            let row = &ROWS[self.below(ROWS.len() as u64) as usize];
            let bits = 27 + row.fields.iter().map(|field| field.bits).sum::<u32>();
            let mut word = u128::from(self.next()) << 64 | u128::from(self.next());
            // Small numbers and few tokens, mostly.
            for _ in 0..self.below(4) {
                word &= u128::from(self.next()) << 64 | u128::from(self.next());
            }
            if self.below(8) > 0 {
                word &= !0x7ff_ffff;
            }
            word = (word & !0x7f & (u128::MAX >> (128 - bits))) | u128::from(row.opcode);
            if let Ok(instruction) = Instruction::decode(word) {
                let op = &instruction.op;
                if !matches!(op, Op::Halt(_) | Op::Loop(_) | Op::End(_) | Op::Branch(_) | Op::SkipIfZero(_)) {
                    return instruction;
                }
            }
        }
    }

    /// Some instructions, with loops and branches that fit.
    fn block(&mut self, depth: u64, out: &mut Vec<Instruction>) {
        let mut places = Vec::new();
        for _ in 0..1 + self.below(6) {
            places.push(out.len());
            match self.below(8) {
                0 if depth < 8 => {
                    let head = out.len();
                    out.push(self.instruction());
                    self.block(depth + 1, out);
                    let body = Body((out.len() - head - 1) as u32);
                    let count = match self.below(2) {
                        0 => Size::Imm(self.below(5) as u32),
                        _ => Size::Reg(Reg::new(1 + self.below(31) as u8).unwrap()),
                    };
                    let rd = Dest(Reg::new(1 + self.below(31) as u8).unwrap());
                    out[head] = Op::Loop(LoopHead { rd, count, max: Bound(self.next() as u32), body }).into();
                    out.push(Op::End(LoopEnd { body }).into());
                }
                _ => out.push(self.instruction()),
            }
        }
        places.push(out.len());
        if self.below(2) == 0 {
            // A branch in front of the block, to any of its places.
            let target = places[self.below(places.len() as u64) as usize];
            let distance = Distance((target - places[0]) as u32);
            let a = Source(Reg::new(self.below(32) as u8));
            let condition = lapidary_npu_isa::choice::Condition::ALL[self.below(4) as usize];
            let branch = Branch { condition, a, b: Term::Imm(self.below(3) as i32), target: distance };
            out.insert(places[0], Op::Branch(branch).into());
        }
    }

    fn program(&mut self) -> Program {
        let mut instructions = Vec::new();
        for _ in 0..1 + self.below(4) {
            self.block(0, &mut instructions);
        }
        instructions.push(Op::Halt(Nothing {}).into());
        Program { instructions, ..Program::default() }
    }
}

fn attempt(program: &Program, machine: &Machine, values: bool) -> Result<Run, SimError> {
    let options = Options { values, limits: LIMITS, ..Options::default() };
    Simulator::new(program, machine, options)?.run()
}

/// Runs both ways; without values it takes as long, or says what it would have to know.
fn check(program: &Program, machine: &Machine) -> Result<Run, SimError> {
    let with = attempt(program, machine, true);
    let without = attempt(program, machine, false);
    match (&with, &without) {
        (Ok(with), Ok(without)) => {
            assert_eq!(with.report.cycles_by_cause, without.report.cycles_by_cause);
            assert_eq!(with.report.total, without.report.total);
            let pages = with.memories.dram.resident_bytes();
            assert!(pages <= LIMITS.dram_bytes, "{pages}");
        }
        // Faults that depend on what is not computed are not seen, and what comes behind them is; unknown data is no fault.
        (Err(SimError::Fault(_)), _) | (_, Err(SimError::Unknown { .. })) => (),
        (Err(a), Err(b)) => assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b), "{a}; {b}"),
        (Ok(_), Err(error)) => panic!("only without values: {error}"),
        (Err(error), Ok(_)) => panic!("only with values: {error}"),
    }
    with
}

fn machines() -> Vec<Machine> {
    let mut machines: Vec<Machine> =
        ["edge-16", "mobile-64"].iter().map(|name| Machine::preset(name).unwrap()).collect();
    let mut overlap = Machine::preset("edge-16").unwrap();
    overlap.set_all([("matrix.weight_overlap", "true"), ("dma.channels", "1"), ("queue.depth", "1")]).unwrap();
    machines.push(overlap);
    let mut odd = common::ideal(&[("matrix.rows", "3"), ("matrix.cols", "5"), ("accumulators.bytes", "2000")]);
    odd.set_all([("vector.startup_cycles", "0"), ("vector.lanes", "3"), ("scratchpad.ports", "2")]).unwrap();
    machines.push(odd);
    machines
}

#[test]
fn random_programs_end() {
    let machines = machines();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut completed, mut faults) = (0u64, 0u64);
    for i in 0..rounds() {
        let program = random.program();
        assert_eq!(program.check_structure(), Ok(()));
        match check(&program, &machines[(i % machines.len() as u64) as usize]) {
            Ok(_) => completed += 1,
            Err(SimError::Fault(_)) => faults += 1,
            Err(_) => (),
        }
    }
    // Otherwise the programs are no test.
    assert!(completed > rounds() / 50 && faults > rounds() / 50, "{completed} {faults}");
}

#[test]
fn mutated_examples_end() {
    let machine = Machine::preset("edge-16").unwrap();
    let examples = ["matmul_double_buffered", "routed_ffn", "top_k_sort"].map(|name| {
        let path = format!("{}/../examples/npu/{name}.s", env!("CARGO_MANIFEST_DIR"));
        common::program(&std::fs::read_to_string(path).unwrap())
    });
    let mut random = Random(88_172_645_463_325_252);
    let mut completed = 0;
    for i in 0..rounds() {
        let mut program = examples[(i % 3) as usize].clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(program.instructions.len() as u64) as usize;
            let word = program.instructions[at].encode().unwrap() ^ 1 << random.below(128);
            if let Ok(instruction) = Instruction::decode(word) {
                program.instructions[at] = instruction;
            }
        }
        if program.check_structure().is_ok() && check(&program, &machine).is_ok() {
            completed += 1;
        }
    }
    assert!(completed > rounds() / 20, "{completed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn words_one_by_one(words in prop::collection::vec(any::<u128>(), 1..6), registers in prop::collection::vec(any::<i64>(), 31)) {
        let set = registers.iter().zip(1u8..).map(|(value, number)| {
            Instruction::from(Op::Li(format::Constant { rd: Dest(Reg::new(number).unwrap()), value: Wide(*value) }))
        });
        let mut instructions: Vec<Instruction> = set.collect();
        instructions.extend(words.iter().filter_map(|word| Instruction::decode(*word).ok()));
        instructions.push(Op::Halt(Nothing {}).into());
        let program = Program { instructions, ..Program::default() };
        if program.check_structure().is_ok() {
            let _ = check(&program, &Machine::preset("edge-16").unwrap());
        }
    }
}

#[test]
fn no_time_and_no_memory_is_spent_on_the_absurd() {
    let machine = Machine::preset("edge-16").unwrap();
    // 2⁴⁸ rows of the same byte; 2³² iterations of 2³²; a store across all of DRAM.
    let rows = "li r1, 281474976710656\nload sp[0], dram[0], row_bytes=1, rows=r1, src_stride=r2, dst_stride=r2\nhalt";
    let loops =
        "li r3, 4294967295\nloop r1, count=r3, max=4294967295\nloop r2, count=r3, max=4294967295\nend\nend\nhalt";
    let pages = "li r1, 65536\nli r2, 65536\nli r4, 0\nstore dram[0], sp[0], row_bytes=1, rows=r1, dst_stride=r2, src_stride=r4\nhalt";
    for text in [rows, loops, pages] {
        match attempt(&common::program(text), &machine, true) {
            Err(SimError::Limit { .. }) => (),
            other => panic!("{text}: {other:?}"),
        }
    }
    // A vector instruction of 2⁴⁸ rows is longer than any run.
    let long =
        "li r1, 281474976710656\nli r2, 0\nv.copy sp[0], sp[64], cols=16, rows=r1, a_stride=r2, dst_stride=r2\nhalt";
    assert!(matches!(attempt(&common::program(long), &machine, false), Err(SimError::Limit { .. })));
}

/// A routing that answers every selection and cluster leaves random programs what they are: runs or errors.
#[test]
fn random_programs_with_a_routing_end() {
    let machine = Machine::preset("edge-16").unwrap();
    let mut random = Random(0x51ec_7a11);
    let mut decided = 0;
    for round in 0..rounds() {
        let mut program = random.program();
        // Selections and row_argmax of small operands, in front.
        for _ in 0..random.below(4) {
            let select = loop {
                let instruction = random.instruction();
                if matches!(instruction.op, Op::TopK(_) | Op::TopP(_) | Op::Threshold(_) | Op::RowArgmax(_)) {
                    break instruction;
                }
            };
            program.instructions.insert(0, select);
        }
        let label = lapidary_npu_isa::program::OpLabel { at: 0, name: "layers.7.attn.cluster".into(), module: None };
        program.op_labels = vec![label];
        for values in [true, false] {
            let popularity = if round % 2 == 0 { Popularity::Uniform } else { Popularity::Zipf(1.0) };
            let mut drawn = Drawn::new(popularity, ModulesPerToken::Weighted(vec![1, 2, 3, 1 << 31]), round);
            let mut recorder = Recorder { inner: Some(&mut drawn), ..Recorder::default() };
            let options = Options { values, limits: LIMITS, ..Options::default() };
            let simulator = Simulator::new(&program, &machine, options).unwrap();
            let routed = Routed { routing: &mut recorder, first_token: random.value() as u64 };
            if let Ok(run) = simulator.routed(routed).run() {
                decided += run.report.selections.iter().map(|s| s.tokens()).sum::<u64>();
            }
        }
    }
    assert!(decided > 100, "{decided}");
}

//! What the verifier accepts, run: random programs on a machine that does everything in a random order that its rules allow.
//!
//! The machine here has registers, tokens, queues and accesses, and no values. It fails where a wait is never satisfied, an access is
//! out of bounds, a register is read that was never set, or two conflicting accesses come out of the program's order.

mod common;

use std::collections::VecDeque;
use std::fmt::Write;

use common::{Random, cases};
use lapidary_npu_isa::access::Access;
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::format::OperandVisitor;
use lapidary_npu_isa::operand::{Operand, Size, Source, Term};
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Op, Program, Queue, Reg, Registers};

const QUEUES: [&str; 6] = ["load", "store", "matrix", "vector", "route", "sequencer"];

/// The counter from one queue to another; the sequencer is 5.
fn counter(from: usize, to: usize) -> usize {
    1 + from * 5 + if to > from { to - 1 } else { to }
}

/// Text of a program with tokens in balance, and accesses to a few places by registers.
fn random_text(random: &mut Random) -> String {
    let mut text = String::new();
    for r in 1..=6 {
        let _ = writeln!(text, "li r{r}, {}", 32 * random.below(40));
    }
    text += "li r7, 0\n";
    let _ = writeln!(text, "lds r10, sp[0], max={}", random.below(6));
    let mut open = [[0u32; 6]; 6];
    // What was posted may be waited for now or later.
    for part in 0..random.below(3) + 1 {
        let looped = random.below(2) == 0;
        if looped {
            match random.below(2) {
                0 => drop(writeln!(text, "loop r{}, count={}", 20 + part, 1 + random.below(6))),
                _ => drop(writeln!(text, "loop r{}, count=r10, max=5", 20 + part)),
            }
            if random.below(2) == 0 {
                let _ = writeln!(text, "and r8, r{}, 1\nmul r7, r8, 128", 20 + part);
            }
        }
        let before = open;
        let skipped = (random.below(3) == 0).then(|| {
            let _ = writeln!(text, "skip_if_zero r10, skip{part}");
            open
        });
        for _ in 0..random.below(7) {
            if random.below(3) == 0 {
                let step = [0, 32, 64][random.below(3) as usize];
                let _ = writeln!(text, "add r{0}, r{0}, {step}", 1 + random.below(6));
                continue;
            }
            let q = [0, 1, 2, 3, 4, 5, 0, 3][random.below(8) as usize];
            let at = |random: &mut Random| format!("sp[r{}+{}]", 1 + random.below(7), 32 * random.below(3));
            let op = match q {
                0 => format!("load {}, dram[r{}], row_bytes={}", at(random), 1 + random.below(7), 1 + random.below(64)),
                1 => {
                    format!("store dram[r{}], {}, row_bytes={}", 1 + random.below(7), at(random), 1 + random.below(64))
                }
                2 => format!("m.pass {}, acc[0], rows={}, k=16", at(random), 1 + random.below(4)),
                3 => format!("v.silu {}, {}, cols={}", at(random), at(random), 1 + random.below(20)),
                4 => format!("r.iota {}, count=r9", at(random)),
                _ => format!("lds r11, {}, max=3", at(random)),
            };
            let mut waits = Vec::new();
            for (from, row) in open.iter_mut().enumerate() {
                while row[q] > 0 && waits.len() < 2 && random.below(5) > 0 {
                    row[q] -= 1;
                    waits.push(format!("t{}", counter(from, q)));
                }
            }
            let mut posts = Vec::new();
            while posts.len() < 2 && random.below(3) > 0 {
                let to = (q + 1 + random.below(5) as usize) % 6;
                open[q][to] += 1;
                posts.push(format!("t{}", counter(q, to)));
            }
            let list = |name: &str, list: &[String]| {
                if list.is_empty() { String::new() } else { format!(" {name}({})", list.join(", ")) }
            };
            let _ = writeln!(text, "{op}{}{}", list("wait", &waits), list("post", &posts));
        }
        if looped || skipped.is_some() {
            // Back to where it began, so that ways through the program agree.
            for from in 0..6 {
                for to in (0..6).filter(|to| *to != from) {
                    let (now, was) = (open[from][to], before[from][to]);
                    for _ in was..now {
                        let _ = writeln!(text, "sync {} wait(t{})", QUEUES[to], counter(from, to));
                    }
                    for _ in now..was {
                        let _ = writeln!(text, "sync {} post(t{})", QUEUES[from], counter(from, to));
                    }
                }
            }
            open = before;
        }
        if skipped.is_some() {
            let _ = writeln!(text, "skip{part}:");
        }
        if looped {
            text += "end\n";
        }
    }
    text += "halt\n";
    format!("li r9, 8\nm.preload i8, w[0], k=16, n=16\n{text}")
}

struct Issued {
    accesses: Vec<Access>,
    queue: Queue,
    at: usize,
    started: bool,
    completed: bool,
}

/// All registers that an instruction reads are set.
struct Reads<'a>(&'a [bool; 32], bool);

impl OperandVisitor for Reads<'_> {
    fn operand<T: Operand>(&mut self, _: &'static str, value: &T) {
        self.1 &= value.register().is_none_or(|r: Reg| self.0[r.index()]);
    }
}

fn size<const N: u32>(size: Size<N>, regs: &Registers) -> i64 {
    size.value(regs)
}

fn source(source: Source, regs: &Registers) -> i64 {
    source.value(regs)
}

/// Runs to the end, or says what went wrong.
fn run(program: &Program, machine: &Machine, random: &mut Random) -> Result<(), String> {
    let mut regs = Registers::default();
    let mut set = [false; 32];
    let mut open: Vec<(usize, i64)> = Vec::new();
    let mut tokens = [0u32; 32];
    let mut issued: Vec<Issued> = Vec::new();
    let mut queues: [VecDeque<usize>; 6] = Default::default();
    let mut at = 0;
    let mut stuck = 0;
    let patience = [2, 20][random.below(2) as usize];
    loop {
        let mut moved = false;
        // Completions and starts, each left for later at random.
        for queue in &mut queues {
            if let Some(first) = queue.front().copied()
                && issued[first].started
                && (random.below(3) == 0 || stuck > patience)
            {
                issued[first].completed = true;
                for t in program.instructions[issued[first].at].tokens.posts() {
                    tokens[t.index()] += 1;
                }
                queue.pop_front();
                moved = true;
            }
            let started = queue.iter().position(|i| !issued[*i].started);
            if let Some(next) = started.map(|p| queue[p])
                && (random.below(3) == 0 || stuck > patience)
            {
                let wanted = program.instructions[issued[next].at].tokens;
                let mut left = tokens;
                if wanted.waits().all(|t| left[t.index()].checked_sub(1).map(|n| left[t.index()] = n).is_some()) {
                    tokens = left;
                    issued[next].started = true;
                    moved = true;
                    let me = &issued[next];
                    for (i, other) in issued.iter().enumerate().filter(|(i, o)| *i != next && o.queue != me.queue) {
                        let wrong = if i < next { !other.completed } else { other.started };
                        let conflict = |a: &Access| other.accesses.iter().any(|b| a.conflicts_with(b));
                        if wrong && me.accesses.iter().any(conflict) {
                            return Err(format!("race of instructions {} and {}", me.at, other.at));
                        }
                    }
                }
            }
        }
        let done = matches!(program.instructions[at].op, Op::Halt(_));
        if done && queues.iter().all(VecDeque::is_empty) {
            return Ok(());
        }
        stuck = if moved { 0 } else { stuck + 1 };
        if stuck > 4 * patience + 40 {
            return Err(format!("no end, at instruction {at}"));
        }
        if done || random.below(2) == 0 {
            continue;
        }
        // The sequencer.
        let instruction = program.instructions[at];
        let mut reads = Reads(&set, true);
        instruction.op.visit(&mut reads);
        if !reads.1 {
            return Err(format!("instruction {at} reads a register that is not set"));
        }
        let accesses = instruction.op.accesses(&regs).map_err(|f| format!("instruction {at}: {f:?}"))?;
        for a in accesses.iter().filter(|a| !a.is_empty()) {
            let most = match a.memory {
                Memory::Dram => machine.dram.bytes,
                Memory::Scratchpad => machine.scratchpad.bytes,
                Memory::Weights => machine.weights.bytes,
                Memory::Accumulators => machine.accumulator_rows(),
            };
            if a.end() > most {
                return Err(format!("instruction {at} touches {}[{}]", a.memory, a.end() - 1));
            }
        }
        let queue = instruction.queue();
        if queue != Queue::Sequencer {
            if queues[queue.index()].len() < 3 {
                let number = issued.len();
                issued.push(Issued { accesses, queue, at, started: false, completed: false });
                queues[queue.index()].push_back(number);
                at += 1;
                stuck = 0;
            }
            continue;
        }
        let mut left = tokens;
        if !instruction.tokens.waits().all(|t| left[t.index()].checked_sub(1).map(|n| left[t.index()] = n).is_some()) {
            continue;
        }
        tokens = left;
        instruction.tokens.posts().for_each(|t| tokens[t.index()] += 1);
        for other in issued.iter().filter(|o| !o.completed) {
            if accesses.iter().any(|a| other.accesses.iter().any(|b| a.conflicts_with(b))) {
                return Err(format!("race of instructions {at} and {}", other.at));
            }
        }
        let mut write = |regs: &mut Registers, reg: Reg, value: i64| {
            regs.set(reg, value);
            set[reg.index()] = true;
        };
        stuck = 0;
        at += 1;
        let term = |t: Term, regs: &Registers| t.value(regs);
        match instruction.op {
            Op::Li(f) => write(&mut regs, f.rd.0, f.value.0),
            Op::Lds(f) => {
                let value = random.below(u64::from(f.max.0) + 1) as i64;
                write(&mut regs, f.rd.0, value);
            }
            Op::Add(f) => {
                let value = source(f.a, &regs) + term(f.b, &regs);
                write(&mut regs, f.rd.0, value);
            }
            Op::Mul(f) => {
                let value = source(f.a, &regs) * term(f.b, &regs);
                write(&mut regs, f.rd.0, value);
            }
            Op::And(f) => {
                let value = source(f.a, &regs) & term(f.b, &regs);
                write(&mut regs, f.rd.0, value);
            }
            Op::Sync(_) => (),
            Op::SkipIfZero(f) => at += if source(f.a, &regs) == 0 { f.target.0 as usize } else { 0 },
            Op::Loop(f) => {
                let count = size(f.count, &regs);
                write(&mut regs, f.rd.0, 0);
                match count > 0 {
                    true => open.push((at, count)),
                    false => at += f.body.0 as usize + 1,
                }
            }
            Op::End(_) => {
                let (begin, count) = *open.last().expect("a loop");
                let Op::Loop(head) = program.instructions[begin - 1].op else { panic!("a loop") };
                let index = regs.get(head.rd.0) + 1;
                regs.set(head.rd.0, index);
                if index < count {
                    at = begin;
                } else {
                    open.pop();
                }
            }
            other => panic!("{} is not generated", other.row().mnemonic),
        }
    }
}

#[test]
fn accepted_programs_run() {
    let machine = Machine::preset("edge-16").expect("a preset");
    let mut random = Random(11);
    let (mut accepted, mut races) = (0, 0);
    for _ in 0..cases(3000, 30_000) {
        let text = random_text(&mut random);
        let program = assemble(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        match verify(&program, &machine) {
            Ok(_) => {
                accepted += 1;
                for _ in 0..20 {
                    if let Err(wrong) = run(&program, &machine, &mut random) {
                        panic!("accepted, and then {wrong}:\n{text}");
                    }
                }
            }
            Err(error) => {
                // The verifier's word is not taken for it: some schedule shows most races.
                if error.wanted.starts_with("tokens that order")
                    && (0..40).any(|_| run(&program, &machine, &mut random).is_err())
                {
                    races += 1;
                }
            }
        }
    }
    eprintln!("{accepted} accepted, {races} races shown");
    // Without these the test would say nothing.
    assert!(accepted > 300 && races > 300, "{accepted} accepted, {races} races shown");
}

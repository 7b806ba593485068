//! A random case of every queued instruction.

use crate::builder::{Builder, Draft, Rows, Where};
use crate::dice::Dice;
use crate::memory::{Memories, Type};
use crate::spec::entries;

const SP: Where = Where::Scratchpad;

/// Mnemonics of the instructions of the five queues.
pub fn queued() -> Vec<&'static str> {
    entries().iter().filter(|e| e.unit != "Sequencer").map(|e| e.mnemonic.as_str()).collect()
}

/// Registers that cases use: the low ones are left to the program around them.
pub const REGISTERS: [u8; 24] =
    [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];

/// A case of instruction `mnemonic`, where the array's tile has `tile_k` rows; a few fault if they may.
pub fn case(mnemonic: &str, dice: &mut Dice, memories: &Memories, tile_k: i64, faulty: bool) -> Draft {
    loop {
        let mut b = Builder::new(mnemonic, dice, memories, &REGISTERS);
        b.faulty = faulty;
        match b.draft.entry.unit.as_str() {
            "LOAD" | "STORE" => dma(&mut b),
            "MATRIX" => matrix(&mut b, tile_k),
            "VECTOR" => vector(&mut b),
            _ => route(&mut b),
        }
        // Written over while it is read, a list may name rows that do not exist.
        let spoilt = b.draft.entry.has("index") && b.pokes_are_written();
        if spoilt && !faulty {
            continue;
        }
        // Of results of ROUTE other than masks and gates ISA.md does not say which is written first.
        if b.draft.entry.unit != "ROUTE" || b.draft.entry.has("scores") || !b.writes_collide() {
            let mut draft = b.draft;
            if faulty && dice.once_in(12) {
                spoil(&mut draft, dice);
            }
            return draft;
        }
    }
}

/// Gives a register a value that its operand may not have.
fn spoil(draft: &mut Draft, dice: &mut Dice) {
    let candidates: Vec<usize> = (0..draft.sets.len()).filter(|i| !draft.sets[*i].free).collect();
    if candidates.is_empty() {
        return;
    }
    let route = draft.entry.unit == "ROUTE" && !draft.entry.has("scores");
    let set = &mut draft.sets[dice.of(&candidates)];
    set.value = match (dice.below(6), set.address) {
        // Nor may they come to overlap.
        (_, Some(_)) if route => -(1 << 40),
        (0, _) => -1,
        (1, _) => i64::MIN,
        (2, _) => (1 << 48) + 64,
        (3, Some(_)) => set.value + 1,
        (4, Some(_)) => set.value + dice.of(&[1024, 8192, 65536]),
        (_, Some(_)) => -set.value - 64,
        (_, None) => -dice.within(1, 300),
    };
}

/// Counts of rows and units of a row that fit a third of the scratchpad.
fn shape(b: &mut Builder<'_>, most_units: i64, unit_bytes: i64) -> (i64, i64) {
    let room = b.memories.scratchpad.len() as i64 / 3;
    let units = b.dice.count(most_units.min(room / unit_bytes));
    let most_rows = room / (units * unit_bytes).max(4);
    let usual = if b.dice.once_in(8) { 300 } else { 24 };
    let rows = b.dice.count(most_rows.min(usual));
    (rows, units)
}

fn dma(b: &mut Builder<'_>) {
    let mnemonic = b.draft.entry.mnemonic.as_str();
    let load = b.draft.entry.unit == "LOAD";
    let unpack = load && b.flag("unpack");
    let wide = if unpack { 2 } else { 1 };
    let on_chip = if load && b.dice.once_in(2) { Where::Weights } else { SP };
    let room = if on_chip == Where::Weights { b.memories.weights.len() } else { b.memories.scratchpad.len() } as i64;
    let row_bytes = b.dice.count((room / 3 / wide).min(1000));
    if mnemonic == "load" || mnemonic == "store" {
        let rows = b.dice.count((room / 3 / wide / row_bytes.max(1)).min(20));
        let planes = b.dice.count((room / 3 / wide / (row_bytes * rows).max(1)).min(5));
        b.size("row_bytes", row_bytes);
        b.maybe("rows", rows, 1);
        b.maybe("planes", planes, 1);
        let (src, dst) = if load { (Where::Dram, on_chip) } else { (SP, Where::Dram) };
        b.boxed("src", src, row_bytes, rows, planes, false);
        b.boxed("dst", dst, row_bytes * wide, rows, planes, true);
        return;
    }
    let adds = mnemonic == "store.add_rows";
    let element = if adds { 4 } else { 1 };
    let row_bytes = if adds { row_bytes / 4 * 4 } else { row_bytes };
    let rows = b.dice.count((room / 3 / wide / row_bytes.max(1)).min(40));
    let bound = b.dice.count((b.memories.dram.len() as i64 / 3 / row_bytes.max(1)).min(60)).max(1);
    b.size("row_bytes", row_bytes);
    b.maybe("rows", rows, 1);
    b.reg("bound", bound);
    b.list(rows, bound);
    let table = Rows { bytes: row_bytes, rows: bound, element, writes: !load };
    let moved = Rows { bytes: row_bytes * wide, rows, element, writes: load };
    if load {
        b.table("src", "src_stride", Where::Dram, bound, table);
        b.rows("dst", "dst_stride", on_chip, moved);
    } else {
        b.table("dst", "dst_stride", Where::Dram, bound, table);
        b.rows("src", "src_stride", SP, moved);
    }
}

fn matrix(b: &mut Builder<'_>, tile_k: i64) {
    let mnemonic = b.draft.entry.mnemonic.as_str();
    let (array_rows, array_cols) = (b.memories.array_rows as i64, b.memories.array_cols as i64);
    if mnemonic.starts_with("m.preload") {
        let k = if b.wrong(80) { array_rows + 1 } else { b.dice.count(array_rows).max(1) };
        let n = if b.wrong(80) { array_cols + 1 } else { b.dice.count(array_cols).max(1) };
        let packed = b.flag("codes");
        let row = if packed { (n + 1) / 2 } else { n };
        b.size("k", k);
        b.size("n", n);
        b.rows("tile", "", Where::Weights, Rows { bytes: row, rows: k, element: 1, writes: false });
        if mnemonic == "m.preload_scaled" {
            b.flat("scales", Where::Weights, 2 * n, 2, false);
        }
        return;
    }
    let acc_rows = (b.memories.accumulators.len() / b.memories.array_cols) as i64;
    let k = if b.wrong(60) { tile_k + 1 } else { tile_k };
    let rows = b.dice.count(acc_rows);
    b.size("rows", rows);
    b.size("k", k);
    b.rows("a", "a_stride", SP, Rows { bytes: k, rows, element: 1, writes: false });
    b.flat("acc", Where::Accumulators, rows, 1, true);
    b.flag("accumulate");
    if mnemonic == "m.pass_scaled" {
        b.flat("sums", Where::Accumulators, rows, 1, false);
        b.flag("append");
    }
}

fn vector(b: &mut Builder<'_>) {
    let entry = b.draft.entry;
    match entry.mnemonic.as_str() {
        "v.rescale" | "v.rescale_floats" => {
            let acc_rows = (b.memories.accumulators.len() / b.memories.array_cols) as i64;
            let (rows, cols) = (b.dice.count(acc_rows), b.dice.count(b.memories.array_cols as i64));
            let cols = if b.wrong(60) { b.memories.array_cols as i64 + 1 } else { cols };
            b.size("cols", cols);
            b.maybe("rows", rows, 1);
            b.flat("acc", Where::Accumulators, rows, 1, false);
            if entry.has("channels") {
                b.matrix("channels", "", Type::F32, 1, cols, false);
            }
            b.matrix("tokens", "", Type::F32, 1, rows, false);
            let ty = b.ty("dst_type");
            b.matrix("dst", "dst_stride", ty, rows, cols, true);
        }
        "v.rope" => {
            let half = b.dice.count(40);
            let heads = b.dice.count(4);
            let room = b.memories.scratchpad.len() as i64 / 3;
            let rows = b.dice.count((room / (8 * half * heads.max(1)).max(4)).min(12));
            b.size("half", half);
            b.maybe("heads", heads, 1);
            b.maybe("rows", rows, 1);
            let (a_type, dst_type) = (b.ty("a_type"), b.ty("dst_type"));
            b.matrix("a", "a_stride", a_type, rows, 2 * half * heads, false);
            b.matrix("table", "table_stride", Type::F32, rows, 2 * half, false);
            b.matrix("dst", "dst_stride", dst_type, rows, 2 * half * heads, true);
        }
        "v.dot_rows" | "v.mix_rows" => products(b),
        "v.gather" => {
            let (rows, row_bytes) = shape(b, 700, 1);
            let bound = b.dice.count((b.memories.scratchpad.len() as i64 / 3 / row_bytes.max(1)).min(40)).max(1);
            b.size("row_bytes", row_bytes);
            b.maybe("rows", rows, 1);
            b.reg("bound", bound);
            b.list(rows, bound);
            let row = Rows { bytes: row_bytes, rows, element: 1, writes: false };
            b.table("src", "src_stride", SP, bound, row);
            b.rows("dst", "dst_stride", SP, Rows { writes: true, ..row });
        }
        "v.scatter_add" => {
            let (rows, cols) = shape(b, 200, 4);
            let bound = b.dice.count((b.memories.scratchpad.len() as i64 / 12 / cols.max(1)).min(40)).max(1);
            b.reg("cols", cols);
            b.maybe("rows", rows, 1);
            b.reg("bound", bound);
            b.list(rows, bound);
            b.matrix("gates", "", Type::F32, 1, rows, false);
            b.matrix("src", "src_stride", Type::F32, rows, cols, false);
            b.table("dst", "", SP, bound, Rows { bytes: 4 * cols, rows: bound, element: 4, writes: true });
        }
        _ => rows_and_cols(b),
    }
}

fn products(b: &mut Builder<'_>) {
    let (rows, cols) = shape(b, 300, 4);
    let (rows, b_rows) = (rows.min(12), b.dice.count((1300 / cols.max(1)).min(20)));
    b.size("cols", cols);
    b.maybe("rows", rows, 1);
    b.maybe("b_rows", b_rows, 1);
    let ty = b.ty("b_type");
    let dot = b.draft.entry.mnemonic == "v.dot_rows";
    let (a_cols, dst_cols) = if dot { (cols, b_rows) } else { (b_rows, cols) };
    b.matrix("a", "a_stride", Type::F32, rows, a_cols, false);
    b.matrix("b", "b_stride", ty, b_rows, cols, false);
    b.matrix("dst", "dst_stride", Type::F32, rows, dst_cols, true);
    b.flag("accumulate");
}

/// All that works on rows × cols elements: the operands that it has decide.
fn rows_and_cols(b: &mut Builder<'_>) {
    let entry = b.draft.entry;
    let (rows, cols) = shape(b, 4095, 4);
    b.size("cols", cols);
    b.maybe("rows", rows, 1);
    let types: Vec<Type> = ["a_type", "b_type", "dst_type"]
        .into_iter()
        .map(|name| if entry.has(name) { b.ty(name) } else { Type::F32 })
        .collect();
    if entry.has("a") {
        b.matrix("a", "a_stride", types[0], rows, cols, false);
    }
    if entry.has("b") {
        let broadcast = b.dice.below(4) as u64;
        b.bits("broadcast", broadcast);
        let b_rows = if broadcast & 1 == 1 { rows.min(1) } else { rows };
        let b_cols = if broadcast & 2 == 2 { cols.min(1) } else { cols };
        b.matrix("b", "b_stride", types[1], b_rows, b_cols, false);
    }
    if entry.has("w") {
        b.matrix("w", "", Type::F32, 1, cols, false);
    }
    match entry.mnemonic.as_str() {
        "v.row_sum" | "v.row_sum_squares" | "v.row_max" | "v.row_argmax" => {
            b.matrix("dst", "dst_stride", Type::F32, rows, 1, true);
        }
        "v.column_sum" => {
            b.matrix("dst", "", Type::F32, 1, cols, true);
        }
        "v.quantize" => {
            b.matrix("dst", "dst_stride", Type::I8, rows, cols, true);
            b.matrix("scales", "", Type::F32, 1, rows, true);
        }
        _ => {
            b.matrix("dst", "dst_stride", types[2], rows, cols, true);
        }
    }
    for pattern in ["value", "mul", "eps"] {
        if entry.has(pattern) {
            let high = if b.dice.once_in(4) { b.dice.bits() & !0xffff_ffff } else { 0 };
            let bits = u64::from(b.dice.float()) | high;
            b.free(pattern, bits as i64);
        }
    }
    for pattern in ["add", "scale"] {
        if entry.has(pattern) && b.dice.once_in(2) {
            let bits = b.dice.float();
            b.free(pattern, bits.into());
        }
    }
    for column in ["begin", "end"] {
        if entry.has(column) && b.dice.once_in(2) {
            let value = b.dice.within(-rows - 2, cols + 2);
            b.free(column, value);
        }
    }
}

fn route(b: &mut Builder<'_>) {
    let entry = b.draft.entry;
    match entry.mnemonic.as_str() {
        "r.append" | "r.admit" => {
            let cap = b.dice.count(40);
            let token = b.dice.count(400);
            b.reg("token", token);
            b.reg("cap", cap);
            let ring = b.flat("ring", SP, 4 * (cap + 1), 4, entry.mnemonic == "r.append");
            // A ring that has seen some tokens.
            let n = b.dice.of(&[0, 1, cap / 2, cap, cap + 1, 3 * cap + 1]);
            let mut bytes = (n as u32).to_le_bytes().to_vec();
            for _ in 0..cap {
                bytes.extend((b.dice.count(450) as u32).to_le_bytes());
            }
            b.draft.pokes.push((ring, bytes));
            if entry.mnemonic == "r.admit" {
                let (window, sinks) = (b.dice.count(100), b.dice.count(20));
                b.reg("window", window);
                b.reg("sinks", sinks);
                b.flat("list", SP, 4 * (cap + window + sinks).min(token + 1), 4, true);
                b.flat("count", SP, 4, 4, true);
            }
        }
        "r.iota" => {
            let count = b.dice.count(1000);
            b.reg("count", count);
            b.flat("dst", SP, 4 * count, 4, true);
            if b.dice.once_in(2) {
                let start = b.dice.bits() as i64;
                b.free("start", start);
            }
        }
        "r.group" | "r.compact" => {
            let (rows, cols) = shape(b, 300, 4);
            b.size("cols", cols);
            b.maybe("rows", rows, 1);
            let at = b.flat("mask", SP, rows * cols, 1, false);
            let density = b.dice.of(&[1, 2, 8, 1000]);
            let mask: Vec<u8> = (0..rows * cols)
                .map(|_| if b.dice.once_in(density) { b.dice.of(&[1, 1, 128, 255]) } else { 0 })
                .collect();
            let set = mask.iter().filter(|m| **m != 0).count() as i64;
            b.draft.pokes.push((at, mask));
            let most = match b.dice.below(20) {
                0 if b.faulty => (set - 1).max(0),
                0..=9 => set,
                _ => rows * cols,
            };
            b.maybe("most", most, rows * cols);
            if entry.mnemonic == "r.group" {
                b.flat("table", SP, 16 * (cols + 1), 4, true);
                b.flat("list", SP, 4 * most, 4, true);
            } else {
                b.matrix("src", "", Type::F32, rows, cols, false);
                b.flat("dst", SP, 4 * most, 4, true);
            }
        }
        _ => {
            let (rows, cols) = shape(b, 400, 4);
            b.size("cols", cols);
            b.maybe("rows", rows, 1);
            for count in ["k", "k_min", "cap"] {
                if entry.has(count) {
                    let value = b.dice.count(cols.max(rows) + 2);
                    b.reg(count, value);
                }
            }
            for pattern in ["tau", "p"] {
                if entry.has(pattern) {
                    let bits = if b.dice.once_in(2) { 0x3f00_0000 } else { b.dice.float() };
                    b.free(pattern, bits.into());
                }
            }
            if entry.has("norm") {
                b.flag("norm");
            }
            b.matrix("scores", "", Type::F32, rows, cols, false);
            b.matrix("mask", "", Type::I8, rows, cols, true);
            b.matrix("gates", "", Type::F32, rows, cols, true);
        }
    }
}

//! LOAD and STORE, byte by byte.

use crate::memory::{Checks, Faults, Kind, Memories, Place, Run};
use crate::numbers::pattern;
use crate::spec::Operands;

pub fn execute(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    match o.entry.mnemonic.as_str() {
        "load" => boxed(m, o, target(o), Place::Dram, o.flag("unpack")),
        "store" => boxed(m, o, Place::Dram, Place::Scratchpad, false),
        "load.rows" => load_rows(m, o),
        "store.rows" => store_rows(m, o),
        "store.add_rows" => store_add_rows(m, o),
        other => panic!("{other} is not of LOAD or STORE"),
    }
}

fn target(o: &Operands<'_>) -> Place {
    if o.in_weights("dst") { Place::Weights } else { Place::Scratchpad }
}

/// Moves a byte, or the two numbers of 4 bits in it.
fn move_byte(m: &mut Memories, to: (Place, i64), from: (Place, i64), unpack: bool) {
    let byte = m.bytes(from.0)[from.1 as usize];
    let dst = m.bytes(to.0);
    if unpack {
        let signed = |half: u8| if half >= 8 { half as i8 - 16 } else { half as i8 };
        dst[to.1 as usize] = signed(byte & 15) as u8;
        dst[to.1 as usize + 1] = signed(byte >> 4) as u8;
    } else {
        dst[to.1 as usize] = byte;
    }
}

fn boxed(m: &mut Memories, o: &Operands<'_>, to: Place, from: Place, unpack: bool) -> Result<(), Faults> {
    let row_bytes = o.size("row_bytes");
    let rows = o.maybe("rows").unwrap_or(1);
    let planes = o.maybe("planes").unwrap_or(1);
    let wide = if unpack { 2 } else { 1 };
    let run = |operand: &str, place, bytes: i64| {
        let stride = o.maybe(&format!("{operand}_stride")).unwrap_or(bytes);
        let plane_stride = o.maybe(&format!("{operand}_plane")).unwrap_or(rows.saturating_mul(stride));
        Run { place, begin: o.address(operand), bytes, rows, stride, planes, plane_stride, element: 1 }
    };
    let src = run("src", from, row_bytes);
    let dst = run("dst", to, row_bytes.saturating_mul(wide));
    Checks::default().work(!dst.is_empty()).run(src).run(dst).finish(m)?;
    if src.is_empty() {
        return Ok(());
    }
    for p in 0..planes {
        for r in 0..rows {
            for b in 0..row_bytes {
                let dst_at = dst.begin + p * dst.plane_stride + r * dst.stride + b * wide;
                let src_at = src.begin + p * src.plane_stride + r * src.stride + b;
                move_byte(m, (to, dst_at), (from, src_at), unpack);
            }
        }
    }
    Ok(())
}

/// The list's entry for row i, checked.
pub fn index(m: &Memories, list: i64, i: i64, bound: i64) -> Result<i64, Faults> {
    let index = i64::from(m.word(list + 4 * i));
    if index >= bound { Err(vec![Kind::Index]) } else { Ok(index) }
}

fn rows_of(o: &Operands<'_>) -> (i64, i64, Run) {
    let rows = o.maybe("rows").unwrap_or(1);
    let list = Run::flat(Place::Scratchpad, o.address("index"), rows.saturating_mul(4), 4);
    (rows, o.size("row_bytes"), list)
}

/// Rows of one run after the other.
fn rows_run(place: Place, begin: i64, rows: i64, bytes: i64, stride: Option<i64>, element: i64) -> Run {
    let stride = stride.unwrap_or(bytes);
    Run { place, begin, bytes, rows, stride, planes: 1, plane_stride: 0, element }
}

fn load_rows(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, row_bytes, list) = rows_of(o);
    let unpack = o.flag("unpack");
    let wide = if unpack { 2 } else { 1 };
    let to = target(o);
    let dst = rows_run(to, o.address("dst"), rows, row_bytes.saturating_mul(wide), o.maybe("dst_stride"), 1);
    let table = rows_run(Place::Dram, o.address("src"), o.reg("bound"), row_bytes, o.maybe("src_stride"), 1);
    Checks::default().work(!dst.is_empty()).run(list).run(dst).run(table).finish(m)?;
    if dst.is_empty() {
        return Ok(());
    }
    for i in 0..rows {
        let at = index(m, list.begin, i, o.reg("bound"))?;
        let from = table.begin + at * table.stride;
        for b in 0..row_bytes {
            move_byte(m, (to, dst.begin + i * dst.stride + b * wide), (Place::Dram, from + b), unpack);
        }
    }
    Ok(())
}

fn store_rows(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, row_bytes, list) = rows_of(o);
    let src = rows_run(Place::Scratchpad, o.address("src"), rows, row_bytes, o.maybe("src_stride"), 1);
    let table = rows_run(Place::Dram, o.address("dst"), o.reg("bound"), row_bytes, o.maybe("dst_stride"), 1);
    let work = !src.is_empty() && !table.is_empty();
    Checks::default().work(work).run(list).run(src).run(table).finish(m)?;
    if !work {
        return Ok(());
    }
    for i in 0..rows {
        let at = index(m, list.begin, i, o.reg("bound"))?;
        let to = table.begin + at * table.stride;
        for b in 0..row_bytes {
            move_byte(m, (Place::Dram, to + b), (Place::Scratchpad, src.begin + i * src.stride + b), false);
        }
    }
    Ok(())
}

fn store_add_rows(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, row_bytes, list) = rows_of(o);
    let src = rows_run(Place::Scratchpad, o.address("src"), rows, row_bytes, o.maybe("src_stride"), 4);
    let table = rows_run(Place::Dram, o.address("dst"), o.reg("bound"), row_bytes, o.maybe("dst_stride"), 4);
    let work = !src.is_empty() && !table.is_empty();
    Checks::default().work(work).run(list).run(src).run(table).multiple(row_bytes, 4).finish(m)?;
    if !work {
        return Ok(());
    }
    for i in 0..rows {
        let at = index(m, list.begin, i, o.reg("bound"))?;
        let to = (table.begin + at * table.stride) as usize;
        for j in 0..(row_bytes / 4) as usize {
            let bytes = &mut m.dram[to + 4 * j..to + 4 * j + 4];
            let there = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let sum = pattern(there + m.float(src.begin + i * src.stride + 4 * j as i64));
            m.dram[to + 4 * j..to + 4 * j + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
    Ok(())
}

//! VECTOR: for each row, read, compute, write.

use crate::dma::index;
use crate::memory::{Checks, Faults, Matrix, Memories, Place, Run, Type};
use crate::numbers::{exp, fma, gelu, ln, max, min, pattern, silu, sum, to_i8};
use crate::spec::Operands;

pub fn execute(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    match o.entry.mnemonic.as_str() {
        "v.rescale" | "v.rescale_floats" => rescale(m, o),
        "v.copy" => unary(m, o, |x| x),
        "v.exp" => unary(m, o, exp),
        "v.ln" => unary(m, o, ln),
        "v.reciprocal" => unary(m, o, |x| 1.0 / x),
        "v.sqrt" => unary(m, o, f32::sqrt),
        "v.rsqrt" => unary(m, o, |x| 1.0 / x.sqrt()),
        "v.silu" => unary(m, o, silu),
        "v.gelu" => unary(m, o, gelu),
        "v.affine" => {
            let mul = f32::from_bits(o.reg("mul") as u32);
            match o.maybe("add").map(|add| f32::from_bits(add as u32)) {
                Some(add) => unary(m, o, |x| x * mul + add),
                None => unary(m, o, |x| x * mul),
            }
        }
        "v.fill" => fill(m, o),
        "v.add" => binary(m, o, |a, b| a + b),
        "v.sub" => binary(m, o, |a, b| a - b),
        "v.mul" => binary(m, o, |a, b| a * b),
        "v.div" => binary(m, o, |a, b| a / b),
        "v.max" => binary(m, o, max),
        "v.min" => binary(m, o, min),
        "v.silu_mul" => binary(m, o, |a, b| silu(a) * b),
        "v.row_sum" => reduce(m, o, |row| pattern(sum(row.len(), |j, p| p + row[j]))),
        "v.row_sum_squares" => reduce(m, o, |row| pattern(sum_squares(row))),
        "v.row_max" => reduce(m, o, |row| pattern(largest(row))),
        "v.row_argmax" => reduce(m, o, argmax),
        "v.column_sum" => column_sum(m, o),
        "v.softmax" => softmax(m, o),
        "v.rms_norm" => rms_norm(m, o),
        "v.rope" => rope(m, o),
        "v.quantize" => quantize(m, o),
        "v.dot_rows" => dot_rows(m, o),
        "v.mix_rows" => mix_rows(m, o),
        "v.gather" => gather(m, o),
        "v.scatter_add" => scatter_add(m, o),
        other => panic!("{other} is not of VECTOR"),
    }
}

fn row(m: &Memories, a: &Matrix, i: i64) -> Vec<f32> {
    (0..a.cols).map(|j| m.get(a, i, j)).collect()
}

fn put_row(m: &mut Memories, dst: &Matrix, i: i64, values: &[f32]) {
    for (j, y) in values.iter().enumerate() {
        m.put(dst, i, j as i64, *y);
    }
}

/// rows and cols.
fn shape(o: &Operands<'_>) -> (i64, i64) {
    (o.maybe("rows").unwrap_or(1), o.size("cols"))
}

fn unary(m: &mut Memories, o: &Operands<'_>, f: impl Fn(f32) -> f32) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    Checks::default().work(!dst.run().is_empty()).matrices(&[&a, &dst]).finish(m)?;
    for i in 0..rows {
        let values: Vec<f32> = row(m, &a, i).into_iter().map(&f).collect();
        put_row(m, &dst, i, &values);
    }
    Ok(())
}

fn fill(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    Checks::default().work(!dst.run().is_empty()).matrices(&[&dst]).finish(m)?;
    let low = o.reg("value") as u32;
    for i in 0..rows {
        for j in 0..cols {
            match dst.ty {
                Type::I32 => m.put_word(dst.at(i, j), low),
                Type::F32 | Type::F16 | Type::I8 => m.put(&dst, i, j, f32::from_bits(low)),
            }
        }
    }
    Ok(())
}

fn binary(m: &mut Memories, o: &Operands<'_>, f: impl Fn(f32, f32) -> f32) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    let b_type = Type::of(o, "b_type");
    let one_row = o.bits("broadcast") == 1 || o.bits("broadcast") == 3;
    let one_col = o.bits("broadcast") == 2 || o.bits("broadcast") == 3;
    let (b_rows, b_cols) = (if one_row { 1 } else { rows }, if one_col { 1 } else { cols });
    let b = Matrix::of(o, "b", "b_stride", b_type, b_rows, b_cols);
    Checks::default().work(!dst.run().is_empty()).matrices(&[&a, &b, &dst]).finish(m)?;
    for i in 0..rows {
        let left = row(m, &a, i);
        let right = |j: i64| m.get(&b, if one_row { 0 } else { i }, if one_col { 0 } else { j });
        let values: Vec<f32> = (0..cols).map(|j| f(left[j as usize], right(j))).collect();
        put_row(m, &dst, i, &values);
    }
    Ok(())
}

fn reduce(m: &mut Memories, o: &Operands<'_>, f: impl Fn(&[f32]) -> u32) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::F32, rows, 1);
    Checks::default().work(rows != 0).matrices(&[&a, &dst]).finish(m)?;
    for i in 0..rows {
        let result = f(&row(m, &a, i));
        m.put_word(dst.at(i, 0), result);
    }
    Ok(())
}

fn sum_squares(row: &[f32]) -> f32 {
    sum(row.len(), |j, p| fma(row[j], row[j], p))
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(f32::NEG_INFINITY, |m, x| max(m, *x))
}

fn argmax(row: &[f32]) -> u32 {
    let score = |j: usize| if row[j].is_nan() { f32::NEG_INFINITY } else { row[j] };
    let mut best = 0;
    for j in 1..row.len() {
        if score(j) > score(best) {
            best = j;
        }
    }
    best as u32
}

fn column_sum(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::dense(o, "dst", Type::F32, 1, cols);
    Checks::default().work(cols != 0).matrices(&[&a, &dst]).finish(m)?;
    let all: Vec<Vec<f32>> = (0..rows).map(|i| row(m, &a, i)).collect();
    for j in 0..cols {
        let t = all.iter().fold(0f32, |t, row| t + row[j as usize]);
        m.put(&dst, 0, j, t);
    }
    Ok(())
}

fn softmax(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    Checks::default().work(!dst.run().is_empty()).matrices(&[&a, &dst]).finish(m)?;
    let scale = o.maybe("scale").map(|scale| f32::from_bits(scale as u32));
    for i in 0..rows {
        let first = o.maybe("begin").map_or(0, |begin| i128::from(begin) + i128::from(i)).max(0);
        let last = o.maybe("end").map_or(cols.into(), |end| i128::from(end) + i128::from(i)).min(cols.into());
        let values = row(m, &a, i);
        let mut out = vec![0f32; values.len()];
        if first < last {
            let range = first as usize..last as usize;
            let z: Vec<f32> = values[range.clone()].iter().map(|x| scale.map_or(*x, |s| x * s)).collect();
            let m = largest(&z);
            if m != f32::NEG_INFINITY {
                let e: Vec<f32> = z.iter().map(|z| exp(z - m)).collect();
                let s = sum(e.len(), |j, p| p + e[j]);
                for (j, e) in range.zip(e) {
                    out[j] = e / s;
                }
            }
        }
        put_row(m, &dst, i, &out);
    }
    Ok(())
}

fn rms_norm(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    let w = Matrix::dense(o, "w", Type::F32, 1, cols);
    Checks::default().work(!dst.run().is_empty()).matrices(&[&a, &dst, &w]).finish(m)?;
    let eps = f32::from_bits(o.reg("eps") as u32);
    for i in 0..rows {
        let values = row(m, &a, i);
        let q = sum_squares(&values);
        let r = 1.0 / (q / cols as f32 + eps).sqrt();
        let weights = row(m, &w, 0);
        let out: Vec<f32> = values.iter().zip(weights).map(|(x, w)| (x * r) * w).collect();
        put_row(m, &dst, i, &out);
    }
    Ok(())
}

fn rope(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, half) = (o.maybe("rows").unwrap_or(1), o.size("half"));
    let heads = o.maybe("heads").unwrap_or(1);
    let cols = heads.saturating_mul(2).saturating_mul(half);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    let table = Matrix::of(o, "table", "table_stride", Type::F32, rows, half.saturating_mul(2));
    Checks::default().work(!dst.run().is_empty()).counts(&[heads, half]).matrices(&[&a, &dst, &table]).finish(m)?;
    if heads == 0 || half == 0 {
        return Ok(());
    }
    for i in 0..rows {
        let (values, angles) = (row(m, &a, i), row(m, &table, i));
        let mut out = vec![0f32; values.len()];
        let half = half as usize;
        for h in 0..heads as usize {
            for j in 0..half {
                let (at_x, at_y) = (2 * half * h + j, 2 * half * h + half + j);
                let (x, y, c, s) = (values[at_x], values[at_y], angles[j], angles[half + j]);
                out[at_x] = fma(x, c, -(y * s));
                out[at_y] = fma(y, c, x * s);
            }
        }
        put_row(m, &dst, i, &out);
    }
    Ok(())
}

fn quantize(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let a = Matrix::of(o, "a", "a_stride", Type::of(o, "a_type"), rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::I8, rows, cols);
    let scales = Matrix::dense(o, "scales", Type::F32, rows, 1);
    Checks::default().work(rows != 0).matrices(&[&a, &dst, &scales]).finish(m)?;
    for i in 0..rows {
        let values = row(m, &a, i);
        let largest = values.iter().fold(0f32, |m, x| max(m, x.abs()));
        let zero = largest < f32::from_bits((127 - 100) << 23);
        let (scale, inv) = if zero { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
        for (j, x) in values.iter().enumerate() {
            let code = if zero { 0 } else { to_i8(x * inv) };
            m.scratchpad[dst.at(i, j as i64) as usize] = code as u8;
        }
        m.put(&scales, i, 0, scale);
    }
    Ok(())
}

fn rescale(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = shape(o);
    let integers = o.entry.mnemonic == "v.rescale";
    let dst = Matrix::of(o, "dst", "dst_stride", Type::of(o, "dst_type"), rows, cols);
    let tokens = Matrix::dense(o, "tokens", Type::F32, rows, 1);
    let work = !dst.run().is_empty();
    let mut checks = Checks::default();
    checks.work(work).limit(work && cols > m.array_cols as i64).counts(&[rows, cols]);
    checks.matrices(&[&dst, &tokens]).accumulators(o.address("acc"), rows);
    let channels = Matrix { begin: 0, rows: 1, cols: 0, stride: 0, ty: Type::F32 };
    let channels = if integers { Matrix::dense(o, "channels", Type::F32, 1, cols) } else { channels };
    checks.matrices(&[&channels]).finish(m)?;
    for i in 0..if work { rows } else { 0 } {
        let token = m.get(&tokens, i, 0);
        let word = |j: i64| m.accumulators[(o.address("acc") + i) as usize * m.array_cols + j as usize];
        let out: Vec<f32> = (0..cols)
            .map(|j| match integers {
                true => ((word(j) as i32 as f32) * m.get(&channels, 0, j)) * token,
                false => f32::from_bits(word(j)) * token,
            })
            .collect();
        put_row(m, &dst, i, &out);
    }
    Ok(())
}

/// rows, cols, rows of b, and b.
fn product_rows(o: &Operands<'_>) -> (i64, i64, i64, Matrix) {
    let (rows, cols) = shape(o);
    let b_rows = o.maybe("b_rows").unwrap_or(1);
    (rows, cols, b_rows, Matrix::of(o, "b", "b_stride", Type::of(o, "b_type"), b_rows, cols))
}

fn dot_rows(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols, b_rows, b) = product_rows(o);
    let a = Matrix::of(o, "a", "a_stride", Type::F32, rows, cols);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::F32, rows, b_rows);
    let work = !dst.run().is_empty();
    Checks::default().work(work).matrices(&[&a, &b, &dst]).finish(m)?;
    if !work {
        return Ok(());
    }
    for i in 0..rows {
        let left = row(m, &a, i);
        let out: Vec<f32> = (0..b_rows)
            .map(|n| {
                let right = row(m, &b, n);
                let s = sum(left.len(), |j, p| fma(left[j], right[j], p));
                if o.flag("accumulate") { m.get(&dst, i, n) + s } else { s }
            })
            .collect();
        put_row(m, &dst, i, &out);
    }
    Ok(())
}

fn mix_rows(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols, b_rows, b) = product_rows(o);
    let a = Matrix::of(o, "a", "a_stride", Type::F32, rows, b_rows);
    let dst = Matrix::of(o, "dst", "dst_stride", Type::F32, rows, cols);
    let work = !dst.run().is_empty();
    Checks::default().work(work).matrices(&[&a, &b, &dst]).finish(m)?;
    if !work {
        return Ok(());
    }
    for i in 0..rows {
        let weights = row(m, &a, i);
        let all: Vec<Vec<f32>> = (0..b_rows).map(|n| row(m, &b, n)).collect();
        let out: Vec<f32> = (0..cols)
            .map(|j| {
                let t = if o.flag("accumulate") { m.get(&dst, i, j) } else { 0.0 };
                weights.iter().zip(&all).fold(t, |t, (w, row)| fma(*w, row[j as usize], t))
            })
            .collect();
        put_row(m, &dst, i, &out);
    }
    Ok(())
}

fn gather(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, row_bytes) = (o.maybe("rows").unwrap_or(1), o.size("row_bytes"));
    let list = Run::flat(Place::Scratchpad, o.address("index"), rows.saturating_mul(4), 4);
    let run = |operand: &str, rows: i64| Run {
        place: Place::Scratchpad,
        begin: o.address(operand),
        bytes: row_bytes,
        rows,
        stride: o.maybe(&format!("{operand}_stride")).unwrap_or(row_bytes),
        planes: 1,
        plane_stride: 0,
        element: 1,
    };
    let (dst, table) = (run("dst", rows), run("src", o.reg("bound")));
    Checks::default().work(!dst.is_empty()).run(list).run(dst).run(table).finish(m)?;
    if dst.is_empty() {
        return Ok(());
    }
    for i in 0..rows {
        let from = (table.begin + index(m, list.begin, i, table.rows)? * table.stride) as usize;
        let bytes = m.scratchpad[from..from + row_bytes as usize].to_vec();
        let to = (dst.begin + i * dst.stride) as usize;
        m.scratchpad[to..to + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(())
}

fn scatter_add(m: &mut Memories, o: &Operands<'_>) -> Result<(), Faults> {
    let (rows, cols) = (o.maybe("rows").unwrap_or(1), o.reg("cols"));
    let list = Run::flat(Place::Scratchpad, o.address("index"), rows.saturating_mul(4), 4);
    let gates = Matrix::dense(o, "gates", Type::F32, rows, 1);
    let src = Matrix::of(o, "src", "src_stride", Type::F32, rows, cols);
    let dst = Matrix::dense(o, "dst", Type::F32, o.reg("bound"), cols);
    let work = rows != 0 && !dst.run().is_empty();
    Checks::default().work(work).run(list).matrices(&[&gates, &src, &dst]).finish(m)?;
    if !work {
        return Ok(());
    }
    for i in 0..rows {
        let at = index(m, list.begin, i, dst.rows)?;
        let gate = m.get(&gates, i, 0);
        let (values, there) = (row(m, &src, i), row(m, &dst, at));
        let out: Vec<f32> = values.iter().zip(there).map(|(x, t)| fma(gate, *x, t)).collect();
        put_row(m, &dst, at, &out);
    }
    Ok(())
}

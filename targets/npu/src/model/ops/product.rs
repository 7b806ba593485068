//! Products of rows with a matrix of weights: on the array where weights are codes, in the vector unit where they are floats.

use lapidary_npu_isa::choice::Type;

use super::super::context::{Context, Rows};
use super::super::flow::{Flow, MatmulAreas, Matrix};
use super::super::order::{Area, Space};
use super::super::stream::Stream;
use super::super::weights::{CodeTiles, FloatRows, Placed};
use super::known;
use crate::builder::{Place, Value};
use crate::error::LowerError;
use crate::matmul::{self, Activations, Destination, Matmul, Output, Scales, Scratch, WeightFormat};

/// Rows of codes, and a scale per row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codes {
    pub codes: Matrix,
    pub scales: Matrix,
}

/// Rows as products read them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    /// Quantized, in the scratchpad or in DRAM.
    Codes(Codes),
    /// As they are, in the scratchpad.
    Floats(Matrix),
}

/// Columns of a matrix of weights, from where on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// The matrix.
    pub weight: Placed,
    /// Its first column's weights.
    pub at: Place,
    /// Its first column's factor (int8).
    pub factors: Place,
}

impl Columns {
    /// All columns; `offset` bytes further on, if given.
    pub(super) fn all(weight: Placed, offset: Option<lapidary_npu_isa::Reg>) -> Columns {
        let place = |address: u64| Place { base: offset, offset: address as i64 };
        match weight {
            Placed::Tiles(tiles) => Columns { weight, at: place(tiles.address), factors: place(tiles.scales) },
            Placed::Floats(floats) => Columns { weight, at: place(floats.address), factors: Place::default() },
            Placed::Codes(codes) => Columns { weight, at: place(codes.address), factors: Place::default() },
        }
    }

    /// Number of columns of the matrix.
    pub(super) fn count(&self) -> u64 {
        match self.weight {
            Placed::Tiles(tiles) => tiles.tiling.n.into(),
            Placed::Floats(FloatRows { rows, .. }) => rows,
            Placed::Codes(codes) => codes.rows,
        }
    }

    /// Columns that a piece has to be a multiple of.
    pub(super) fn unit(&self) -> u64 {
        match self.weight {
            Placed::Tiles(tiles) => tiles.tiling.array_cols.into(),
            Placed::Floats(_) | Placed::Codes(_) => 1,
        }
    }

    /// From column `index`·`width` on; registers of the current scope.
    pub(super) fn piece(&self, flow: &mut Flow<'_>, index: Value, width: u64) -> Result<Columns, LowerError> {
        let (bytes, factors) = match self.weight {
            Placed::Tiles(tiles) => {
                (width / u64::from(tiles.tiling.array_cols) * tiles.tiling.strip_stride(), 4 * width)
            }
            Placed::Floats(floats) => (width * floats.row_bytes(), 0),
            Placed::Codes(_) => (0, 0),
        };
        let mut move_by = |place: Place, bytes: u64| match index {
            Value::Const(n) => Ok::<Place, LowerError>(place.plus(n * bytes as i64)),
            Value::Reg(_) if bytes == 0 => Ok(place),
            Value::Reg(_) => {
                let reg = flow.b.reg("columns of weights")?;
                flow.b.sum(reg, place, &[(index, bytes as i64)])?;
                Ok(Place { base: Some(reg), offset: 0 })
            }
        };
        let int8 =
            matches!(self.weight, Placed::Tiles(CodeTiles { tiling, .. }) if tiling.format == WeightFormat::Int8);
        let at = move_by(self.at, bytes)?;
        let factors = if int8 { move_by(self.factors, factors)? } else { self.factors };
        Ok(Columns { at, factors, ..*self })
    }
}

/// Whether products with it read codes.
pub(super) fn reads_codes(weight: &Placed) -> bool {
    matches!(weight, Placed::Tiles(_))
}

/// Rows quantized: in working memory if they leave enough of it for the product, else in DRAM.
pub(super) fn quantized(cx: &Context<'_>, flow: &mut Flow<'_>, x: Stream, rows: Rows) -> Result<Codes, LowerError> {
    let bytes = rows.room * x.cols;
    let [codes, scales] = match bytes + 4 * rows.room <= flow.scratch.largest() / 8 * 5 {
        true => [flow.scratch.take(bytes)?, flow.scratch.take(4 * rows.room)?],
        false => cx.codes_in_dram(),
    };
    let codes = Codes { codes: Matrix::dense(codes, x.cols, Type::I8), scales: Matrix::dense(scales, 1, Type::F32) };
    quantize_into(flow, x, rows, &codes)?;
    Ok(codes)
}

/// Rows quantized, where there is a place for them.
pub(super) fn quantize_into(flow: &mut Flow<'_>, x: Stream, rows: Rows, codes: &Codes) -> Result<(), LowerError> {
    let writes = [Stream { home: codes.codes, cols: x.cols }, Stream { home: codes.scales, cols: 1 }];
    flow.by_rows(rows, &[x], &writes, |flow, block, x_rows, out| {
        flow.quantize(&out[0], &out[1], &x_rows[0], x.cols, block.rows)
    })
}

/// dst = input · columnsᵀ, `width` columns, in the scratchpad.
pub(super) fn product(
    flow: &mut Flow<'_>,
    input: &Input,
    rows: Rows,
    columns: &Columns,
    width: u64,
    dst: &Matrix,
) -> Result<(), LowerError> {
    match (input, columns.weight) {
        (Input::Codes(codes), Placed::Tiles(tiles)) => on_array(flow, codes, rows, columns, &tiles, width, dst),
        (Input::Floats(x), Placed::Floats(floats)) => in_vector_unit(flow, x, rows, columns, &floats, width, dst),
        (_, _) => Err(LowerError::argument("product", "codes with tiles or floats with floats", "another pair")),
    }
}

fn on_array(
    flow: &mut Flow<'_>,
    input: &Codes,
    rows: Rows,
    columns: &Columns,
    tiles: &CodeTiles,
    width: u64,
    dst: &Matrix,
) -> Result<(), LowerError> {
    let mark = flow.scratch.mark();
    let on_chip = input.codes.on_chip();
    let (at, stride) = (input.codes.at, input.codes.stride);
    let activations = if on_chip { Activations::Scratchpad { at, stride } } else { Activations::Dram { at, stride } };
    let tokens = match on_chip {
        true => Scales::Scratchpad(input.scales.at),
        false => Scales::Dram(input.scales.at),
    };
    let channels = match tiles.tiling.format {
        WeightFormat::Int8 => Scales::Dram(columns.factors),
        WeightFormat::Int4 { .. } => Scales::One,
    };
    // Factors of all columns, if they fit; rows of activations that come from DRAM want as much as there is.
    let wanted = match on_chip {
        true => 4 * width + 64,
        false => flow.scratch.largest(),
    };
    let area = flow.scratch.take(wanted.min(flow.scratch.largest() / 32 * 32))?;
    let op = Matmul {
        rows: match rows.count {
            Value::Const(n) => matmul::Rows::Const(n as u32),
            Value::Reg(reg) => matmul::Rows::Register { reg, most: rows.most as u32 },
        },
        k: tiles.tiling.k,
        n: width as u32,
        format: tiles.tiling.format,
        weights: columns.at,
        activations,
        output: Output {
            element: Type::F32,
            tokens,
            channels,
            to: Destination::Scratchpad { at: dst.at, stride: dst.stride },
        },
        scratch: Scratch { begin: area.begin, bytes: area.bytes() },
    };
    let areas = MatmulAreas { activations: input.codes.area, tokens: input.scales.area, output: dst.area };
    let emitted = flow.matmul(&op, areas)?;
    if emitted.plan.blocks > 1 && emitted.plan.rows_with_room() > rows.room {
        let wanted = format!("room for {} rows", emitted.plan.rows_with_room());
        return Err(LowerError::argument("rows of a product", wanted, rows.room));
    }
    for moved in emitted.plan.summary.moved.iter().filter(|moved| moved.moved > moved.compulsory) {
        flow.note(&format!("{} {}", moved.what, moved.why));
    }
    flow.release(emitted)?;
    flow.scratch.back_to(mark);
    Ok(())
}

/// Two buffers of rows of weights take turns.
fn in_vector_unit(
    flow: &mut Flow<'_>,
    x: &Matrix,
    rows: Rows,
    columns: &Columns,
    floats: &FloatRows,
    width: u64,
    dst: &Matrix,
) -> Result<(), LowerError> {
    let mark = flow.scratch.mark();
    let fit = flow.scratch.largest() / 4 / floats.row_bytes();
    let step = fit.clamp(1, width);
    let first = flow.scratch.take(step * floats.row_bytes())?;
    let second = if step < width { flow.scratch.take(step * floats.row_bytes())? } else { first };
    // Nobody writes weights: an empty area meets nothing.
    let area = Area::new(Space::Dram, floats.address, 0);
    let weights = Matrix { area, at: columns.at, stride: floats.row_bytes(), element: floats.element };
    let one = |flow: &mut Flow<'_>, slot: Area, index: Value, odd: i64, per: i64, count: u64| {
        flow.scope(|flow| {
            let buffer = Matrix::dense(slot, floats.cols, floats.element);
            let from = Matrix { at: weights.at.plus(odd * (step * floats.row_bytes()) as i64), ..weights };
            let from = flow.moved(&from, index, per * (step * floats.row_bytes()) as i64)?;
            flow.load(&buffer, &from, known(count * floats.cols), Value::Const(1))?;
            let to = Matrix { at: dst.at.plus(odd * 4 * step as i64), ..*dst };
            let to = flow.moved(&to, index, per * 4 * step as i64)?;
            flow.dot_rows(&to, x, &buffer, floats.cols, rows.count, known(count))
        })
    };
    let full = width / step;
    flow.repeat("two blocks of weights", known(full / 2), full / 2, |flow, i| {
        one(flow, first, i, 0, 2, step)?;
        one(flow, second, i, 1, 2, step)
    })?;
    let done = full / 2 * 2;
    if full > done {
        one(flow, first, Value::ZERO, done as i64, 0, step)?;
    }
    if width > full * step {
        one(flow, second, Value::ZERO, full as i64, 0, width - full * step)?;
    }
    flow.scratch.back_to(mark);
    Ok(())
}

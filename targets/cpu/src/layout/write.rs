//! Writing the weights section: one panel's rows in memory at a time.

use std::io::{self, Write};

use lapidary_compiler::ir::{Graph, WeightId, WeightReader};
use lapidary_compiler::quant::Scales;
use lapidary_format::WeightsWriter;
use lapidary_kernels::{QuantSource, Source, WeightType, pack, pack_quantized};

use super::{Content, Format, Packing, Piece, WeightLayout};

impl WeightLayout {
    /// Streams the section. `progress` is told the bytes written so far.
    pub fn write(
        &self,
        reader: &WeightReader<'_>,
        graph: &Graph,
        out: &mut WeightsWriter<'_>,
        progress: &dyn Fn(u64),
    ) -> io::Result<()> {
        let mut panels = PanelWriter { reader, graph, rows: Vec::new(), packed: Vec::new() };
        for block in &self.blocks {
            out.pad_to(block.piece.offset_bytes)?;
            match block.content {
                Content::Weight(w) => panels.write(&[w], &block.piece, out)?,
                Content::Pair(gate, up) => panels.write(&[gate, up], &block.piece, out)?,
                Content::Rope { head_dim, theta_bits } => {
                    for position in 0..self.positions {
                        for x in rope_row(position, head_dim, f32::from_bits(theta_bits)) {
                            out.write_all(&x.to_le_bytes())?;
                        }
                    }
                }
            }
            progress(out.position());
        }
        out.pad_to(self.size_bytes)
    }
}

/// Reads, packs and writes panel by panel; a row-major piece has panels of one row.
struct PanelWriter<'a> {
    reader: &'a WeightReader<'a>,
    graph: &'a Graph,
    rows: Vec<f32>,
    packed: Vec<u8>,
}

impl PanelWriter<'_> {
    /// A weight, or gate and up whose panels alternate.
    fn write(&mut self, weights: &[WeightId], piece: &Piece, out: &mut dyn Write) -> io::Result<()> {
        let nr = match piece.packing {
            Packing::Rows => 1,
            Packing::Panels { nr } | Packing::PanelPairs { nr } => nr,
        };
        let rows = weights.first().map_or(0, |w| self.graph.weight(*w).rows());
        for first in (0..rows).step_by(nr as usize) {
            for w in weights {
                self.panel(*w, first, nr, &piece.format, out)?;
            }
        }
        Ok(())
    }

    fn panel(&mut self, w: WeightId, first: u64, nr: u64, format: &Format, out: &mut dyn Write) -> io::Result<()> {
        let weight = self.graph.weight(w);
        let cols = weight.cols();
        let count = nr.min(weight.rows() - first);
        let failed =
            |e: &dyn core::fmt::Display| io::Error::other(format!("weight {}, rows from {first}: {e}", weight.name));
        match format.quant {
            Some(layout) => {
                let rows = self.reader.read_codes(w, first, count).map_err(|e| failed(&e))?;
                self.packed.resize(layout.packed_bytes(count as usize, cols as usize), 0);
                let f16_bits: Vec<u16>;
                let source = match &rows.scales {
                    Scales::PerRow(scales) => QuantSource::I8 { codes: &rows.codes, scales },
                    Scales::PerGroup { scales, .. } => {
                        f16_bits = scales.iter().map(|s| s.to_bits()).collect();
                        QuantSource::I4 { codes: &rows.codes, scales: &f16_bits }
                    }
                };
                pack_quantized(source, cols as usize, &layout, &mut self.packed).map_err(|e| failed(&e))?;
            }
            None => {
                self.rows.resize((count * cols) as usize, 0.0);
                self.reader.read_rows(w, first, &mut self.rows).map_err(|e| failed(&e))?;
                let kind = if format.weight == WeightType::F16 { WeightType::F16 } else { WeightType::F32 };
                self.packed.resize((nr * cols) as usize * kind.bytes(), 0);
                pack(Source::F32(&self.rows), cols as usize, nr as usize, kind, &mut self.packed)
                    .map_err(|e| failed(&e))?;
            }
        }
        out.write_all(&self.packed)
    }
}

/// Cosines, then sines, of one position: angle = position · theta^(−2i/head_dim), frequency and angle rounded to f32 as the
/// models' own training code does.
fn rope_row(position: u64, head_dim: u64, theta: f32) -> Vec<f32> {
    let angles = (0..head_dim / 2).map(|i| {
        let frequency = f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64) as f32;
        f64::from(position as f32 * frequency)
    });
    angles.clone().map(|a| a.cos() as f32).chain(angles.map(|a| a.sin() as f32)).collect()
}

//! `simulate --gemm` and `--gemm-csv`: matrix multiplications as the NPU target lowers them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Queue};
use lapidary_simulator::report::{Report, json, text};
use lapidary_simulator::{Memories, Options, Run, Simulator};
use lapidary_target_npu::gemm::{Gemm, gemm_program};
use serde_json::{Value, json};

use super::{observed, print_report};
use crate::cli::{Format, SimulateArgs};
use crate::failure::Usage;
use crate::limits;
use crate::npu::{self, Shape};
use crate::ui::{self, Ui, table};

/// Longest list of matrix multiplications.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Seed of operands that are made up.
const SEED: u64 = 1;

/// Runs one.
pub fn one(args: &SimulateArgs, shape: Shape, machine: &Machine, options: Options) -> anyhow::Result<()> {
    let product = Product::new(shape, machine, options)?;
    let run = product.run(args, machine, options, None)?;
    print(args, &run.report, &product.gemm);
    Ok(())
}

/// A matrix multiplication, ready to run, with what it has to give where values are computed.
struct Product {
    gemm: Gemm,
    expected: Option<Vec<i32>>,
}

impl Product {
    fn new(shape: Shape, machine: &Machine, options: Options) -> anyhow::Result<Product> {
        let Shape { m, n, k } = shape;
        let place = || format!("--gemm {m},{n},{k}");
        let mut gemm = gemm_program(machine, m, n, k).with_context(place)?;
        verify(&gemm.program, machine).with_context(place)?;
        let expected = options.values.then(|| {
            let (activations, weights) = gemm.operands(SEED);
            gemm.set_operands(&activations, &weights);
            gemm.expected(&activations, &weights)
        });
        Ok(Product { gemm, expected })
    }

    /// Runs it; memories may be those of another run. With values, the result must be right.
    fn run(
        &self,
        args: &SimulateArgs,
        machine: &Machine,
        options: Options,
        memories: Option<Memories>,
    ) -> anyhow::Result<Run> {
        let Gemm { program, layout, .. } = &self.gemm;
        let title = format!("--gemm {},{},{}", layout.m, layout.n, layout.k);
        let run = observed(args, program, machine, &title, || match memories {
            Some(memories) => Simulator::with_memories(program, machine, options, memories),
            None => Simulator::new(program, machine, options),
        })?;
        if let Some(expected) = &self.expected {
            let found = self.gemm.result(&run.read_dram(layout.output, expected.len() * 4));
            ensure!(
                found == *expected,
                "{title}: wanted the product of its operands, found another: the lowering or the simulator is wrong"
            );
        }
        Ok(run)
    }
}

fn print(args: &SimulateArgs, report: &Report, gemm: &Gemm) {
    match args.format {
        Format::Json => println!("{:#}", to_json(report, gemm)),
        Format::Text => {
            let grouped = |n: u64| text::grouped(n.into());
            let s = &gemm.summary;
            println!("gemm         {} × {} × {} (M × N × K), int8 × int8 -> int32", s.m, s.n, s.k);
            println!(
                "array        {} cycles taken up by {} passes; {} if no cell ever idled",
                grouped(report.busy_cycles(Queue::Matrix)),
                grouped(s.passes),
                grouped(s.ideal_cycles)
            );
            println!(
                "operands     {} B moved, {} B compulsory",
                grouped(s.moved_bytes()),
                grouped(s.compulsory_bytes())
            );
            print_report(args, report);
        }
    }
}

fn to_json(report: &Report, gemm: &Gemm) -> Value {
    let mut value = json::to_json(report);
    if let Value::Object(fields) = &mut value {
        fields.insert("ideal_cycles".into(), gemm.summary.ideal_cycles.into());
        fields.insert("matrix_cycles".into(), report.busy_cycles(Queue::Matrix).into());
    }
    value
}

/// Times every multiplication of a list, one after the other.
pub fn list(args: &SimulateArgs, path: &Path, machine: &Machine, options: Options, ui: &Ui) -> anyhow::Result<()> {
    if args.trace.is_some() || args.report.is_some() || args.csv.is_some() {
        bail!(Usage("--trace, --report, --csv: wanted none of them with --gemm-csv, found one".into()));
    }
    let text = ui::read_text(path, MAX_LIST_BYTES)?;
    let shapes = npu::shapes(&text).with_context(|| path.display().to_string())?;
    let (begin, mut rows, mut totals, mut memories) = (limits::thread_seconds(), Vec::new(), [0u64; 3], None);
    let mut products: BTreeMap<Shape, Product> = BTreeMap::new();
    let bar = ui.count_bar("simulating", shapes.len() as u64);
    for shape in shapes {
        // Layers of a model repeat their shapes.
        let product = match products.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Product::new(shape, machine, options)?),
        };
        let run = product.run(args, machine, options, memories.take())?;
        let cycles = [run.report.cycles, run.report.busy_cycles(Queue::Matrix), product.gemm.summary.ideal_cycles];
        totals.iter_mut().zip(cycles).for_each(|(total, n)| *total += n);
        rows.push((shape, cycles));
        memories = Some(run.memories);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let seconds = limits::thread_seconds() - begin;
    match args.format {
        Format::Json => {
            let row = |(shape, [cycles, matrix, ideal]): &(Shape, [u64; 3])| json!({ "m": shape.m, "n": shape.n, "k": shape.k, "cycles": cycles, "matrix_cycles": matrix, "ideal_cycles": ideal });
            let [cycles, matrix, ideal] = totals;
            let result = json!({
                "schema": "lapidary.sim-gemms/1",
                "machine": machine.name(),
                "gemms": rows.iter().map(row).collect::<Vec<_>>(),
                "cycles": cycles,
                "matrix_cycles": matrix,
                "ideal_cycles": ideal,
                "cpu_seconds": seconds,
            });
            println!("{result:#}");
        }
        Format::Text => {
            let cells = |name: String, cycles: &[u64; 3]| {
                let mut cells = vec![name];
                cells.extend(cycles.iter().map(|n| text::grouped((*n).into())));
                cells
            };
            let mut lines: Vec<_> =
                rows.iter().map(|(s, cycles)| cells(format!("{} × {} × {}", s.m, s.n, s.k), cycles)).collect();
            lines.push(cells(format!("all {}", rows.len()), &totals));
            println!("{}", table(&["M × N × K", ">cycles", ">matrix cycles", ">ideal cycles"], lines));
            println!("{:.1} million cycles per CPU-second", totals[0] as f64 / seconds / 1e6);
        }
    }
    Ok(())
}

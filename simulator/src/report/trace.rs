//! A run as a Chrome trace, which Perfetto (ui.perfetto.dev) opens.
//!
//! Format: "Trace Event Format", complete events (`ph: "X"`) and counters (`ph: "C"`), times in microseconds of the machine's clock.
//! Events are written as they happen, so a trace takes no memory.

use std::io::{self, Write};

use lapidary_npu_isa::{Machine, Program, Queue};
use serde_json::{Value, json};

use crate::ledger::Cause;
use crate::observe::{Activity, Observer};

/// Tracks of a unit, for instructions that overlap.
const LANES: usize = 8;
/// Cycles of a point of the DRAM counter.
const COUNTER_CYCLES: u64 = 1024;

/// Writes a trace of the run that it observes.
pub struct ChromeTrace<'a, W: Write> {
    out: W,
    program: &'a Program,
    clock_mhz: f64,
    /// Ends of the last event of each lane of each unit.
    lanes: [[u64; LANES]; 6],
    /// Begun stall of each unit.
    stalls: [Option<(Cause, u64, u64)>; 6],
    counter: (u64, [u64; 2]),
    result: io::Result<()>,
    is_first: bool,
}

impl<'a, W: Write> ChromeTrace<'a, W> {
    /// Begins a trace.
    pub fn new(out: W, program: &'a Program, machine: &Machine) -> Self {
        let clock_mhz = machine.clock_mhz as f64;
        let mut trace = ChromeTrace {
            out,
            program,
            clock_mhz,
            lanes: [[0; LANES]; 6],
            stalls: [None; 6],
            counter: (0, [0; 2]),
            result: Ok(()),
            is_first: true,
        };
        trace.result = trace.out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n");
        let name = format!("NPU {}", machine.name());
        trace.event(&json!({ "ph": "M", "pid": 1, "name": "process_name", "args": { "name": name } }));
        for queue in super::UNITS {
            for lane in 0..=LANES {
                let title = match lane {
                    0 => queue.name().to_string(),
                    LANES => format!("{queue} stalls"),
                    _ => format!("{queue} {}", lane + 1),
                };
                let (tid, args) = (track(queue, lane), json!({ "name": title }));
                trace.event(&json!({ "ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": args }));
            }
        }
        trace
    }

    fn event(&mut self, event: &Value) {
        if self.result.is_ok() {
            let comma = if std::mem::take(&mut self.is_first) { "" } else { ",\n" };
            self.result = write!(self.out, "{comma}{event}");
        }
    }

    fn micros(&self, cycles: u64) -> f64 {
        cycles as f64 / self.clock_mhz
    }

    fn complete(&mut self, name: &str, category: &str, tid: usize, (begin, end): (u64, u64), args: Value) {
        let (ts, dur) = (self.micros(begin), self.micros(end - begin));
        self.event(&json!({
            "ph": "X", "pid": 1, "tid": tid, "name": name, "cat": category, "ts": ts, "dur": dur, "args": args,
        }));
    }

    fn count(&mut self) {
        let (point, [read, written]) = self.counter;
        let ts = self.micros(point * COUNTER_CYCLES);
        let per_cycle = |bytes: u64| bytes as f64 / COUNTER_CYCLES as f64;
        let args = json!({ "load": per_cycle(read), "store": per_cycle(written) });
        self.event(&json!({ "ph": "C", "pid": 1, "name": "DRAM bytes per cycle", "ts": ts, "args": args }));
    }

    fn flush_stall(&mut self, queue: Queue) {
        if let Some((cause, begin, end)) = self.stalls[queue.index()].take() {
            self.complete(cause.name(), "stall", track(queue, LANES), (begin, end), json!({}));
        }
    }

    /// Ends the trace. An error of writing that came before is reported here.
    pub fn finish(mut self) -> io::Result<W> {
        super::UNITS.into_iter().for_each(|queue| self.flush_stall(queue));
        self.count();
        self.result?;
        self.out.write_all(b"\n]}\n")?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn track(queue: Queue, lane: usize) -> usize {
    let place = super::UNITS.iter().position(|unit| *unit == queue).unwrap_or(0);
    place * (LANES + 1) + lane + 1
}

impl<W: Write> Observer for ChromeTrace<'_, W> {
    fn activity(&mut self, activity: Activity) {
        let Activity { queue, at, begin, end, .. } = activity;
        let Some(instruction) = self.program.instructions.get(at as usize) else { return };
        let lanes = &mut self.lanes[queue.index()];
        // The first that is free; if none is, the one that is free first, from then on.
        let free = lanes.iter().position(|last| *last <= begin);
        let lane = free.unwrap_or_else(|| (0..LANES).min_by_key(|lane| lanes[*lane]).unwrap_or(0));
        let begin = begin.max(lanes[lane]).min(end);
        lanes[lane] = end.max(lanes[lane]);
        let label = self.program.op_label(at as usize).map_or("", |label| &label.name);
        let args = json!({ "at": at, "text": instruction.to_string(), "op": label });
        self.complete(instruction.op.row().mnemonic, queue.name(), track(queue, lane), (begin, end), args);
    }

    fn spent(&mut self, queue: Queue, cause: Cause, begin: u64, end: u64) {
        match cause {
            Cause::TokenWait | Cause::BankConflict | Cause::DmaBusy | Cause::QueueFull => (),
            // What single bursts wait for would be most of a trace; the others are gaps that can be seen.
            Cause::Busy
            | Cause::DmaLatency
            | Cause::Bandwidth
            | Cause::RowMiss
            | Cause::Refresh
            | Cause::QueueEmpty
            | Cause::NothingLeft => return,
        }
        match &mut self.stalls[queue.index()] {
            Some((same, _, last)) if *same == cause && *last == begin => *last = end,
            _ => {
                self.flush_stall(queue);
                self.stalls[queue.index()] = Some((cause, begin, end));
            }
        }
    }

    fn burst(&mut self, queue: Queue, at: u64, bytes: u64) {
        let point = at / COUNTER_CYCLES;
        if point > self.counter.0 {
            self.count();
            if point > self.counter.0 + 1 {
                self.counter = (self.counter.0 + 1, [0; 2]);
                self.count();
            }
            self.counter = (point, [0; 2]);
        }
        self.counter.1[usize::from(queue == Queue::Store)] += bytes;
    }
}

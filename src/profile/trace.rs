//! The last observed round as a Chrome trace, which Perfetto (ui.perfetto.dev) opens.
//!
//! Format: "Trace Event Format", complete events (`ph: "X"`), times in microseconds.

use std::io::Write;

use lapidary_format::Artifact;
use serde_json::{Value, json};

use super::component::Component;
use super::{CallRecord, label_and_op};

/// The thread that makes the calls comes first.
const CALLS_TRACK: u32 = 0;

/// Writes the trace.
pub fn write(out: &mut impl Write, artifact: &Artifact<'_>, timeline: &[CallRecord]) -> std::io::Result<()> {
    let records: Vec<_> = artifact.steps().iter().collect();
    let caller = timeline.iter().flat_map(|c| &c.intervals).find(|i| i.module.is_none()).map_or(0, |i| i.thread);
    let track = |thread: u32| if thread == caller { CALLS_TRACK } else { thread + 1 };
    let mut threads: Vec<u32> = timeline.iter().flat_map(|c| &c.intervals).map(|i| track(i.thread)).collect();
    threads.push(CALLS_TRACK);
    threads.sort_unstable();
    threads.dedup();

    writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    let name = json!({ "ph": "M", "pid": 1, "name": "process_name", "args": { "name": artifact.manifest().model } });
    write!(out, "{name}")?;
    for thread in threads {
        let title = if thread == CALLS_TRACK { "calls and steps".to_string() } else { format!("thread {thread}") };
        let event = json!({ "ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": { "name": title } });
        write!(out, ",\n{event}")?;
    }
    for call in timeline {
        let title = format!("{} {}", call.phase, call.tokens);
        let args = json!({ "tokens": call.tokens });
        let event = complete(&title, "call", CALLS_TRACK, call.begin_ns, call.end_ns, args);
        write!(out, ",\n{event}")?;
        for interval in &call.intervals {
            let Some(record) = records.get(interval.step as usize) else { continue };
            let (label, op) = label_and_op(record.op);
            let component = Component::of(label, op).name();
            let (begin, end) = (interval.begin_ns, interval.end_ns);
            let event = match interval.module {
                Some(module) => {
                    let args = json!({ "step": record.name, "module": module });
                    complete(&format!("module {module}"), "module", track(interval.thread), begin, end, args)
                }
                None => {
                    let args = json!({ "step": record.name, "op": op, "component": component });
                    complete(label, component, CALLS_TRACK, begin, end, args)
                }
            };
            write!(out, ",\n{event}")?;
        }
    }
    writeln!(out, "\n]}}")
}

fn complete(name: &str, category: &str, thread: u32, begin_ns: u64, end_ns: u64, args: Value) -> Value {
    json!({
        "ph": "X",
        "pid": 1,
        "tid": thread,
        "name": name,
        "cat": category,
        "ts": begin_ns as f64 / 1e3,
        "dur": (end_ns - begin_ns) as f64 / 1e3,
        "args": args,
    })
}

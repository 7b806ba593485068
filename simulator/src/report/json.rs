//! The report as JSON.

use lapidary_npu_isa::Queue;
use serde_json::{Map, Value, json};

use super::{Report, UNITS};
use crate::ledger::Cause;
use crate::tally::Share;

/// Name and version of the format.
pub const SCHEMA: &str = "lapidary.sim/1";

fn unit(report: &Report, queue: Queue) -> Value {
    let stalls = Cause::ALL.iter().filter(|cause| **cause != Cause::Busy);
    let stalls =
        stalls.map(|cause| (cause.name(), report.spent_cycles(queue, *cause))).filter(|(_, cycles)| *cycles > 0);
    let stalls: Map<String, Value> = stalls.map(|(name, cycles)| (name.to_string(), cycles.into())).collect();
    json!({ "busy_cycles": report.busy_cycles(queue), "stalls": stalls })
}

/// Numbers that no run comes near to exceed u64 with.
fn number(value: u128) -> Value {
    u64::try_from(value).map_or_else(|_| json!(value as f64), Value::from)
}

fn share(name: (&str, Value), share: &Share) -> Value {
    let busy = UNITS.iter().map(|queue| (queue.name().to_string(), share.unit_cycles[queue.index()].into()));
    let busy: Map<String, Value> = busy.filter(|(_, cycles): &(String, Value)| *cycles != json!(0)).collect();
    let amounts = &share.amounts;
    let mut object = Map::new();
    object.insert(name.0.into(), name.1);
    let rest = json!({
        "instructions": amounts.instructions,
        "cycles": share.cycles,
        "begin": share.begin.unwrap_or(0),
        "end": share.end,
        "unit_cycles": busy,
        "dram_read": number(amounts.dram_read_bytes),
        "dram_write": number(amounts.dram_write_bytes),
        "macs": number(amounts.macs),
        "energy_uj": amounts.energy_fj as f64 / 1e9,
    });
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

/// Everything of a report, in the stable format `lapidary.sim/1`.
///
/// `ops` are the program's labels (instructions without one are the op `""`), `modules` the modules that labels name. Their `cycles`
/// are those in which one of their instructions was the next to complete; `unit_cycles` their instructions' time in each unit,
/// summed.
pub fn to_json(report: &Report) -> Value {
    let units = UNITS.iter().map(|queue| (queue.name().to_string(), unit(report, *queue)));
    let ops: Vec<Value> = report.ops().iter().map(|(name, s)| share(("op", (*name).into()), s)).collect();
    let modules: Vec<Value> =
        report.modules().iter().map(|(number, s)| share(("module", (*number).into()), s)).collect();
    let total = &report.total;
    json!({
        "schema": SCHEMA,
        "machine": report.machine.name(),
        "cycles": report.cycles,
        "latency_ms": report.latency_ms(),
        "units": units.collect::<Map<String, Value>>(),
        "bytes": {
            "dram_read": number(total.dram_read_bytes),
            "dram_write": number(total.dram_write_bytes),
            "spad_read": number(total.scratchpad_read_bytes),
            "spad_write": number(total.scratchpad_write_bytes),
        },
        "energy_uj": report.energy_uj(),
        "ops": ops,
        "modules": modules,
    })
}

//! The report as JSON.

use lapidary_npu_isa::Queue;
use serde_json::{Map, Value, json};

use super::summary::{Phase, Summary, TimedRun};
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

fn share<const N: usize>(keys: [(&str, Value); N], share: &Share) -> Value {
    let busy = UNITS.iter().map(|queue| (queue.name().to_string(), share.unit_cycles[queue.index()].into()));
    let busy: Map<String, Value> = busy.filter(|(_, cycles): &(String, Value)| *cycles != json!(0)).collect();
    let amounts = &share.amounts;
    let mut object = Map::new();
    object.extend(keys.map(|(key, value)| (key.to_string(), value)));
    let rest = json!({
        "instructions": amounts.instructions,
        "cycles": share.cycles,
        "begin": share.begin.unwrap_or(0),
        "end": share.end,
        "unit_cycles": busy,
        "dram_read": number(amounts.dram_read_bytes),
        "dram_write": number(amounts.dram_write_bytes),
        "spad_read": number(amounts.scratchpad_read_bytes),
        "spad_write": number(amounts.scratchpad_write_bytes),
        "macs": number(amounts.macs),
        "energy_uj": amounts.energy_fj as f64 / 1e9,
    });
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

/// Part of a whole; 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

fn routing(report: &Report) -> Value {
    let all = report.router();
    let stages = report.routing.iter().map(|(stage, s)| share([("stage", stage.name().into())], s));
    json!({
        "cycles": all.cycles,
        "cycles_share": ratio(all.cycles as f64, report.cycles as f64),
        "dram_read": number(all.amounts.dram_read_bytes),
        "dram_write": number(all.amounts.dram_write_bytes),
        "energy_uj": all.amounts.energy_fj as f64 / 1e9,
        "energy_share": ratio(all.amounts.energy_fj as f64, report.total.energy_fj as f64),
        "stages": stages.collect::<Vec<Value>>(),
    })
}

fn selections(report: &Report) -> Vec<Value> {
    let each = report.selections.iter().map(|s| {
        json!({
            "op": s.name,
            "visits": s.visits,
            "tokens_by_count": s.tokens_by_count,
            "unknown_tokens": s.unknown_tokens,
        })
    });
    each.collect()
}

/// Everything of a report, in the stable format `lapidary.sim/1`.
///
/// `ops` are the program's labels (instructions without one are the op `""`), `modules` the modules that labels name, `parts`
/// both: modules of an op (`module` null: of none). Their `cycles` are those in which one of their instructions was the next to
/// complete, and add up to the run's over ops and over parts; `unit_cycles` their instructions' time in each unit, summed.
/// `modules[].tokens`: how often selections chose it. `routing`: what belongs to the router, in all and by stage
/// ([`crate::RoutingStage`]). `selections`: of each op with a selection, `visits` by module, `tokens_by_count` by number of
/// modules.
pub fn to_json(report: &Report) -> Value {
    let units = UNITS.iter().map(|queue| (queue.name().to_string(), unit(report, *queue)));
    let ops: Vec<Value> = report.ops().iter().map(|(name, s)| share([("op", (*name).into())], s)).collect();
    let module = |(number, s): &(i64, Share)| {
        share([("module", (*number).into()), ("tokens", report.visits(*number).into())], s)
    };
    let modules: Vec<Value> = report.modules().iter().map(module).collect();
    let parts = report.parts.iter();
    let parts = parts.map(|p| share([("op", p.name.as_str().into()), ("module", p.module.into())], &p.share));
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
        "parts": parts.collect::<Vec<Value>>(),
        "routing": routing(report),
        "selections": selections(report),
    })
}

/// Several runs: [`to_json`] of their sum, with `phases` and `runs`. Null without a run.
pub fn summary_to_json(summary: &Summary) -> Value {
    let Some(report) = summary.report() else { return Value::Null };
    let ms = |cycles: u64| cycles as f64 / (report.machine.clock_mhz as f64 * 1e3);
    let phase = |p: Phase| {
        json!({
            "phase": p.name,
            "runs": p.runs,
            "tokens": p.tokens,
            "cycles": p.cycles,
            "p50_ms": ms(p.p50_cycles),
            "p95_ms": ms(p.p95_cycles),
            "max_ms": ms(p.max_cycles),
            "tokens_per_second": p.tokens_per_second,
        })
    };
    let run = |r: &TimedRun| {
        let (tokens, latency_ms) = (r.tokens, ms(r.cycles));
        json!({ "phase": r.phase, "tokens": tokens, "cycles": r.cycles, "latency_ms": latency_ms })
    };
    let mut value = to_json(report);
    if let Value::Object(fields) = &mut value {
        fields.insert("phases".into(), summary.phases().into_iter().map(phase).collect());
        fields.insert("runs".into(), summary.runs().iter().map(run).collect());
    }
    value
}

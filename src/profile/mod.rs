//! Where the time of a model goes on this CPU: measured through the profiling entry points, told per step, op, component
//! and module.
//!
//! [`measure`] runs prompt and continuation several times, alternating calls that are observed with calls that are not, so
//! that a profile also says what observing cost. [`trace`] writes the last observed round as a Chrome trace, [`report`]
//! everything as one HTML page.

mod component;
pub mod report;
pub mod trace;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use lapidary_format::{Artifact, ManifestFlags};
use lapidary_runtime::{Interval, Recorder, Session, greedy};
use serde::Serialize;

use crate::routing::{Recording, Visit, visits};
use component::{Component, ScarQuery};

/// What is run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The prompt.
    pub ids: Vec<u32>,
    /// Tokens to decode after it, greedily; 0 for models that cannot decode.
    pub max_new: usize,
    /// Measured rounds.
    pub reps: usize,
}

/// Times of a workload.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// `lapidary.profile/1`.
    pub schema: &'static str,
    /// Name of the model.
    pub model: String,
    /// Target that it was compiled for.
    pub target: String,
    /// Threads that ran it.
    pub threads: usize,
    /// Measured rounds; times are medians over them.
    pub reps: usize,
    /// `prefill`, `decode`.
    pub phases: Vec<Phase>,
    /// Where the tokens went.
    pub routing: Heat,
}

/// Calls of one kind.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// `prefill` or `decode`.
    pub name: &'static str,
    /// Calls of a round.
    pub calls: usize,
    /// Tokens of a round.
    pub tokens: usize,
    /// Sum of the steps' times. Less than the calls' where the machine was busy with others now and then: the median of
    /// each step leaves that out.
    pub steps_ms: f64,
    /// Time of a round's calls, observed.
    pub calls_ms: f64,
    /// Time of the same calls, not observed.
    pub plain_ms: f64,
    /// Steps in the order of execution.
    pub steps: Vec<StepTime>,
    /// By op, longest first.
    pub ops: Vec<GroupTime>,
    /// By component of the model, longest first.
    pub components: Vec<GroupTime>,
    /// By layer and module: work in the module's weights, summed over threads.
    pub modules: Vec<ModuleTime>,
    /// What routing takes.
    pub router: RouterTime,
}

/// A step.
#[derive(Debug, Serialize)]
pub struct StepTime {
    /// Its function.
    pub step: String,
    /// Its node.
    pub label: String,
    /// The node's op.
    pub op: String,
    /// Part of the model.
    pub component: &'static str,
    /// Time of a round.
    pub ms: f64,
    /// Part of the phase, 0 to 1.
    pub share: f64,
}

/// Steps taken together.
#[derive(Debug, Serialize)]
pub struct GroupTime {
    /// What they share.
    pub name: String,
    /// Time of a round.
    pub ms: f64,
    /// Part of the phase, 0 to 1.
    pub share: f64,
    /// How many steps.
    pub steps: usize,
}

/// A module of a layer.
#[derive(Debug, Serialize)]
pub struct ModuleTime {
    /// Layer.
    pub layer: usize,
    /// Module.
    pub module: usize,
    /// Its domain.
    pub domain: String,
    /// Tokens of a round that visited it.
    pub tokens: usize,
    /// Time of a round, summed over threads.
    pub ms: f64,
}

/// What routing takes: finding domain and modules, and the memory of the clusters.
#[derive(Debug, Default, Serialize)]
pub struct RouterTime {
    /// All of it.
    pub ms: f64,
    /// Part of the phase, 0 to 1.
    pub share: f64,
    /// The dynamic token router.
    pub token_router_ms: f64,
    /// Scores, selection, grouping, cluster memory.
    pub scar_ms: f64,
    /// The query projection. Where it is merged with those of the attention: its part of the columns of that product.
    pub scar_query_ms: f64,
}

/// How often tokens of a domain visit a module.
#[derive(Debug, Serialize)]
pub struct Heat {
    /// Names of the domains.
    pub domains: Vec<String>,
    /// Modules of a layer.
    pub clusters: usize,
    /// Tokens by domain.
    pub tokens: Vec<usize>,
    /// Visits by layer, domain, module.
    pub visits: Vec<Vec<Vec<usize>>>,
    /// Modules per token and layer, on average.
    pub modules_per_token: f64,
}

/// A profile, and the intervals of its last round for the trace.
#[derive(Debug)]
pub struct Measured {
    /// Times.
    pub profile: Profile,
    /// Calls of the last round.
    pub timeline: Vec<CallRecord>,
}

/// An observed call.
#[derive(Clone, Debug)]
pub struct CallRecord {
    /// `prefill` or `decode`.
    pub phase: &'static str,
    /// Tokens of the call.
    pub tokens: usize,
    /// Begin, in the recorder's time.
    pub begin_ns: u64,
    /// End.
    pub end_ns: u64,
    /// Steps and module shares.
    pub intervals: Vec<Interval>,
}

/// Runs the workload.
pub fn measure(session: &mut Session, threads: usize, workload: &Workload) -> anyhow::Result<Measured> {
    let model = session.model().clone();
    let artifact = model.artifact();
    let decodes = artifact.manifest().flags.contains(ManifestFlags::CAN_DECODE);
    let room = (artifact.manifest().max_tokens as usize).saturating_sub(workload.ids.len());
    let max_new = if decodes { workload.max_new.min(room) } else { 0 };

    // The first round touches every page, finds the continuation, and says where each token went.
    let mut recording = Recording::default();
    session.reset();
    session.prefill_with(&workload.ids, None, &mut |session, ids| recording.add(session, ids))?;
    let mut visited = recording.finish()?;
    let prompt_visits = visited.len();
    let mut continuation = Vec::with_capacity(max_new);
    for _ in 0..max_new {
        let token = greedy(session.logits().context("the model has no logits")?);
        session.decode(token)?;
        visited.extend(visits(session, &[token])?);
        continuation.push(token);
    }

    let recorder = Recorder::new();
    let mut plain: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut rounds: Vec<Vec<CallRecord>> = Vec::new();
    for _ in 0..workload.reps {
        session.reset();
        let begin = Instant::now();
        session.prefill(&workload.ids)?;
        let between = Instant::now();
        for token in &continuation {
            session.decode(*token)?;
        }
        plain.entry("decode").or_default().push(between.elapsed().as_secs_f64() * 1e3);
        plain.entry("prefill").or_default().push((between - begin).as_secs_f64() * 1e3);
        rounds.push(observed_round(session, &recorder, &workload.ids, &continuation)?);
    }

    let (prompt, new) = visited.split_at(prompt_visits);
    let mut phases = Vec::new();
    for (name, visits) in [("prefill", prompt), ("decode", new)] {
        if rounds.iter().flatten().any(|call| call.phase == name) {
            let plain_ms = median(plain.remove(name).unwrap_or_default());
            phases.push(Phase::new(name, artifact, &rounds, plain_ms, visits));
        }
    }
    let target = artifact.target().map_or_else(String::new, |t| t.name.to_string());
    let profile = Profile {
        schema: "lapidary.profile/1",
        model: artifact.manifest().model.to_string(),
        target,
        threads,
        reps: workload.reps,
        phases,
        routing: Heat::new(artifact, &visited),
    };
    Ok(Measured { profile, timeline: rounds.pop().unwrap_or_default() })
}

fn observed_round(
    session: &mut Session,
    recorder: &Recorder,
    ids: &[u32],
    continuation: &[u32],
) -> anyhow::Result<Vec<CallRecord>> {
    session.reset();
    let mut calls = Vec::new();
    let mut begin_ns = recorder.now_ns();
    session.prefill_with(ids, Some(recorder), &mut |_, ids| {
        let (end_ns, intervals) = (recorder.now_ns(), recorder.take());
        calls.push(CallRecord { phase: "prefill", tokens: ids.len(), begin_ns, end_ns, intervals });
        begin_ns = recorder.now_ns();
    })?;
    for token in continuation {
        let begin_ns = recorder.now_ns();
        session.decode_with(*token, recorder)?;
        let (end_ns, intervals) = (recorder.now_ns(), recorder.take());
        calls.push(CallRecord { phase: "decode", tokens: 1, begin_ns, end_ns, intervals });
    }
    Ok(calls)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Label and op of a step's record.
pub fn label_and_op(op: &str) -> (&str, &str) {
    op.rsplit_once(' ').unwrap_or((op, ""))
}

impl Phase {
    fn new(
        name: &'static str,
        artifact: &Artifact<'_>,
        rounds: &[Vec<CallRecord>],
        plain_ms: f64,
        visits: &[Visit],
    ) -> Phase {
        let calls_of = |round: &'_ [CallRecord]| round.iter().filter(|c| c.phase == name).count();
        let mut totals = Vec::new();
        let mut by_step: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let mut by_module: BTreeMap<(u32, u32), Vec<f64>> = BTreeMap::new();
        for (at, round) in rounds.iter().enumerate() {
            let mut total = 0.0;
            for call in round.iter().filter(|c| c.phase == name) {
                total += (call.end_ns - call.begin_ns) as f64 / 1e6;
                for interval in &call.intervals {
                    let ms = (interval.end_ns - interval.begin_ns) as f64 / 1e6;
                    let sums = match interval.module {
                        Some(module) => by_module.entry((interval.step, module)).or_default(),
                        None => by_step.entry(interval.step).or_default(),
                    };
                    sums.resize(rounds.len(), 0.0);
                    sums[at] += ms;
                }
            }
            totals.push(total);
        }
        let records: Vec<_> = artifact.steps().iter().collect();
        let all: f64 = by_step.values().map(|sums| median(sums.clone())).sum();
        let share = |ms: f64| if all > 0.0 { ms / all } else { 0.0 };
        let steps: Vec<StepTime> = by_step
            .into_iter()
            .filter_map(|(step, sums)| {
                let record = records.get(step as usize)?;
                let (label, op) = label_and_op(record.op);
                let ms = median(sums);
                Some(StepTime {
                    step: record.name.to_string(),
                    label: label.to_string(),
                    op: op.to_string(),
                    component: Component::of(label, op).name(),
                    ms,
                    share: share(ms),
                })
            })
            .collect();
        let ops = group(&steps, |s| s.op.clone());
        let components = group(&steps, |s| s.component.to_string());
        let mut modules: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for ((step, module), sums) in by_module {
            let label = records.get(step as usize).map_or("", |r| label_and_op(r.op).0);
            *modules.entry((component::layer(label).unwrap_or(0), module as usize)).or_default() += median(sums);
        }
        let domains: Vec<_> = artifact.domain_names().iter().map(|d| d.name.to_string()).collect();
        let modules = modules
            .into_iter()
            .map(|((layer, module), ms)| ModuleTime {
                layer,
                module,
                domain: domains.get(module % domains.len().max(1)).cloned().unwrap_or_default(),
                tokens: visits.iter().filter(|v| v.modules.get(layer).is_some_and(|m| m.contains(&module))).count(),
                ms,
            })
            .collect();
        let query = ScarQuery::of(artifact.manifest().source_config);
        let mut router = RouterTime::default();
        for step in &steps {
            match Component::of(&step.label, &step.op) {
                Component::TokenRouter => router.token_router_ms += step.ms,
                Component::Scar => router.scar_ms += step.ms,
                _ => router.scar_query_ms += step.ms * query.part_of(&step.label),
            }
        }
        router.ms = router.token_router_ms + router.scar_ms + router.scar_query_ms;
        router.share = share(router.ms);
        let first = rounds.first().map_or(&[][..], Vec::as_slice);
        Phase {
            name,
            calls: calls_of(first),
            tokens: first.iter().filter(|c| c.phase == name).map(|c| c.tokens).sum(),
            steps_ms: all,
            calls_ms: median(totals),
            plain_ms,
            steps,
            ops,
            components,
            modules,
            router,
        }
    }
}

fn group(steps: &[StepTime], key: impl Fn(&StepTime) -> String) -> Vec<GroupTime> {
    let mut groups: Vec<GroupTime> = Vec::new();
    for step in steps {
        let name = key(step);
        match groups.iter_mut().find(|g| g.name == name) {
            Some(group) => {
                group.ms += step.ms;
                group.share += step.share;
                group.steps += 1;
            }
            None => groups.push(GroupTime { name, ms: step.ms, share: step.share, steps: 1 }),
        }
    }
    groups.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    groups
}

impl Heat {
    /// Counts visits.
    pub fn new(artifact: &Artifact<'_>, visited: &[Visit]) -> Heat {
        let manifest = artifact.manifest();
        let (layers, clusters) = (manifest.num_layers as usize, manifest.num_clusters as usize);
        let mut domains: Vec<String> = artifact.domain_names().iter().map(|d| d.name.to_string()).collect();
        domains.resize_with((manifest.num_domains as usize).max(1), String::new);
        let mut tokens = vec![0; domains.len()];
        let mut visits = vec![vec![vec![0; clusters]; domains.len()]; layers];
        let mut sum = 0;
        for visit in visited {
            if let Some(count) = tokens.get_mut(visit.domain) {
                *count += 1;
            }
            for (layer, modules) in visit.modules.iter().enumerate() {
                sum += modules.len();
                for module in modules {
                    if let Some(count) = visits.get_mut(layer).and_then(|l| l.get_mut(visit.domain)?.get_mut(*module)) {
                        *count += 1;
                    }
                }
            }
        }
        let slots = (visited.len() * layers).max(1);
        Heat { domains, clusters, tokens, visits, modules_per_token: sum as f64 / slots as f64 }
    }
}

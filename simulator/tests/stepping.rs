//! The timing model against a second one that steps through every cycle: rules Q1 to Q5, M1 to M4, S1, S2, D1 to D5 and B1 to B3 written down
//! once more, as plainly as they read, for random programs without branches.

mod common;

use std::collections::HashMap;

use lapidary_npu_isa::Machine;
use lapidary_simulator::{Options, SimError, Simulator};
use proptest::prelude::*;

/// An instruction, as far as time goes.
#[derive(Clone, Debug)]
enum Kind {
    Scalar,
    SyncSequencer,
    Lds,
    Sync,
    Preload,
    Pass {
        rows: u64,
        banks: (u64, u64),
    },
    /// VECTOR or ROUTE.
    Fixed {
        cycles: u64,
        banks: (u64, u64),
    },
    /// First bytes of rows in DRAM, their length; bounding ranges in DRAM and on chip; whether it stores.
    Transfer {
        rows: Vec<u64>,
        bytes: u64,
        dram: (u64, u64),
        chip: (u64, u64),
    },
}

#[derive(Clone, Debug)]
struct Step {
    text: String,
    /// 0 LOAD, 1 STORE, 2 MATRIX, 3 VECTOR, 4 ROUTE; the sequencer has none.
    queue: Option<usize>,
    kind: Kind,
    waits: Vec<usize>,
    posts: Vec<usize>,
}

fn tokens(name: &str, list: &[usize]) -> String {
    let list: Vec<String> = list.iter().map(|t| format!("t{t}")).collect();
    if list.is_empty() { String::new() } else { format!(" {name}({})", list.join(", ")) }
}

/// A program from numbers, and what its instructions do.
fn steps(numbers: &[u64], machine: &Machine) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut available = [0i64; 5];
    let bank = machine.bank_bytes();
    let span = |at: u64, bytes: u64| (at / bank, (at + bytes - 1) / bank);
    let scalar = |text: String| Step { text, queue: None, kind: Kind::Scalar, waits: vec![], posts: vec![] };
    for n in numbers {
        let (mut waits, mut posts) = (Vec::new(), Vec::new());
        for (shift, is_wait) in [(20, true), (24, true), (28, false), (32, false)] {
            let token = (n >> shift) as usize % 12;
            if (1..5).contains(&token) && (!is_wait || available[token] > 0) {
                available[token] += if is_wait { -1 } else { 1 };
                if is_wait { waits.push(token) } else { posts.push(token) }
            }
        }
        let place = (n >> 8) % 32 * 8192;
        let (queue, kind, text) = match n % 11 {
            0 => (None, Kind::SyncSequencer, "sync sequencer".to_string()),
            1 => (None, Kind::Lds, "lds r9, sp[0], max=4294967295".to_string()),
            2 => {
                let queue = (n >> 8) as usize % 5;
                let name = ["load", "store", "matrix", "vector", "route"][queue];
                (Some(queue), Kind::Sync, format!("sync {name}"))
            }
            3 => (Some(2), Kind::Preload, "m.preload i8, w[0], k=16, n=16".to_string()),
            4 | 5 => {
                let rows = 1 + (n >> 13) % 60;
                let text = "m.preload i8, w[0], k=16, n=16".into();
                steps.push(Step { text, queue: Some(2), kind: Kind::Preload, waits: vec![], posts: vec![] });
                let text = format!("m.pass sp[{place}], acc[0], rows={rows}, k=16");
                (Some(2), Kind::Pass { rows, banks: span(place, rows * 16) }, text)
            }
            6 | 7 => {
                let cols = 1 + (n >> 13) % 1500;
                let cycles = machine.vector.startup_cycles + cols.div_ceil(machine.vector.lanes);
                let text = format!("v.fill sp[{place}], cols={cols}, value=r0");
                (Some(3), Kind::Fixed { cycles, banks: span(place, 4 * cols) }, text)
            }
            8 => {
                let count = 1 + (n >> 13) % 600;
                steps.push(scalar(format!("li r1, {count}")));
                let cycles = machine.route.startup_cycles + count.div_ceil(machine.route.lanes);
                (
                    Some(4),
                    Kind::Fixed { cycles, banks: span(place, 4 * count) },
                    format!("r.iota sp[{place}], count=r1"),
                )
            }
            other => {
                let (count, bytes) = (1 + (n >> 13) % 5, 1 + (n >> 16) % 300);
                let stride = [bytes, 64, 1000, 4096][(n >> 40) as usize % 4];
                let base = (n >> 42) % 64 * 960;
                steps.push(scalar(format!("li r2, {count}")));
                steps.push(scalar(format!("li r3, {stride}")));
                steps.push(scalar(format!("li r4, {bytes}")));
                let rows: Vec<u64> = (0..count).map(|r| base + r * stride).collect();
                let (dram, chip) = ((base, base + (count - 1) * stride + bytes), (place, place + count * bytes));
                let kind = Kind::Transfer { rows, bytes, dram, chip };
                let common = format!("row_bytes={bytes}, rows=r2");
                match other {
                    9 => (
                        Some(0),
                        kind,
                        format!("load sp[{place}], dram[{base}], {common}, src_stride=r3, dst_stride=r4"),
                    ),
                    _ => (
                        Some(1),
                        kind,
                        format!("store dram[{base}], sp[{place}], {common}, dst_stride=r3, src_stride=r4"),
                    ),
                }
            }
        };
        let text = format!("{text}{}{}", tokens("wait", &waits), tokens("post", &posts));
        steps.push(Step { text, queue, kind, waits, posts });
    }
    steps
}

/// DRAM as B1 to B3 have it.
struct Bank {
    row: Option<u64>,
    ready: u64,
    act: u64,
}

struct DramChannel {
    bus: u64,
    refreshes: u64,
    banks: Vec<Bank>,
}

fn serve(channel: &mut DramChannel, bank: usize, row: u64, p: u64, m: &Machine) -> u64 {
    let d = &m.dram;
    loop {
        let b = &channel.banks[bank];
        let (first, mut c, act) = match b.row {
            Some(open) if open == row => (p.max(b.ready), p.max(b.ready), b.act),
            None => (p.max(b.ready), p.max(b.ready) + d.trcd_ps, p.max(b.ready)),
            Some(_) => {
                let x = p.max(b.ready).max(b.act + d.tras_ps);
                (x, x + d.trp_ps + d.trcd_ps, x + d.trp_ps)
            }
        };
        if channel.bus > c + d.tcl_ps {
            c = channel.bus - d.tcl_ps;
        }
        let complete = c + d.tcl_ps + m.burst_ps();
        let due = (channel.refreshes + 1) * d.trefi_ps;
        if d.trefi_ps > 0 && (first >= due || complete > due) {
            channel.refreshes += 1;
            channel.bus = channel.bus.max(due + d.trfc_ps);
            for bank in &mut channel.banks {
                (bank.row, bank.ready) = (None, due + d.trfc_ps);
            }
            continue;
        }
        channel.bus = complete;
        channel.banks[bank] = Bank { row: Some(row), ready: c + m.burst_ps(), act };
        return complete;
    }
}

/// A DMA channel at work: bursts, when it made them, when they were complete.
struct Working {
    step: usize,
    begin: u64,
    bursts: Vec<u64>,
    made: Vec<u64>,
    complete: Vec<u64>,
}

/// First cycle and end of each step of a queue.
type Times = HashMap<usize, (u64, u64)>;

/// Times and the total; or nothing if it never ends.
fn step_through(steps: &[Step], m: &Machine) -> Option<(Times, u64)> {
    let ideal = m.dram.preset.name() == "ideal";
    let (rows, cols) = (m.matrix.rows, m.matrix.cols);
    let mut dram: Vec<DramChannel> = (0..m.dram.channels)
        .map(|_| DramChannel {
            bus: 0,
            refreshes: 0,
            banks: (0..m.dram.banks).map(|_| Bank { row: None, ready: 0, act: 0 }).collect(),
        })
        .collect();
    let mut tokens = [0u32; 5];
    // Per queue: issued steps with the cycle of issue; how many have started; how many are complete.
    let mut issued: [Vec<(usize, u64)>; 5] = Default::default();
    let (mut started, mut completed) = ([0usize; 5], [0usize; 5]);
    let mut times = Times::new();
    let mut channels: Vec<Option<Working>> = (0..m.dma.channels).map(|_| None).collect();
    let mut channel_until = vec![0u64; m.dma.channels as usize];
    let (mut next, mut busy_until) = (0usize, 0u64);
    let mut sequencer_post: Option<(u64, usize)> = None;
    let mut halted = None;
    let mut last_completion = 0;
    let (mut quiet, mut t) = (0, 0u64);
    loop {
        let mut acted = false;
        for q in 0..5 {
            while completed[q] < started[q] {
                let step = issued[q][completed[q]].0;
                if times[&step].1 > t {
                    break;
                }
                completed[q] += 1;
                last_completion = t;
                acted = true;
                steps[step].posts.iter().for_each(|token| tokens[*token] += 1);
            }
        }
        if let Some((when, step)) = sequencer_post
            && when <= t
        {
            steps[step].posts.iter().for_each(|token| tokens[*token] += 1);
            sequencer_post = None;
        }
        for q in 0..5 {
            while started[q] < issued[q].len() {
                let (index, at) = issued[q][started[q]];
                let step = &steps[index];
                let mut left = tokens;
                let enough = step.waits.iter().all(|token| {
                    let there = left[*token] > 0;
                    left[*token] = left[*token].saturating_sub(1);
                    there
                });
                if at >= t || !enough {
                    break;
                }
                // What the unit did before: real work only, latest first.
                let before: Vec<usize> = issued[q][..started[q]].iter().map(|(i, _)| *i).rev().collect();
                let real = |i: &&usize| !matches!(steps[**i].kind, Kind::Sync);
                let previous = before.iter().find(real);
                let preload = before.iter().find(|i| matches!(steps[**i].kind, Kind::Preload));
                let pass = before.iter().find(|i| matches!(steps[**i].kind, Kind::Pass { .. }));
                let pass_rows = |i: &usize| if let Kind::Pass { rows, .. } = steps[*i].kind { rows } else { 0 };
                let unit_free = match (&step.kind, q) {
                    (Kind::Sync, _) | (_, 0 | 1) => true,
                    (kind, 2) if m.matrix.weight_overlap => {
                        let preload_end = preload.map_or(0, |i| times[i].1);
                        let behind_pass = pass
                            .map_or(0, |i| times[i].0 + if matches!(kind, Kind::Preload) { 0 } else { pass_rows(i) });
                        t >= preload_end && t >= behind_pass
                    }
                    _ => previous.is_none_or(|i| times[i].1 <= t),
                };
                // Who else holds a bank now.
                let mut holders = vec![];
                for other in (2..5).filter(|other| *other != q) {
                    for (i, _) in &issued[other][..started[other]] {
                        let (begin, end) = times[i];
                        match steps[*i].kind {
                            Kind::Pass { rows, banks } if begin + rows > t => holders.push(banks),
                            Kind::Fixed { banks, .. } if end > t => holders.push(banks),
                            _ => (),
                        }
                    }
                }
                let banks_free = match step.kind {
                    Kind::Pass { banks, .. } | Kind::Fixed { banks, .. } => (banks.0..=banks.1).all(|b| {
                        holders.iter().filter(|h| (h.0..=h.1).contains(&b)).count() < m.scratchpad.ports as usize
                    }),
                    _ => true,
                };
                let mut free_channel = None;
                let mut clear = true;
                if let Kind::Transfer { dram: d, chip: c, .. } = &step.kind {
                    let idle = |c: &usize| channels[*c].is_none() && channel_until[*c] <= t;
                    free_channel = (0..channels.len()).find(idle);
                    let meets = |a: &(u64, u64), b: &(u64, u64)| a.0 < b.1 && b.0 < a.1;
                    for (i, _) in &issued[q][completed[q]..started[q]] {
                        if let Kind::Transfer { dram, chip, .. } = &steps[*i].kind {
                            // LOAD changes the chip, STORE changes DRAM.
                            clear &= if q == 0 { !meets(c, chip) } else { !meets(d, dram) };
                        }
                    }
                }
                if !unit_free
                    || !banks_free
                    || !clear
                    || (matches!(step.kind, Kind::Transfer { .. }) && free_channel.is_none())
                {
                    break;
                }
                tokens = left;
                started[q] += 1;
                acted = true;
                let end = match &step.kind {
                    Kind::Preload => t + rows,
                    Kind::Pass { rows: streamed, .. } => t + streamed + rows + cols - 2,
                    Kind::Fixed { cycles, .. } => t + cycles,
                    Kind::Transfer { rows, bytes, .. } if !ideal => {
                        let burst = m.dma.burst_bytes;
                        let mut runs: Vec<(u64, u64)> = Vec::new();
                        for row in rows {
                            match runs.last_mut() {
                                Some(run) if run.1 == *row => run.1 += bytes,
                                _ => runs.push((*row, row + bytes)),
                            }
                        }
                        let bursts = runs.iter().flat_map(|(begin, end)| begin / burst..end.div_ceil(burst)).collect();
                        let (made, complete) = (vec![], vec![]);
                        channels[free_channel.unwrap()] =
                            Some(Working { step: index, begin: t, bursts, made, complete });
                        u64::MAX
                    }
                    Kind::Transfer { .. } => {
                        channel_until[free_channel.unwrap()] = t + 1;
                        t + 1
                    }
                    _ => t + 1,
                };
                times.insert(index, (t, end));
            }
        }
        if busy_until <= t && halted.is_none() {
            match steps.get(next) {
                None => {
                    halted = Some(t + 1);
                    acted = true;
                }
                Some(step) => {
                    let mut left = tokens;
                    let enough = step.waits.iter().all(|token| {
                        let there = left[*token] > 0;
                        left[*token] = left[*token].saturating_sub(1);
                        there
                    });
                    let takes = match (&step.kind, step.queue) {
                        (Kind::Scalar, _) => Some(1),
                        (Kind::SyncSequencer, _) => enough.then_some(1),
                        (Kind::Lds, _) => enough.then_some(m.sequencer.load_cycles),
                        (_, Some(q)) => {
                            let places = issued[q].len() - started[q];
                            ((places as u64) < m.queue.depth).then(|| issued[q].push((next, t)));
                            ((places as u64) < m.queue.depth).then_some(1)
                        }
                        _ => None,
                    };
                    if let Some(cycles) = takes {
                        if matches!(step.kind, Kind::SyncSequencer | Kind::Lds) {
                            tokens = left;
                            sequencer_post = Some((t + cycles, next));
                        }
                        busy_until = t + cycles;
                        next += 1;
                        acted = true;
                    }
                }
            }
        }
        for (c, slot) in channels.iter_mut().enumerate() {
            let Some(working) = slot else { continue };
            acted = true;
            let k = working.made.len();
            let outstanding = m.dma.outstanding as usize;
            let soonest = (working.begin + m.dma.setup_cycles + k as u64)
                .max(if k >= outstanding { working.complete[k - outstanding] } else { 0 })
                .max(working.made.last().map_or(0, |last| last + 1));
            if soonest > t {
                continue;
            }
            let q = working.bursts[k];
            let (channel, within) = ((q % m.dram.channels) as usize, q / m.dram.channels);
            let per_row = m.dram.row_bytes / m.dma.burst_bytes;
            let (bank, row) = (within / per_row % m.dram.banks, within / (per_row * m.dram.banks));
            let p = t * 1_000_000 / m.clock_mhz;
            let complete_ps = serve(&mut dram[channel], bank as usize, row, p, m);
            working.made.push(t);
            working.complete.push((complete_ps * m.clock_mhz).div_ceil(1_000_000));
            if working.made.len() == working.bursts.len() {
                let end = *working.complete.iter().max().unwrap();
                times.get_mut(&working.step).unwrap().1 = end;
                channel_until[c] = end;
                *slot = None;
            }
        }
        let all_done = (0..5).all(|q| completed[q] == issued[q].len()) && sequencer_post.is_none();
        if let Some(halt) = halted
            && all_done
        {
            return Some((times, halt.max(last_completion)));
        }
        // Something ends later than anything takes, or nothing happens any more.
        let pending = times.values().any(|(_, end)| *end > t) || busy_until > t || sequencer_post.is_some();
        quiet = if acted || pending { 0 } else { quiet + 1 };
        if quiet > 3 {
            return None;
        }
        t += 1;
    }
}

fn check(numbers: &[u64], settings: &[(&str, &str)]) -> Result<(), TestCaseError> {
    let mut machine = Machine::preset("edge-16").unwrap();
    machine.set_all(settings.iter().copied()).unwrap();
    let steps = steps(numbers, &machine);
    let text: String = steps.iter().map(|step| step.text.clone() + "\n").collect::<String>() + "halt";
    let program = common::program(&text);
    let mut recorder = common::Recorder::default();
    let simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
    match (simulator.run_observed(&mut recorder), step_through(&steps, &machine)) {
        (Ok(run), Some((times, total))) => {
            prop_assert_eq!(recorder.0.len(), times.len());
            for activity in &recorder.0 {
                let expected = times[&(activity.at as usize)];
                prop_assert_eq!((activity.begin, activity.end), expected, "instruction {} of\n{}", activity.at, &text);
            }
            prop_assert_eq!(run.report.cycles, total, "{}", &text);
        }
        (Err(SimError::Deadlock { .. }), None) => (),
        (Ok(_), None) => prop_assert!(false, "a deadlock when stepping only\n{}", text),
        (Err(error), other) => prop_assert!(false, "{}; stepping: {:?}\n{}", error, other.map(|o| o.1), text),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_instruction_starts_and_ends_as_when_stepping(
        numbers in prop::collection::vec(any::<u64>(), 1..30),
        machine: u64,
    ) {
        let pick = |shift: u64, values: &[&'static str]| values[(machine >> shift) as usize % values.len()];
        let mut settings = vec![
            ("clock_mhz", pick(0, &["500", "1000", "333"])),
            ("dma.channels", pick(3, &["1", "2", "3"])),
            ("dma.outstanding", pick(6, &["1", "2", "16"])),
            ("dma.setup_cycles", pick(9, &["0", "1", "8"])),
            ("queue.depth", pick(12, &["1", "2", "16"])),
            ("matrix.weight_overlap", pick(15, &["true", "false"])),
            ("scratchpad.ports", pick(18, &["1", "2", "3"])),
            ("sequencer.load_cycles", pick(21, &["1", "4"])),
        ];
        settings.push(("dram.preset", pick(24, &["lpddr4", "ideal", "lpddr5", "lpddr4"])));
        settings.extend([
            ("dram.channels", pick(27, &["1", "2", "3"])),
            ("dram.banks", pick(30, &["1", "2", "8"])),
            ("dram.trefi_ps", pick(33, &["0", "900000", "3904000"])),
        ]);
        check(&numbers, &settings)?;
    }
}

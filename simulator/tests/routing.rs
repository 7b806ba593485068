//! Routing from outside: what would have been decided changes nothing, timing needs no values, lots are as likely as they say.

mod common;

use common::program;
use lapidary_npu_isa::{Machine, Program};
use lapidary_simulator::routing::{
    Call, Decision, Drawn, ModulesPerToken, Popularity, Recorder, Routed, Routing, Trace,
};
use lapidary_simulator::{Device, Options, Report, RoutingStage, Run, SimError, Simulator};
use proptest::prelude::*;

fn machine() -> Machine {
    Machine::preset("edge-16").unwrap()
}

/// The routed example with labels as models have them.
fn routed_ffn() -> Program {
    let path = format!("{}/../examples/npu/routed_ffn.s", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    program(&text.replace(".op \"route\"", ".op \"layers.3.scar.select\""))
}

fn run(program: &Program, scratchpad: &[u8], routing: Option<&mut dyn Routing>) -> Run {
    let machine = machine();
    let mut simulator = Simulator::new(program, &machine, Options::default()).unwrap();
    simulator.memories_mut().scratchpad[..scratchpad.len()].copy_from_slice(scratchpad);
    match routing {
        Some(routing) => simulator.routed(Routed { routing: &mut *routing, first_token: 5 }).run().unwrap(),
        None => simulator.run().unwrap(),
    }
}

/// One of the selections and the clusters, of scores at 0.
fn decisions(which: usize, rows: usize, cols: usize, k: usize) -> Program {
    let select = [
        "r.top_k sp[r3], sp[r4], sp[0], cols=COLS, k=r2, rows=r1, norm",
        "r.threshold sp[r3], sp[r4], sp[0], cols=COLS, k=r2, tau=r6, rows=r1",
        "r.top_p sp[r3], sp[r4], sp[0], cols=COLS, k_min=r0, k=r2, p=r6, rows=r1, norm",
        "r.expert_choice sp[r3], sp[r4], sp[0], cols=COLS, cap=r2, rows=r1",
        "r.bidirectional sp[r3], sp[r4], sp[0], cols=COLS, k=r2, cap=r2, rows=r1, norm",
    ][which];
    program(&format!(
        "li r1, {rows}\nli r2, {k}\nli r3, 4096\nli r4, 8192\nli r5, 12288\nli r6, {}\n\
         .op \"layers.2.attn.cluster\"\nv.row_argmax sp[32768], sp[0], cols={cols}, rows=r1\n\
         .op \"layers.2.scar.select\"\n{}\n\
         .op \"layers.2.modules.group\"\nr.group sp[r5], sp[16384], sp[r3], cols={cols}, rows=r1 post(t1)\n\
         r.compact sp[24576], sp[r3], sp[r4], cols={cols}, rows=r1\n\
         .op \"\"\nhalt",
        0.5f32.to_bits(),
        select.replace("COLS", &cols.to_string())
    ))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// To watch changes nothing; to decide what would have been decided changes nothing: bit for bit, cycle for cycle.
    #[test]
    fn the_same_decisions_are_the_same_run(
        which in 0usize..5,
        rows in 1usize..20,
        cols in 1usize..12,
        k in 0usize..14,
        scores in prop::collection::vec(-4i8..8, 240),
    ) {
        let program = decisions(which, rows, cols, k);
        let bytes: Vec<u8> = scores[..rows * cols].iter().flat_map(|s| (f32::from(*s) / 4.0).to_le_bytes()).collect();
        let plain = run(&program, &bytes, None);
        let mut recorder = Recorder::default();
        let watched = run(&program, &bytes, Some(&mut recorder));
        let mut trace = recorder.trace;
        // Others are sent elsewhere by the same trace, so it does decide.
        let replayed = run(&program, &bytes, Some(&mut trace));
        let elsewhere = run(&program, &[], Some(&mut trace));
        for other in [&watched, &replayed] {
            prop_assert_eq!(&plain.report, &other.report);
            prop_assert_eq!(plain.scratchpad(), other.scratchpad());
        }
        prop_assert_eq!(&plain.scratchpad()[4096..], &elsewhere.scratchpad()[4096..]);
        // Who visits is who is listed.
        let selections = &plain.report.selections[0];
        let word = |at: usize| u32::from_le_bytes(plain.scratchpad()[at..at + 4].try_into().unwrap());
        let counts: Vec<u64> = (0..cols).map(|c| word(12288 + 16 * c + 8).into()).collect();
        prop_assert_eq!(&selections.visits, &counts);
        prop_assert_eq!((selections.tokens(), selections.unknown_tokens), (rows as u64, 0));
        prop_assert_eq!(trace.iter().map(|(_, _, modules)| modules.len() as u64).sum::<u64>(), counts.iter().sum::<u64>());
        prop_assert!(trace.iter().all(|(layer, token, _)| layer == 2 && (5..5 + rows as u64).contains(&token)));
    }
}

/// Runs with everything unknown that a host would have written.
fn timed(program: &Program, routing: Option<&mut dyn Routing>) -> Result<Report, SimError> {
    let mut device = Device::new(&machine(), Options::timing_only());
    // Contents of segments would be known.
    let mut program = program.clone();
    for segment in &mut program.segments {
        segment.bytes.clear();
        device.forget(&program_of(segment.clone()), &segment.name).unwrap();
    }
    match routing {
        Some(routing) => device.run_routed(&program, Routed { routing: &mut *routing, first_token: 0 }, &mut ()),
        None => device.run(&program, &mut ()),
    }
}

fn program_of(segment: lapidary_npu_isa::program::Segment) -> Program {
    Program { segments: vec![segment], ..Program::default() }
}

#[test]
fn timing_needs_no_values_if_routing_is_given() {
    let program = routed_ffn();
    let error = timed(&program, None).unwrap_err();
    assert!(matches!(error, SimError::Unknown { .. }), "{error}");
    for seed in 0..20 {
        let mut drawn = Drawn::new(Popularity::Zipf(1.0), ModulesPerToken::Exactly(2), seed);
        let mut without = timed(&program, Some(&mut drawn)).unwrap();
        let mut device = Device::new(&machine(), Options::default());
        let routed = Routed { routing: &mut drawn, first_token: 0 };
        let with = device.run_routed(&program, routed, &mut ()).unwrap();
        assert!(!without.values);
        without.values = true;
        assert_eq!(without, with, "seed {seed}");
        // Each token to two modules, whose work it is.
        let [selections] = &with.selections[..] else { panic!("{:?}", with.selections) };
        assert_eq!((selections.name.as_str(), selections.tokens()), ("layers.3.scar.select", 8));
        assert_eq!(selections.tokens_by_count, [0, 0, 8]);
        for (module, share) in with.modules() {
            assert_eq!(share.amounts.macs, u128::from(with.visits(module) * 3 * 32 * 32), "module {module}");
        }
    }
}

#[test]
fn parts_of_a_call_are_its_rows() {
    // Eight rows at once, and as three, four and one.
    let block = |rows: usize, from: usize| {
        format!(
            "li r1, {rows}\nli r3, {}\nli r4, {}\nr.top_k sp[r3], sp[r4], sp[0], cols=6, k=r1, rows=r1\n",
            4096 + 6 * from,
            8192 + 24 * from
        )
    };
    let text = |blocks: &[usize]| {
        let mut text = String::from(".op \"layers.1.scar.select\"\n");
        let mut from = 0;
        for rows in blocks {
            text += &block(*rows, from);
            from += rows;
        }
        text + "halt"
    };
    let mut drawn = Drawn::new(Popularity::Uniform, ModulesPerToken::Weighted(vec![1, 1, 1, 1]), 9);
    let once = run(&program(&text(&[8])), &[], Some(&mut drawn));
    // The cursor begins anew with each run.
    for _ in 0..2 {
        let thrice = run(&program(&text(&[3, 4, 1])), &[], Some(&mut drawn));
        assert_eq!(once.scratchpad(), thrice.scratchpad());
        assert_eq!(once.report.selections, thrice.report.selections);
    }
    // One token at a time, as in decoding.
    let step = program(&text(&[1]));
    for row in 0..8 {
        let machine = machine();
        let simulator = Simulator::new(&step, &machine, Options::default()).unwrap();
        let one = simulator.routed(Routed { routing: &mut drawn, first_token: 5 + row as u64 }).run().unwrap();
        assert_eq!(one.scratchpad()[4096..4102], once.scratchpad()[4096 + 6 * row..][..6]);
    }
}

/// How often each module is among those of many tokens, and how often it is the cluster.
fn frequencies(drawn: &mut Drawn, layer: u64, cols: usize, tokens: usize) -> (Vec<u64>, Vec<u64>) {
    let (mut mask, mut gates, mut best) = (vec![0; tokens * cols], vec![0.0; tokens * cols], vec![0; tokens]);
    let labels = [format!("layers.{layer}.scar.select"), format!("layers.{layer}.attn.cluster")];
    let call = |label| Call { label, first: 1000, rows: tokens, cols };
    assert!(drawn.select(&call(&labels[0]), &mut mask, &mut gates));
    assert!(drawn.cluster(&call(&labels[1]), &mut best));
    let (mut visits, mut clusters) = (vec![0; cols], vec![0; cols]);
    for ((row, gates), best) in mask.chunks_exact(cols).zip(gates.chunks_exact(cols)).zip(&best) {
        let chosen = row.iter().filter(|m| **m == 1).count();
        assert!(row.iter().zip(gates).all(|(m, g)| *g == if *m == 1 { 1.0 / chosen as f32 } else { 0.0 }));
        assert!(chosen == 0 || row[*best as usize] == 1);
        row.iter().enumerate().for_each(|(c, m)| visits[c] += u64::from(*m));
        clusters[*best as usize] += 1;
    }
    (visits, clusters)
}

#[test]
fn lots_are_as_likely_as_they_say() {
    let (cols, tokens) = (16, 40_000);
    // Uniform: 3 of 16, standard deviation √(n·p·(1 − p)).
    let mut uniform = Drawn::new(Popularity::Uniform, ModulesPerToken::Exactly(3), 1);
    let (visits, clusters) = frequencies(&mut uniform, 0, cols, tokens);
    for (counts, p) in [(&visits, 3.0 / 16.0), (&clusters, 1.0 / 16.0)] {
        let (mean, deviation) = (tokens as f64 * p, (tokens as f64 * p * (1.0 - p)).sqrt());
        assert!(counts.iter().all(|n| (*n as f64 - mean).abs() < 5.0 * deviation), "{counts:?}");
    }
    assert_eq!(visits.iter().sum::<u64>(), 3 * tokens as u64);
    // Zipf: first draws by 1/rank^S.
    let mut zipf = Drawn::new(Popularity::Zipf(1.2), ModulesPerToken::Exactly(2), 1);
    let mut orders = Vec::new();
    for layer in 0..3 {
        let (visits, clusters) = frequencies(&mut zipf, layer, cols, tokens);
        assert_eq!(visits.iter().sum::<u64>(), 2 * tokens as u64);
        let mut sorted = clusters.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let all: f64 = (1..=cols).map(|rank| (rank as f64).powf(-1.2)).sum();
        for (count, rank) in sorted.iter().zip(1..) {
            let p = f64::from(rank).powf(-1.2) / all;
            let (mean, deviation) = (tokens as f64 * p, (tokens as f64 * p * (1.0 - p)).sqrt());
            assert!((*count as f64 - mean).abs() < 6.0 * deviation, "rank {rank}: {count} of about {mean}");
        }
        orders.push((0..cols).max_by_key(|c| clusters[*c]).unwrap());
    }
    assert!(orders.iter().any(|best| *best != orders[0]), "all layers have the same favourite");
    // Numbers of modules by weight; seeds differ, and are the same again.
    let mut weighted = Drawn::new(Popularity::Uniform, ModulesPerToken::Weighted(vec![1, 0, 3]), 4);
    let (visits, _) = frequencies(&mut weighted, 0, cols, tokens);
    let mean = visits.iter().sum::<u64>() as f64 / tokens as f64;
    assert!((mean - 1.5).abs() < 0.02, "{mean}");
    let of = |seed| frequencies(&mut Drawn::new(Popularity::Uniform, ModulesPerToken::Exactly(1), seed), 0, cols, 50);
    assert_eq!(of(8), of(8));
    assert_ne!(of(8), of(9));
    // More than there are is all; none is none.
    let all = frequencies(&mut Drawn::new(Popularity::Zipf(2.0), ModulesPerToken::Exactly(99), 0), 0, 5, 10).0;
    assert_eq!(all, [10; 5]);
    let none = frequencies(&mut Drawn::new(Popularity::Zipf(2.0), ModulesPerToken::Weighted(vec![]), 0), 0, 5, 10).0;
    assert_eq!(none, [0; 5]);
}

#[test]
fn traces_decide_for_tokens_that_they_know() {
    let program = decisions(0, 2, 4, 1);
    let scores: Vec<u8> = [0.1f32, 0.9, 0.2, 0.3, 0.1, 0.2, 0.3, 0.9].iter().flat_map(|s| s.to_le_bytes()).collect();
    let mask = |run: &Run| run.scratchpad()[4096..4104].to_vec();
    let computed = [0, 1, 0, 0, 0, 0, 0, 1];
    let mut trace = Trace::default();
    trace.insert(2, 5, Decision { modules: vec![(0, 0.25), (3, 0.5)], cluster: None });
    assert_eq!(mask(&run(&program, &scores, Some(&mut trace))), computed, "the second token is not known");
    trace.insert(2, 6, Decision::default());
    let given = run(&program, &scores, Some(&mut trace));
    assert_eq!(mask(&given), [1, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(f32::from_le_bytes(given.scratchpad()[8192 + 12..8192 + 16].try_into().unwrap()), 0.5);
    assert_eq!(given.report.selections[0].tokens_by_count, [1, 0, 1]);
    assert_eq!((trace.cluster(2, 5), trace.cluster(2, 6)), (Some(3), None));
    trace.insert(2, 6, Decision { modules: vec![(4, 1.0)], cluster: Some(1) });
    assert_eq!(mask(&run(&program, &scores, Some(&mut trace))), computed, "module 4 does not exist");
    assert_eq!(trace.visits_by_domain(2, 5, |token| token as usize - 5), [[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]]);
}

/// Answers with what makes no sense.
struct Wild;

impl Routing for Wild {
    fn select(&mut self, _: &Call<'_>, mask: &mut [u8], gates: &mut [f32]) -> bool {
        mask.fill(200);
        gates.fill(f32::NAN);
        true
    }
    fn cluster(&mut self, call: &Call<'_>, best: &mut [u32]) -> bool {
        best.fill(call.cols as u32);
        true
    }
}

#[test]
fn what_makes_no_sense_is_a_fault() {
    let machine = machine();
    let attempt = |text: &str| {
        let program = program(text);
        let simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
        simulator.routed(Routed { routing: &mut Wild, first_token: u64::MAX }).run().map(drop)
    };
    let error = attempt("v.row_argmax sp[0], sp[64], cols=3\nhalt").unwrap_err().to_string();
    assert!(error.ends_with("column of the routing: wanted below 3, found 3"), "{error}");
    // All modules for everybody: no room in the list.
    let select = "li r1, 4\nr.top_k sp[0], sp[64], sp[1024], cols=4, k=r0, rows=r1\n";
    let error = attempt(&format!("{select}r.group sp[2048], sp[4096], sp[0], cols=4, most=r1, rows=r1\nhalt"));
    assert!(error.unwrap_err().to_string().contains("set elements: wanted at most 4, found 16"));
    // Nobody is asked about rows that do not fit.
    let error = attempt("li r1, 100000000000\nr.top_k sp[0], sp[64], sp[1024], cols=4000, k=r0, rows=r1\nhalt");
    assert!(matches!(error, Err(SimError::Fault(_))), "{error:?}");
    assert_eq!(
        attempt(
            "li r1, 0\nr.top_k sp[0], sp[64], sp[0], cols=4, k=r0, rows=r1\nv.row_argmax sp[0], sp[0], cols=0\nhalt"
        ),
        Ok(())
    );
}

#[test]
fn the_router_has_an_account_of_its_own() {
    let report = run(&routed_ffn(), &[], None).report;
    let stages: Vec<RoutingStage> = report.routing.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(stages, [RoutingStage::Select, RoutingStage::Gather, RoutingStage::Scatter]);
    let all = report.router();
    assert!(0 < all.cycles && all.cycles < report.cycles && all.amounts.macs == 0);
    assert!(0 < all.amounts.energy_fj && all.amounts.energy_fj < report.total.energy_fj);
    // The whole op that is called so, and nothing else.
    let op = report.ops().into_iter().find(|(name, _)| *name == "layers.3.scar.select").unwrap().1;
    assert_eq!(report.routing[0].1, op);
    // Without labels, the routing unit's instructions are known by themselves.
    let bare = Program { op_labels: Vec::new(), ..decisions(4, 3, 4, 2) };
    let stages: Vec<RoutingStage> = run(&bare, &[], None).report.routing.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(stages, [RoutingStage::Select, RoutingStage::Group]);
}

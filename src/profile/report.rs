//! A profile as one HTML page that needs no network.

use lapidary_format::Artifact;
use minijinja::{Environment, context};
use serde::Serialize;

use super::component::Component;
use super::{CallRecord, Measured, label_and_op};

const PAGE: &str = include_str!("report.html");

/// Colours of the components, in the order of the legend.
const COLOURS: &[(Component, &str)] = &[
    (Component::TokenRouter, "#d1495b"),
    (Component::Scar, "#edae49"),
    (Component::Attention, "#00798c"),
    (Component::General, "#30638e"),
    (Component::Modules, "#4f9d69"),
    (Component::Head, "#6d597a"),
    (Component::Embedding, "#8d99ae"),
    (Component::Norms, "#c9ada7"),
];

/// A bar of a timeline, in percent of its width.
#[derive(Serialize)]
struct Bar {
    left: f64,
    width: f64,
    colour: &'static str,
    title: String,
}

/// A call drawn as bars.
#[derive(Serialize)]
struct Timeline {
    title: String,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Legend {
    name: &'static str,
    colour: &'static str,
}

fn colour(component: Component) -> &'static str {
    COLOURS.iter().find(|(c, _)| *c == component).map_or("#888", |(_, colour)| colour)
}

fn timeline(artifact: &Artifact<'_>, call: &CallRecord) -> Timeline {
    let records: Vec<_> = artifact.steps().iter().collect();
    let length = (call.end_ns - call.begin_ns).max(1) as f64;
    let bars = call
        .intervals
        .iter()
        .filter(|interval| interval.module.is_none())
        .filter_map(|interval| {
            let (label, op) = label_and_op(records.get(interval.step as usize)?.op);
            let component = Component::of(label, op);
            let ns = interval.end_ns - interval.begin_ns;
            Some(Bar {
                left: (interval.begin_ns.saturating_sub(call.begin_ns)) as f64 / length * 100.0,
                width: ns as f64 / length * 100.0,
                colour: colour(component),
                title: format!("{label} ({op}): {:.1} µs", ns as f64 / 1e3),
            })
        })
        .collect();
    let tokens = if call.tokens == 1 { "one token".to_string() } else { format!("{} tokens", call.tokens) };
    let title = format!("{} of {tokens}: {:.3} ms", call.phase, length / 1e6);
    Timeline { title, bars }
}

/// Renders the page.
pub fn render(artifact: &Artifact<'_>, measured: &Measured) -> Result<String, minijinja::Error> {
    let first = measured.timeline.iter().find(|call| call.phase == "prefill");
    let last = measured.timeline.iter().rev().find(|call| call.phase == "decode");
    let timelines: Vec<Timeline> = first.into_iter().chain(last).map(|call| timeline(artifact, call)).collect();
    let legend: Vec<Legend> = COLOURS.iter().map(|(c, colour)| Legend { name: c.name(), colour }).collect();
    let colours: std::collections::BTreeMap<_, _> = COLOURS.iter().map(|(c, colour)| (c.name(), *colour)).collect();
    let mut environment = Environment::new();
    environment.add_filter("fixed", |value: f64, digits: usize| format!("{value:.digits$}"));
    environment.add_template("report.html", PAGE)?;
    environment.get_template("report.html")?.render(context! {
        profile => measured.profile,
        timelines => timelines,
        legend => legend,
        colours => colours,
    })
}

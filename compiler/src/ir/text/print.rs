//! Graph → text.

use std::fmt::{self, Display, Formatter, Write};

use super::super::{Graph, ModelInfo, Node, Operand, ValueId, Weight, WeightDef, WeightId};
use super::lexer::is_plain_weight_name;

impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "lir 1")?;
        model(f, &self.info)?;
        writeln!(f, "\nphase {}", self.phase.name())?;
        section(f, self.symbols.get(2..).unwrap_or(&[]), |f, s| {
            writeln!(f, "symbol {} <= {}", s.name, s.max_per_token)
        })?;
        section(f, &self.weights, |f, w| weight(f, self, w))?;
        let numbers = numbers(self);
        section(f, &self.inputs, |f, (name, value)| {
            let ty = self.show_type(self.ty(*value));
            writeln!(f, "input {} = {}: {ty}", Quoted(name), Number(&numbers, *value))
        })?;
        section(f, &self.nodes, |f, n| node(f, self, &numbers, n))?;
        section(f, &self.outputs, |f, o| writeln!(f, "output {} = {}", Quoted(&o.name), Number(&numbers, o.value)))
    }
}

/// Lines with an empty line before them.
fn section<T>(f: &mut Formatter<'_>, items: &[T], line: impl Fn(&mut Formatter<'_>, &T) -> fmt::Result) -> fmt::Result {
    if !items.is_empty() {
        f.write_char('\n')?;
    }
    items.iter().try_for_each(|item| line(f, item))
}

/// What differs from an empty model.
fn model(f: &mut Formatter<'_>, info: &ModelInfo) -> fmt::Result {
    let empty = ModelInfo::default();
    if *info == empty {
        return Ok(());
    }
    writeln!(f, "\nmodel {{")?;
    let mut field = |key: &str, value: String| writeln!(f, "  {key} = {value},");
    if info.name != empty.name {
        field("name", Quoted(&info.name).to_string())?;
    }
    if info.head != empty.head {
        field("head", info.head.name().into())?;
    }
    let numbers = [
        ("vocab_size", info.vocab_size),
        ("hidden_size", info.hidden_size),
        ("num_layers", info.num_layers),
        ("num_clusters", info.num_clusters),
        ("num_labels", info.num_labels),
        ("max_position_embeddings", info.max_position_embeddings),
    ];
    for (key, n) in numbers.into_iter().filter(|(_, n)| *n != 0) {
        field(key, n.to_string())?;
    }
    if !info.domain_names.is_empty() {
        let names: Vec<String> = info.domain_names.iter().map(|n| Quoted(n).to_string()).collect();
        field("domain_names", format!("[{}]", names.join(", ")))?;
    }
    if !info.is_causal {
        field("is_causal", "false".into())?;
    }
    if let Some(why) = &info.why_no_decode {
        field("why_no_decode", Quoted(why).to_string())?;
    }
    if !info.config_json.is_empty() {
        field("config_json", Quoted(&info.config_json).to_string())?;
    }
    if info.source_digest != empty.source_digest {
        let hex: String = info.source_digest.iter().map(|b| format!("{b:02x}")).collect();
        field("source_digest", Quoted(&hex).to_string())?;
    }
    writeln!(f, "}}")
}

fn weight(f: &mut Formatter<'_>, graph: &Graph, w: &Weight) -> fmt::Result {
    let shape: Vec<String> = w.shape.iter().map(u64::to_string).collect();
    write!(f, "weight {}: {}[{}] {} = ", AtName(&w.name), w.storage, shape.join(", "), w.component.name())?;
    let name = |id: &WeightId| AtName(&graph.weight(*id).name);
    match &w.def {
        WeightDef::Stored => write!(f, "stored")?,
        WeightDef::Splat(x) => write!(f, "splat({x:?})")?,
        WeightDef::Random { seed, std } => write!(f, "random({seed}, {std:?})")?,
        WeightDef::Concat(parts) => {
            let parts: Vec<String> = parts.iter().map(|p| name(p).to_string()).collect();
            write!(f, "concat({})", parts.join(", "))?;
        }
        WeightDef::ScaleColumns { base, columns } => write!(f, "scale_columns({}, {})", name(base), name(columns))?,
        WeightDef::Scale { base, factor } => write!(f, "scale({}, {factor:?})", name(base))?,
    }
    f.write_char('\n')
}

fn node(f: &mut Formatter<'_>, graph: &Graph, numbers: &[Option<u32>], node: &Node) -> fmt::Result {
    for (i, r) in node.results.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(f, "{comma}{}: {}", Number(numbers, *r), graph.show_type(graph.ty(*r)))?;
    }
    write!(f, " = {}(", node.op.row().name)?;
    for (i, operand) in node.operands.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        match operand {
            Operand::Value(v) => write!(f, "{}", Number(numbers, *v))?,
            Operand::Weight(w) => write!(f, "{}", AtName(&graph.weight(*w).name))?,
            Operand::None => f.write_char('_')?,
        }
    }
    f.write_char(')')?;
    let in_order = node.op.row().attrs.iter().filter_map(|row| Some((row.name, node.attrs.get(row.name)?)));
    let attrs: Vec<String> = in_order.map(|(name, value)| format!("{name} = {value}")).collect();
    if !attrs.is_empty() {
        write!(f, " {{{}}}", attrs.join(", "))?;
    }
    if !node.label.is_empty() {
        write!(f, " {}", Quoted(&node.label))?;
    }
    f.write_char('\n')
}

/// Numbers of the values in the order of their definition.
fn numbers(graph: &Graph) -> Vec<Option<u32>> {
    let mut out = vec![None; graph.values.len()];
    let results = graph.nodes.iter().flat_map(|n| n.results.iter().copied());
    for (i, v) in graph.inputs.iter().map(|(_, v)| *v).chain(results).enumerate() {
        out[v.0 as usize] = Some(i as u32);
    }
    out
}

/// `%3`; a value that nothing defines, which only a broken graph has, keeps its id: `%undefined.7`.
struct Number<'a>(&'a [Option<u32>], ValueId);

impl Display for Number<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.get(self.1.0 as usize) {
            Some(Some(n)) => write!(f, "%{n}"),
            Some(None) | None => write!(f, "%undefined.{}", self.1.0),
        }
    }
}

/// `@name`, quoted when it needs to be.
struct AtName<'a>(&'a str);

impl Display for AtName<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match is_plain_weight_name(self.0) {
            true => write!(f, "@{}", self.0),
            false => write!(f, "@{}", Quoted(self.0)),
        }
    }
}

/// A string in quotes, control characters escaped.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

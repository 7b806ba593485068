//! Working memory of ops, beyond their operands and results.

use super::{PlanError, Region, ScratchRole, title};
use crate::ir::{Graph, KvStorage, Node, Op, Operand, ValueId};
use crate::ops::Policy;
use crate::quant::quantized_row_bytes;

/// Working memory that a node asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What for.
    pub role: ScratchRole,
    /// Where.
    pub region: Region,
    /// Size.
    pub bytes: u64,
}

/// The product of sizes, or an error that names what it is the size of.
pub(super) fn product(what: &str, factors: &[u64]) -> Result<u64, PlanError> {
    let product = factors.iter().try_fold(1u64, |a, b| a.checked_mul(*b)).filter(|n| *n < 1 << 63);
    product.ok_or_else(|| PlanError::Overflow { what: what.into() })
}

/// Working memory of a node when sequences have up to `max_tokens` tokens and calls up to `chunk_tokens`.
pub(super) fn requests(
    graph: &Graph,
    node: &Node,
    max_tokens: u64,
    chunk_tokens: u64,
) -> Result<Vec<Request>, PlanError> {
    let request = |role, region, factors: &[u64]| {
        product(&format!("{role:?} of {}", title(node)), factors).map(|bytes| Request { role, region, bytes })
    };
    let int = |name: &str| node.attrs.int(name);
    let key_values = |region, positions: u64| -> Result<Vec<Request>, PlanError> {
        let storage = KvStorage::by_name(node.attrs.word("kv_cache")).expect("the schema wants one of them");
        let row_bytes = storage.row_bytes(int("head_dim")).unwrap_or(u64::MAX);
        let factors = [int("kv_heads"), positions, row_bytes];
        [ScratchRole::Keys, ScratchRole::Values].into_iter().map(|role| request(role, region, &factors)).collect()
    };
    if node.op == Op::AttnRange {
        return match node.attrs.flag("causal") {
            true => key_values(Region::State, max_tokens),
            false => key_values(Region::Arena, chunk_tokens),
        };
    }
    if node.op == Op::AttnClustered {
        let mut out = key_values(Region::State, max_tokens)?;
        out.push(request(ScratchRole::Previous, Region::State, &[max_tokens, 4])?);
        out.push(request(ScratchRole::Last, Region::State, &[int("num_clusters"), 4])?);
        return Ok(out);
    }
    let stored_in_integers = |o: &Operand| o.weight().is_some_and(|w| graph.weight(w).storage.is_integer());
    let quantized = |role, rows: u64, k: u64| request(role, Region::Arena, &[rows, quantized_row_bytes(k)]);
    if node.op == Op::ExpertFfn {
        let tokens = node.operands[2].value().expect("expert.ffn has tokens");
        let weights = &node.operands[node.op.num_fixed_operands()..];
        let (gate_up, down) = weights.split_at(weights.len() / 3 * 2);
        let hidden_cols = graph.weight(weights[0].weight().expect("expert.ffn has weights")).rows();
        let rows = max_rows(graph, tokens, chunk_tokens)?;
        let mut out = vec![request(ScratchRole::Hidden, Region::Arena, &[rows, hidden_cols, 4])?];
        if gate_up.iter().any(stored_in_integers) {
            let x = node.operands[0].value().expect("expert.ffn has x");
            out.push(quantized(ScratchRole::QuantizedRows, max_rows(graph, x, chunk_tokens)?, graph.ty(x).cols())?);
        }
        if down.iter().any(stored_in_integers) {
            out.push(quantized(ScratchRole::QuantizedHidden, rows, hidden_cols)?);
        }
        return Ok(out);
    }
    let multiplies = matches!(node.op, Op::Linear | Op::LinearSwiglu | Op::ExpertLinear);
    if multiplies && node.operands.iter().any(stored_in_integers) {
        let x = node.operands[0].value().expect("a product has rows");
        let rows = max_rows(graph, x, chunk_tokens)?;
        return Ok(vec![quantized(ScratchRole::QuantizedRows, rows, graph.ty(x).cols())?]);
    }
    if node.op == Op::RouteSelect && Policy::of(&node.attrs).looks_across_tokens() {
        return Ok(vec![request(ScratchRole::Ranking, Region::Arena, &[chunk_tokens, 4])?]);
    }
    Ok(Vec::new())
}

/// Rows of a value in the largest call.
pub(super) fn max_rows(graph: &Graph, value: ValueId, chunk_tokens: u64) -> Result<u64, PlanError> {
    let rows = graph.ty(value).rows();
    match rows.as_symbol() {
        Some(s) => {
            let symbol = &graph.symbols[s.0 as usize];
            product(&format!("rows {}", symbol.name), &[symbol.max_per_token, chunk_tokens])
        }
        None => Ok(rows.as_const().unwrap_or(0)),
    }
}

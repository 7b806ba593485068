//! How much work a call really did, from the artifact's tables and the work counters: what its time is held against.

use lapidary_format::{Artifact, Packing, abi::Counter};
use lapidary_runtime::Session;

/// Sizes that do not depend on routing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Bytes of weights that every call reads.
    dense_bytes: u64,
    /// Weights that every token is multiplied with.
    dense_elems: u64,
    /// Weights of the head: only rows that go through it.
    head_elems: u64,
    /// Bytes of one module.
    module_bytes: u64,
    /// Weights of one module.
    module_elems: u64,
    /// A key of clustered attention.
    clustered_key: Key,
    /// A key of range attention: the token router's; where the model attends so too, the smaller of both, which
    /// flatters nobody.
    range_key: Key,
}

/// What one key costs.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    /// The key and its value.
    bytes: u64,
    /// Score and value, all heads of its group.
    multiply_adds: u64,
}

impl Key {
    /// Of a head of `head_dim` elements that `group` query heads share; `row_bytes` of a cached row.
    fn new(head_dim: u64, group: u64, row_bytes: u64) -> Self {
        Key { bytes: 2 * row_bytes, multiply_adds: 2 * group * head_dim }
    }
}

/// Bytes of a row of one head in the caches of keys whose names begin so; f32 where nothing is kept between calls.
fn cached_row_bytes(artifact: &Artifact<'_>, name: &str, heads: u64, head_dim: u64) -> u64 {
    let rows = u64::from(artifact.manifest().max_tokens) * heads;
    let caches = artifact.state_buffers();
    let cache = caches.iter().find(|b| b.name.starts_with(name) && b.name.ends_with(".keys"));
    cache.and_then(|b| b.bytes.checked_div(rows)).unwrap_or(4 * head_dim)
}

/// Work of some calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes of weights, keys and values read.
    pub bytes: u64,
    /// Multiply-adds.
    pub multiply_adds: u64,
}

impl Sizes {
    /// From the weight table and the model's config.
    pub fn of(artifact: &Artifact<'_>) -> Sizes {
        let mut sizes = Sizes::default();
        let tied = !artifact.tensors().iter().any(|t| t.component == "head" && t.packing == Packing::Panels);
        for tensor in artifact.tensors().iter() {
            let elems = tensor.rows * tensor.cols;
            let is_table = tensor.component == "embedding" && (tensor.packing == Packing::RowMajor || !tied);
            match tensor.component {
                // Rope tables and embeddings: a row per token.
                "tables" | "modules" => {}
                "embedding" if is_table => {}
                "embedding" | "head" => {
                    sizes.dense_bytes += tensor.bytes;
                    sizes.head_elems += elems;
                }
                _ if tensor.name.contains("token_router.embed") => {}
                _ => {
                    sizes.dense_bytes += tensor.bytes;
                    sizes.dense_elems += elems;
                }
            }
        }
        if let Some(extent) = artifact.extents().iter().next() {
            sizes.module_bytes = extent.bytes;
            let inside = |offset: u64| offset >= extent.offset && offset < extent.offset + extent.bytes;
            sizes.module_elems = artifact.tensors().iter().filter(|t| inside(t.offset)).map(|t| t.rows * t.cols).sum();
        }
        let config: serde_json::Value = serde_json::from_str(artifact.manifest().source_config).unwrap_or_default();
        let number = |key: &str| config[key].as_u64().unwrap_or(0);
        let head_dim = number("head_dim");
        let group = number("num_attention_heads").checked_div(number("num_key_value_heads")).unwrap_or(0);
        let kv_heads = number("num_key_value_heads");
        let model = Key::new(head_dim, group, cached_row_bytes(artifact, "layers.", kv_heads, head_dim));
        let router = &config["token_router"];
        let router_dim = match (router["hidden_size"].as_u64(), router["num_heads"].as_u64()) {
            (Some(hidden), Some(heads)) => hidden.checked_div(heads),
            _ => None,
        };
        let router_key = |dim| {
            let heads = router["num_heads"].as_u64().unwrap_or(0);
            Key::new(dim, 1, cached_row_bytes(artifact, "token_router.", heads, dim))
        };
        sizes.clustered_key = model;
        sizes.range_key = match router_dim.map(router_key) {
            Some(router) if config["attention"]["kind"] == "clustered" || router.bytes < model.bytes => router,
            Some(_) | None => model,
        };
        sizes
    }

    /// Work of `calls` calls with `tokens` tokens in all, one row of each through the head, from the session's counters
    /// since they were reset.
    pub fn work(&self, session: &Session, calls: u64, tokens: u64) -> Work {
        let keys = [
            (session.counter(Counter::ClusteredKeysRead), self.clustered_key),
            (session.counter(Counter::RangeKeysRead), self.range_key),
        ];
        let bytes = calls * self.dense_bytes
            + session.counter(Counter::ModulesRead) * self.module_bytes
            + keys.iter().map(|(n, key)| n * key.bytes).sum::<u64>();
        let multiply_adds = tokens * self.dense_elems
            + calls * self.head_elems
            + session.counter(Counter::RowsRouted) * self.module_elems
            + keys.iter().map(|(n, key)| n * key.multiply_adds).sum::<u64>();
        Work { bytes, multiply_adds }
    }
}

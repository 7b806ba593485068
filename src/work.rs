//! How much work a call really did, from the artifact's tables and the work counters: what its time is held against.

use lapidary_format::{Artifact, Dtype, Packing, Tensor, abi::Counter};
use lapidary_runtime::Session;

/// Sizes that do not depend on routing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Bytes of weights that every call reads.
    dense_bytes: u64,
    /// Weights that every token is multiplied with.
    dense: Elems,
    /// Weights of the head: only rows that go through it.
    head: Elems,
    /// Bytes of one module.
    module_bytes: u64,
    /// Weights of one module.
    module: Elems,
    /// A key of clustered attention.
    clustered_key: Key,
    /// A key of range attention: the token router's; where the model attends so too, the smaller of both, which
    /// flatters nobody.
    range_key: Key,
}

/// Numbers of weights, by how they are multiplied.
#[derive(Clone, Copy, Debug, Default)]
struct Elems {
    float: u64,
    /// Codes, with the codes of quantized rows.
    integer: u64,
}

impl Elems {
    fn add(&mut self, tensor: &Tensor<'_>) {
        let elems = tensor.rows * tensor.cols;
        match tensor.dtype {
            Dtype::I8 | Dtype::I4 => self.integer += elems,
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::U8 | Dtype::U32 | Dtype::I32 | Dtype::I64 => {
                self.float += elems;
            }
        }
    }
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
    /// Multiply-adds of floats.
    pub float_multiply_adds: u64,
    /// Multiply-adds of int8 and int4 codes.
    pub integer_multiply_adds: u64,
}

impl Sizes {
    /// From the weight table and the model's config.
    pub fn of(artifact: &Artifact<'_>) -> Sizes {
        let mut sizes = Sizes::default();
        let tied = !artifact.tensors().iter().any(|t| t.component == "head" && t.packing == Packing::Panels);
        for tensor in artifact.tensors().iter() {
            let is_table = tensor.component == "embedding" && (tensor.packing == Packing::RowMajor || !tied);
            match tensor.component {
                // Rope tables and embeddings: a row per token.
                "tables" | "modules" => {}
                "embedding" if is_table => {}
                "embedding" | "head" => {
                    sizes.dense_bytes += tensor.bytes;
                    sizes.head.add(&tensor);
                }
                _ if tensor.name.contains("token_router.embed") => {}
                _ => {
                    sizes.dense_bytes += tensor.bytes;
                    sizes.dense.add(&tensor);
                }
            }
        }
        if let Some(extent) = artifact.extents().iter().next() {
            sizes.module_bytes = extent.bytes;
            let inside = |offset: u64| offset >= extent.offset && offset < extent.offset + extent.bytes;
            artifact.tensors().iter().filter(|t| inside(t.offset)).for_each(|t| sizes.module.add(&t));
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
        let rows = session.counter(Counter::RowsRouted);
        let weights =
            |of: fn(&Elems) -> u64| tokens * of(&self.dense) + calls * of(&self.head) + rows * of(&self.module);
        let attention: u64 = keys.iter().map(|(n, key)| n * key.multiply_adds).sum();
        Work {
            bytes,
            float_multiply_adds: weights(|elems| elems.float) + attention,
            integer_multiply_adds: weights(|elems| elems.integer),
        }
    }
}

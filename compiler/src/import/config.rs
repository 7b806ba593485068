//! `config.json` of a GEM, parsed strictly: every key must be there, be known and be possible.

use serde_json::{Map, Value, json};

use crate::ir::{HeadKind, limits};
use crate::ops::{POLICIES, Policy};

/// A config value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config.json: {key}: wanted {wanted}, found {found}")]
pub struct ConfigError {
    /// `scar.k_max`.
    pub key: String,
    /// What would do.
    pub wanted: String,
    /// What stands there.
    pub found: String,
}

/// Sparse cross-attention router.
#[derive(Clone, Debug, PartialEq)]
pub struct ScarConfig {
    /// C.
    pub num_clusters: u64,
    /// d_s.
    pub dim: u64,
    /// Weight of the domain prior.
    pub lambda: f32,
    /// How modules are chosen.
    pub policy: Policy,
    /// Fewest modules (`top_p`).
    pub k_min: u64,
    /// Most modules.
    pub k_max: u64,
    /// Mass (`top_p`).
    pub p: f32,
    /// Lowest score (`threshold`).
    pub tau: f32,
    /// Module capacity.
    pub capacity_factor: f32,
    /// Gates sum to 1.
    pub norm_gates: bool,
    /// Cluster memory.
    pub memory: bool,
}

/// Whom tokens attend to.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// `clustered`, else `full`. The other keys count for `clustered` only.
    pub clustered: bool,
    /// Latest tokens.
    pub window: u64,
    /// First tokens.
    pub sinks: u64,
    /// Latest tokens of the same cluster.
    pub cluster_cap: u64,
}

/// Dynamic token router.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRouterConfig {
    /// d_r.
    pub hidden_size: u64,
    /// L_r.
    pub num_layers: u64,
    /// Heads; d_r / heads is the head size.
    pub num_heads: u64,
    /// Inner size of the MLP.
    pub intermediate_size: u64,
    /// Sees earlier tokens only.
    pub causal: bool,
    /// How many of them; 0: all.
    pub window: u64,
}

/// A whole `config.json`; fields are named as its keys.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the keys are the documentation's: docs and gem.md §5")]
pub struct GemConfig {
    pub head: HeadKind,
    pub is_causal: bool,
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    pub head_dim: u64,
    pub intermediate_size: u64,
    pub module_intermediate_size: u64,
    pub domain_names: Vec<String>,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub max_position_embeddings: u64,
    pub tie_word_embeddings: bool,
    pub num_labels: u64,
    pub scar: ScarConfig,
    pub attention: AttentionConfig,
    pub token_router: Option<TokenRouterConfig>,
}

/// Names of the heads in `architectures`.
const ARCHITECTURES: [(&str, HeadKind); 3] = [
    ("GemForCausalLM", HeadKind::CausalLm),
    ("GemForSequenceClassification", HeadKind::SequenceClassification),
    ("GemModel", HeadKind::Embedding),
];

const KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "is_causal",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "module_intermediate_size",
    "num_domains",
    "domain_names",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "tie_word_embeddings",
    "num_labels",
    "scar",
    "attention",
    "token_router",
];
const SCAR_KEYS: &[&str] = &[
    "num_clusters",
    "dim",
    "lambda",
    "policy",
    "k_min",
    "k_max",
    "p",
    "tau",
    "capacity_factor",
    "norm_gates",
    "memory",
];
const ATTENTION_KEYS: &[&str] = &["kind", "window", "sinks", "cluster_cap"];
const TOKEN_ROUTER_KEYS: &[&str] = &["hidden_size", "num_layers", "num_heads", "intermediate_size", "causal", "window"];

/// Largest layer count, and largest size of a hidden dimension.
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HIDDEN: u64 = 1 << 20;

impl GemConfig {
    /// Reads the text of a `config.json`.
    pub fn parse(text: &str) -> Result<GemConfig, ConfigError> {
        let value: Value = serde_json::from_str(text).map_err(|e| error("(file)", "a JSON object", e.to_string()))?;
        let o = Section::of("", &value, KEYS)?;
        o.word("model_type", &["gem"])?;
        let num_domains = o.int("num_domains", 1, limits::MAX_PER_TOKEN)?;
        let config = GemConfig {
            head: o.architecture()?,
            is_causal: o.flag("is_causal")?,
            vocab_size: o.int("vocab_size", 1, limits::MAX_COLS)?,
            hidden_size: o.int("hidden_size", 1, MAX_HIDDEN)?,
            num_hidden_layers: o.int("num_hidden_layers", 1, MAX_LAYERS)?,
            num_attention_heads: o.int("num_attention_heads", 1, MAX_LAYERS)?,
            num_key_value_heads: o.int("num_key_value_heads", 1, MAX_LAYERS)?,
            head_dim: o.int("head_dim", 1, MAX_LAYERS)?,
            intermediate_size: o.int("intermediate_size", 1, MAX_HIDDEN)?,
            module_intermediate_size: o.int("module_intermediate_size", 1, MAX_HIDDEN)?,
            domain_names: o.names("domain_names", num_domains)?,
            rms_norm_eps: o.float("rms_norm_eps", Bound::Above0)?,
            rope_theta: o.float("rope_theta", Bound::Above0)?,
            max_position_embeddings: o.int("max_position_embeddings", 1, limits::MAX_POSITIONS)?,
            tie_word_embeddings: o.flag("tie_word_embeddings")?,
            num_labels: o.int("num_labels", 0, limits::MAX_COLS)?,
            scar: scar(o.get("scar")?)?,
            attention: attention(o.get("attention")?)?,
            token_router: match o.get("token_router")? {
                Value::Null => None,
                value => Some(token_router(value)?),
            },
        };
        config.check_together()?;
        Ok(config)
    }

    /// D.
    pub fn num_domains(&self) -> u64 {
        self.domain_names.len() as u64
    }

    /// What no single key can tell.
    fn check_together(&self) -> Result<(), ConfigError> {
        let need = |ok: bool, key: &str, found: &dyn ToString, wanted: String| match ok {
            true => Ok(()),
            false => Err(error(key, wanted, found.to_string())),
        };
        let (s, a, hd, heads) = (&self.scar, &self.attention, self.head_dim, self.num_attention_heads);
        need(hd.is_multiple_of(2), "head_dim", &hd, "an even number (RoPE rotates halves)".into())?;
        let wanted = format!("a divisor of num_attention_heads = {heads}");
        need(heads.is_multiple_of(self.num_key_value_heads), "num_key_value_heads", &self.num_key_value_heads, wanted)?;
        let classifies = self.head == HeadKind::SequenceClassification;
        let wanted = "at least 1 for GemForSequenceClassification".into();
        need(!classifies || self.num_labels >= 1, "num_labels", &self.num_labels, wanted)?;
        let (c, d) = (s.num_clusters, self.num_domains());
        need(c >= d, "scar.num_clusters", &c, format!("at least num_domains = {d}"))?;
        need(s.k_max <= c, "scar.k_max", &s.k_max, format!("at most scar.num_clusters = {c}"))?;
        need(s.k_min <= s.k_max, "scar.k_min", &s.k_min, format!("at most scar.k_max = {}", s.k_max))?;
        let wanted = "full when is_causal is false".into();
        need(!a.clustered || self.is_causal, "attention.kind", &"clustered", wanted)?;
        need(!a.clustered || a.window >= 1, "attention.window", &a.window, "at least 1 when clustered".into())?;
        if let Some(t) = &self.token_router {
            let wanted = format!("a divisor of token_router.hidden_size = {}", t.hidden_size);
            need(t.hidden_size.is_multiple_of(t.num_heads), "token_router.num_heads", &t.num_heads, wanted)?;
            let head = t.hidden_size / t.num_heads;
            let wanted = format!("hidden_size / num_heads even (RoPE rotates halves), which is {head}");
            need(head.is_multiple_of(2), "token_router.num_heads", &t.num_heads, wanted)?;
            let wanted = "0 when token_router.causal is false".into();
            need(t.causal || t.window == 0, "token_router.window", &t.window, wanted)?;
        }
        Ok(())
    }

    /// Why tokens cannot be generated one at a time; `None` if they can.
    pub fn why_no_decode(&self) -> Option<String> {
        let architecture = ARCHITECTURES.iter().find(|(_, h)| *h == self.head).map_or("", |(name, _)| name);
        if self.head != HeadKind::CausalLm {
            Some(format!("architectures: wanted GemForCausalLM, found {architecture}, which has no next token"))
        } else if !self.is_causal {
            Some("is_causal: wanted true, found false: a token would attend to tokens not generated yet".into())
        } else if self.scar.policy.looks_across_tokens() {
            Some(format!(
                "scar.policy: wanted top_k, top_p or threshold, found {}, which picks modules only when the whole \
                 sequence is known",
                self.scar.policy.name()
            ))
        } else if self.token_router.as_ref().is_some_and(|t| !t.causal) {
            let why = "domains would depend on tokens not generated yet";
            Some(format!("token_router.causal: wanted true, found false: {why}"))
        } else {
            None
        }
    }

    /// The JSON that [`Self::parse`] reads back as this config.
    pub fn to_json(&self) -> String {
        let architecture = ARCHITECTURES.iter().find(|(_, h)| *h == self.head).map_or("", |(name, _)| name);
        let (s, a) = (&self.scar, &self.attention);
        let token_router = self.token_router.as_ref().map(|t| {
            json!({
                "hidden_size": t.hidden_size, "num_layers": t.num_layers, "num_heads": t.num_heads,
                "intermediate_size": t.intermediate_size, "causal": t.causal, "window": t.window,
            })
        });
        let value = json!({
            "model_type": "gem", "architectures": [architecture], "is_causal": self.is_causal,
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers, "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads, "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size, "module_intermediate_size": self.module_intermediate_size,
            "num_domains": self.num_domains(), "domain_names": self.domain_names,
            "rms_norm_eps": number(self.rms_norm_eps), "rope_theta": number(self.rope_theta),
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings, "num_labels": self.num_labels,
            "scar": {
                "num_clusters": s.num_clusters, "dim": s.dim, "lambda": number(s.lambda),
                "policy": s.policy.name(), "k_min": s.k_min, "k_max": s.k_max, "p": number(s.p),
                "tau": number(s.tau), "capacity_factor": number(s.capacity_factor), "norm_gates": s.norm_gates,
                "memory": s.memory,
            },
            "attention": {
                "kind": if a.clustered { "clustered" } else { "full" }, "window": a.window, "sinks": a.sinks,
                "cluster_cap": a.cluster_cap,
            },
            "token_router": token_router,
        });
        format!("{value:#}")
    }
}

/// The number with the shortest digits, not the f64 that the f32 happens to be: 0.9, not 0.8999999761581421.
fn number(x: f32) -> f64 {
    x.to_string().parse().expect("a printed float is a float")
}

fn scar(value: &Value) -> Result<ScarConfig, ConfigError> {
    let o = Section::of("scar.", value, SCAR_KEYS)?;
    Ok(ScarConfig {
        num_clusters: o.int("num_clusters", 1, limits::MAX_PER_TOKEN)?,
        dim: o.int("dim", 1, MAX_HIDDEN)?,
        lambda: o.float("lambda", Bound::From0)?,
        policy: {
            let word = o.word("policy", POLICIES)?;
            Policy::by_name(word).ok_or_else(|| error("scar.policy", POLICIES.join(", "), word))?
        },
        k_min: o.int("k_min", 0, limits::MAX_PER_TOKEN)?,
        k_max: o.int("k_max", 1, limits::MAX_PER_TOKEN)?,
        p: o.float("p", Bound::Above0To1)?,
        tau: o.float("tau", Bound::From0To1)?,
        capacity_factor: o.float("capacity_factor", Bound::Above0)?,
        norm_gates: o.flag("norm_gates")?,
        memory: o.flag("memory")?,
    })
}

fn attention(value: &Value) -> Result<AttentionConfig, ConfigError> {
    let o = Section::of("attention.", value, ATTENTION_KEYS)?;
    Ok(AttentionConfig {
        clustered: o.word("kind", &["full", "clustered"])? == "clustered",
        window: o.int("window", 0, limits::MAX_POSITIONS)?,
        sinks: o.int("sinks", 0, limits::MAX_POSITIONS)?,
        cluster_cap: o.int("cluster_cap", 0, limits::MAX_POSITIONS)?,
    })
}

fn token_router(value: &Value) -> Result<TokenRouterConfig, ConfigError> {
    let o = Section::of("token_router.", value, TOKEN_ROUTER_KEYS)?;
    Ok(TokenRouterConfig {
        hidden_size: o.int("hidden_size", 1, MAX_HIDDEN)?,
        num_layers: o.int("num_layers", 1, MAX_LAYERS)?,
        num_heads: o.int("num_heads", 1, MAX_LAYERS)?,
        intermediate_size: o.int("intermediate_size", 1, MAX_HIDDEN)?,
        causal: o.flag("causal")?,
        window: o.int("window", 0, limits::MAX_POSITIONS)?,
    })
}

fn error(key: impl Into<String>, wanted: impl Into<String>, found: impl Into<String>) -> ConfigError {
    ConfigError { key: key.into(), wanted: wanted.into(), found: found.into() }
}

/// What a number may be, all of them finite as f32.
#[derive(Clone, Copy)]
enum Bound {
    Above0,
    From0,
    Above0To1,
    From0To1,
}

/// One object of the file.
struct Section<'a> {
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// An object with no unknown key.
    fn of(prefix: &'static str, value: &'a Value, keys: &[&str]) -> Result<Self, ConfigError> {
        let name = if prefix.is_empty() { "(file)" } else { prefix.trim_end_matches('.') };
        let Value::Object(map) = value else { return Err(error(name, "an object", show(value))) };
        match map.keys().find(|k| !keys.contains(&k.as_str())) {
            Some(key) => {
                let key: String = key.chars().take(80).collect();
                Err(error(format!("{prefix}{key}"), format!("one of {}", keys.join(", ")), "this unknown key"))
            }
            None => Ok(Self { prefix, map }),
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn get(&self, key: &str) -> Result<&'a Value, ConfigError> {
        self.map.get(key).ok_or_else(|| error(self.key(key), "it to be present", "no such key"))
    }

    fn int(&self, key: &str, low: u64, high: u64) -> Result<u64, ConfigError> {
        let value = self.get(key)?;
        match value.as_u64() {
            Some(n) if (low..=high).contains(&n) => Ok(n),
            Some(_) | None => Err(error(self.key(key), format!("an integer of {low} to {high}"), show(value))),
        }
    }

    fn float(&self, key: &str, bound: Bound) -> Result<f32, ConfigError> {
        let value = self.get(key)?;
        // Values are f32 from here on; what overflows to infinity or vanishes to 0 there is not possible either.
        let x = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        let (wanted, ok): (&str, fn(f32) -> bool) = match bound {
            Bound::Above0 => ("a finite number of more than 0", |x| x > 0.0),
            Bound::From0 => ("a finite number of at least 0", |x| x >= 0.0),
            Bound::Above0To1 => ("a number of more than 0 and at most 1", |x| x > 0.0 && x <= 1.0),
            Bound::From0To1 => ("a number of 0 to 1", |x| (0.0..=1.0).contains(&x)),
        };
        match x {
            Some(x) if ok(x) => Ok(x),
            Some(_) | None => Err(error(self.key(key), wanted, show(value))),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        let value = self.get(key)?;
        value.as_bool().ok_or_else(|| error(self.key(key), "true or false", show(value)))
    }

    fn word(&self, key: &str, words: &[&'static str]) -> Result<&'static str, ConfigError> {
        let value = self.get(key)?;
        let found = value.as_str().and_then(|s| words.iter().copied().find(|w| *w == s));
        found.ok_or_else(|| error(self.key(key), format!("one of {}", words.join(", ")), show(value)))
    }

    fn architecture(&self) -> Result<HeadKind, ConfigError> {
        let value = self.get("architectures")?;
        let only = value.as_array().filter(|a| a.len() == 1).and_then(|a| a[0].as_str());
        let found = ARCHITECTURES.iter().find(|(name, _)| Some(*name) == only);
        found.map(|(_, head)| *head).ok_or_else(|| {
            let names = ARCHITECTURES.map(|(name, _)| name).join(", ");
            error(self.key("architectures"), format!("a list with one of {names}"), show(value))
        })
    }

    fn names(&self, key: &str, count: u64) -> Result<Vec<String>, ConfigError> {
        let value = self.get(key)?;
        let fail = || error(self.key(key), "a list of different, non-empty names", show(value));
        let list = value.as_array().ok_or_else(fail)?;
        if list.len() as u64 != count {
            let found = format!("{} names", list.len());
            return Err(error(self.key(key), format!("num_domains = {count} names"), found));
        }
        let mut out: Vec<String> = Vec::with_capacity(list.len());
        for name in list {
            let name = name.as_str().filter(|n| !n.is_empty() && !out.iter().any(|o| o == n)).ok_or_else(fail)?;
            out.push(name.into());
        }
        Ok(out)
    }
}

/// A value in a message, not too long.
fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

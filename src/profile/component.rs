//! Which part of a model a step belongs to, by the label and the op of its node.

/// Parts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The dynamic token router.
    TokenRouter,
    /// The sparse cross-attention router: scores, clusters, selection, grouping, gathering, cluster memory.
    Scar,
    /// Attention and its projections.
    Attention,
    /// The general path.
    General,
    /// The domain modules.
    Modules,
    /// Embedding.
    Embedding,
    /// Final rows, logits, pooling, classes.
    Head,
    /// Norms of the blocks.
    Norms,
}

/// Begin, middle or end of a label; the first row that fits decides.
enum Label {
    Is(&'static str),
    Begins(&'static str),
    Has(&'static str),
    Ends(&'static str),
    Op(&'static str),
}

const TABLE: &[(Label, Component)] = &[
    (Label::Begins("token_router"), Component::TokenRouter),
    (Label::Is("domains"), Component::TokenRouter),
    (Label::Begins("domains."), Component::TokenRouter),
    (Label::Op("route."), Component::Scar),
    (Label::Has(".scar."), Component::Scar),
    (Label::Has(".memory"), Component::Scar),
    (Label::Op("expert."), Component::Modules),
    (Label::Has(".modules"), Component::Modules),
    (Label::Has(".general"), Component::General),
    (Label::Ends("_norm"), Component::Norms),
    (Label::Has(".attn"), Component::Attention),
    (Label::Ends(".projections"), Component::Attention),
    (Label::Begins("embed"), Component::Embedding),
];

impl Component {
    /// The part that a node belongs to; what no row fits is the head.
    pub fn of(label: &str, op: &str) -> Component {
        let fits = |row: &Label| match row {
            Label::Is(text) => label == *text,
            Label::Begins(text) => label.starts_with(text),
            Label::Has(text) => label.contains(text),
            Label::Ends(text) => label.ends_with(text),
            Label::Op(text) => op.starts_with(text),
        };
        TABLE.iter().find(|(row, _)| fits(row)).map_or(Component::Head, |(_, component)| *component)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Component::TokenRouter => "token router",
            Component::Scar => "cluster router",
            Component::Attention => "attention",
            Component::General => "general path",
            Component::Modules => "modules",
            Component::Embedding => "embedding",
            Component::Head => "head",
            Component::Norms => "norms",
        }
    }
}

/// The layer in a label such as `layers.3.modules`.
pub fn layer(label: &str) -> Option<usize> {
    label.strip_prefix("layers.")?.split('.').next()?.parse().ok()
}

/// The part that the cluster router's query has in the merged projections of a layer, by columns.
#[derive(Clone, Copy, Debug)]
pub struct ScarQuery {
    part: f64,
}

impl ScarQuery {
    /// From a model's `config.json`.
    pub fn of(config: &str) -> ScarQuery {
        let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0) as f64;
        let query = number(&config["scar"]["dim"]);
        let heads = number(&config["num_attention_heads"]) + 2.0 * number(&config["num_key_value_heads"]);
        let all = query + heads * number(&config["head_dim"]);
        ScarQuery { part: if all > 0.0 { query / all } else { 0.0 } }
    }

    /// Its part of a step's work.
    pub fn part_of(self, label: &str) -> f64 {
        if layer(label).is_some() && label.ends_with(".projections") { self.part } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_a_gem_belong_where_they_should() {
        for (label, op, component) in [
            ("token_router.layers.0.attn", "attn.range", Component::TokenRouter),
            ("token_router.norm", "rms_norm", Component::TokenRouter),
            ("domains", "softmax", Component::TokenRouter),
            ("embed", "embed", Component::Embedding),
            ("layers.0.attn_norm", "rms_norm", Component::Norms),
            ("layers.0.projections", "linear", Component::Attention),
            ("layers.0.attn.q.rope", "rope", Component::Attention),
            ("layers.0.attn.cluster", "route.cluster", Component::Scar),
            ("layers.0.scar.query", "linear", Component::Scar),
            ("layers.0.modules.group", "route.group", Component::Scar),
            ("layers.0.modules", "expert.ffn", Component::Modules),
            ("layers.0.memory.proj", "linear", Component::Scar),
            ("layers.0.general.down", "linear", Component::General),
            ("norm", "rms_norm", Component::Head),
            ("logits", "linear", Component::Head),
        ] {
            assert_eq!(Component::of(label, op), component, "{label}");
        }
        assert_eq!(layer("layers.12.modules"), Some(12));
        assert_eq!(layer("token_router.layers.0"), None);
    }

    #[test]
    fn the_query_has_its_columns_part_of_merged_projections() {
        let config = r#"{"scar": {"dim": 32}, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}"#;
        let query = ScarQuery::of(config);
        assert_eq!(query.part_of("layers.1.projections"), 32.0 / 352.0);
        assert_eq!(query.part_of("layers.1.attn.o"), 0.0);
        assert_eq!(ScarQuery::of("").part_of("layers.1.projections"), 0.0);
    }
}

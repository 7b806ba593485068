//! `config.json`: each key missing, unknown, of a wrong type, impossible. Every error names the key.

use lapidary_compiler::import::{GemConfig, preset_config, tensors};
use serde_json::{Value, json};

fn valid() -> Value {
    serde_json::from_str(&preset_config("gem-tiny").unwrap().to_json()).unwrap()
}

/// The value at `a` or `a.b`.
fn at<'v>(config: &'v mut Value, key: &str) -> &'v mut Value {
    key.split('.').fold(config, |v, part| &mut v[part])
}

fn all_keys() -> Vec<String> {
    let config = valid();
    let mut out = Vec::new();
    for (key, value) in config.as_object().unwrap() {
        out.push(key.clone());
        if let Value::Object(section) = value {
            out.extend(section.keys().map(|k| format!("{key}.{k}")));
        }
    }
    out
}

/// What parsing (and then listing the tensors) says.
fn error_of(config: &Value) -> String {
    let parsed = GemConfig::parse(&config.to_string());
    match parsed.and_then(|config| tensors(&config).map(|_| ())) {
        Err(error) => error.to_string(),
        Ok(()) => panic!("no error in {config}"),
    }
}

fn assert_names(error: &str, key: &str) {
    let start = format!("config.json: {key}: wanted ");
    assert!(error.starts_with(&start) && error.contains(", found "), "wanted `{start}…`, found `{error}`");
}

#[test]
fn valid_config_is_accepted() {
    GemConfig::parse(&valid().to_string()).unwrap();
}

#[test]
fn each_key_is_needed() {
    for key in all_keys() {
        let mut config = valid();
        let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let object = if section.is_empty() { &mut config } else { at(&mut config, section) };
        object.as_object_mut().unwrap().remove(name);
        let error = error_of(&config);
        assert_names(&error, &key);
        assert!(error.ends_with("wanted it to be present, found no such key"), "{error}");
    }
}

#[test]
fn unknown_keys_are_named() {
    for section in ["", "scar", "attention", "token_router"] {
        let mut config = valid();
        let object = if section.is_empty() { &mut config } else { at(&mut config, section) };
        object.as_object_mut().unwrap().insert("bias".into(), json!(true));
        let key = if section.is_empty() { "bias".into() } else { format!("{section}.bias") };
        let error = error_of(&config);
        assert_names(&error, &key);
        assert!(error.ends_with("found this unknown key"), "{error}");
    }
}

#[test]
fn no_key_takes_another_type() {
    for key in all_keys() {
        for wrong in [json!({}), json!([1]), json!("x"), json!(-1), json!(1.5e300), json!(null)] {
            if key == "token_router" && wrong.is_null() {
                continue;
            }
            let mut config = valid();
            *at(&mut config, &key) = wrong;
            let error = error_of(&config);
            // An empty section misses its first key instead.
            let sections = ["scar", "attention", "token_router"];
            if !sections.contains(&key.as_str()) {
                assert_names(&error, &key);
            }
        }
    }
}

#[test]
fn impossible_values_are_named() {
    let cases = [
        ("model_type", json!("llama")),
        ("architectures", json!([])),
        ("architectures", json!(["GemForCausalLM", "GemModel"])),
        ("architectures", json!(["LlamaForCausalLM"])),
        ("is_causal", json!(0)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1u64 << 60)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(64.0)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(8)),
        ("head_dim", json!(15)),
        ("intermediate_size", json!(0)),
        ("module_intermediate_size", json!(0)),
        ("num_domains", json!(0)),
        ("domain_names", json!(["a", "b", "c"])),
        ("domain_names", json!(["a", "b", "c", "a"])),
        ("domain_names", json!(["a", "b", "c", ""])),
        ("domain_names", json!(["a", "b", "c", 4])),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(1e-60)),
        ("rms_norm_eps", json!(-1e-6)),
        ("rope_theta", json!(0.0)),
        ("rope_theta", json!(1e39)),
        ("max_position_embeddings", json!(0)),
        ("num_labels", json!(-1)),
        ("scar.num_clusters", json!(3)),
        ("scar.num_clusters", json!(5000)),
        ("scar.dim", json!(0)),
        ("scar.lambda", json!(-0.5)),
        ("scar.policy", json!("top_q")),
        ("scar.k_max", json!(0)),
        ("scar.k_max", json!(9)),
        ("scar.k_min", json!(4)),
        ("scar.p", json!(0)),
        ("scar.p", json!(1.01)),
        ("scar.tau", json!(-0.1)),
        ("scar.tau", json!(1.5)),
        ("scar.capacity_factor", json!(0)),
        ("attention.kind", json!("sparse")),
        ("attention.window", json!(0)),
        ("attention.sinks", json!(-1)),
        ("attention.cluster_cap", json!(0.5)),
        ("token_router.hidden_size", json!(0)),
        ("token_router.num_heads", json!(3)),
        ("token_router.num_heads", json!(32)),
        ("token_router.num_layers", json!(0)),
        ("token_router.window", json!(-4)),
    ];
    for (key, value) in cases {
        let mut config = valid();
        *at(&mut config, key) = value;
        assert_names(&error_of(&config), key);
    }
}

#[test]
fn values_that_exclude_each_other_are_named() {
    let cases: [(&[(&str, Value)], &str); 5] = [
        (&[("is_causal", json!(false))], "attention.kind"),
        (&[("token_router.causal", json!(false))], "token_router.window"),
        (&[("architectures", json!(["GemForSequenceClassification"]))], "num_labels"),
        (&[("num_attention_heads", json!(4096)), ("head_dim", json!(4098))], "head_dim"),
        (&[("scar.num_clusters", json!(4096)), ("num_hidden_layers", json!(4096))], "num_hidden_layers"),
    ];
    for (changes, key) in cases {
        let mut config = valid();
        changes.iter().for_each(|(k, v)| *at(&mut config, k) = v.clone());
        assert_names(&error_of(&config), key);
    }
}

#[test]
fn sizes_whose_product_is_too_large_are_an_error() {
    let mut config = valid();
    *at(&mut config, "hidden_size") = json!(1 << 20);
    *at(&mut config, "vocab_size") = json!(1 << 24);
    let error = error_of(&config);
    assert!(error.contains("sizes of model.embed_tokens.weight"), "{error}");
    let mut config = valid();
    *at(&mut config, "num_attention_heads") = json!(4096);
    *at(&mut config, "num_key_value_heads") = json!(4096);
    *at(&mut config, "head_dim") = json!(4096);
    assert_names(&error_of(&config), "num_attention_heads");
}

#[test]
fn text_that_is_no_object_is_an_error() {
    for text in ["", "{", "[]", "null", "{\"model_type\": \"gem\"}x", "{\"a\": 1e999}"] {
        let error = GemConfig::parse(text).unwrap_err().to_string();
        assert!(error.starts_with("config.json: "), "{text}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert!(GemConfig::parse(&deep).is_err());
}

#[test]
fn what_keeps_a_model_from_decoding_is_said() {
    let why = |changes: &[(&str, Value)]| {
        let mut config = valid();
        changes.iter().for_each(|(k, v)| *at(&mut config, k) = v.clone());
        GemConfig::parse(&config.to_string()).unwrap().why_no_decode()
    };
    assert_eq!(why(&[]), None);
    assert_eq!(why(&[("token_router", Value::Null)]), None);
    let starts =
        |why: Option<String>, start: &str| assert!(why.as_ref().is_some_and(|w| w.starts_with(start)), "{why:?}");
    starts(why(&[("architectures", json!(["GemModel"]))]), "architectures: ");
    starts(why(&[("is_causal", json!(false)), ("attention.kind", json!("full"))]), "is_causal: ");
    starts(why(&[("scar.policy", json!("expert_choice"))]), "scar.policy: ");
    starts(why(&[("scar.policy", json!("bidirectional"))]), "scar.policy: ");
    let router = [("token_router.causal", json!(false)), ("token_router.window", json!(0))];
    starts(why(&router), "token_router.causal: ");
}

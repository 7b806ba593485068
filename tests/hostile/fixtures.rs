//! Small good files, made here: what damage begins with, and the seeds of the fuzz targets.

use std::path::Path;

use lapidary_compiler::import::{GemConfig, tensors};
use ndarray::{Array1, Array2};
use ndarray_npy::{NpzWriter, WriteNpyExt};

use crate::mutate::Random;

/// What the tiny models differ in.
pub struct Variant {
    /// `architectures`.
    pub architecture: &'static str,
    /// `scar.policy`.
    pub policy: &'static str,
    /// `attention.kind`.
    pub attention: &'static str,
    /// `token_router`.
    pub router: &'static str,
}

const CAUSAL_ROUTER: &str = r#"{"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 5,
    "causal": true, "window": 3}"#;
const BIDIRECTIONAL_ROUTER: &str = r#"{"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 5,
    "causal": false, "window": 0}"#;

/// Every policy, both kinds of attention, all heads and routers.
pub const VARIANTS: &[Variant] = &[
    Variant { architecture: "GemForCausalLM", policy: "top_p", attention: "clustered", router: CAUSAL_ROUTER },
    Variant { architecture: "GemForCausalLM", policy: "top_k", attention: "full", router: "null" },
    Variant { architecture: "GemForCausalLM", policy: "threshold", attention: "clustered", router: "null" },
    Variant {
        architecture: "GemForSequenceClassification",
        policy: "expert_choice",
        attention: "full",
        router: BIDIRECTIONAL_ROUTER,
    },
    Variant { architecture: "GemModel", policy: "bidirectional", attention: "clustered", router: CAUSAL_ROUTER },
];

/// Tokens of the tiny models.
pub const VOCAB: u32 = 11;
/// Their longest sequence.
pub const MAX_TOKENS: usize = 12;

/// `config.json` of a tiny model.
pub fn config(variant: &Variant) -> String {
    let Variant { architecture, policy, attention, router } = variant;
    format!(
        r#"{{
  "model_type": "gem", "architectures": ["{architecture}"], "is_causal": true, "vocab_size": {VOCAB},
  "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
  "intermediate_size": 9, "module_intermediate_size": 3, "num_domains": 2, "domain_names": ["law", "größe"],
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": {MAX_TOKENS},
  "tie_word_embeddings": false, "num_labels": 3,
  "scar": {{
    "num_clusters": 5, "dim": 3, "lambda": 0.5, "policy": "{policy}", "k_min": 1, "k_max": 3, "p": 0.6, "tau": 0.2,
    "capacity_factor": 0.75, "norm_gates": true, "memory": true
  }},
  "attention": {{"kind": "{attention}", "window": 4, "sinks": 1, "cluster_cap": 2}},
  "token_router": {router}
}}
"#
    )
}

/// A safetensors file with every tensor of a config: a third each F32, F16 and BF16, and the length of its header.
pub fn safetensors(config: &str) -> (Vec<u8>, usize) {
    let config = GemConfig::parse(config).expect("a good config");
    let mut random = Random(1);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (i, spec) in tensors(&config).expect("small tensors").iter().enumerate() {
        let (begin, name) = (data.len(), ["F32", "F16", "BF16"][i % 3]);
        for _ in 0..spec.elems() {
            let x = (random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
            match name {
                "F32" => data.extend(x.to_le_bytes()),
                // ±0.5 and ±0.25 in half precision; f32's upper half is bfloat16.
                "F16" => data.extend([0, if x > 0.0 { 0x38 } else { 0xb4 }]),
                _ => data.extend(&x.to_le_bytes()[2..]),
            }
        }
        let entry = serde_json::json!({"dtype": name, "shape": spec.shape, "data_offsets": [begin, data.len()]});
        header.insert(spec.name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(&header);
    file.extend(data);
    (file, 8 + header.len())
}

/// Writes a tiny model's folder.
pub fn write_model(folder: &Path, variant: &Variant) {
    let config = config(variant);
    std::fs::write(folder.join("model.safetensors"), safetensors(&config).0).expect("a writable folder");
    std::fs::write(folder.join("config.json"), config).expect("a writable folder");
}

/// Tokenizers of every kind of model, normalizer, pre-tokenizer, post-processor and decoder.
pub fn tokenizers() -> Vec<String> {
    let letters = |extra: &[&str]| {
        let mut vocab = serde_json::Map::new();
        for token in extra.iter().map(|s| s.to_string()).chain(('a'..='h').map(String::from)) {
            let id = vocab.len();
            vocab.insert(token, id.into());
        }
        serde_json::Value::Object(vocab)
    };
    let bpe = letters(&["<|endoftext|>", "Ġ", "ab", "Ġc", "cd", "<0x0A>", "<unk>"]);
    let pieces = letters(&["[UNK]", "[CLS]", "[SEP]", "##a", "##bc", "abc"]);
    let added = r#"{"id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}"#;
    let file = |added: &str, normalizer: &str, pre: &str, post: &str, decoder: &str, model: &str| {
        format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{added}],
 "normalizer": {normalizer}, "pre_tokenizer": {pre}, "post_processor": {post}, "decoder": {decoder},
 "model": {model}}}"#
        )
    };
    let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#;
    vec![
        file(
            added,
            "null",
            byte_level,
            "null",
            byte_level,
            &format!(
                r#"{{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {bpe},
   "merges": ["a b", "Ġ c", "c d"]}}"#
            ),
        ),
        file(
            "",
            r#"{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
   "lowercase": true}"#,
            r#"{"type": "BertPreTokenizer"}"#,
            r###"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
   {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
   {"Sequence": {"id": "B", "type_id": 1}}],
   "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}}}"###,
            r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###,
            &format!(
                r###"{{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
   "max_input_chars_per_word": 100, "vocab": {pieces}}}"###
            ),
        ),
        file(
            "",
            r#"{"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern":
   {"Regex": " {2,}"}, "content": " "}, {"type": "Prepend", "prepend": "_"}, {"type": "Strip", "strip_left": true,
   "strip_right": true}]}"#,
            r#"{"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true}"#,
            "null",
            r#"{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "},
   {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#,
            r#"{"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["_", -1.5], ["a", -2.0], ["b", -2.5],
   ["ab", -1.0], ["_c", -3.0], ["d", -2.25]], "byte_fallback": false}"#,
        ),
        file(
            "",
            r#"{"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"},
   {"type": "Lowercase"}]}"#,
            r#"{"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\w+|[^\\w\\s]+(?=b)"},
   "behavior": "Isolated", "invert": false}, {"type": "Digits", "individual_digits": true},
   {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "FixedLength", "length": 3}]}"#,
            r#"{"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}"#,
            r#"{"type": "BPEDecoder", "suffix": "</w>"}"#,
            &format!(r#"{{"type": "WordLevel", "vocab": {pieces}, "unk_token": "[UNK]"}}"#),
        ),
        file(
            "",
            "null",
            r#"{"type": "CharDelimiterSplit", "delimiter": " "}"#,
            r#"{"type": "RobertaProcessing", "sep": ["b", 2], "cls": ["c", 1], "trim_offsets": true,
   "add_prefix_space": true}"#,
            r#"{"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true}"#,
            &format!(r#"{{"type": "WordLevel", "vocab": {bpe}, "unk_token": "<unk>"}}"#),
        )
        .replace(
            r#""truncation": null, "padding": null"#,
            r#""truncation": {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 1},
 "padding": {"strategy": {"Fixed": 4}, "direction": "Left", "pad_to_multiple_of": 2, "pad_id": 0, "pad_type_id": 0,
   "pad_token": "a"}"#,
        ),
    ]
}

/// Token ids.
pub fn npy() -> Vec<u8> {
    let mut out = Vec::new();
    Array1::from(vec![1_i64, 2, 3, 10, 0]).write_npy(&mut out).expect("memory");
    out
}

/// Reference outputs of two prompts, some arrays in the order of columns; stored, and compressed.
pub fn npz() -> Vec<Vec<u8>> {
    let memory = || std::io::Cursor::new(Vec::new());
    [NpzWriter::new(memory()), NpzWriter::new_compressed(memory())].map(reference_outputs).into()
}

fn reference_outputs(mut npz: NpzWriter<std::io::Cursor<Vec<u8>>>) -> Vec<u8> {
    let matrix = |cols: usize| Array2::from_shape_fn((3, cols), |(row, col)| (row + col) as f32 / 7.0);
    for prompt in ["prompt.000", "prompt.001"] {
        let mut add =
            |name: &str, array: &dyn Fn(&mut NpzWriter<_>, String)| array(&mut npz, format!("{prompt}.{name}"));
        add("ids", &|npz, name| npz.add_array(name, &Array1::from(vec![1_i64, 2, 3])).expect("memory"));
        add("greedy", &|npz, name| npz.add_array(name, &Array1::from(vec![1_i64, 2])).expect("memory"));
        add("greedy_margin", &|npz, name| npz.add_array(name, &Array1::from(vec![0.5_f32, 2.0])).expect("memory"));
        add("logits_rows", &|npz, name| npz.add_array(name, &Array1::from(vec![0_i64, 2, 1])).expect("memory"));
        add("logits", &|npz, name| npz.add_array(name, &matrix(5)).expect("memory"));
        add("scores.0", &|npz, name| npz.add_array(name, &matrix(4).reversed_axes().reversed_axes()).expect("memory"));
        add("modules.0", &|npz, name| npz.add_array(name, &Array2::<u8>::ones((3, 4))).expect("memory"));
        add("gates.0", &|npz, name| {
            npz.add_array(name, &Array2::<f32>::zeros((4, 3)).reversed_axes()).expect("memory")
        });
    }
    npz.finish().expect("memory").into_inner()
}

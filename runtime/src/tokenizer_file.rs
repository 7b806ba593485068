//! `tokenizer.json`, held to bounds before the library for it sees it.
//!
//! The library trusts its files: steps that lengthen text can be chained until memory ends, padding can have any length,
//! a regular expression may need any memory. Here every step's type must be known, and what all of them together may
//! make of a text is bounded. What passes is written anew, so that the library reads exactly what was checked.

use std::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// How much longer all steps together may make a text.
const MAX_GROWTH: f64 = 65536.0;
/// Steps of a section, those of sequences included.
const MAX_STEPS: usize = 64;
/// Tokens that post-processing may add to a text.
const MAX_ADDED_IDS: usize = 1024;
/// Longest fixed length that a text may be padded to.
const MAX_PADDING: u64 = 1 << 14;
/// Bytes of all regular expressions together.
const MAX_PATTERN_BYTES: usize = 2048;
/// Memory of a part of a compiled regular expression.
const MAX_PATTERN_MEMORY_BYTES: usize = 1 << 20;

/// The keys of the file; those not listed are an error, as are keys that occur twice.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    #[serde(default, skip_serializing_if = "Value::is_null")]
    version: Value,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    added_tokens: Option<&'a RawValue>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// How much longer a step makes a text.
#[derive(Clone, Copy)]
enum Growth {
    /// At most so many times.
    Times(f64),
    /// As its pattern and content say.
    Replacement,
    /// By ids, see [`added_ids`].
    Ids,
}

/// Types of steps. Unicode's normal forms grow a text once, however often they are applied.
const STEPS: &[(&str, Growth)] = &[
    ("Sequence", Growth::Times(1.0)),
    ("BPEDecoder", Growth::Times(1.0)),
    ("Bert", Growth::Times(3.0)),
    ("BertNormalizer", Growth::Times(3.0)),
    ("BertPreTokenizer", Growth::Times(1.0)),
    ("BertProcessing", Growth::Ids),
    ("ByteFallback", Growth::Times(1.0)),
    ("ByteLevel", Growth::Times(2.0)),
    ("CTC", Growth::Times(1.0)),
    ("CharDelimiterSplit", Growth::Times(1.0)),
    ("Digits", Growth::Times(1.0)),
    ("FixedLength", Growth::Times(1.0)),
    ("Fuse", Growth::Times(1.0)),
    ("Lowercase", Growth::Times(1.0)),
    ("Metaspace", Growth::Times(3.0)),
    ("NFC", Growth::Times(1.0)),
    ("NFD", Growth::Times(1.0)),
    ("NFKC", Growth::Times(1.0)),
    ("NFKD", Growth::Times(1.0)),
    ("Nmt", Growth::Times(1.0)),
    ("Precompiled", Growth::Times(16.0)),
    ("Prepend", Growth::Times(2.0)),
    ("Punctuation", Growth::Times(1.0)),
    ("Replace", Growth::Replacement),
    ("RobertaProcessing", Growth::Ids),
    ("Split", Growth::Replacement),
    ("Strip", Growth::Times(1.0)),
    ("StripAccents", Growth::Times(1.0)),
    ("TemplateProcessing", Growth::Ids),
    ("UnicodeScripts", Growth::Times(1.0)),
    ("Whitespace", Growth::Times(1.0)),
    ("WhitespaceSplit", Growth::Times(1.0)),
    ("WordPiece", Growth::Times(2.0)),
];

/// Keys under which a sequence lists its steps.
const LISTS: [&str; 4] = ["normalizers", "pretokenizers", "processors", "decoders"];

/// Checks the bytes of a `tokenizer.json` and writes them anew. The message says what is wrong where.
pub(crate) fn checked(json: &[u8]) -> Result<Vec<u8>, String> {
    let file: File<'_> = serde_json::from_slice(json).map_err(|e| short(&e.to_string()))?;
    let mut patterns = 0;
    for (section, value) in [
        ("normalizer", &file.normalizer),
        ("pre_tokenizer", &file.pre_tokenizer),
        ("post_processor", &file.post_processor),
        ("decoder", &file.decoder),
    ] {
        let mut walk = Walk { steps: 0, growth: 1.0, ids: 0, patterns: &mut patterns };
        walk.step(value).map_err(|message| format!("{section}: {message}"))?;
    }
    padding(&file.padding)?;
    truncation(&file.truncation)?;
    serde_json::to_vec(&file).map_err(|e| e.to_string())
}

/// What the steps of a section come to.
struct Walk<'p> {
    steps: usize,
    growth: f64,
    ids: usize,
    patterns: &'p mut usize,
}

impl Walk<'_> {
    fn step(&mut self, step: &Value) -> Result<(), String> {
        if step.is_null() {
            return Ok(());
        }
        let name =
            step["type"].as_str().ok_or_else(|| format!("a step's type: wanted a name, found {}", show(step)))?;
        let Some((_, growth)) = STEPS.iter().find(|(known, _)| *known == name) else {
            return Err(format!("a step's type: wanted a known one, found {:?}", short(name)));
        };
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(format!("steps: wanted at most {MAX_STEPS}, found more"));
        }
        match growth {
            Growth::Times(times) => self.growth *= times,
            Growth::Replacement => self.growth *= self.replacement(step)?,
            Growth::Ids => self.ids += added_ids(step),
        }
        if self.growth > MAX_GROWTH {
            return Err(format!(
                "steps: wanted a text no more than {MAX_GROWTH} times as long, found {name} that makes it longer"
            ));
        }
        if self.ids > MAX_ADDED_IDS {
            return Err(format!("{name}: wanted at most {MAX_ADDED_IDS} added tokens, found more"));
        }
        for list in LISTS {
            for step in step[list].as_array().into_iter().flatten() {
                self.step(step)?;
            }
        }
        Ok(())
    }

    /// Every match, which may be empty, becomes the content.
    fn replacement(&mut self, step: &Value) -> Result<f64, String> {
        let content = step["content"].as_str().unwrap_or_default().len() as f64;
        if let Some(pattern) = step["pattern"]["String"].as_str().filter(|pattern| !pattern.is_empty()) {
            return Ok((content / pattern.len() as f64).max(1.0));
        }
        if let Some(pattern) = step["pattern"]["Regex"].as_str() {
            *self.patterns += pattern.len();
            if *self.patterns > MAX_PATTERN_BYTES {
                return Err(format!("patterns: wanted at most {MAX_PATTERN_BYTES} bytes in all, found more"));
            }
            let built = fancy_regex::RegexBuilder::new(pattern).delegate_size_limit(MAX_PATTERN_MEMORY_BYTES).build();
            built.map_err(|e| {
                format!("pattern {:?}: wanted a regular expression of moderate size, found: {e}", short(pattern))
            })?;
        }
        Ok(1.0 + content)
    }
}

/// Tokens that a post-processor adds to a text; a text that a template names twice is there twice.
fn added_ids(step: &Value) -> usize {
    let pieces = step["single"].as_array().into_iter().flatten();
    let ids = |piece: &Value| {
        let id = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
        step["special_tokens"][id]["ids"].as_array().map_or(MAX_ADDED_IDS / 8, Vec::len)
    };
    2 + pieces.map(ids).fold(0, usize::saturating_add)
}

fn padding(padding: &Value) -> Result<(), String> {
    let fixed = &padding["strategy"]["Fixed"];
    let wanted = |value: &Value, least: u64| {
        value.is_null() || value.as_u64().is_some_and(|n| (least..=MAX_PADDING).contains(&n))
    };
    if !wanted(fixed, 0) {
        return Err(format!("padding.strategy: wanted a length of at most {MAX_PADDING}, found {}", show(fixed)));
    }
    let multiple = &padding["pad_to_multiple_of"];
    match wanted(multiple, 1) {
        true => Ok(()),
        false => Err(format!("padding.pad_to_multiple_of: wanted 1 to {MAX_PADDING}, found {}", show(multiple))),
    }
}

fn truncation(truncation: &Value) -> Result<(), String> {
    if truncation.is_null() {
        return Ok(());
    }
    let (length, stride) = (&truncation["max_length"], &truncation["stride"]);
    match (length.as_u64(), stride.as_u64().or(stride.is_null().then_some(0))) {
        (Some(length), Some(stride)) if stride < length => Ok(()),
        _ => Err(format!("truncation: wanted a stride below max_length, found {} and {}", show(stride), show(length))),
    }
}

fn show(value: &Value) -> String {
    short(&value.to_string())
}

/// The begin of a text that an error quotes.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: &str, value: &str) -> String {
        format!(r#"{{"{key}": {value}, "model": {{"type": "WordLevel", "vocab": {{"a": 0}}, "unk_token": "a"}}}}"#)
    }

    #[track_caller]
    fn refused(json: &str, names: &str) {
        let message = checked(json.as_bytes()).expect_err("a bound");
        assert!(message.contains(names), "wanted `{names}` in {message}");
        assert!(message.len() < 1000);
    }

    fn sequence(list: &str, step: &str, count: usize) -> String {
        format!(r#"{{"type": "Sequence", "{list}": [{}]}}"#, std::vec![step; count].join(","))
    }

    #[test]
    fn usual_files_pass_and_hold_what_they_held() {
        let json = file("normalizer", r#"{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#);
        let again: Value = serde_json::from_slice(&checked(json.as_bytes()).expect("usual")).expect("JSON");
        let before: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&again["normalizer"], &again["model"]), (&before["normalizer"], &before["model"]));
    }

    #[test]
    fn text_that_would_grow_without_end_is_refused() {
        let double = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}"#;
        let growth = "65536 times";
        assert!(checked(file("normalizer", &sequence("normalizers", double, 16)).as_bytes()).is_ok());
        refused(&file("normalizer", &sequence("normalizers", double, 17)), growth);
        refused(&file("decoder", &sequence("decoders", double, 40)), growth);
        refused(&file("normalizer", &sequence("normalizers", r#"{"type": "ByteLevel"}"#, 17)), growth);
        let empty = r#"{"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}"#;
        refused(&file("normalizer", &sequence("normalizers", empty, 17)), growth);
        let nested =
            (0..17).fold(double.to_string(), |inner, _| sequence("normalizers", &format!("{inner},{double}"), 1));
        refused(&file("normalizer", &nested), growth);
        refused(&file("pre_tokenizer", &sequence("pretokenizers", r#"{"type": "Digits"}"#, 64)), "at most 64");
    }

    #[test]
    fn steps_are_known_by_their_type() {
        refused(&file("normalizer", r#"{"pattern": {"String": "a"}, "content": "aa"}"#), "type");
        refused(&file("decoder", r#"{"type": "Replaced"}"#), "Replaced");
        refused(&file("decoders", "null"), "decoders");
        refused(r#"{"model": {}, "model": {}}"#, "duplicate");
    }

    #[test]
    fn lengths_and_patterns_are_bounded() {
        let padding = |fixed: &str, multiple: &str| {
            file("padding", &format!(r#"{{"strategy": {{"Fixed": {fixed}}}, "pad_to_multiple_of": {multiple}}}"#))
        };
        assert!(checked(padding("512", "8").as_bytes()).is_ok());
        refused(&padding("1000000000000000000", "8"), "padding.strategy");
        refused(&padding("512", "0"), "pad_to_multiple_of");
        refused(&file("truncation", r#"{"max_length": 5, "stride": 5}"#), "stride");
        let split = |pattern: &str| {
            file("pre_tokenizer", &format!(r#"{{"type": "Split", "pattern": {{"Regex": "{pattern}"}}}}"#))
        };
        refused(&split(r"((\\w{100}){100}){100}"), "moderate size");
        refused(&split(&"a".repeat(3000)), "2048 bytes");
        refused(&split("(("), "regular expression");
        let piece = r#"{"SpecialToken": {"id": "x"}}"#;
        let ids = std::vec!["1"; 100].join(",");
        let template = format!(
            r#"{{"type": "TemplateProcessing", "single": [{}], "special_tokens": {{"x": {{"ids": [{ids}]}}}}}}"#,
            std::vec![piece; 100].join(",")
        );
        refused(&file("post_processor", &template), "added tokens");
    }
}

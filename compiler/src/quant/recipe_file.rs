//! Recipes as TOML.
//!
//! ```
//! use lapidary_compiler::quant::Recipe;
//! let text = "base = \"hybrid\"\nkv_cache = \"int8\"\n[weights]\n\"layers.0.modules.*\" = \"int8\"\n";
//! let recipe = Recipe::from_toml(text, "mine").unwrap();
//! assert_eq!(Recipe::from_toml(&recipe.to_toml(&[]), "mine").unwrap(), recipe);
//! ```

use std::fmt::Write;

use serde::Deserialize;

use super::recipe::{recipe_kv_name, recipe_name};
use super::{Builtin, Recipe, Rule};
use crate::ir::{Int4Group, KvStorage, Storage};

/// Most rules of a file: each is held against every weight.
const MAX_RULES: usize = 1000;
/// Longest name of a recipe, in characters: it goes into artifacts and tables.
const MAX_NAME_CHARS: usize = 100;

/// What is wrong with the text of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeFileError {
    /// No TOML, or not with the keys of a recipe. The message says where.
    #[error("recipe {recipe}: {message}")]
    Syntax {
        /// The recipe.
        recipe: String,
        /// Line, column and what is wrong there.
        message: String,
    },
    /// A value that is none of those that its key takes.
    #[error("recipe {recipe}: {key}: wanted {wanted}, found {found}")]
    Value {
        /// The recipe.
        recipe: String,
        /// The key or pattern.
        key: String,
        /// What would do.
        wanted: String,
        /// What is there.
        found: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    base: Option<String>,
    kv_cache: Option<String>,
    #[serde(default)]
    weights: toml::Table,
}

/// Names of storages in a recipe: `int4` is short for groups of 32.
fn storage_by_name(name: &str) -> Option<Storage> {
    match name {
        "int4" => Some(Storage::Int4(Int4Group::G32)),
        _ => Storage::ALL.into_iter().filter(|s| *s != Storage::Bf16).find(|s| recipe_name(*s) == name),
    }
}

impl Recipe {
    /// Reads a recipe; `name` is what it is called unless the text says otherwise.
    ///
    /// # Errors
    /// Text that is no TOML, an unknown key, an unknown format. Whether patterns match is known when there is a model.
    pub fn from_toml(text: &str, name: &str) -> Result<Recipe, RecipeFileError> {
        let file: File = toml::from_str(text).map_err(|e| RecipeFileError::Syntax {
            recipe: name.into(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let wrong = |key: &str, wanted: String, found: String| {
            Err(RecipeFileError::Value { recipe: name.into(), key: key.into(), wanted, found })
        };
        let name = file.name.as_deref().unwrap_or(name);
        if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
            let wanted = format!("1 to {MAX_NAME_CHARS} characters, none of them a control character");
            return wrong("name", wanted, format!("{} characters", name.chars().count()));
        }
        let base = match &file.base {
            None => Builtin::Hybrid,
            Some(found) => match Builtin::by_name(found) {
                Some(base) => base,
                None => {
                    let names = Builtin::ALL.map(Builtin::name).join(", ");
                    return wrong("base", format!("one of {names}"), found.clone());
                }
            },
        };
        let kv_cache = match &file.kv_cache {
            None => None,
            Some(found) => match KvStorage::ALL.into_iter().find(|s| recipe_kv_name(*s) == found) {
                Some(storage) => Some(storage),
                None => {
                    let names = KvStorage::ALL.map(recipe_kv_name).join(", ");
                    return wrong("kv_cache", format!("one of {names}"), found.clone());
                }
            },
        };
        if file.weights.len() > MAX_RULES {
            return wrong("weights", format!("at most {MAX_RULES} patterns"), file.weights.len().to_string());
        }
        let mut rules = Vec::with_capacity(file.weights.len());
        for (pattern, value) in &file.weights {
            match value.as_str().and_then(storage_by_name) {
                Some(storage) => rules.push(Rule { pattern: pattern.clone(), storage }),
                None => {
                    let names = "fp32, fp16, int8, int4 (groups of 32), int4:32, int4:64, int4:128";
                    return wrong(
                        &format!("weights.{pattern:?}"),
                        format!("one of {names}"),
                        value.as_str().unwrap_or(value.type_str()).to_owned(),
                    );
                }
            }
        }
        Ok(Recipe { name: name.into(), base, rules, kv_cache })
    }

    /// The recipe as a file that [`Self::from_toml`] reads back, after lines of comment.
    pub fn to_toml(&self, comment: &[String]) -> String {
        let mut out = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(out, "{text}").expect("writing to a string");
        for text in comment.iter().flat_map(|text| text.lines()) {
            line(format_args!("{}", format!("# {text}").trim_end()));
        }
        line(format_args!("name = {}", quoted(&self.name)));
        line(format_args!("base = {}", quoted(self.base.name())));
        if let Some(storage) = self.kv_cache {
            line(format_args!("kv_cache = {}", quoted(recipe_kv_name(storage))));
        }
        if !self.rules.is_empty() {
            line(format_args!("\n[weights]"));
        }
        // A key stands once in TOML: of rules with the same pattern the last decides, and stands where it stood.
        for (i, rule) in self.rules.iter().enumerate() {
            if !self.rules[i + 1..].iter().any(|later| later.pattern == rule.pattern) {
                line(format_args!("{} = {}", quoted(&rule.pattern), quoted(recipe_name(rule.storage))));
            }
        }
        out
    }
}

/// A string of TOML, which may also be a key.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => write!(out, "\\u{:04X}", c as u32).expect("writing to a string"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

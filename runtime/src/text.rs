//! Text in, text out.

use std::{
    boxed::Box,
    cell::Cell,
    error::Error,
    format,
    panic::{AssertUnwindSafe, catch_unwind},
    string::{String, ToString},
    thread_local,
    vec::Vec,
};

use lapidary_format::{Artifact, ManifestFlags, NO_INDEX};
use thiserror::Error;

use crate::{RunError, Sampler, Session, ShortText, tokenizer_file};

/// Name of the token that ends a text, when the manifest names none.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Why text cannot be turned into tokens or back, or not be generated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// The artifact has no tokenizer.
    #[error(
        "artifact: tokenizer, wanted one, found none\n\
         hint: compile the model from a folder with a tokenizer.json, or hand in ids"
    )]
    NoTokenizer,
    /// The tokenizer cannot be used.
    #[error("tokenizer: {doing}, found: {source}\nhint: is tokenizer.json one of Hugging Face tokenizers?")]
    Tokenizer {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The model cannot run the tokens.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The model does not end in logits.
    #[error("model: head, wanted one with logits, found {head}\nhint: `--text` runs models for classes and embeddings")]
    NoLogits {
        /// Its head.
        head: lapidary_format::Head,
    },
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is where a panic becomes a [`TextError`]: a panic hook need not speak of it.
pub fn panic_is_contained() -> bool {
    CONTAINED.get()
}

/// Calls the library, which panics on some broken files. A build whose panics abort ends here instead.
fn contained<T>(doing: &'static str, call: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, TextError> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(outer);
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("a tokenizer that contradicts itself ({})", text.unwrap_or("no reason given")).into())
    });
    result.map_err(|source| TextError::Tokenizer { doing, source: tokenizer_file::short(&source.to_string()).into() })
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_token: Option<u32>,
}

impl Tokenizer {
    /// The tokenizer in an artifact.
    pub fn of(artifact: &Artifact<'_>) -> Result<Self, TextError> {
        let json = artifact.tokenizer().ok_or(TextError::NoTokenizer)?;
        let mut this = Self::from_json(json)?;
        if artifact.manifest().end_token != NO_INDEX {
            this.end_token = Some(artifact.manifest().end_token);
        }
        Ok(this)
    }

    /// A tokenizer from the bytes of `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let checked = tokenizer_file::checked(json);
        let checked = checked.map_err(|message| TextError::Tokenizer { doing: "read", source: message.into() })?;
        let inner = contained("read", || tokenizers::Tokenizer::from_bytes(checked))?;
        let end_token = inner.token_to_id(END_OF_TEXT);
        Ok(Self { inner, end_token })
    }

    /// The token that ends a text.
    pub fn end_token(&self) -> Option<u32> {
        self.end_token
    }

    /// The ids of a text, with the special tokens that the tokenizer adds.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        contained("encode", || Ok(self.inner.encode_fast(text, true)?.get_ids().to_vec()))
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        contained("decode", || self.inner.decode(ids, true))
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Begins to decode a stream of tokens.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: 0 }
    }
}

/// Decodes tokens one by one. A character that spans tokens comes when it is complete.
#[derive(Clone, Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The tokens of the last piece, for what decoding makes of their neighbours, and those after it.
    ids: Vec<u32>,
    /// How many of them are the last piece.
    shown: usize,
}

impl TextStream<'_> {
    /// Adds a token and returns the text that is now complete, maybe none.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        self.ids.push(id);
        let text = self.unshown()?;
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(text)
    }

    /// The rest, where incomplete characters are replacement characters.
    pub fn finish(self) -> Result<String, TextError> {
        self.unshown()
    }

    fn unshown(&self) -> Result<String, TextError> {
        let shown = self.ids.get(..self.shown).unwrap_or_default();
        let before = self.tokenizer.decode(shown)?.len();
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(before..).unwrap_or_default().to_string())
    }
}

/// How long to generate.
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub max_new: usize,
    /// Whether the token that ends a text ends the generation.
    pub stop_at_end: bool,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// As many tokens as asked for.
    MaxNew,
    /// The sequence is as long as the model was compiled for.
    ContextLength,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens, without the one that ended the text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
}

/// What [`generate`] tells its caller.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A call of the model has ended.
    Called {
        /// The session, with the outputs of the call.
        session: &'a Session,
        /// Tokens of the call.
        ids: &'a [u32],
    },
    /// A new token, with the text that it completes; the rest of the text, if any, comes with no token.
    Text {
        /// The token.
        token: Option<u32>,
        /// Text, maybe empty.
        text: &'a str,
    },
}

/// Continues `prompt` in a new sequence and tells `progress` of every call and every token.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &str,
    options: GenerateOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Generated, TextError> {
    let manifest = *session.model().manifest();
    if !manifest.flags.contains(ManifestFlags::CAN_DECODE) {
        let why = ShortText::new(manifest.cannot_decode);
        return Err(RunError::CannotDecode { why }.into());
    }
    let (head, max_tokens) = (manifest.head, u64::from(manifest.max_tokens));
    let ids = tokenizer.encode(prompt)?;
    session.reset();
    session.prefill_with(&ids, None, &mut |session, ids| progress(Progress::Called { session, ids }))?;
    let mut stream = tokenizer.stream();
    let mut tokens = Vec::new();
    let stop = loop {
        if tokens.len() >= options.max_new {
            break Stop::MaxNew;
        }
        let logits = session.logits().ok_or(TextError::NoLogits { head })?;
        let token = sampler.sample(logits);
        if options.stop_at_end && tokenizer.end_token() == Some(token) {
            break Stop::EndOfText;
        }
        tokens.push(token);
        progress(Progress::Text { token: Some(token), text: &stream.push(token)? });
        if session.position() >= max_tokens {
            break Stop::ContextLength;
        }
        if tokens.len() < options.max_new {
            session.decode(token)?;
            progress(Progress::Called { session, ids: &[token] });
        }
    };
    let rest = stream.finish()?;
    if !rest.is_empty() {
        progress(Progress::Text { token: None, text: &rest });
    }
    Ok(Generated { prompt_tokens: ids.len(), tokens, stop })
}

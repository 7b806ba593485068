//! Tokenizer, streaming, generation.

mod common;

use std::sync::Arc;

use common::*;
use lapidary_format::*;
use lapidary_runtime::*;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(&tokenizer_json()).unwrap()
}

#[test]
fn text_becomes_ids_and_back() {
    let t = tokenizer();
    assert_eq!(t.encode("ab").unwrap(), [97, 98]);
    assert_eq!(t.encode("ü<|endoftext|>").unwrap(), [0xc3, 0xbc, 256]);
    assert_eq!(t.decode(&[97, 0xc3, 0xbc, 256]).unwrap(), "aü");
    assert_eq!(t.end_token(), Some(256));
    assert_eq!(t.token(97).as_deref(), Some("a"));
    let error = Tokenizer::from_json(b"{}").unwrap_err().to_string();
    assert!(error.starts_with("tokenizer: read, found: "), "{error}");
}

#[test]
fn streamed_text_comes_in_whole_characters() {
    let t = tokenizer();
    let text = "Grüße, 世界! 👩‍💻 naïve\n\u{fffd} end";
    let mut stream = t.stream();
    let mut streamed = String::new();
    for id in t.encode(text).unwrap() {
        let piece = stream.push(id).unwrap();
        assert!(piece.chars().count() <= 2 && text.contains(&piece), "{piece:?}");
        streamed += &piece;
    }
    streamed += &stream.finish().unwrap();
    assert_eq!(streamed, text);
}

#[test]
fn a_broken_character_at_the_end_is_flushed() {
    let t = tokenizer();
    let mut stream = t.stream();
    assert_eq!(stream.push(u32::from(b'a')).unwrap(), "a");
    assert_eq!(stream.push(0xe4).unwrap(), "");
    assert_eq!(stream.push(0xb8).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    let mut stream = t.stream();
    assert_eq!(stream.push(0xff).unwrap(), "");
    assert_eq!(stream.push(u32::from(b'b')).unwrap(), "\u{fffd}b");
    assert_eq!(stream.finish().unwrap(), "");
}

struct Run {
    session: Session,
    tokenizer: Tokenizer,
    _folder: tempfile::TempDir,
}

fn run(manifest: Manifest<'_>) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let mut b = toy(manifest);
    b.set_tokenizer(tokenizer_json());
    let model = Arc::new(Model::open(&file(folder.path(), &b)).unwrap());
    Run {
        tokenizer: Tokenizer::of(model.artifact()).unwrap(),
        session: Session::new(model, Arc::new(ThreadPool::new(2).unwrap())).unwrap(),
        _folder: folder,
    }
}

impl Run {
    fn generate(&mut self, prompt: &str, max_new: usize, stop_at_end: bool) -> Result<(Generated, String), TextError> {
        let mut text = String::new();
        let mut tokens = Vec::new();
        let options = GenerateOptions { max_new, stop_at_end };
        let mut called = Vec::new();
        let mut progress = |progress: Progress<'_>| match progress {
            Progress::Called { session, ids } => {
                called.extend_from_slice(ids);
                assert_eq!(session.position(), called.len() as u64);
            }
            Progress::Text { token, text: piece } => {
                tokens.extend(token);
                text += piece;
            }
        };
        let generated = generate(
            &mut self.session,
            &self.tokenizer,
            &mut Sampler::new(SamplerOptions::default()),
            prompt,
            options,
            &mut progress,
        )?;
        assert_eq!(generated.tokens, tokens);
        let new = called.len() - generated.prompt_tokens;
        assert_eq!(called[generated.prompt_tokens..], tokens[..new]);
        Ok((generated, text))
    }
}

#[test]
fn generation_streams_and_stops() {
    let mut run = run(manifest());
    let (generated, text) = run.generate("say a", 5, true).unwrap();
    assert_eq!((text.as_str(), generated.stop), ("bcdef", Stop::MaxNew));
    assert_eq!(generated.prompt_tokens, 5);
    let (generated, _) = run.generate("~", 1000, true).unwrap();
    assert_eq!((generated.tokens.len(), generated.stop), (129, Stop::EndOfText));
    let (generated, _) = run.generate("~", 1000, false).unwrap();
    assert_eq!(generated.stop, Stop::ContextLength);
    // The last token is drawn from the logits of the last position, and does not need one.
    assert_eq!(generated.tokens.len() as u32, MAX_TOKENS);
    let (generated, text) = run.generate("a", 0, true).unwrap();
    assert_eq!((generated.tokens.len(), text.as_str()), (0, ""));
}

#[test]
fn the_manifest_may_name_the_end() {
    let mut run = run(Manifest { end_token: u32::from(b'd'), ..manifest() });
    let (generated, text) = run.generate("a", 100, true).unwrap();
    assert_eq!((text.as_str(), generated.stop), ("bc", Stop::EndOfText));
}

#[test]
fn what_cannot_generate_says_why() {
    let mut whole = run(whole_sequence());
    let error = whole.generate("a", 1, true).unwrap_err().to_string();
    assert!(error.contains("expert_choice looks across tokens"), "{error}");
    let mut run = run(manifest());
    let error = run.generate("", 1, true).unwrap_err().to_string();
    assert!(error.contains("wanted at least 1, found 0"), "{error}");
    let bytes = bytes(&toy(manifest()));
    let artifact = Artifact::parse(bytes.as_ref()).unwrap();
    let error = Tokenizer::of(&artifact).unwrap_err().to_string();
    assert!(error.contains("artifact: tokenizer, wanted one, found none"), "{error}");
}

//! `ISA.md` says what the tables say. `LAPIDARY_BLESS=1` rewrites its generated part.

use std::fs;
use std::path::Path;

use lapidary_npu_isa::reference::{BEGIN, reference};

#[test]
fn isa_md_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ISA.md");
    let text = fs::read_to_string(&path).expect("ISA.md");
    let at = text.find(BEGIN).expect("ISA.md has the line behind which it is generated");
    let wanted = format!("{}{}", &text[..at], reference());
    if std::env::var_os("LAPIDARY_BLESS").is_some_and(|v| v == "1") {
        fs::write(&path, &wanted).expect("ISA.md is writable");
        return;
    }
    if let Some((n, (found, wanted))) = text.lines().zip(wanted.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("ISA.md, line {}: wanted {wanted:?}, found {found:?}; LAPIDARY_BLESS=1 rewrites it", n + 1);
    }
    assert_eq!(text.len(), wanted.len(), "ISA.md ends early or late; LAPIDARY_BLESS=1 rewrites it");
}

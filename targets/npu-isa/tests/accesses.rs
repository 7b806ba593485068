//! What instructions touch, against ranges that were worked out by hand.

use lapidary_npu_isa::access::has_work;
use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::{Reg, Registers};

fn registers() -> Registers {
    let mut regs = Registers::default();
    for (n, value) in [(1, 1000), (2, 3), (3, 500), (4, 2), (5, 4096), (6, 7), (7, 0), (8, -1)] {
        regs.set(Reg::new(n).expect("a register"), value);
    }
    regs
}

/// `operand kind memory begin..end`, streaming ones with `*`.
fn touched(text: &str) -> Vec<String> {
    let program = assemble(&format!("{text}\nhalt")).unwrap_or_else(|e| panic!("{e}"));
    let accesses = program.instructions[0].op.accesses(&registers());
    let accesses = accesses.unwrap_or_else(|f| panic!("{text}: {f:?}"));
    let star = |streams| if streams { "*" } else { "" };
    let show = |a: &lapidary_npu_isa::access::Access| {
        format!("{}{} {} {} {}..{}", a.operand, star(a.streams), a.kind.verb(), a.memory, a.begin, a.end())
    };
    accesses.iter().map(show).collect()
}

#[test]
fn ranges() {
    let cases: &[(&str, &[&str])] = &[
        // r2 = 3 rows at 500 bytes, r4 = 2 planes dense at 1500.
        (
            "load w[0], dram[r1+64], row_bytes=10, rows=r2, src_stride=r3, planes=r4, unpack",
            &["src reads dram 1064..3574", "dst writes w 0..120"],
        ),
        (
            "load.rows sp[0], dram[64], sp[32], bound=r6, row_bytes=100, rows=r2",
            &["index reads sp 32..44", "src reads dram 64..764", "dst writes sp 0..300"],
        ),
        ("store dram[0], sp[r1], row_bytes=r3, rows=r2", &["src reads sp 1000..2500", "dst writes dram 0..1500"]),
        (
            "store.add_rows dram[0], sp[0], sp[64], bound=r2, row_bytes=8",
            &["index reads sp 64..68", "src reads sp 0..8", "dst updates dram 0..24"],
        ),
        ("lds r9, sp[r1], max=1", &["src reads sp 1000..1004"]),
        ("m.preload i4, w[32], k=3, n=5", &["tile reads w 32..41"]),
        ("m.preload_scaled i8, w[32], w[64], k=3, n=5", &["tile reads w 32..47", "scales reads w 64..74"]),
        ("m.pass sp[0], acc[7], rows=4, k=16, a_stride=r3", &["a reads sp 0..1516", "acc writes acc 7..11"]),
        (
            "m.pass_scaled sp[0], acc[1], acc[7], rows=4, k=16, accumulate, append",
            &["a reads sp 0..64", "sums reads acc 1..5", "acc updates acc 7..11"],
        ),
        (
            "v.rescale sp[0], acc[2], sp[32], sp[64], cols=5, rows=r2, dst_type=f16",
            &["acc reads acc 2..5", "channels reads sp 32..52", "tokens reads sp 64..76", "dst* writes sp 0..30"],
        ),
        (
            "v.add sp[0], sp[32], sp[64], cols=5, rows=r2, a_type=i8, broadcast=column",
            &["a* reads sp 32..47", "b reads sp 64..76", "dst* writes sp 0..60"],
        ),
        (
            "v.add sp[0], sp[32], sp[64], cols=5, rows=r2, broadcast=row",
            &["a* reads sp 32..92", "b* reads sp 64..84", "dst* writes sp 0..60"],
        ),
        ("v.row_sum sp[0], sp[32], cols=5, rows=r2", &["a* reads sp 32..92", "dst writes sp 0..12"]),
        ("v.column_sum sp[0], sp[32], cols=5, rows=r2, a_type=f16", &["a* reads sp 32..62", "dst writes sp 0..20"]),
        (
            "v.rope sp[0], sp[256], sp[512], half=4, heads=r2, rows=r4",
            &["a* reads sp 256..448", "table reads sp 512..576", "dst* writes sp 0..192"],
        ),
        (
            "v.quantize sp[0], sp[32], sp[96], cols=5, rows=r2",
            &["a* reads sp 32..92", "dst* writes sp 0..15", "scales writes sp 96..108"],
        ),
        (
            "v.dot_rows sp[0], sp[32], sp[96], cols=4, rows=r2, b_rows=r6, b_type=f16",
            &["a* reads sp 32..80", "b* reads sp 96..152", "dst writes sp 0..84"],
        ),
        (
            "v.mix_rows sp[0], sp[96], sp[192], cols=4, rows=r2, b_rows=r6, accumulate",
            &["a reads sp 96..180", "b* reads sp 192..304", "dst* updates sp 0..48"],
        ),
        (
            "v.gather sp[0], sp[64], sp[32], bound=r6, row_bytes=10, rows=r2",
            &["index reads sp 32..44", "src* reads sp 64..134", "dst* writes sp 0..30"],
        ),
        (
            "v.scatter_add sp[0], sp[256], sp[32], sp[64], bound=r6, cols=r4, rows=r2",
            &["index reads sp 32..44", "gates reads sp 64..76", "src* reads sp 256..280", "dst* updates sp 0..56"],
        ),
        (
            "r.top_k sp[0], sp[64], sp[128], cols=4, k=r4, rows=r2",
            &["scores reads sp 128..176", "mask writes sp 0..12", "gates writes sp 64..112"],
        ),
        (
            "r.group sp[0], sp[128], sp[256], cols=4, most=r6, rows=r2",
            &["mask reads sp 256..268", "table writes sp 0..80", "list writes sp 128..156"],
        ),
        (
            "r.compact sp[0], sp[128], sp[256], cols=4, rows=r2",
            &["mask reads sp 128..140", "src reads sp 256..304", "dst writes sp 0..48"],
        ),
        ("r.append sp[0], token=r1, cap=r2", &["ring updates sp 0..16"]),
        (
            "r.admit sp[0], sp[32], sp[64], token=r1, window=r2, sinks=r4, cap=r6",
            &["ring reads sp 64..96", "list writes sp 0..48", "count writes sp 32..36"],
        ),
        (
            "r.admit sp[0], sp[32], sp[64], token=r2, window=r2, sinks=r4, cap=r6",
            &["ring reads sp 64..96", "list writes sp 0..16", "count writes sp 32..36"],
        ),
        ("r.iota sp[0], count=r2", &["dst writes sp 0..12"]),
    ];
    for (text, wanted) in cases {
        assert_eq!(touched(text), *wanted, "{text}");
    }
}

#[test]
fn faults() {
    for (text, wanted) in [
        ("v.fill sp[0], cols=1, value=r0, rows=r8", "dst: 0 to 2^48, -1"),
        ("v.fill sp[r8], cols=1, value=r0", "dst: 0 to 2^48, -1"),
        ("v.fill sp[r6], cols=1, value=r0", "dst: a multiple of 4, 7"),
        ("v.fill sp[0], cols=1, value=r0, rows=r2, dst_stride=r6", "dst: a multiple of 4, 7"),
        ("store.add_rows dram[0], sp[0], sp[64], bound=r2, row_bytes=6", "row_bytes: a multiple of 4, 6"),
        ("r.top_k sp[0], sp[64], sp[128], cols=4, k=r8", "k: 0 to 2^48, -1"),
        // Products and sums with other counts do not hide them.
        ("v.rope sp[0], sp[64], sp[128], half=0, heads=r8", "heads: 0 to 2^48, -1"),
        ("r.group sp[0], sp[64], sp[128], cols=0, rows=r8", "rows: 0 to 2^48, -1"),
        ("r.compact sp[0], sp[64], sp[128], cols=0, rows=r8", "rows: 0 to 2^48, -1"),
        ("r.append sp[0], token=r7, cap=r8", "cap: 0 to 2^48, -1"),
        ("r.admit sp[0], sp[64], sp[128], token=r7, window=r2, sinks=r2, cap=r8", "cap: 0 to 2^48, -1"),
    ] {
        let program = assemble(&format!("{text}\nhalt")).unwrap_or_else(|e| panic!("{e}"));
        let fault = program.instructions[0].op.accesses(&registers()).expect_err("a fault");
        assert_eq!(format!("{}: {}, {}", fault.operand, fault.wanted, fault.found), wanted, "{text}");
    }
}

/// Rule Q4.
#[test]
fn work() {
    for (text, wanted) in [
        ("v.fill sp[0], cols=1, value=r0, rows=r7", false),
        ("v.fill sp[0], cols=0, value=r0", false),
        ("v.row_sum sp[0], sp[32], cols=0", true),
        ("v.quantize sp[0], sp[32], sp[64], cols=0", true),
        ("m.pass sp[0], acc[0], rows=0, k=16", false),
        ("m.pass sp[0], acc[0], rows=1, k=0", true),
        ("m.preload i8, w[0], k=0, n=0", true),
        ("load sp[0], dram[0], row_bytes=0", false),
        ("store.rows dram[0], sp[0], sp[64], bound=r2, row_bytes=8, rows=r7", false),
        ("v.scatter_add sp[0], sp[256], sp[32], sp[64], bound=r6, cols=r4, rows=r7", false),
        ("r.group sp[0], sp[128], sp[256], cols=4, rows=r7", true),
        ("r.iota sp[0], count=r7", false),
    ] {
        let program = assemble(&format!("{text}\nhalt")).unwrap_or_else(|e| panic!("{e}"));
        let accesses = program.instructions[0].op.accesses(&registers()).expect("no fault");
        assert_eq!(has_work(&accesses), wanted, "{text}");
    }
}

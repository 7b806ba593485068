//! Rules D1 to D7 and B1 to B4: micro-benchmarks equal to arithmetic from the timing parameters.

mod common;

use common::{ideal, see};
use lapidary_npu_isa::{Machine, Queue};
use lapidary_simulator::Cause;

/// 1 GHz, so 1000 ps are a cycle; bursts of 64 bytes move in one. Rows of 16 bursts, 4 banks.
const TRCD: u64 = 10;
const TRP: u64 = 7;
const TCL: u64 = 5;
const TRAS: u64 = 30;
const SETUP: u64 = 3;
/// From the first request of an empty bank to its completion.
const FIRST: u64 = TRCD + TCL + 1;

fn machine(settings: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::preset("edge-32").unwrap();
    let base = [
        ("clock_mhz", "1000"),
        ("dma.burst_bytes", "64"),
        ("dma.setup_cycles", "3"),
        ("dma.outstanding", "4096"),
        ("dma.channels", "1"),
        ("dram.channels", "1"),
        ("dram.banks", "4"),
        ("dram.row_bytes", "1024"),
        ("dram.bus_bits", "64"),
        ("dram.rate_mts", "8000"),
        ("dram.trcd_ps", "10000"),
        ("dram.trp_ps", "7000"),
        ("dram.tcl_ps", "5000"),
        ("dram.tras_ps", "30000"),
        ("dram.trfc_ps", "0"),
        ("dram.trefi_ps", "0"),
    ];
    machine.set_all(base.into_iter().chain(settings.iter().copied())).unwrap();
    assert_eq!(machine.burst_ps(), 1000);
    machine
}

/// How long a load of so many bursts from address 0 takes.
fn stream(bursts: u64, machine: &Machine) -> u64 {
    let seen = see(&format!("li r1, {bursts}\nload sp[0], dram[0], row_bytes=64, rows=r1\nhalt"), machine);
    assert_eq!(seen.run.report.dram.requests, bursts);
    let (begin, end) = seen.at(1);
    assert_eq!(begin, 2);
    end - begin
}

#[test]
fn a_stream_moves_a_burst_per_cycle() {
    let machine = machine(&[]);
    for bursts in [1, 2, 15, 16, 17, 64] {
        // Banks that were closed open while earlier bursts move: 16 cycles a row, 10 to open one.
        assert_eq!(stream(bursts, &machine), SETUP + FIRST + bursts - 1, "{bursts}");
    }
    // Row 4 is the second of bank 0: closing the first is seen once, since requests run ahead of the bus from then on.
    for bursts in [65, 66, 80, 81, 128, 500] {
        assert_eq!(stream(bursts, &machine), SETUP + FIRST + bursts - 1 + TRP, "{bursts}");
    }
}

#[test]
fn opening_a_row_is_hidden_by_requests_that_run_ahead() {
    // Requests are made one per cycle, so the next row is asked for 16 cycles behind the first, whatever tRCD is.
    for trcd in [16, 17, 40] {
        let machine = machine(&[("dram.trcd_ps", &(trcd * 1000).to_string())]);
        assert_eq!(stream(17, &machine), SETUP + trcd + TCL + 1 + 16);
    }
    // With one request in flight nothing is hidden: each row costs tRCD.
    let machine = machine(&[("dma.outstanding", "1")]);
    let hit = TCL + 1;
    assert_eq!(stream(16, &machine), SETUP + FIRST + 15 * hit);
    assert_eq!(stream(17, &machine), SETUP + FIRST + 15 * hit + FIRST);
}

#[test]
fn d4_requests_in_flight_are_limited() {
    for outstanding in [1u64, 2, 5, 6, 7, 16] {
        let machine = machine(&[("dma.outstanding", &outstanding.to_string()), ("dram.row_bytes", "65536")]);
        // Hits take tCL + 1 = 6 cycles from request to completion. With 6 in flight and more the bus never waits.
        let bursts = 200;
        let mut made = Vec::new();
        let mut complete: Vec<u64> = Vec::new();
        for k in 0..bursts {
            let behind = (k >= outstanding).then(|| complete[(k - outstanding) as usize]);
            let earliest = made.last().map_or(SETUP, |last| last + 1);
            made.push(earliest.max(behind.unwrap_or(0)));
            let p = made[k as usize];
            complete.push(if k == 0 { p + FIRST } else { (p + TCL + 1).max(complete[k as usize - 1] + 1) });
        }
        assert_eq!(stream(bursts, &machine), complete[199], "{outstanding}");
        if outstanding >= 6 {
            assert_eq!(complete[199], SETUP + FIRST + 199);
        }
    }
}

#[test]
fn random_rows_of_a_bank_take_tras_and_trp_each() {
    let one_in_flight = machine(&[("dma.outstanding", "1")]);
    for rows in [1u64, 2, 3, 50] {
        let text =
            format!("li r1, {rows}\nli r2, 4096\nload sp[0], dram[0], row_bytes=64, rows=r1, src_stride=r2\nhalt");
        let seen = see(&text, &one_in_flight);
        let (begin, end) = seen.at(2);
        // The second request comes at 16 of the first row's 30 cycles of tRAS: row after row is held back by it.
        assert_eq!(end - begin, SETUP + FIRST + (rows - 1) * (TRAS + TRP), "{rows}");
        let dram = seen.run.report.dram;
        assert_eq!((dram.hits, dram.empties, dram.misses), (0, 1, rows - 1));
    }
    // The next request comes when the row has been open for tRCD + tCL + tB = 16: a tRAS of 16 adds nothing, each ps more does.
    for (tras, gap) in [(15, TRP + FIRST), (16, TRP + FIRST), (17, TRP + FIRST + 1), (24, TRP + FIRST + 8)] {
        let longer = machine(&[("dma.outstanding", "1"), ("dram.tras_ps", &(tras * 1000).to_string())]);
        let text = "li r1, 20\nli r2, 4096\nload sp[0], dram[0], row_bytes=64, rows=r1, src_stride=r2\nhalt";
        let (begin, end) = see(text, &longer).at(2);
        assert_eq!(end - begin, SETUP + FIRST + 19 * gap, "{tras}");
    }
}

#[test]
fn a_stride_moves_whole_bursts() {
    let machine = machine(&[]);
    // 32 bytes at a distance of 1024: each a burst of another row and bank.
    let text = "li r1, 4\nli r2, 1024\nload sp[0], dram[0], row_bytes=32, rows=r1, src_stride=r2\nhalt";
    let seen = see(text, &machine);
    assert_eq!(seen.at(2).1 - seen.at(2).0, SETUP + FIRST + 3);
    assert_eq!(seen.run.report.total.dram_read_bytes, 4 * 64);
    assert_eq!(seen.run.report.total.dram_used_bytes, 4 * 32);
    // Rows that begin in the middle of a burst are two requests.
    let text = "li r3, 48\nload sp[0], dram[r3], row_bytes=32\nhalt";
    assert_eq!(see(text, &machine).run.report.dram.requests, 2);
    let text = "li r3, 32\nload sp[0], dram[r3], row_bytes=32\nhalt";
    assert_eq!(see(text, &machine).run.report.dram.requests, 1);
}

#[test]
fn channels_of_dram_move_at_the_same_time() {
    // Two channels: bursts take turns. Each is asked for one per two cycles and makes up for its rows' opening, so the last is a
    // hit that is complete tCL + tB behind its request.
    let two = machine(&[("dram.channels", "2")]);
    assert_eq!(stream(64, &two), SETUP + 63 + TCL + 1);
    // With bursts of 4 cycles one channel moves a burst per 4 cycles, two channels two.
    let slow = [("dram.bus_bits", "16")];
    let slow_machine = |channels: &str| {
        let mut m = machine(&[("dram.channels", channels)]);
        m.set_all(slow).unwrap();
        m
    };
    assert_eq!(slow_machine("1").burst_ps(), 4000);
    let first = TRCD + TCL + 4;
    assert_eq!(stream(64, &slow_machine("1")), SETUP + first + 63 * 4);
    // Of channel 1 the first request comes a cycle later; then it moves 32 bursts.
    assert_eq!(stream(64, &slow_machine("2")), SETUP + 1 + first + 31 * 4);
}

#[test]
fn refresh_takes_trfc_every_trefi_and_closes_rows() {
    let (trefi, trfc) = (1000u64, 100u64);
    let machine = machine(&[("dram.trefi_ps", "1000000"), ("dram.trfc_ps", "100000"), ("dram.row_bytes", "1048576")]);
    // The load starts in cycle 2, its first request comes in 5 and is complete in 21. A burst per cycle, the last before the
    // refresh is complete in 1000: bursts 0 to 979.
    let start = 2 + SETUP + FIRST;
    let before = trefi - start + 1;
    assert_eq!(stream(before, &machine), trefi - 2);
    // The next opens its row behind the refresh.
    let behind = trefi + trfc + FIRST;
    assert_eq!(stream(before + 1, &machine), behind - 2);
    // From there on: the last before the next refresh is complete in 2000.
    let per_period = 2 * trefi - behind + 1;
    assert_eq!(stream(before + per_period, &machine), 2 * trefi - 2);
    assert_eq!(stream(before + per_period + 1, &machine), behind + trefi - 2);
    for periods in [2, 5] {
        assert_eq!(stream(before + periods * per_period, &machine), (periods + 1) * trefi - 2);
    }
}

#[test]
fn refresh_of_an_idle_channel_closes_rows() {
    let machine = machine(&[("dram.trefi_ps", "1000000"), ("dram.trfc_ps", "100000"), ("dram.row_bytes", "1048576")]);
    // A burst; then one of the same row, requested in cycle p: in 989 it is complete in 995; in 994 in 1000; in 995 it
    // would be in 1001, so the refresh comes first.
    let second = |p: u64| {
        // load at 2..; scalar loop up to cycle: the second load is issued in p − SETUP − 1.
        let issue = p - SETUP - 1;
        let spare = issue - 3;
        let body = if spare.is_multiple_of(2) { "" } else { "li r3, 0\n" };
        let count = (spare - spare % 2 - 2) / 2;
        let text = format!(
            "li r1, 1\nload sp[0], dram[0], row_bytes=64\nli r2, 0\n{body}loop r4, count={count}\nadd r2, r2, 1\nend\nli r2, 0\n\
             load sp[64], dram[64], row_bytes=64\nhalt"
        );
        let seen = see(&text, &machine);
        let at = if body.is_empty() { 7 } else { 8 };
        let (begin, end) = seen.at(at);
        assert_eq!(begin + SETUP, p);
        end
    };
    assert_eq!(second(989), 995);
    assert_eq!(second(994), 1000);
    assert_eq!(second(995), 1100 + FIRST);
    assert_eq!(second(1000), 1100 + FIRST);
    assert_eq!(second(1100), 1100 + FIRST);
    assert_eq!(second(1101), 1101 + FIRST);
    // Later refreshes have come and gone.
    assert_eq!(second(7555), 7555 + FIRST);
    assert_eq!(second(7050), 7100 + FIRST);
}

#[test]
fn d1_channels_are_shared_by_both_queues() {
    let ideal_dram = |channels: &str| ideal(&[("dma.channels", channels)]);
    let text = "load sp[0], dram[0], row_bytes=64\nstore dram[4096], sp[4096], row_bytes=64\nhalt";
    let seen = see(text, &ideal_dram("1"));
    assert_eq!((seen.at(0), seen.at(1)), ((1, 2), (2, 3)));
    // With real latencies: one channel, then two.
    let one = see(text, &machine(&[]));
    let alone = SETUP + FIRST;
    assert_eq!(one.at(0), (1, 1 + alone));
    // The store's row is another of bank 0: closed when tRAS is over, 30 behind 4; it starts at 20, request in 23.
    let x = (1 + alone + SETUP).max(1 + SETUP + TRAS);
    assert_eq!(one.at(1), (1 + alone, x + TRP + FIRST));
    assert_eq!(one.spent(Queue::Store, Cause::DmaBusy), alone - 1);
    let two = see(text, &machine(&[("dma.channels", "2")]));
    assert_eq!(two.at(1).0, 2);
    assert_eq!(two.at(1).1, 1 + SETUP + TRAS + TRP + FIRST);
    // LOAD comes first when both could start.
    let both = "sync store wait(t1)\nsync load wait(t2)\nstore dram[4096], sp[4096], row_bytes=64\n\
                load sp[0], dram[0], row_bytes=64\nsync vector post(t1, t2)\nhalt";
    let seen = see(both, &machine(&[]));
    // VECTOR posts in 6; the syncs pass by, so both transfers could start in 6.
    assert_eq!((seen.at(3).0, seen.at(2).0), (6, 6 + alone));
}

#[test]
fn d2_transfers_that_touch_the_same_bytes_wait() {
    let machine = machine(&[("dma.channels", "4")]);
    let begin_of_second = |address: u64| {
        let text = format!(
            "li r1, {address}\nload sp[0], dram[0], row_bytes=128\nload sp[r1], dram[4096], row_bytes=64\nhalt"
        );
        let seen = see(&text, &machine);
        (seen.at(2).0, seen.at(1).1)
    };
    assert_eq!(begin_of_second(128).0, 3);
    let (second, first_end) = begin_of_second(127);
    assert_eq!(second, first_end);
    // What both only read is no conflict.
    let text = "load sp[0], dram[0], row_bytes=64\nload sp[64], dram[0], row_bytes=64\nhalt";
    assert_eq!(see(text, &machine).at(1).0, 2);
    // A list that a transfer before it loads.
    let text = "li r1, 1\nload sp[64], dram[0], row_bytes=64\nload.rows sp[0], dram[0], sp[64], bound=r1, row_bytes=64, rows=r1\nhalt";
    let seen = see(text, &machine);
    assert_eq!(seen.at(2).0, seen.at(1).1);
}

#[test]
fn d5_lists_are_read_first() {
    let machine = machine(&[]);
    for rows in [1u64, 16, 17, 32, 33] {
        // All entries are 0, so each row is burst 0: an opened row, then hits.
        let text = format!("li r1, {rows}\nload.rows sp[1024], dram[0], sp[0], bound=r1, row_bytes=64, rows=r1\nhalt");
        let (begin, end) = see(&text, &machine).at(1);
        assert_eq!(end - begin, SETUP + rows.div_ceil(16) + FIRST + rows - 1, "{rows}");
    }
}

#[test]
fn d6_ideal_transfers_take_a_cycle() {
    let machine = ideal(&[]);
    let seen = see("li r1, 100\nload sp[0], dram[0], row_bytes=640, rows=r1\nhalt", &machine);
    assert_eq!(seen.at(1), (2, 3));
    // They move what they move.
    assert_eq!(seen.run.report.total.dram_read_bytes, 64_000);
    assert_eq!(seen.cycles(), 3);
}

#[test]
fn d7_adding_reads_then_writes_row_by_row() {
    let machine = machine(&[]);
    for (rows, bursts) in [(1u64, 1u64), (1, 3), (3, 1), (4, 2)] {
        let bytes = bursts * 64;
        let text = format!(
            "li r1, {rows}\nstore.add_rows dram[0], sp[1024], sp[0], bound=r1, row_bytes={bytes}, rows=r1\nhalt"
        );
        let seen = see(&text, &machine);
        let (begin, end) = seen.at(1);
        // Every row is row 0: opened once. A phase is `bursts` hits, the first tCL + 1 behind its request.
        let hit = TCL + 1 + bursts - 1;
        let phases = 2 * rows;
        assert_eq!(end - begin, SETUP + 1 + FIRST + bursts - 1 + (phases - 1) * hit, "{rows} {bursts}");
        assert_eq!(seen.run.report.total.dram_read_bytes, u128::from(rows * bytes));
        assert_eq!(seen.run.report.total.dram_write_bytes, u128::from(rows * bytes));
    }
}

#[test]
fn cycles_and_picoseconds_round_as_written() {
    // 3 MHz: cycle t is at ⌊t·10⁶/3⌋ ps. A burst of 1 ps more than fits is complete a cycle later.
    let times = |trcd: &str| {
        let mut m = machine(&[]);
        m.set_all([("clock_mhz", "3"), ("dram.trcd_ps", trcd)]).unwrap();
        let (begin, end) = see("load sp[0], dram[0], row_bytes=64\nhalt", &m).at(0);
        (begin, end)
    };
    // Starts in 1, request in 4, at 1,333,333 ps; then tRCD + 5000 + 1000. Cycle 6 is at 2,000,000.
    assert_eq!(times("660667"), (1, 6));
    assert_eq!(times("660668"), (1, 7));
}

#[test]
fn stalls_of_transfers_have_names() {
    // One burst: setup, row, column, bus.
    let seen = see("load sp[0], dram[0], row_bytes=64\nhalt", &machine(&[]));
    let load = |cause| seen.spent(Queue::Load, cause);
    assert_eq!(load(Cause::Busy), 1);
    assert_eq!(load(Cause::RowMiss), TRCD);
    assert_eq!(load(Cause::DmaLatency), SETUP + TCL);
    assert_eq!(load(Cause::QueueEmpty), 1);
    // A stream is busy from its first burst on.
    let seen = see("li r1, 16\nload sp[0], dram[0], row_bytes=64, rows=r1\nhalt", &machine(&[]));
    assert_eq!(seen.busy(Queue::Load), 16);
    // Two streams share the bus: half of the time each waits for the other.
    let text = "li r1, 100\nload sp[0], dram[0], row_bytes=64, rows=r1\nstore dram[65536], sp[131072], row_bytes=64, rows=r1\nhalt";
    let seen = see(text, &machine(&[("dma.channels", "2"), ("dram.row_bytes", "65536")]));
    let bandwidth = seen.spent(Queue::Load, Cause::Bandwidth) + seen.spent(Queue::Store, Cause::Bandwidth);
    assert!(bandwidth > 90, "{bandwidth}");
    assert_eq!(seen.busy(Queue::Load) + seen.busy(Queue::Store), 200);
}

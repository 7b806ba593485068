//! The memory plan as a picture in text: steps across, addresses down.
//!
//! Rows are cut where buffers begin and end, so they are not to scale: the gutter gives the address of each. Buffers that differ
//! only in numbers in their names (one per layer) share a symbol and a line of the legend.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::ui;

/// Most rows and columns: with gutter and margin, a terminal of 100 columns.
pub const MOST_ROWS: usize = 40;
/// See [`MOST_ROWS`].
pub const MOST_COLUMNS: usize = 84;

/// Buffers that are drawn, the largest first; a plan of a real model has a few hundred.
pub const MOST_DRAWN: usize = 4096;

/// Symbols of families, the largest first; all others share [`OTHERS`].
const SYMBOLS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const OTHERS: char = '+';
const FREE: char = '.';

/// A buffer of the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Offset in the arena.
    pub offset: u64,
    /// Size.
    pub bytes: u64,
    /// First and last step that uses it, as positions on the time axis.
    pub first: usize,
    /// See `first`.
    pub last: usize,
}

/// A line of the legend: buffers whose names differ only in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// What draws them.
    pub symbol: char,
    /// Their name, `*` for numbers that differ.
    pub name: String,
    /// How many.
    pub count: usize,
    /// Size of the smallest.
    pub least_bytes: u64,
    /// Size of the largest.
    pub most_bytes: u64,
}

/// What is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// First address of each row, and the end of the last.
    pub addresses: Vec<u64>,
    /// By row and column: the symbol of the buffer that fills most of it, or `.`.
    pub cells: Vec<Vec<char>>,
    /// Legend, the largest first.
    pub families: Vec<Family>,
    /// Most bytes that are in use in one step.
    pub live_bytes: u64,
    /// Buffers left out of the cells.
    pub not_drawn: usize,
}

/// The name with every number replaced.
fn family_name(name: &str) -> String {
    let mut family = String::with_capacity(name.len());
    let mut in_number = false;
    for c in name.chars() {
        if c.is_ascii_digit() {
            if !in_number {
                family.push('*');
            }
            in_number = true;
        } else {
            family.push(c);
            in_number = false;
        }
    }
    family
}

/// Families of `(name, bytes)`, the largest first, and the family of each.
pub fn families<'a>(buffers: impl Iterator<Item = (&'a str, u64)> + Clone) -> (Vec<Family>, Vec<usize>) {
    let mut by_name: BTreeMap<String, (Family, BTreeSet<&str>)> = BTreeMap::new();
    for (name, bytes) in buffers.clone() {
        let key = family_name(name);
        let new = || Family { symbol: OTHERS, name: key.clone(), count: 0, least_bytes: bytes, most_bytes: bytes };
        let (family, names) = by_name.entry(key.clone()).or_insert_with(|| (new(), BTreeSet::new()));
        family.count += 1;
        family.least_bytes = family.least_bytes.min(bytes);
        family.most_bytes = family.most_bytes.max(bytes);
        if names.len() < 2 {
            names.insert(name);
        }
    }
    let mut order: Vec<(String, (Family, BTreeSet<&str>))> = by_name.into_iter().collect();
    order.sort_by_key(|(_, (family, _))| std::cmp::Reverse(family.most_bytes));
    let mut symbols = SYMBOLS.chars();
    let mut index = BTreeMap::new();
    let mut list = Vec::with_capacity(order.len());
    for (i, (key, (mut family, names))) in order.into_iter().enumerate() {
        family.symbol = symbols.next().unwrap_or(OTHERS);
        // Numbers that are the same in all of them say something.
        if let (1, Some(name)) = (names.len(), names.first()) {
            family.name = (*name).to_string();
        }
        index.insert(key, i);
        list.push(family);
    }
    let of_each = buffers.map(|(name, _)| index.get(&family_name(name)).copied().unwrap_or(0)).collect();
    (list, of_each)
}

impl Picture {
    /// Draws buffers over `steps` positions of time.
    pub fn draw(buffers: &[Buffer<'_>], steps: usize) -> Picture {
        let (families, of_each) = families(buffers.iter().map(|b| (b.name, b.bytes)));
        let mut order: Vec<usize> = (0..buffers.len()).filter(|i| buffers[*i].bytes > 0).collect();
        order.sort_by_key(|i| std::cmp::Reverse(buffers[*i].bytes));
        order.truncate(MOST_DRAWN);
        let steps = steps.max(1);
        let columns = steps.min(MOST_COLUMNS);
        let addresses = cuts(order.iter().map(|i| (buffers[*i].offset, buffers[*i].offset + buffers[*i].bytes)));
        let rows = addresses.len().saturating_sub(1);
        // Bytes · steps of each buffer in each cell; the largest wins.
        let mut best = vec![vec![(0u128, FREE); columns]; rows];
        for &i in &order {
            let buffer = &buffers[i];
            let end = buffer.offset + buffer.bytes;
            let (first, last) = (buffer.first.min(steps - 1), buffer.last.min(steps - 1));
            for (row, band) in addresses.windows(2).enumerate() {
                let high = end.min(band[1]).saturating_sub(buffer.offset.max(band[0]));
                if high == 0 {
                    continue;
                }
                for (column, cell) in best[row].iter_mut().enumerate() {
                    let (from, to) = (column * steps / columns, (column + 1) * steps / columns);
                    let wide = (last + 1).min(to).saturating_sub(first.max(from));
                    let area = u128::from(high) * wide as u128;
                    if area > cell.0 {
                        *cell = (area, families[of_each[i]].symbol);
                    }
                }
            }
        }
        let cells = best.into_iter().map(|row| row.into_iter().map(|(_, symbol)| symbol).collect()).collect();
        let not_drawn = buffers.len() - order.len();
        Picture { addresses, cells, families, live_bytes: live_bytes(buffers), not_drawn }
    }

    /// As lines of text: the picture, the ends of the time axis, the legend.
    pub fn render(&self, first_step: &str, last_step: &str) -> String {
        let mut out = String::new();
        for (row, address) in self.cells.iter().zip(&self.addresses) {
            let cells: String = row.iter().collect();
            line(&mut out, format_args!("{:>11} |{cells}|", ui::bytes(*address)));
        }
        let columns = self.cells.first().map_or(0, Vec::len);
        let end = self.addresses.last().copied().unwrap_or(0);
        line(&mut out, format_args!("{:>11} +{}+", ui::bytes(end), "-".repeat(columns)));
        let gap = columns.saturating_sub(first_step.chars().count() + last_step.chars().count());
        line(&mut out, format_args!("{:>11}  {first_step}{}{last_step}", "", " ".repeat(gap.max(1))));
        for family in &self.families {
            line(&mut out, format_args!("  {}  {}", family.symbol, legend(family)));
        }
        if self.not_drawn > 0 {
            line(&mut out, format_args!("  {} buffers without bytes or too small to draw", self.not_drawn));
        }
        out
    }
}

/// `24.58 kB x 5  layers.*.attn`.
pub fn legend(family: &Family) -> String {
    let bytes = if family.least_bytes == family.most_bytes {
        ui::bytes(family.most_bytes)
    } else {
        format!("{} to {}", ui::bytes(family.least_bytes), ui::bytes(family.most_bytes))
    };
    let times = if family.count > 1 { format!(" x {}", family.count) } else { String::new() };
    format!("{:<28}  {}", format!("{bytes}{times}"), family.name)
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string");
}

/// Addresses at which rows begin and end: where buffers do; the thinnest rows are joined until there are few enough.
fn cuts(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
    let mut cuts: Vec<u64> = ranges.flat_map(|(begin, end)| [begin, end]).chain([0]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    while cuts.len() > MOST_ROWS + 1 {
        // An inner cut whose removal makes the smallest row.
        let Some(at) = (1..cuts.len() - 1).min_by_key(|i| cuts[i + 1] - cuts[i - 1]) else { break };
        cuts.remove(at);
    }
    cuts
}

/// Most bytes in use in one step.
fn live_bytes(buffers: &[Buffer<'_>]) -> u64 {
    let mut changes: BTreeMap<usize, i128> = BTreeMap::new();
    for buffer in buffers {
        *changes.entry(buffer.first).or_default() += i128::from(buffer.bytes);
        *changes.entry(buffer.last.saturating_add(1)).or_default() -= i128::from(buffer.bytes);
    }
    let (mut live, mut most) = (0, 0);
    for change in changes.values() {
        live += change;
        most = most.max(live);
    }
    u64::try_from(most).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffer(name: &str, offset: u64, bytes: u64, first: usize, last: usize) -> Buffer<'_> {
        Buffer { name, offset, bytes, first, last }
    }

    #[test]
    fn a_plan_is_drawn_as_it_is() {
        let buffers = [
            buffer("layers.0.x", 0, 64, 0, 1),
            buffer("layers.1.x", 64, 64, 1, 3),
            buffer("big", 128, 256, 2, 3),
            buffer("layers.2.x", 0, 64, 3, 3),
        ];
        let picture = Picture::draw(&buffers, 4);
        assert_eq!(picture.addresses, [0, 64, 128, 384]);
        let rows: Vec<String> = picture.cells.iter().map(|row| row.iter().collect()).collect();
        assert_eq!(rows, ["BB.B", ".BBB", "..AA"]);
        assert_eq!(picture.live_bytes, 64 + 256 + 64);
        let names: Vec<_> = picture.families.iter().map(|f| (f.symbol, f.name.as_str(), f.count)).collect();
        assert_eq!(names, [('A', "big", 1), ('B', "layers.*.x", 3)]);
        let text = picture.render("prefill/0", "end");
        assert!(text.contains("  B  64 B x 3"), "{text}");
    }

    #[test]
    fn a_number_that_all_share_stays() {
        let (families, _) = families([("embed2", 1), ("embed2", 2)].into_iter());
        assert_eq!(families[0].name, "embed2");
    }

    #[test]
    fn nothing_is_a_picture_too() {
        let picture = Picture::draw(&[], 0);
        assert!(picture.cells.is_empty());
        assert!(!picture.render("", "").is_empty());
    }

    /// Steps of the plans below.
    const STEPS: usize = 240;

    /// Offset, bytes, first, last, and the letter of the name.
    type Place = (u64, u64, usize, usize, u8);

    /// Buffers side by side in address or time, as a plan makes them.
    fn plan() -> impl Strategy<Value = Vec<Place>> {
        let buffer = (0u64..60, 1u64..9, 0usize..200, 0usize..30, 0u8..26);
        proptest::collection::vec(buffer, 0..120).prop_map(|wanted| {
            let mut placed: Vec<Place> = Vec::new();
            for (slot, bytes, first, length, name) in wanted {
                let new = (slot * 64, bytes * 64, first, first + length, name);
                let apart =
                    |old: &Place| old.0 + old.1 <= new.0 || new.0 + new.1 <= old.0 || old.3 < new.2 || new.3 < old.2;
                if placed.iter().all(apart) {
                    placed.push(new);
                }
            }
            placed
        })
    }

    proptest! {
        #[test]
        fn every_buffer_appears_and_the_picture_fits(plan in plan()) {
            let names: Vec<String> = plan.iter().map(|b| format!("{}.n", (b'a' + b.4) as char)).collect();
            let buffers: Vec<_> =
                plan.iter().zip(&names).map(|(b, name)| buffer(name, b.0, b.1, b.2, b.3)).collect();
            let picture = Picture::draw(&buffers, STEPS);
            prop_assert!(picture.cells.len() <= MOST_ROWS);
            prop_assert_eq!(picture.addresses.len(), picture.cells.len() + 1);
            prop_assert!(picture.addresses.windows(2).all(|w| w[0] < w[1]));
            for row in &picture.cells {
                prop_assert_eq!(row.len(), MOST_COLUMNS);
            }
            let text = picture.render("first", "last");
            for line in text.lines() {
                prop_assert!(line.chars().count() <= 100, "{}", line);
                prop_assert!(line.is_ascii());
            }
            prop_assert_eq!(picture.families.iter().map(|f| f.count).sum::<usize>(), buffers.len());
            for (buffer, name) in buffers.iter().zip(&names) {
                let family = picture.families.iter().find(|f| f.name == *name);
                let family = family.expect("every buffer has a line in the legend");
                prop_assert!(text.contains(name));
                prop_assert!(family.least_bytes <= buffer.bytes && buffer.bytes <= family.most_bytes);
            }
            // A cell shows a buffer that is there then, and is free only if nothing is.
            for (row, band) in picture.addresses.windows(2).enumerate() {
                for column in 0..MOST_COLUMNS {
                    let (from, to) = (column * STEPS / MOST_COLUMNS, (column + 1) * STEPS / MOST_COLUMNS);
                    let here: Vec<_> = buffers
                        .iter()
                        .filter(|b| b.offset < band[1] && band[0] < b.offset + b.bytes && b.first < to && from <= b.last)
                        .map(|b| picture.families.iter().find(|f| f.name == b.name).expect("in the legend").symbol)
                        .collect();
                    let found = picture.cells[row][column];
                    let is_right = if here.is_empty() { found == FREE } else { here.contains(&found) };
                    prop_assert!(is_right, "row {}, column {}: {}", row, column, found);
                }
            }
            let live = (0..STEPS).map(|t| buffers.iter().filter(|b| b.first <= t && t <= b.last).map(|b| b.bytes).sum());
            prop_assert_eq!(picture.live_bytes, live.max().unwrap_or(0u64));
        }

        #[test]
        fn any_numbers_are_drawn(
            plan in proptest::collection::vec((0u64..1 << 40, 0u64..1 << 40, any::<u32>(), any::<u32>()), 0..300),
            steps in any::<u16>(),
        ) {
            let buffers: Vec<_> =
                plan.iter().map(|b| buffer("x", b.0, b.1, b.2.min(b.3) as usize, b.2.max(b.3) as usize)).collect();
            let picture = Picture::draw(&buffers, usize::from(steps));
            prop_assert!(picture.cells.len() <= MOST_ROWS);
            prop_assert!(picture.cells.iter().all(|row| row.len() <= MOST_COLUMNS));
        }
    }
}

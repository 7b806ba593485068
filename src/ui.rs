//! What the command shows besides its result: progress and log on stderr, tables on stdout.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use anyhow::Context;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use crate::cli::Global;

#[cfg(feature = "compiler")]
pub use bar::Bar;
#[cfg(not(feature = "compiler"))]
pub use no_bar::Bar;

/// Verbosity and where it goes.
#[derive(Default)]
pub struct Ui {
    quiet: bool,
    verbose: bool,
}

impl Ui {
    /// From the global options. Bars need a terminal.
    pub fn new(global: &Global) -> Self {
        Ui { quiet: global.quiet, verbose: global.verbose }
    }

    /// Whether nothing but results and errors is wanted.
    #[cfg(feature = "compiler")]
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A line of log.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// A line of log that only `-v` shows.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose && !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// An error with its causes.
    pub fn error(&self, error: &anyhow::Error) {
        // A file's text, quoted in an error, may be as long as the file.
        let short = |text: String| text.chars().take(4000).collect::<String>();
        let mut last = short(error.to_string());
        eprintln!("error: {last}");
        for cause in error.chain().skip(1) {
            let text = short(cause.to_string());
            if !last.contains(&text) {
                eprintln!("  because: {text}");
            }
            last = text;
        }
    }

    /// A bar over `total` bytes, on a terminal.
    #[cfg(feature = "compiler")]
    pub fn bytes_bar(&self, what: &str, total: u64) -> Bar {
        self.bar(what, total, "{msg:>12} [{bar:30}] {bytes}/{total_bytes} {eta}")
    }

    /// A bar over `total` things, on a terminal.
    pub fn count_bar(&self, what: &str, total: u64) -> Bar {
        self.bar(what, total, "{msg:>12} [{bar:30}] {pos}/{len} {eta}")
    }

    /// A sign of life for work of unknown length, on a terminal.
    pub fn spinner(&self, what: &str) -> Bar {
        let bar = self.bar(what, 0, "{msg:>12} {spinner} {elapsed}");
        bar.tick();
        bar
    }

    fn bar(&self, what: &str, total: u64, style: &str) -> Bar {
        Bar::new(what, total, style, self.quiet || !std::io::stderr().is_terminal())
    }
}

/// Why stdout takes nothing more: the first error of a write.
static CLOSED: OnceLock<io::Error> = OnceLock::new();

/// Writes to stdout, whose errors end nothing in the middle of its work: after the first one all is dropped, and
/// [`finish_out`] tells.
pub fn write_out(text: fmt::Arguments<'_>) {
    keep_error(|| io::stdout().write_fmt(text));
}

/// Shows what was written so far, which may not end with a line.
pub fn flush_out() {
    keep_error(|| io::stdout().flush());
}

fn keep_error(write: impl FnOnce() -> io::Result<()>) {
    if !is_out_closed()
        && let Err(error) = write()
    {
        // A second error, of another thread, says no more than the first.
        let _ = CLOSED.set(error);
    }
}

/// Whether nobody sees what is written to stdout from here on.
pub fn is_out_closed() -> bool {
    CLOSED.get().is_some()
}

/// Writes what is left to write to stdout. A reader that stopped reading (`| head`) has what it wanted; any other
/// error, such as a full disk, means that the result is not there.
pub fn finish_out() -> anyhow::Result<()> {
    flush_out();
    match CLOSED.get() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!(error.to_string())).context("stdout: cannot be written")
        }
        Some(_) | None => Ok(()),
    }
}

/// A text file of at most `max_bytes`.
#[cfg(feature = "compiler")]
pub fn read_text(path: &std::path::Path, max_bytes: u64) -> anyhow::Result<String> {
    use std::io::Read;
    let place = || path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    let mut text = String::new();
    file.take(max_bytes + 1).read_to_string(&mut text).with_context(place)?;
    anyhow::ensure!(text.len() as u64 <= max_bytes, "{}: wanted at most {max_bytes} bytes, found more", path.display());
    Ok(text)
}

/// A plain table; columns whose header starts with `>` are aligned right.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|h| Cell::new(h.trim_start_matches('>'))));
    for row in rows {
        table.add_row(row);
    }
    for (i, h) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(i) {
            column.set_padding((0, 2));
            if h.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// `1.23 MB` (powers of ten, as memory bandwidths and file listings count).
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.2} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

/// `1.23 M`.
pub fn count(n: u64) -> String {
    let value = n as f64;
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", value / 1e6),
        _ => format!("{:.2} G", value / 1e9),
    }
}

#[cfg(feature = "compiler")]
mod bar {
    use std::time::Duration;

    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

    /// How far work is.
    pub struct Bar(ProgressBar);

    impl Bar {
        pub(super) fn new(what: &str, total: u64, style: &str, hidden: bool) -> Self {
            let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
            let bar = ProgressBar::with_draw_target(Some(total), target);
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            Bar(bar.with_message(what.to_string()))
        }

        pub(super) fn tick(&self) {
            self.0.enable_steady_tick(Duration::from_millis(120));
        }

        /// Moves on by `n`.
        pub fn inc(&self, n: u64) {
            self.0.inc(n);
        }

        /// Moves to `n`.
        pub fn set_position(&self, n: u64) {
            self.0.set_position(n);
        }

        /// Takes the bar away.
        pub fn finish_and_clear(&self) {
            self.0.finish_and_clear();
        }
    }
}

/// On a device only `bench` takes long: one line says what goes on, without a library for bars.
#[cfg(not(feature = "compiler"))]
mod no_bar {
    /// What is being done.
    pub struct Bar {
        hidden: bool,
    }

    impl Bar {
        pub(super) fn new(what: &str, _: u64, _: &str, hidden: bool) -> Self {
            if !hidden {
                eprint!("{what} …");
            }
            Bar { hidden }
        }

        pub(super) fn tick(&self) {}

        /// Moves on.
        pub fn inc(&self, _: u64) {}

        /// Takes the line away.
        pub fn finish_and_clear(&self) {
            if !self.hidden {
                eprint!("\r\x1b[K");
            }
        }
    }
}

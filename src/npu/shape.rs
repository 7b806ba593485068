//! Sizes of matrix multiplications, as `simulate --gemm` and its lists name them.

use std::str::FromStr;

use anyhow::ensure;

/// Largest M, N or K.
const MAX_DIMENSION: u32 = 1 << 20;

/// A matrix multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Rows.
    pub m: u32,
    /// Outputs.
    pub n: u32,
    /// Inputs.
    pub k: u32,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<&str> = text.split(',').map(str::trim).collect();
        let [m, n, k] = numbers[..] else {
            return Err(format!("wanted M,N,K, found {} numbers", numbers.len()));
        };
        let number = |name: &str, text: &str| match text.parse::<u32>() {
            Ok(number) if (1..=MAX_DIMENSION).contains(&number) => Ok(number),
            _ => Err(format!("{name}: wanted 1 to {MAX_DIMENSION}, found `{text}`")),
        };
        Ok(Shape { m: number("M", m)?, n: number("N", n)?, k: number("K", k)? })
    }
}

/// The multiplications of a list: a line each, after a header without digits if there is one; `#` begins a comment.
pub fn shapes(text: &str) -> anyhow::Result<Vec<Shape>> {
    let mut shapes = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let is_header = i == 0 && !line.contains(|c: char| c.is_ascii_digit());
        if !line.is_empty() && !is_header {
            let shape = line.parse().map_err(|e| anyhow::Error::msg(format!("line {}: {e}", i + 1)))?;
            shapes.push(shape);
        }
    }
    ensure!(!shapes.is_empty(), "wanted lines M,N,K, found none");
    Ok(shapes)
}

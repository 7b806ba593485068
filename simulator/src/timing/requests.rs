//! Which bursts of DRAM a transfer asks for, in order: rules D3 and D7.

/// Rows of bytes in DRAM: a box, or rows of a table by a list.
#[derive(Clone, Debug)]
pub(crate) struct DramRows {
    /// First byte.
    pub base: u64,
    /// Bytes of a row, not 0.
    pub row_bytes: u64,
    /// Rows of a plane; of a list, its length. Not 0.
    pub rows: u64,
    /// From row to row.
    pub stride: u64,
    /// Planes, not 0.
    pub planes: u64,
    /// From plane to plane.
    pub plane_stride: u64,
    /// Numbers of the rows, if they are not 0, 1, 2, ….
    pub list: Option<Vec<u32>>,
}

impl DramRows {
    /// The same bytes in the same order with rows that touch made one.
    fn merged(mut self) -> DramRows {
        if self.list.is_some() {
            return self;
        }
        if self.rows == 1 || self.stride == self.row_bytes {
            self.row_bytes *= self.rows;
            (self.rows, self.stride) = (self.planes, self.plane_stride);
            (self.planes, self.plane_stride) = (1, 0);
        }
        if self.planes == 1 && self.stride == self.row_bytes {
            self.row_bytes *= self.rows;
            self.rows = 1;
        }
        self
    }

    /// First byte of a row.
    fn begin(&self, plane: u64, row: u64) -> u64 {
        let number = match &self.list {
            Some(list) => list.get(row as usize).copied().unwrap_or(0).into(),
            None => row,
        };
        self.base + plane * self.plane_stride + number * self.stride
    }
}

/// A request: the number of its burst, and whether it comes only when all before it are complete (rule D7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub burst: u64,
    pub is_behind_all: bool,
}

/// The requests of a transfer, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    rows: DramRows,
    /// Each row is read, then written.
    adds: bool,
    burst_shift: u32,
    plane: u64,
    row: u64,
    /// Bursts of the run at hand: the next and the last.
    next: u64,
    last: u64,
    has_run: bool,
    /// Of `adds`: whether the run at hand is the one that writes.
    writes: bool,
    is_first: bool,
}

impl Requests {
    /// Of rows, cut at multiples of 2^`burst_shift` bytes.
    pub(crate) fn new(rows: DramRows, adds: bool, burst_shift: u32) -> Requests {
        let rows = if adds { rows } else { rows.merged() };
        Requests {
            rows,
            adds,
            burst_shift,
            plane: 0,
            row: 0,
            next: 0,
            last: 0,
            has_run: false,
            writes: true,
            is_first: true,
        }
    }

    /// First byte of the next row, which stays the next.
    fn peek(&self) -> Option<u64> {
        (self.plane < self.rows.planes).then(|| self.rows.begin(self.plane, self.row))
    }

    fn advance(&mut self) {
        self.row += 1;
        if self.row == self.rows.rows {
            (self.row, self.plane) = (0, self.plane + 1);
        }
    }

    /// First byte and end of the next run.
    fn take_run(&mut self) -> Option<(u64, u64)> {
        let begin = self.peek()?;
        self.advance();
        let mut end = begin + self.rows.row_bytes;
        while !self.adds && self.peek() == Some(end) {
            self.advance();
            end += self.rows.row_bytes;
        }
        Some((begin, end))
    }

    fn bursts(&self, (begin, end): (u64, u64)) -> (u64, u64) {
        (begin >> self.burst_shift, (end - 1) >> self.burst_shift)
    }

    /// The next request.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Request> {
        if self.has_run && self.next <= self.last {
            let burst = self.next;
            self.next += 1;
            return Some(Request { burst, is_behind_all: false });
        }
        self.next_of_new_run()
    }

    fn next_of_new_run(&mut self) -> Option<Request> {
        if self.adds && self.has_run && !self.writes {
            // The row that was read is written.
            self.writes = true;
            self.next = self.first_of_row();
        } else {
            let run = self.take_run()?;
            (self.next, self.last) = self.bursts(run);
            (self.has_run, self.writes) = (true, false);
        }
        let burst = self.next;
        self.next += 1;
        let is_behind_all = self.adds && !self.is_first;
        self.is_first = false;
        Some(Request { burst, is_behind_all })
    }

    /// First burst of the run at hand, whose last is known.
    fn first_of_row(&self) -> u64 {
        let row = match self.row {
            0 => self.rows.begin(self.plane - 1, self.rows.rows - 1),
            row => self.rows.begin(self.plane, row - 1),
        };
        row >> self.burst_shift
    }

    /// How many there are in all, and how many of them write, of a transfer that writes if `is_store`.
    pub(crate) fn counts(mut self, is_store: bool) -> Counts {
        let mut bursts = 0;
        while let Some(run) = self.take_run() {
            let (first, last) = self.bursts(run);
            bursts += last - first + 1;
        }
        match (self.adds, is_store) {
            (true, _) => Counts { reads: bursts, writes: bursts },
            (false, true) => Counts { reads: 0, writes: bursts },
            (false, false) => Counts { reads: bursts, writes: 0 },
        }
    }
}

/// Numbers of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub reads: u64,
    pub writes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rows: DramRows, adds: bool) -> Vec<(u64, bool)> {
        let mut requests = Requests::new(rows, adds, 6);
        std::iter::from_fn(|| requests.next()).map(|r| (r.burst, r.is_behind_all)).collect()
    }

    fn bursts(rows: DramRows) -> Vec<u64> {
        let count = Requests::new(rows.clone(), false, 6).counts(false).reads;
        let list: Vec<u64> = all(rows, false).into_iter().map(|(burst, _)| burst).collect();
        assert_eq!(count, list.len() as u64);
        list
    }

    fn rows(base: u64, row_bytes: u64, rows: u64, stride: u64) -> DramRows {
        DramRows { base, row_bytes, rows, stride, planes: 1, plane_stride: 0, list: None }
    }

    #[test]
    fn runs_are_cut_at_bursts_and_touching_rows_are_one_run() {
        assert_eq!(bursts(rows(0, 64, 1, 0)), [0]);
        assert_eq!(bursts(rows(63, 2, 1, 0)), [0, 1]);
        // Four rows of 32 bytes that touch: 128 bytes, two bursts.
        assert_eq!(bursts(rows(0, 32, 4, 32)), [0, 1]);
        // A gap of a byte makes each row a run, and bursts come twice.
        assert_eq!(bursts(rows(0, 32, 4, 33)), [0, 0, 1, 1, 1, 2]);
        // The same row twice is two runs.
        assert_eq!(bursts(rows(0, 32, 2, 0)), [0, 0]);
        let planes = DramRows { planes: 2, plane_stride: 128, ..rows(0, 32, 2, 96) };
        // Rows at 0, 96 | 128, 224: the second and the third touch.
        assert_eq!(bursts(planes), [0, 1, 2, 3]);
        let list = DramRows { list: Some(vec![1, 2, 0]), ..rows(0, 64, 3, 64) };
        assert_eq!(bursts(list), [1, 2, 0]);
        let list = DramRows { list: Some(vec![1, 2, 0]), ..rows(32, 64, 3, 64) };
        // Bytes 96 to 224 and 32 to 96.
        assert_eq!(bursts(list), [1, 2, 3, 0, 1]);
    }

    #[test]
    fn rows_that_are_added_to_are_read_then_written() {
        let list = DramRows { list: Some(vec![1, 0]), ..rows(0, 128, 2, 128) };
        let expected = [(2, false), (3, false), (2, true), (3, false), (0, true), (1, false), (0, true), (1, false)];
        assert_eq!(all(list.clone(), true), expected);
        assert_eq!(Requests::new(list, true, 6).counts(true), Counts { reads: 4, writes: 4 });
    }
}

//! Which queue has to wait for which: a token wherever two queues meet in memory, and nowhere else.
//!
//! Instructions of a queue are in order; those of two queues only if a token is between them. [`Order`] remembers
//! what instructions of each queue have touched and which of them each queue is known to be behind (a vector clock). An
//! instruction that meets an earlier one of another queue needs that queue's token first.
//!
//! At the begin of a loop's body all that the body does may have happened once more (it is made twice: the first time to learn
//! what it touches); and behind it, or behind what may be skipped, nothing is known that the body's tokens said.

use lapidary_npu_isa::Queue;

/// Queues, the sequencer among them.
const QUEUES: usize = 6;
const SEQUENCER: usize = 5;

/// The queues in the order of their numbers here.
const ALL: [Queue; QUEUES] = [Queue::Load, Queue::Store, Queue::Matrix, Queue::Vector, Queue::Route, Queue::Sequencer];

const fn number(queue: Queue) -> usize {
    match queue {
        Queue::Load => 0,
        Queue::Store => 1,
        Queue::Matrix => 2,
        Queue::Vector => 3,
        Queue::Route => 4,
        Queue::Sequencer => SEQUENCER,
    }
}

/// A memory that several queues reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// On chip.
    Scratchpad,
    /// Off chip.
    Dram,
}

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Where.
    pub space: Space,
    /// First byte.
    pub begin: u64,
    /// One past the last.
    pub end: u64,
}

impl Area {
    /// A run of bytes.
    pub const fn new(space: Space, begin: u64, bytes: u64) -> Area {
        Area { space, begin, end: begin + bytes }
    }

    /// Its length.
    pub const fn bytes(&self) -> u64 {
        self.end - self.begin
    }

    fn meets(&self, other: &Area) -> bool {
        self.space == other.space && self.begin < other.end && other.begin < self.end
    }
}

/// What was touched.
#[derive(Clone, Copy, Debug)]
struct Past {
    queue: usize,
    /// The instruction's number in its queue.
    at: u64,
    area: Area,
    write: bool,
}

/// Something that an instruction touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Whose instruction.
    pub queue: Queue,
    /// What.
    pub area: Area,
    /// Whether it changes it.
    pub write: bool,
}

/// Instructions of each queue that one queue is behind; its own entry is how many it has.
type Clock = [u64; QUEUES];

/// Who touched what, and who knows.
#[derive(Clone, Debug)]
pub struct Order {
    clocks: [Clock; QUEUES],
    past: Vec<Past>,
    log: Vec<Touch>,
}

/// What was known before something that may not happen, or happen again.
#[derive(Debug)]
#[must_use]
pub struct Before {
    clocks: [Clock; QUEUES],
    past: Vec<Past>,
}

impl Default for Order {
    fn default() -> Self {
        Order { clocks: [[0; QUEUES]; QUEUES], past: Vec::new(), log: Vec::new() }
    }
}

impl Order {
    /// Where the log of all that was touched ends now.
    pub fn mark(&self) -> usize {
        self.log.len()
    }

    /// What was touched since then, each only once.
    pub fn since(&self, mark: usize) -> Vec<Touch> {
        let mut touches: Vec<Touch> = Vec::new();
        for touch in &self.log[mark..] {
            if !touches.contains(touch) {
                touches.push(*touch);
            }
        }
        touches
    }

    /// Queues that `queue` has to wait for before it touches these areas.
    pub fn before(&self, queue: Queue, reads: &[Area], writes: &[Area]) -> Vec<Queue> {
        let own = number(queue);
        let clock = &self.clocks[own];
        let meets =
            |p: &Past| writes.iter().any(|w| w.meets(&p.area)) || p.write && reads.iter().any(|r| r.meets(&p.area));
        let mut wanted = [false; QUEUES];
        for p in &self.past {
            if p.queue != own && p.at > clock[p.queue] && meets(p) {
                wanted[p.queue] = true;
            }
        }
        (0..QUEUES).filter(|q| wanted[*q]).map(|q| ALL[q]).collect()
    }

    /// `queue` has waited for all that `other` has done so far.
    pub fn waited(&mut self, queue: Queue, other: Queue) {
        let (queue, other) = (number(queue), number(other));
        let known = self.clocks[other];
        for (own, known) in self.clocks[queue].iter_mut().zip(known) {
            *own = (*own).max(known);
        }
        if queue == SEQUENCER {
            // What is issued from here on is behind it.
            let known = self.clocks[SEQUENCER];
            for (q, clock) in self.clocks.iter_mut().enumerate() {
                for (other, known) in known.iter().enumerate() {
                    if other != q {
                        clock[other] = clock[other].max(*known);
                    }
                }
            }
        }
        self.forget();
    }

    /// An instruction of `queue`.
    pub fn touched(&mut self, queue: Queue, reads: &[Area], writes: &[Area]) {
        self.log.extend(reads.iter().map(|area| Touch { queue, area: *area, write: false }));
        self.log.extend(writes.iter().map(|area| Touch { queue, area: *area, write: true }));
        let queue = number(queue);
        self.clocks[queue][queue] += 1;
        let at = self.clocks[queue][queue];
        for (areas, write) in [(reads, false), (writes, true)] {
            for area in areas {
                self.past.retain(|p| p.queue != queue || p.area != *area || p.write != write);
                self.past.push(Past { queue, at, area: *area, write });
            }
        }
    }

    /// Forgets what everybody is behind.
    fn forget(&mut self) {
        let clocks = &self.clocks;
        self.past.retain(|p| (0..SEQUENCER).any(|q| q != p.queue && clocks[q][p.queue] < p.at));
    }

    fn repeat(&mut self, touches: &[Touch]) {
        for Touch { queue, area, write } in touches {
            let (reads, writes): (&[Area], &[Area]) = if *write { (&[], &[*area]) } else { (&[*area], &[]) };
            self.touched(*queue, reads, writes);
        }
    }

    /// A body begins that touches this, and that may be repeated.
    pub fn begin_loop(&mut self, body: &[Touch]) -> Before {
        let before = Before { clocks: self.clocks, past: self.past.clone() };
        self.repeat(body);
        before
    }

    /// It ends: it may have happened any number of times.
    pub fn end_loop(&mut self, before: Before, body: &[Touch]) {
        self.back_to(before);
        self.repeat(body);
    }

    /// Something begins that may be left out.
    pub fn begin_skip(&mut self) -> Before {
        Before { clocks: self.clocks, past: self.past.clone() }
    }

    /// It ends: it may have happened.
    pub fn end_skip(&mut self, before: Before) {
        let of_body = std::mem::take(&mut self.past);
        let old = before.past.clone();
        self.back_to(before);
        self.past = old;
        self.past.extend(of_body);
    }

    /// Counts stay, knowledge is that of before.
    fn back_to(&mut self, before: Before) {
        for (q, (clock, old)) in self.clocks.iter_mut().zip(before.clocks).enumerate() {
            let own = clock[q];
            *clock = old;
            clock[q] = own;
        }
        self.past = before.past;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sp(begin: u64, bytes: u64) -> Area {
        Area::new(Space::Scratchpad, begin, bytes)
    }

    #[test]
    fn who_meets_waits_once() {
        let mut order = Order::default();
        order.touched(Queue::Load, &[], &[sp(0, 64)]);
        assert_eq!(order.before(Queue::Vector, &[sp(64, 64)], &[]), []);
        assert_eq!(order.before(Queue::Vector, &[sp(63, 1)], &[]), [Queue::Load]);
        order.waited(Queue::Vector, Queue::Load);
        assert_eq!(order.before(Queue::Vector, &[sp(0, 64)], &[]), []);
        assert_eq!(order.before(Queue::Route, &[sp(0, 64)], &[]), [Queue::Load]);
        order.touched(Queue::Load, &[], &[sp(0, 64)]);
        assert_eq!(order.before(Queue::Vector, &[sp(0, 64)], &[]), [Queue::Load]);
    }

    #[test]
    fn reads_do_not_meet_and_knowledge_is_passed_on() {
        let mut order = Order::default();
        order.touched(Queue::Load, &[], &[sp(0, 64)]);
        order.waited(Queue::Vector, Queue::Load);
        order.touched(Queue::Vector, &[sp(0, 64)], &[sp(64, 64)]);
        assert_eq!(order.before(Queue::Matrix, &[sp(0, 64)], &[]), [Queue::Load]);
        order.waited(Queue::Matrix, Queue::Vector);
        assert_eq!(order.before(Queue::Matrix, &[sp(0, 128)], &[]), []);
        assert_eq!(order.before(Queue::Load, &[], &[sp(0, 64)]), [Queue::Vector]);
    }

    #[test]
    fn behind_a_loop_and_a_skip_nothing_of_its_body_is_known() {
        let mut order = Order::default();
        order.touched(Queue::Load, &[], &[sp(0, 64)]);
        let before = order.begin_skip();
        order.waited(Queue::Vector, Queue::Load);
        order.touched(Queue::Vector, &[sp(0, 64)], &[]);
        order.end_skip(before);
        assert_eq!(order.before(Queue::Vector, &[sp(0, 64)], &[]), [Queue::Load]);
        assert_eq!(order.before(Queue::Store, &[], &[sp(0, 64)]), [Queue::Load, Queue::Vector]);
        order.waited(Queue::Store, Queue::Load);
        order.waited(Queue::Store, Queue::Vector);
        let body = [Touch { queue: Queue::Load, area: sp(0, 64), write: true }];
        let before = order.begin_loop(&body);
        assert_eq!(order.before(Queue::Store, &[sp(0, 1)], &[]), [Queue::Load]);
        order.waited(Queue::Store, Queue::Load);
        order.touched(Queue::Load, &[], &[sp(0, 64)]);
        order.end_loop(before, &body);
        assert_eq!(order.before(Queue::Store, &[sp(0, 1)], &[]), [Queue::Load]);
        assert_eq!(order.before(Queue::Vector, &[sp(64, 1)], &[]), []);
    }

    #[test]
    fn what_the_sequencer_waited_for_everybody_is_behind() {
        let mut order = Order::default();
        order.touched(Queue::Vector, &[], &[sp(0, 4)]);
        assert_eq!(order.before(Queue::Sequencer, &[sp(0, 4)], &[]), [Queue::Vector]);
        order.waited(Queue::Sequencer, Queue::Vector);
        assert_eq!(order.before(Queue::Store, &[sp(0, 4)], &[]), []);
    }
}

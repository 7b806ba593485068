//! What units did when, in a constant number of steps, however long the run is.

use lapidary_npu_isa::Queue;

use crate::ledger::Cause;
use crate::observe::{Activity, Observer};

/// Steps of a timeline; a finished one has more than half of them.
pub const STEPS: usize = 512;

/// One step: cycles by unit and cause, bytes that DRAM moved for LOAD and STORE.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// By unit ([`Queue::index`]) and cause.
    pub cycles: [[u64; Cause::ALL.len()]; 6],
    /// For LOAD, for STORE.
    pub dram_bytes: [u64; 2],
}

/// Observes a run.
#[derive(Clone, Debug)]
pub struct Timeline {
    step_cycles: u64,
    steps: Vec<Step>,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline { step_cycles: 1, steps: vec![Step::default(); STEPS] }
    }
}

impl Timeline {
    /// Cycles of a step.
    pub fn step_cycles(&self) -> u64 {
        self.step_cycles
    }

    /// Steps of a run of so many cycles.
    pub fn steps(&self, cycles: u64) -> &[Step] {
        &self.steps[..(cycles.div_ceil(self.step_cycles) as usize).min(STEPS)]
    }

    /// Doubles the length of steps until a cycle has one.
    fn reach(&mut self, cycle: u64) {
        while cycle / self.step_cycles >= STEPS as u64 {
            for i in 0..STEPS / 2 {
                let (mut step, other) = (self.steps[2 * i], self.steps[2 * i + 1]);
                step.cycles.iter_mut().flatten().zip(other.cycles.iter().flatten()).for_each(|(a, b)| *a += b);
                step.dram_bytes.iter_mut().zip(other.dram_bytes).for_each(|(a, b)| *a += b);
                self.steps[i] = step;
            }
            self.steps[STEPS / 2..].fill(Step::default());
            self.step_cycles *= 2;
        }
    }
}

impl Observer for Timeline {
    fn activity(&mut self, _: Activity) {}

    fn spent(&mut self, queue: Queue, cause: Cause, mut begin: u64, end: u64) {
        self.reach(end - 1);
        while begin < end {
            let step = begin / self.step_cycles;
            let until = end.min((step + 1) * self.step_cycles);
            self.steps[step as usize].cycles[queue.index()][cause as usize] += until - begin;
            begin = until;
        }
    }

    fn burst(&mut self, queue: Queue, at: u64, bytes: u64) {
        // A burst that is complete in a cycle moved before it.
        let cycle = at.saturating_sub(1);
        self.reach(cycle);
        self.steps[(cycle / self.step_cycles) as usize].dram_bytes[usize::from(queue == Queue::Store)] += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_and_lose_nothing() {
        let mut timeline = Timeline::default();
        let mut at = 0;
        for i in 0..5000u64 {
            let length = 1 + i % 7;
            timeline.spent(Queue::Vector, Cause::ALL[(i % 3) as usize], at, at + length);
            timeline.burst(Queue::Load, at + 1, 64);
            at += length;
        }
        let steps = timeline.steps(at);
        assert!(steps.len() > STEPS / 2 && timeline.step_cycles().is_power_of_two());
        let all: u64 = steps.iter().flat_map(|s| s.cycles[Queue::Vector.index()]).sum();
        assert_eq!(all, at);
        assert!(
            steps[..steps.len() - 1].iter().all(|s| s.cycles.iter().flatten().sum::<u64>() == timeline.step_cycles())
        );
        assert_eq!(steps.iter().map(|s| s.dram_bytes[0]).sum::<u64>(), 5000 * 64);
    }
}

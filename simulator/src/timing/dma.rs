//! The DMA engine: channels, their requests in order, and what those cost (rules D1 to D7).

use lapidary_npu_isa::machine::DramPreset;
use lapidary_npu_isa::{Machine, Queue};

use super::dram::{DramCounts, DramTiming, Place};
use super::requests::Requests;
use super::work::Transfer;
use crate::ledger::{Cause, Ledger};
use crate::observe::Observer;

/// A channel. A new transfer takes over its room.
#[derive(Clone, Debug)]
struct Channel {
    requests: Option<Requests>,
    queue: Queue,
    /// Which instruction of the queue: counted from the start of the run.
    number: u64,
    /// Burst of the request that is made next, its place, and when.
    burst: u64,
    place: Place,
    next_at: u64,
    /// Requests made.
    made: u64,
    /// When each of the last `outstanding` requests is complete.
    completions: Vec<u64>,
    /// When all requests are complete.
    end: u64,
    /// From when on it is free; not known while it makes requests.
    free_at: u64,
}

/// A transfer whose last request has been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub queue: Queue,
    pub number: u64,
    /// When all its requests are complete.
    pub end: u64,
}

/// The engine.
#[derive(Clone, Debug)]
pub(crate) struct Dma {
    channels: Vec<Channel>,
    /// Channels that make requests, ascending.
    active: Vec<usize>,
    dram: DramTiming,
    is_ideal: bool,
    setup_cycles: u64,
    clock_mhz: u64,
    /// tB in cycles, rounded up.
    burst_cycles: u64,
    burst_bytes: u64,
    /// Makes one request at a time, whoever else there is: for comparison.
    one_by_one: bool,
}

impl Dma {
    pub(crate) fn new(machine: &Machine, one_by_one: bool) -> Dma {
        let channel = Channel {
            requests: None,
            queue: Queue::Load,
            number: 0,
            burst: 0,
            place: Place::default(),
            next_at: 0,
            made: 0,
            completions: vec![0; machine.dma.outstanding as usize],
            end: 0,
            free_at: 0,
        };
        let mut dma = Dma {
            channels: vec![channel; machine.dma.channels as usize],
            active: Vec::new(),
            dram: DramTiming::new(machine),
            is_ideal: machine.dram.preset == DramPreset::Ideal,
            setup_cycles: machine.dma.setup_cycles,
            clock_mhz: machine.clock_mhz,
            burst_cycles: 0,
            burst_bytes: machine.dma.burst_bytes,
            one_by_one,
        };
        dma.burst_cycles = dma.cycles_up(machine.burst_ps());
        dma
    }

    /// When cycle `t` begins.
    fn ps(&self, t: u64) -> u64 {
        t * 1_000_000 / self.clock_mhz
    }

    /// The cycle in which something at `ps` is complete.
    fn cycles_up(&self, ps: u64) -> u64 {
        (ps * self.clock_mhz).div_ceil(1_000_000)
    }

    pub(crate) fn counts(&self) -> DramCounts {
        self.dram.counts
    }

    /// The lowest-numbered free channel (rule D1).
    pub(crate) fn free_channel(&self, t: u64) -> Option<usize> {
        self.channels.iter().position(|c| c.requests.is_none() && c.free_at <= t)
    }

    /// The next cycle after `t` in which a channel that has made its requests is free.
    pub(crate) fn next_free(&self, t: u64) -> u64 {
        let ends = self.channels.iter().filter(|c| c.requests.is_none() && c.free_at > t).map(|c| c.free_at);
        ends.min().unwrap_or(u64::MAX)
    }

    /// Whether any channel makes requests.
    pub(crate) fn is_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Starts a transfer at `t`. Its end, if that is known already.
    pub(crate) fn start(&mut self, channel: usize, queue: Queue, number: u64, t: u64, work: Transfer) -> Option<u64> {
        let mut requests = work.requests;
        let first = if self.is_ideal { None } else { requests.next() };
        let slot = &mut self.channels[channel];
        let Some(first) = first else {
            slot.free_at = t + 1;
            return Some(t + 1);
        };
        slot.requests = Some(requests);
        (slot.queue, slot.number) = (queue, number);
        (slot.burst, slot.place) = (first.burst, self.dram.place(first.burst));
        slot.next_at = t + self.setup_cycles + work.list_cycles;
        (slot.made, slot.end) = (0, 0);
        let at = self.active.partition_point(|c| *c < channel);
        self.active.insert(at, channel);
        None
    }

    /// Makes requests before cycle `limit`, in order, until a transfer has made its last.
    pub(crate) fn advance(
        &mut self,
        limit: u64,
        ledgers: &mut [Ledger; 6],
        observer: &mut impl Observer,
    ) -> Option<Finished> {
        loop {
            // The earliest, of equal ones the lowest number; and when the next of the others is.
            let mut chosen: Option<(u64, usize)> = None;
            let mut others = u64::MAX;
            for (position, channel) in self.active.iter().enumerate() {
                let at = self.channels[*channel].next_at;
                match chosen {
                    Some((earliest, _)) if at >= earliest => others = others.min(at),
                    Some((earliest, _)) => {
                        others = others.min(earliest);
                        chosen = Some((at, position));
                    }
                    None => chosen = Some((at, position)),
                }
            }
            let (_, position) = chosen.filter(|(at, _)| *at < limit)?;
            // Until another channel's turn it goes on alone.
            let limit = if self.one_by_one { 0 } else { limit.min(others) };
            if let Some(finished) = self.advance_alone(position, limit, ledgers, observer) {
                return Some(finished);
            }
        }
    }

    /// Makes a request of one channel, and then those before `limit`.
    fn advance_alone(
        &mut self,
        position: usize,
        limit: u64,
        ledgers: &mut [Ledger; 6],
        observer: &mut impl Observer,
    ) -> Option<Finished> {
        let number = self.active[position];
        loop {
            let made_at = self.channels[number].next_at;
            let made_ps = self.ps(made_at);
            let served = self.dram.serve(self.channels[number].place, made_ps);
            let complete_at = self.cycles_up(served.complete_ps);
            let queue = self.channels[number].queue;
            observer.burst(queue, complete_at, self.burst_bytes);
            self.account(&mut ledgers[queue.index()], complete_at, served, observer);

            let channel = &mut self.channels[number];
            channel.end = channel.end.max(complete_at);
            let outstanding = channel.completions.len() as u64;
            channel.completions[(channel.made % outstanding) as usize] = complete_at;
            channel.made += 1;
            let Some(next) = channel.requests.as_mut().and_then(Requests::next) else {
                channel.requests = None;
                channel.free_at = channel.end;
                let finished = Finished { queue, number: channel.number, end: channel.end };
                self.active.remove(position);
                return Some(finished);
            };
            let mut next_at = made_at + 1;
            if channel.made >= outstanding {
                next_at = next_at.max(channel.completions[(channel.made % outstanding) as usize]);
            }
            if next.is_behind_all {
                next_at = next_at.max(channel.end);
            }
            channel.next_at = next_at;
            channel.place = match next.burst == channel.burst + 1 {
                true => self.dram.next_place(channel.place),
                false => self.dram.place(next.burst),
            };
            channel.burst = next.burst;
            if next_at >= limit {
                return None;
            }
        }
    }

    /// Accounts for the cycles up to a completion: moving the burst first, then what rule B4 names, the rest is latency.
    #[inline]
    fn account(
        &self,
        ledger: &mut Ledger,
        complete_at: u64,
        served: super::dram::Served,
        observer: &mut impl Observer,
    ) {
        let mut left = complete_at.saturating_sub(ledger.until());
        if left == 0 {
            return;
        }
        if left <= self.burst_cycles {
            ledger.spend(Cause::Busy, left, observer);
            return;
        }
        left -= self.burst_cycles;
        let mut stalls =
            [(Cause::Refresh, served.refresh_ps), (Cause::RowMiss, served.row_ps), (Cause::Bandwidth, served.bus_ps)]
                .map(|(cause, ps)| {
                    let cycles = if ps == 0 { 0 } else { self.cycles_up(ps).min(left) };
                    left -= cycles;
                    (cause, cycles)
                });
        // Latency comes first in time, then the stalls, then the data.
        ledger.spend(Cause::DmaLatency, left, observer);
        stalls.reverse();
        for (cause, cycles) in stalls {
            ledger.spend(cause, cycles, observer);
        }
        ledger.spend(Cause::Busy, self.burst_cycles, observer);
    }
}

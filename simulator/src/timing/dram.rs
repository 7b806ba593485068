//! DRAM: channels, banks with open rows, the bus, refresh (rules B1 to B4). Times are in ps.

use lapidary_npu_isa::Machine;

const NO_ROW: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Bank {
    open_row: u64,
    ready_ps: u64,
    activated_ps: u64,
}

/// A channel.
#[derive(Clone, Debug)]
struct Channel {
    bus_free_ps: u64,
    next_refresh_ps: u64,
    banks: Vec<Bank>,
}

/// Where a burst is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    channel: u32,
    bank: u32,
    row: u64,
    /// Burst within the row.
    column: u64,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    pub complete_ps: u64,
    /// What refresh adds.
    pub refresh_ps: u64,
    /// What opening its row adds.
    pub row_ps: u64,
    /// What waiting for the bus adds.
    pub bus_ps: u64,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DramCounts {
    /// Requests.
    pub requests: u64,
    /// Requests whose row was open.
    pub hits: u64,
    /// Requests of a bank without an open row.
    pub empties: u64,
    /// Requests of a bank with another row open.
    pub misses: u64,
    /// Refreshes, those of idle channels not counted.
    pub refreshes: u64,
}

impl DramCounts {
    /// Adds another's.
    pub fn add(&mut self, other: &DramCounts) {
        self.requests += other.requests;
        self.hits += other.hits;
        self.empties += other.empties;
        self.misses += other.misses;
        self.refreshes += other.refreshes;
    }
}

/// The memory off chip.
#[derive(Clone, Debug)]
pub(crate) struct DramTiming {
    channels: Vec<Channel>,
    bursts_per_row: u64,
    banks: u64,
    burst_ps: u64,
    trcd_ps: u64,
    trp_ps: u64,
    tcl_ps: u64,
    tras_ps: u64,
    trfc_ps: u64,
    trefi_ps: u64,
    pub counts: DramCounts,
}

impl DramTiming {
    pub(crate) fn new(machine: &Machine) -> DramTiming {
        let dram = &machine.dram;
        let bank = Bank { open_row: NO_ROW, ready_ps: 0, activated_ps: 0 };
        let next_refresh_ps = if dram.trefi_ps == 0 { u64::MAX } else { dram.trefi_ps };
        let channel = Channel { bus_free_ps: 0, next_refresh_ps, banks: vec![bank; dram.banks as usize] };
        DramTiming {
            channels: vec![channel; dram.channels as usize],
            bursts_per_row: dram.row_bytes / machine.dma.burst_bytes,
            banks: dram.banks,
            burst_ps: machine.burst_ps(),
            trcd_ps: dram.trcd_ps,
            trp_ps: dram.trp_ps,
            tcl_ps: dram.tcl_ps,
            tras_ps: dram.tras_ps,
            trfc_ps: dram.trfc_ps,
            trefi_ps: dram.trefi_ps,
            counts: DramCounts::default(),
        }
    }

    /// Rule B1.
    pub(crate) fn place(&self, burst: u64) -> Place {
        let channels = self.channels.len() as u64;
        let within = burst / channels;
        let row = within / self.bursts_per_row;
        Place {
            channel: (burst % channels) as u32,
            bank: (row % self.banks) as u32,
            row: row / self.banks,
            column: within % self.bursts_per_row,
        }
    }

    /// The place of the next burst.
    #[inline]
    pub(crate) fn next_place(&self, mut place: Place) -> Place {
        place.channel += 1;
        if place.channel as usize == self.channels.len() {
            place.channel = 0;
            place.column += 1;
            if place.column == self.bursts_per_row {
                place.column = 0;
                place.bank += 1;
                if u64::from(place.bank) == self.banks {
                    (place.bank, place.row) = (0, place.row + 1);
                }
            }
        }
        place
    }

    /// Rules B2 and B3: a request made at `made_ps`. Requests of a channel come in order.
    #[inline]
    pub(crate) fn serve(&mut self, place: Place, made_ps: u64) -> Served {
        let (tcl, burst) = (self.tcl_ps, self.burst_ps);
        let channel = &mut self.channels[place.channel as usize];
        self.counts.requests += 1;
        let mut unrefreshed_ps = None;
        loop {
            let bank = channel.banks[place.bank as usize];
            let soonest = made_ps.max(bank.ready_ps);
            let (first, column, activated) = if bank.open_row == place.row {
                (soonest, soonest, None)
            } else if bank.open_row == NO_ROW {
                (soonest, soonest + self.trcd_ps, Some(soonest))
            } else {
                let precharge = soonest.max(bank.activated_ps + self.tras_ps);
                let activate = precharge + self.trp_ps;
                (precharge, activate + self.trcd_ps, Some(activate))
            };
            let bus_from = channel.bus_free_ps.saturating_sub(tcl);
            let column = column.max(bus_from);
            let complete_ps = column + tcl + burst;
            let due = channel.next_refresh_ps;
            if first >= due || complete_ps > due {
                unrefreshed_ps.get_or_insert(complete_ps);
                self.counts.refreshes += 1;
                // All that are due when the request is made come before it, and the last leaves nothing of the others.
                let last = if due < made_ps { made_ps - (made_ps - due) % self.trefi_ps } else { due };
                refresh(channel, last, self.trfc_ps, self.trefi_ps);
                continue;
            }
            match (activated, bank.open_row) {
                (None, _) => self.counts.hits += 1,
                (Some(_), NO_ROW) => self.counts.empties += 1,
                (Some(_), _) => self.counts.misses += 1,
            }
            channel.bus_free_ps = complete_ps;
            let bank = &mut channel.banks[place.bank as usize];
            bank.open_row = place.row;
            bank.ready_ps = column + burst;
            bank.activated_ps = activated.unwrap_or(bank.activated_ps);
            let refresh_ps = complete_ps - unrefreshed_ps.unwrap_or(complete_ps).min(complete_ps);
            let by_bus = soonest.max(bus_from);
            return Served { complete_ps, refresh_ps, row_ps: column - by_bus, bus_ps: by_bus - soonest };
        }
    }
}

/// All rows are closed, and nothing moves until it is over.
fn refresh(channel: &mut Channel, due_ps: u64, trfc_ps: u64, trefi_ps: u64) {
    let over = due_ps + trfc_ps;
    for bank in &mut channel.banks {
        bank.open_row = NO_ROW;
        bank.ready_ps = over;
    }
    channel.bus_free_ps = channel.bus_free_ps.max(over);
    channel.next_refresh_ps = due_ps + trefi_ps;
}

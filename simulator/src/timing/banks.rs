//! Which banks of the scratchpad an instruction touches: rules S1 and S3.

use lapidary_npu_isa::Machine;
use lapidary_npu_isa::access::Access;
use lapidary_npu_isa::address::Memory;

/// Most banks of a machine.
const MOST_BANKS: usize = 1024;

/// A set of banks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BankSet([u64; MOST_BANKS / 64]);

impl BankSet {
    /// Adds banks `first` to `last`.
    fn add(&mut self, first: u64, last: u64) {
        for bank in first..=last.min(MOST_BANKS as u64 - 1) {
            self.0[bank as usize / 64] |= 1 << (bank % 64);
        }
    }

    /// No bank.
    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; MOST_BANKS / 64]
    }

    /// Banks of both.
    pub(crate) fn and(&self, other: &BankSet) -> BankSet {
        BankSet(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Banks of all scratchpad operands.
    pub(crate) fn of(accesses: &[Access], machine: &Machine) -> BankSet {
        let mut set = BankSet::default();
        for (first, last) in accesses.iter().filter_map(|a| bounds(a, machine)) {
            set.add(first, last);
        }
        set
    }
}

/// First and last bank of an operand in the scratchpad.
fn bounds(access: &Access, machine: &Machine) -> Option<(u64, u64)> {
    let bank_bytes = machine.bank_bytes();
    let touches = access.memory == Memory::Scratchpad && !access.is_empty();
    touches.then(|| (access.begin / bank_bytes, (access.end() - 1) / bank_bytes))
}

/// f of rule S3: turns that the streaming operands take at the ports of a bank.
pub(crate) fn turns(accesses: &[Access], machine: &Machine) -> u64 {
    let spans = || accesses.iter().filter(|a| a.streams).filter_map(|a| bounds(a, machine));
    // The most spans that share a bank share the first bank of one of them.
    let most = spans().map(|(bank, _)| spans().filter(|(first, last)| (*first..=*last).contains(&bank)).count()).max();
    (most.unwrap_or(0) as u64).div_ceil(machine.scratchpad.ports).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_npu_isa::access::AccessKind;

    fn operand(begin: u64, bytes: u64) -> Access {
        Access {
            operand: "a",
            memory: Memory::Scratchpad,
            kind: AccessKind::Read,
            begin,
            row_units: bytes,
            rows: 1,
            stride: 0,
            planes: 1,
            plane_stride: 0,
            align: 1,
            streams: true,
        }
    }

    #[test]
    fn banks_are_those_of_the_bounding_range() {
        // 8 banks of 32 KiB.
        let machine = Machine::preset("edge-16").unwrap();
        let at = |begin, bytes| BankSet::of(&[operand(begin, bytes)], &machine);
        assert_eq!(at(0, 32768), BankSet([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(at(0, 32769).0[0], 0b11);
        assert_eq!(at(32767, 2).0[0], 0b11);
        assert!(at(5, 0).is_empty());
        assert!(at(0, 100).and(&at(32768, 1)).is_empty());
    }

    #[test]
    fn turns_count_streams_that_meet_in_a_bank() {
        let mut machine = Machine::preset("edge-16").unwrap();
        let (a, b, c) = (operand(0, 40_000), operand(32_768, 100), operand(65_536, 4));
        assert_eq!(turns(&[], &machine), 1);
        assert_eq!(turns(&[a, c], &machine), 1);
        assert_eq!(turns(&[a, b, c], &machine), 2);
        assert_eq!(turns(&[a, a, b], &machine), 3);
        machine.set("scratchpad.ports", "2").unwrap();
        assert_eq!(turns(&[a, a, b], &machine), 2);
        assert_eq!(turns(&[a, b, c], &machine), 1);
    }
}

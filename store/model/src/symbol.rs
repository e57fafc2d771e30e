//! Interned names. A service or an operation travels between cores as four bytes.

use std::sync::{Arc, RwLock};

use hashbrown::HashMap;

/// The number of an interned name. Means something only to the [`Symbols`] that gave it, in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Symbol(pub u32);

impl Symbol {
    /// What every name becomes once the table is full.
    pub const OVERFLOW: Self = Self(0);
}

/// The published table of names: written rarely, shared by all cores. A core keeps a private cache in front of it
/// ([`SymbolCache`]), so that the steady path takes no lock.
#[derive(Clone, Debug)]
pub struct Symbols {
    shared: Arc<RwLock<Table>>,
    count_max: usize,
}

#[derive(Debug)]
struct Table {
    numbers: HashMap<Arc<[u8]>, Symbol>,
    names: Vec<Arc<[u8]>>,
}

impl Symbols {
    /// The name of [`Symbol::OVERFLOW`].
    pub const OVERFLOW_NAME: &'static str = "__overflow__";

    /// An empty table that gives out at most `count_max` numbers; later names share [`Symbol::OVERFLOW`], so that a
    /// sender that invents names cannot grow memory.
    #[must_use]
    pub fn new(count_max: usize) -> Self {
        let overflow: Arc<[u8]> = Self::OVERFLOW_NAME.as_bytes().into();
        let table = Table { numbers: HashMap::new(), names: vec![overflow] };
        Self { shared: Arc::new(RwLock::new(table)), count_max: count_max.min(u32::MAX as usize) }
    }

    /// The number of `name`, given now if it has none.
    #[must_use]
    pub fn intern(&self, name: &[u8]) -> Symbol {
        // A poisoned lock only means that another thread panicked between two consistent states.
        let read = self.shared.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(&symbol) = read.numbers.get(name) {
            return symbol;
        }
        drop(read);
        let mut table = self.shared.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(&symbol) = table.numbers.get(name) {
            return symbol;
        }
        if table.names.len() >= self.count_max {
            return Symbol::OVERFLOW;
        }
        let symbol = Symbol(u32::try_from(table.names.len()).unwrap_or(0));
        let name: Arc<[u8]> = name.into();
        table.names.push(Arc::clone(&name));
        table.numbers.insert(name, symbol);
        symbol
    }

    /// The name behind `symbol`, with invalid UTF-8 replaced.
    #[must_use]
    pub fn name(&self, symbol: Symbol) -> String {
        let table = self.shared.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = table.names.get(symbol.0 as usize).or_else(|| table.names.first());
        name.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
    }

    /// A private cache for one thread.
    #[must_use]
    pub fn cache(&self) -> SymbolCache {
        let recent = vec![Recent::default(); RECENT_COUNT];
        SymbolCache { symbols: self.clone(), known: HashMap::new(), recent }
    }
}

/// Names that are found again at once. A power of two.
const RECENT_COUNT: usize = 256;

/// The longest of them; longer ones are looked up.
const RECENT_BYTES_MAX: usize = 56;

/// A name seen lately, whole in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Recent {
    symbol: Symbol,
    /// Zero when there is none.
    length: u8,
    bytes: [u8; RECENT_BYTES_MAX],
}

const _: () = assert!(size_of::<Recent>() == 64);

impl Default for Recent {
    fn default() -> Self {
        Self { symbol: Symbol::OVERFLOW, length: 0, bytes: [0; RECENT_BYTES_MAX] }
    }
}

/// Where a name stands among the recent ones: its length and both its ends tell most names apart.
fn recent_slot(name: &[u8]) -> usize {
    let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (first, last) = if name.len() < 8 {
        let mut short = [0; 8];
        short[..name.len()].copy_from_slice(name);
        (u64::from_le_bytes(short), 0)
    } else {
        (word(name.first_chunk()), word(name.last_chunk()))
    };
    let mixed = (first ^ last.rotate_left(29) ^ name.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    usize::try_from(mixed >> (64 - RECENT_COUNT.ilog2())).unwrap_or(0)
}

/// One thread's view of [`Symbols`]: known names cost one hash at most, no lock.
#[derive(Debug)]
pub struct SymbolCache {
    symbols: Symbols,
    known: HashMap<Box<[u8]>, Symbol>,
    recent: Vec<Recent>,
}

impl SymbolCache {
    /// As [`Symbols::intern`].
    pub fn intern(&mut self, name: &[u8]) -> Symbol {
        if !(1..=RECENT_BYTES_MAX).contains(&name.len()) {
            return self.look_up(name);
        }
        let slot = recent_slot(name);
        let Recent { symbol, length, ref bytes } = self.recent[slot];
        if usize::from(length) == name.len() && bytes[..name.len()] == *name {
            return symbol;
        }
        let symbol = self.look_up(name);
        if symbol != Symbol::OVERFLOW {
            let mut bytes = [0; RECENT_BYTES_MAX];
            bytes[..name.len()].copy_from_slice(name);
            let length = u8::try_from(name.len()).unwrap_or(0);
            self.recent[slot] = Recent { symbol, length, bytes };
        }
        symbol
    }

    fn look_up(&mut self, name: &[u8]) -> Symbol {
        if let Some(&symbol) = self.known.get(name) {
            return symbol;
        }
        let symbol = self.symbols.intern(name);
        // Names beyond the table's limit stay out of the cache too: they are the ones without a bound.
        if symbol != Symbol::OVERFLOW {
            self.known.insert(name.into(), symbol);
        }
        symbol
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_a_full_table_overflows() {
        let symbols = Symbols::new(3);
        let mut cache = symbols.cache();
        let a = cache.intern(b"a");
        let b = symbols.intern(b"b");
        assert_eq!((cache.intern(b"a"), cache.intern(b"b")), (a, b));
        assert_ne!(a, b);
        assert_eq!(cache.intern(b"c"), Symbol::OVERFLOW);
        assert_eq!(symbols.name(a), "a");
        assert_eq!(symbols.name(Symbol::OVERFLOW), Symbols::OVERFLOW_NAME);
    }

    #[test]
    fn names_that_look_alike_are_told_apart() {
        let symbols = Symbols::new(100_000);
        let mut cache = symbols.cache();
        let mut names = vec![Vec::new(), vec![0], vec![0; 2], vec![b'x'; RECENT_BYTES_MAX + 1]];
        // The same ends and the same length, so the same slot.
        names.extend((0..=u8::MAX).map(|byte| [b"prefix__".as_slice(), &[byte], b"__suffix"].concat()));
        names.extend((0..1_000u32).map(|number| format!("operation {number}").into_bytes()));
        for _ in 0..2 {
            for name in &names {
                assert_eq!(cache.intern(name), symbols.intern(name), "{name:?}");
            }
        }
    }
}

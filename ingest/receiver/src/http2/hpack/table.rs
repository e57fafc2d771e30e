//! The two tables of HPACK: the fixed one of RFC 7541, appendix A, and the one that each connection's encoder fills.

use std::collections::VecDeque;

use crate::http2::head::Class;

/// What an entry costs beyond its bytes: RFC 7541, section 4.1.
pub const ENTRY_OVERHEAD: usize = 32;

/// Index 1 to 61, in order.
pub static STATIC: [(&str, &str, Class); 61] = [
    (":authority", "", Class::Authority),
    (":method", "GET", Class::Method),
    (":method", "POST", Class::Method),
    (":path", "/", Class::Path),
    (":path", "/index.html", Class::Path),
    (":scheme", "http", Class::Scheme),
    (":scheme", "https", Class::Scheme),
    (":status", "200", Class::Malformed),
    (":status", "204", Class::Malformed),
    (":status", "206", Class::Malformed),
    (":status", "304", Class::Malformed),
    (":status", "400", Class::Malformed),
    (":status", "404", Class::Malformed),
    (":status", "500", Class::Malformed),
    ("accept-charset", "", Class::Regular),
    ("accept-encoding", "gzip, deflate", Class::Regular),
    ("accept-language", "", Class::Regular),
    ("accept-ranges", "", Class::Regular),
    ("accept", "", Class::Regular),
    ("access-control-allow-origin", "", Class::Regular),
    ("age", "", Class::Regular),
    ("allow", "", Class::Regular),
    ("authorization", "", Class::Regular),
    ("cache-control", "", Class::Regular),
    ("content-disposition", "", Class::Regular),
    ("content-encoding", "", Class::Regular),
    ("content-language", "", Class::Regular),
    ("content-length", "", Class::ContentLength),
    ("content-location", "", Class::Regular),
    ("content-range", "", Class::Regular),
    ("content-type", "", Class::Regular),
    ("cookie", "", Class::Regular),
    ("date", "", Class::Regular),
    ("etag", "", Class::Regular),
    ("expect", "", Class::Regular),
    ("expires", "", Class::Regular),
    ("from", "", Class::Regular),
    ("host", "", Class::Regular),
    ("if-match", "", Class::Regular),
    ("if-modified-since", "", Class::Regular),
    ("if-none-match", "", Class::Regular),
    ("if-range", "", Class::Regular),
    ("if-unmodified-since", "", Class::Regular),
    ("last-modified", "", Class::Regular),
    ("link", "", Class::Regular),
    ("location", "", Class::Regular),
    ("max-forwards", "", Class::Regular),
    ("proxy-authenticate", "", Class::Regular),
    ("proxy-authorization", "", Class::Regular),
    ("range", "", Class::Regular),
    ("referer", "", Class::Regular),
    ("refresh", "", Class::Regular),
    ("retry-after", "", Class::Regular),
    ("server", "", Class::Regular),
    ("set-cookie", "", Class::Regular),
    ("strict-transport-security", "", Class::Regular),
    ("transfer-encoding", "", Class::Malformed),
    ("user-agent", "", Class::Regular),
    ("vary", "", Class::Regular),
    ("via", "", Class::Regular),
    ("www-authenticate", "", Class::Regular),
];

/// The dynamic table. Entries lie one after the other in one buffer, so a field is two slices of it and an entry is
/// no allocation of its own; what was evicted leaves a gap at the front that is closed now and then.
#[derive(Debug)]
pub struct Dynamic {
    /// A gap, the entries from the oldest on, and behind them the literal being read.
    bytes: Vec<u8>,
    /// The newest is at the front, as indices count.
    entries: VecDeque<Entry>,
    /// Where `bytes` starts in the endless stream of entries; wraps.
    base: u32,
    /// As RFC 7541 counts.
    size: usize,
    /// What `size` may be now; the encoder chooses it, up to what we announced.
    capacity: usize,
}

/// An entry with its overhead fits 4096 bytes, so 16 bits hold its lengths.
#[derive(Clone, Copy, Debug)]
struct Entry {
    position: u32,
    name_bytes: u16,
    value_bytes: u16,
    class: Class,
}

impl Entry {
    fn size(self) -> usize {
        usize::from(self.name_bytes) + usize::from(self.value_bytes) + ENTRY_OVERHEAD
    }
}

/// The largest table there can be: what every encoder may use before it has seen our settings.
pub const CAPACITY_MAX: usize = 4096;

/// Room for a full table behind an equally large gap.
const BYTES_KEPT: usize = 2 * CAPACITY_MAX;

impl Default for Dynamic {
    fn default() -> Self {
        let (bytes, entries) = (Vec::new(), VecDeque::new());
        Self { bytes, entries, base: 0, size: 0, capacity: CAPACITY_MAX }
    }
}

impl Dynamic {
    /// The entry at `index`, 0 being the newest.
    pub fn get(&self, index: usize) -> Option<(Class, &[u8], &[u8])> {
        let entry = self.entries.get(index)?;
        let start = self.start(*entry);
        let (name_bytes, value_bytes) = (usize::from(entry.name_bytes), usize::from(entry.value_bytes));
        let (name, value) = self.bytes.get(start..start + name_bytes + value_bytes)?.split_at(name_bytes);
        Some((entry.class, name, value))
    }

    fn start(&self, entry: Entry) -> usize {
        usize::try_from(entry.position.wrapping_sub(self.base)).unwrap_or(usize::MAX)
    }

    /// The end of the buffer, where a literal is put together before it is [`Self::insert`]ed or given up by
    /// [`Self::truncate`].
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Copies the name of entry `index` to the tail.
    pub fn append_name(&mut self, index: usize) -> Option<()> {
        let entry = *self.entries.get(index)?;
        let start = self.start(entry);
        self.bytes.extend_from_within(start..start + usize::from(entry.name_bytes));
        Some(())
    }

    /// Makes what lies behind `mark` the newest entry. One that is larger than the table empties it.
    pub fn insert(&mut self, mark: usize, name_bytes: usize, class: Class) {
        let value_bytes = self.bytes.len() - mark - name_bytes;
        let size = name_bytes + value_bytes + ENTRY_OVERHEAD;
        self.evict_down_to(self.capacity.saturating_sub(size));
        let lengths = (u16::try_from(name_bytes), u16::try_from(value_bytes), u32::try_from(mark));
        let (Ok(name_bytes), Ok(value_bytes), Ok(mark)) = lengths else { return self.truncate(mark) };
        if size > self.capacity {
            return self.truncate(usize::try_from(mark).unwrap_or(0));
        }
        let position = self.base.wrapping_add(mark);
        self.entries.push_front(Entry { position, name_bytes, value_bytes, class });
        self.size += size;
        self.close_gap(CAPACITY_MAX);
    }

    /// Gives up what lies behind `mark`.
    pub fn truncate(&mut self, mark: usize) {
        self.bytes.truncate(mark);
        // One long value must not stay as memory of an idle connection.
        if self.bytes.capacity() > 2 * BYTES_KEPT {
            self.close_gap(1);
            self.bytes.shrink_to(BYTES_KEPT);
        }
    }

    /// The encoder's own choice of size.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.evict_down_to(capacity);
    }

    /// Gives back all memory the entries do not need.
    pub fn trim(&mut self) {
        self.close_gap(1);
        self.bytes.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    fn evict_down_to(&mut self, size: usize) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }

    /// Moves the entries to the front once the gap there is at least `least` bytes.
    fn close_gap(&mut self, least: usize) {
        let gap = self.entries.back().map_or(self.bytes.len(), |&oldest| self.start(oldest));
        if gap >= least {
            self.bytes.drain(..gap);
            self.base = self.base.wrapping_add(u32::try_from(gap).unwrap_or(u32::MAX));
        }
    }

    #[cfg(test)]
    pub fn size(&self) -> usize {
        self.size
    }

    /// What it holds, for tests that bound it.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

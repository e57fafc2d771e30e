//! Recently decompressed pages, since answers come page by page: neighbours in time are neighbours on disk. Bounded; knows
//! nothing of rows.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// All pages together.
const BYTES_MAX: usize = 16 << 20;

/// A page that one huge trace made so large is not worth the hundred it would push out.
const PAGE_BYTES_MAX: usize = BYTES_MAX / 8;

/// The cache, and the count of reads that found damage; one of each per archive.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    recent: Mutex<Recent>,
    pub(crate) damaged_reads: AtomicU64,
}

#[derive(Debug, Default)]
struct Recent {
    /// Newest first. A few hundred at most, so looking through them costs less than hashing would save.
    pages: VecDeque<(PageKey, Bytes)>,
    bytes: usize,
}

/// Which page of which segment; segments have numbers for as long as they are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageKey {
    pub(crate) segment: u64,
    pub(crate) page: usize,
}

impl Pages {
    pub(crate) fn get(&self, key: PageKey) -> Option<Bytes> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let at = recent.pages.iter().position(|(cached, _)| *cached == key)?;
        let page = recent.pages.remove(at)?;
        let bytes = page.1.clone();
        recent.pages.push_front(page);
        Some(bytes)
    }

    pub(crate) fn put(&self, key: PageKey, page: Bytes) {
        if page.len() > PAGE_BYTES_MAX {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.bytes += page.len();
        recent.pages.push_front((key, page));
        while recent.bytes > BYTES_MAX || recent.pages.len() > 512 {
            let Some((_, oldest)) = recent.pages.pop_back() else { break };
            recent.bytes -= oldest.len();
        }
    }

    pub(crate) fn count_damage(&self) {
        // Relaxed: a statistic that orders nothing.
        self.damaged_reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_page_makes_room() {
        let pages = Pages::default();
        let key = |page| PageKey { segment: 0, page };
        let page = Bytes::from(vec![0; PAGE_BYTES_MAX]);
        (0..8).for_each(|n| pages.put(key(n), page.clone()));
        assert!(pages.get(key(0)).is_some());
        pages.put(key(8), page);
        assert!(pages.get(key(1)).is_none());
        assert!([0, 2, 8].into_iter().all(|n| pages.get(key(n)).is_some()));
        pages.put(key(9), Bytes::from(vec![0; PAGE_BYTES_MAX + 1]));
        assert!(pages.get(key(9)).is_none());
    }
}

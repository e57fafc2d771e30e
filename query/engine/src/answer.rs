//! What an answer misses, and how much was spent on it. Nothing is left out silently.

use crate::engine::Limits;

/// A fragment elsewhere costs the decompression of its page, which holds about this much.
const JUMP_BYTES: usize = 128 << 10;

/// How much of the limits one question has used.
#[derive(Debug)]
pub(crate) struct Budget {
    rows_left: u64,
    bytes_left: u64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { rows_left: limits.rows_max, bytes_left: limits.bytes_max }
    }

    /// One fragment of `bytes` was looked into; `is_jump` when it does not lie beside the one before.
    pub(crate) fn spend(&mut self, bytes: usize, is_jump: bool) {
        let bytes = if is_jump { bytes.max(JUMP_BYTES) } else { bytes };
        self.rows_left = self.rows_left.saturating_sub(1);
        self.bytes_left = self.bytes_left.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.rows_left == 0 || self.bytes_left == 0
    }
}

/// Why an answer is not the whole answer.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    damaged: Option<(u64, store_archive::Error)>,
    traces: u64,
    live_bytes: Option<u64>,
    budget_spent: bool,
}

impl Gaps {
    /// A place of the archive could not be read.
    pub(crate) fn damaged(&mut self, cause: store_archive::Error) {
        match &mut self.damaged {
            Some((places, _)) => *places += 1,
            none => *none = Some((1, cause)),
        }
    }

    /// The first damage that was met.
    pub(crate) fn into_damage(self) -> Option<store_archive::Error> {
        self.damaged.map(|(_, cause)| cause)
    }

    /// A trace could not be read, or not all of it.
    pub(crate) fn damaged_trace(&mut self) {
        self.traces += 1;
    }

    /// Only this much of the live bodies was looked at.
    pub(crate) fn live_cut(&mut self, bytes: u64) {
        self.live_bytes = Some(bytes);
    }

    /// The budget ended the search.
    pub(crate) fn budget_spent(&mut self) {
        self.budget_spent = true;
    }

    /// For people: what is missing, why, and what to do; `None` when nothing is.
    pub(crate) fn to_text(&self) -> Option<String> {
        let Self { damaged, traces, live_bytes, budget_spent } = self;
        let mut parts = Vec::new();
        if *budget_spent {
            parts.push(
                "the search looked at as much as one question may and found this far back: go on with the cursor, or \
                 narrow the time range or add a service, operation or tag"
                    .to_owned(),
            );
        }
        if let Some(bytes) = live_bytes {
            parts.push(format!(
                "only {bytes} bytes of recent spans were looked at: undecided traces may be missing"
            ));
        }
        if let Some((places, cause)) = damaged {
            parts.push(format!(
                "{places} places of the archive are damaged and were left out, first: {cause}"
            ));
        }
        if *traces > 0 {
            parts.push(format!("of {traces} traces found, parts or all could not be read"));
        }
        if parts.is_empty() { None } else { Some(parts.join("; ")) }
    }
}

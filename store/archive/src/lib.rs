//! Kept fragments: the open segment, sealed segments, the settlement records that tie them to the journal

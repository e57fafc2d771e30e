//! Answers questions over live traces, the open segment and sealed segments

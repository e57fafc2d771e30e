//! Decides on a finished trace: a pure function of trace, policy, sketches and now

//! Partitions of segments on disk: group commit, recovery, retention

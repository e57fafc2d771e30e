//! Live traces of one shard: table, timers, memory budget, remembered decisions

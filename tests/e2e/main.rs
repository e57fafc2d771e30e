//! The appliance as its users meet it: the real binary on a data directory of its own, spoken to over its ports, stopped and
//! killed at chosen moments. Never looks into the process.
//!
//! Every wait is for a condition and has an end; nothing here measures time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

mod appliance;
mod asker;
mod sender;
mod spans;

mod clock_jump;
mod command_line;
mod crash;
mod damage;
mod dialects;
mod disk;
mod doors;
mod load;
mod order;
mod sampling;
mod secure;
mod tenants;

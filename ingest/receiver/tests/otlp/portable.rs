//! Every test of this folder against the portable driver.

use ingest_receiver::DriverChoice;

const fn driver() -> DriverChoice {
    DriverChoice::Portable
}

#[path = "answers.rs"]
mod answers;
#[path = "dialects.rs"]
pub(crate) mod dialects;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "limits.rs"]
mod limits;
#[path = "support.rs"]
pub(crate) mod support;
#[path = "tls.rs"]
mod tls;

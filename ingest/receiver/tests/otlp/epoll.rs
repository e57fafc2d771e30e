//! Every test of this folder against the epoll driver.

use ingest_receiver::DriverChoice;

const fn driver() -> DriverChoice {
    DriverChoice::Epoll
}

#[path = "answers.rs"]
mod answers;
#[path = "dialects.rs"]
pub(crate) mod dialects;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "limits.rs"]
mod limits;
#[path = "pressure.rs"]
mod pressure;
#[path = "support.rs"]
pub(crate) mod support;
#[path = "tls.rs"]
mod tls;

//! Every test of this folder against the io_uring driver, and what only that one can get wrong.

use ingest_receiver::DriverChoice;

/// Where there is no io_uring, say so and prove the tests at least on epoll once more.
#[expect(clippy::print_stdout, reason = "what was not tested must be seen")]
pub(crate) fn driver() -> DriverChoice {
    match ingest_receiver::driver::choose(DriverChoice::IoUring) {
        Ok((chosen, _)) => chosen,
        Err(error) => {
            println!("SKIP: nothing here tests io_uring: {error}");
            DriverChoice::Epoll
        }
    }
}

#[path = "answers.rs"]
mod answers;
#[path = "dialects.rs"]
mod dialects;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "limits.rs"]
mod limits;
#[path = "pressure.rs"]
mod pressure;
#[path = "support.rs"]
mod support;
#[path = "tls.rs"]
mod tls;

//! The archive as its users see it, on a real disk. Each file is one promise.
#![cfg(test)]

mod concurrency;
mod damage;
mod expiry;
mod fixture;
mod restart;
mod same_answers;
mod size;

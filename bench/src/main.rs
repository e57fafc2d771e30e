//! Measures the appliance from outside and its stages from inside; prints JSON.

fn main() {}

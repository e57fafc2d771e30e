//! What an HTTP/2 server costs without its sockets.
fn main() {}

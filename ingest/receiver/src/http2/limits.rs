//! Every bound of one HTTP/2 connection, each with its reason. A value the peer chooses never becomes memory or time
//! without passing one of them.

/// What one connection may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams open at once; one more is refused. Announced.
    pub max_concurrent_streams: u32,
    /// Size of a request's header list, counted as RFC 9113 section 6.5.2 does (name + value + 32 a field).
    /// A larger list is answered with 431. Announced.
    pub header_list_bytes_max: usize,
    /// What a peer may send on one stream before it is given credit. Announced.
    pub stream_window: u32,
    /// The same for all streams together: the memory one connection can hold.
    pub connection_window: u32,
    /// The largest frame taken, at least 16 KiB. Announced.
    pub max_frame_bytes: u32,
    /// The HPACK table that a peer's encoder may use, at most 4 KiB. Announced when smaller.
    pub dynamic_table_bytes: usize,
    /// Streams the peer resets or makes us reset. A client whose deadline strikes resets all it has in flight at once.
    pub resets_per_second_max: u32,
    /// PINGs beyond one per answer: gRPC clients measure their bandwidth with a PING a round trip while answers flow.
    pub pings_per_second_max: u32,
    /// SETTINGS frames; each makes us write an acknowledgement.
    pub settings_per_second_max: u32,
    /// Frames that carry nothing: empty DATA, PRIORITY, unknown types, empty pieces of header blocks.
    pub empty_frames_per_second_max: u32,
    /// CONTINUATION frames of one header block.
    pub continuation_frames_max: u32,
    /// Output that waits, here for windows and in `out` for the socket. A peer that does not read is cut.
    pub out_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            header_list_bytes_max: 16 << 10,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame_bytes: 256 << 10,
            dynamic_table_bytes: 4096,
            resets_per_second_max: 512,
            pings_per_second_max: 100,
            settings_per_second_max: 50,
            empty_frames_per_second_max: 200,
            continuation_frames_max: 32,
            out_bytes_max: 1 << 20,
        }
    }
}

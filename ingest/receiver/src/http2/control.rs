//! The frames about the connection and about its streams' ends: SETTINGS, PING, WINDOW_UPDATE, RST_STREAM, theirs and
//! ours.

use store_model::Monotonic;

use super::connection::{DRAIN_PING, Http2, Io, Leaving, broken};
use super::frame::{self, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, FrameHeader, WINDOW_MAX, flag, setting};
use super::streams::{End, Stream};
use super::{Cut, ErrorCode, Sink, StreamId};

impl Http2 {
    pub(super) fn settings<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        if self.settings.exceeds(self.limits.settings_per_second_max, io.now) {
            return Err(Cut::SettingsFlood);
        }
        if header.has(flag::ACK) {
            self.settings_acked = true;
            return Ok(());
        }
        self.settings_seen = true;
        for entry in payload.as_chunks::<6>().0 {
            let [i0, i1, v0, v1, v2, v3] = *entry;
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                setting::ENABLE_PUSH if value > 1 => return Err(broken(ErrorCode::ProtocolError)),
                setting::INITIAL_WINDOW_SIZE => self.resize_windows(value)?,
                setting::MAX_FRAME_SIZE if (FRAME_BYTES_DEFAULT..=FRAME_BYTES_MAX).contains(&value) => {
                    self.peer_frame_bytes = value;
                }
                setting::MAX_FRAME_SIZE => return Err(broken(ErrorCode::ProtocolError)),
                _ => {}
            }
        }
        frame::write_settings_ack(io.out);
        self.flush_all(io.out);
        Ok(())
    }

    /// Section 6.9.2: the change applies to the streams that are open, too.
    fn resize_windows(&mut self, value: u32) -> Result<(), Cut> {
        if value > WINDOW_MAX {
            return Err(broken(ErrorCode::FlowControlError));
        }
        let change = i64::from(value) - self.peer_window;
        self.peer_window = i64::from(value);
        for stream in self.streams.iter_mut() {
            stream.send_window += change;
            if stream.send_window > i64::from(WINDOW_MAX) {
                return Err(broken(ErrorCode::FlowControlError));
            }
        }
        Ok(())
    }

    pub(super) fn ping<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        let Ok(payload) = <[u8; 8]>::try_from(payload) else { return Ok(()) };
        if !header.has(flag::ACK) {
            if self.pings.exceeds(self.limits.pings_per_second_max, io.now) {
                return Err(Cut::PingFlood);
            }
            frame::write_ping(payload, flag::ACK, io.out);
            return Ok(());
        }
        if payload == DRAIN_PING && self.leaving == Leaving::Announced {
            self.leave(io.out);
            return Ok(());
        }
        self.count_empty(io.now)
    }

    pub(super) fn window_update<S: Sink>(
        &mut self,
        id: u32,
        payload: &[u8],
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        let Ok(payload) = <[u8; 4]>::try_from(payload) else { return Ok(()) };
        let increment = i64::from(u32::from_be_bytes(payload) & WINDOW_MAX);
        let fault = |window: i64| match increment {
            0 => Some(ErrorCode::ProtocolError),
            _ if window > i64::from(WINDOW_MAX) => Some(ErrorCode::FlowControlError),
            _ => None,
        };
        if id == 0 {
            self.send_window += increment;
            if let Some(code) = fault(self.send_window) {
                return Err(broken(code));
            }
            self.flush_all(io.out);
        } else if let Some(stream) = self.streams.get(id) {
            stream.send_window += increment;
            if let Some(code) = fault(stream.send_window) {
                return self.fail_stream(id, code, io);
            }
            self.flush(id, io.out);
        }
        Ok(())
    }

    /// A stream error: section 5.4.2.
    pub(super) fn fail_stream<S: Sink>(
        &mut self,
        id: u32,
        code: ErrorCode,
        io: &mut Io<'_, S>,
    ) -> Result<(), Cut> {
        frame::write_reset(id, code, io.out);
        if let Some(stream) = self.remove(id, End::ByUs)
            && stream.waiting.is_none()
        {
            io.sink.reset(StreamId(id));
        }
        self.count_reset(io.now)
    }

    pub(super) fn peer_reset<S: Sink>(&mut self, id: u32, io: &mut Io<'_, S>) -> Result<(), Cut> {
        if let Some(stream) = self.remove(id, End::ByPeer)
            && stream.waiting.is_none()
        {
            io.sink.reset(StreamId(id));
        }
        self.count_reset(io.now)
    }

    fn count_reset(&mut self, now: Monotonic) -> Result<(), Cut> {
        let is_flood = self.resets.exceeds(self.limits.resets_per_second_max, now);
        if is_flood { Err(Cut::ResetFlood) } else { Ok(()) }
    }

    pub(super) fn remove(&mut self, id: u32, end: End) -> Option<Stream> {
        let stream = self.streams.remove(id, end)?;
        self.waiting_bytes -= stream.waiting.as_ref().map_or(0, |waiting| waiting.bytes());
        Some(stream)
    }
}

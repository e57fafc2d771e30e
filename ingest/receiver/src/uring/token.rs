//! What the kernel hands back with a completion: which kind of operation it was, and of whom. A new kind of operation on
//! the ring takes the next number here.

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Multishot accept; numbered by its door.
    Accept = 1,
    /// Multishot poll of the inbox.
    Wake,
    /// Multishot receive; numbered by its connection.
    Receive,
    /// Send; numbered by its connection.
    Send,
    /// Shutdown; numbered by its connection. The kernel hands it to a thread of its own, which looks its file up when it
    /// gets there, so the file must still be the same one.
    Shut,
    /// The write of the lane.
    Write,
    /// Cancel, close: done when they are submitted, so nobody waits for these, and only their failures are heard.
    Control,
}

impl Operation {
    const ALL: [Self; 7] =
        [Self::Accept, Self::Wake, Self::Receive, Self::Send, Self::Shut, Self::Write, Self::Control];
}

/// Names one operation among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) operation: Operation,
    pub(super) number: u32,
}

impl Token {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.number) << 8 | self.operation as u64
    }

    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        let operation = Operation::ALL.into_iter().find(|&known| known as u64 == bits & 0xFF)?;
        Some(Self { operation, number: u32::try_from(bits >> 8).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        for operation in Operation::ALL {
            for number in [0, 1, u32::MAX] {
                let token = Token { operation, number };
                assert_eq!(Token::from_bits(token.to_bits()), Some(token));
            }
        }
        assert_eq!(Token::from_bits(0), None);
        assert_eq!(Token::from_bits(u64::MAX), None);
    }
}

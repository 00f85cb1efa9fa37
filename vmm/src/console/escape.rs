//! Commands to strait among what is typed at the guest.

/// Ctrl-A, which starts a command to strait; twice, it goes to the guest.
const ESCAPE: u8 = 0x01;

/// What came of a few typed bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the guest.
    pub(crate) guest: Vec<u8>,
    /// Ctrl-A x was typed: end strait.
    pub(crate) quit: bool,
}

/// Finds `Ctrl-A x` (quit) and `Ctrl-A Ctrl-A` (one Ctrl-A for the guest) in what is typed.
#[derive(Debug, Default)]
pub(crate) struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// Takes what was typed; an escape may be split over two calls.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match (self.escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => {
                    typed.quit = true;
                    self.escaped = false;
                }
                (true, ESCAPE) => {
                    typed.guest.push(ESCAPE);
                    self.escaped = false;
                }
                (true, other) => {
                    typed.guest.extend([ESCAPE, other]);
                    self.escaped = false;
                }
                (false, other) => typed.guest.push(other),
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_split_over_two_reads_quits() {
        let mut parser = EscapeParser::default();
        assert_eq!(parser.feed(b"ls\x01"), Typed { guest: b"ls".to_vec(), quit: false });
        assert_eq!(parser.feed(b"x"), Typed { guest: vec![], quit: true });
    }

    #[test]
    fn escape_twice_reaches_the_guest_once() {
        let mut parser = EscapeParser::default();
        assert_eq!(parser.feed(b"a\x01\x01x"), Typed { guest: b"a\x01x".to_vec(), quit: false });
    }

    #[test]
    fn escape_with_another_key_goes_through_whole() {
        let mut parser = EscapeParser::default();
        assert_eq!(parser.feed(b"\x01c"), Typed { guest: b"\x01c".to_vec(), quit: false });
    }
    proptest! {
        #[test]
        fn what_is_typed_means_the_same_in_any_pieces(
            bytes in proptest::collection::vec(
                prop_oneof![3 => Just(ESCAPE), 2 => Just(b'x'), 2 => any::<u8>()], 0..24,
            ),
            pieces in proptest::collection::vec(1_usize..5, 24),
        ) {
            let whole = EscapeParser::default().feed(&bytes);
            let (mut parser, mut all, mut rest) = (EscapeParser::default(), Typed::default(), &bytes[..]);
            for len in pieces {
                let (piece, after) = rest.split_at(len.min(rest.len()));
                let typed = parser.feed(piece);
                all.guest.extend(typed.guest);
                all.quit |= typed.quit;
                rest = after;
            }
            prop_assert_eq!(all, whole);
        }
    }
}

//! The byte alphabet of byte-level vocabularies: every byte is a printable character (Radford et al. 2019).
//!
//! Bytes that are printable in Latin-1 stand for themselves; the others, in order, are U+0100 and up. So a space is
//! `Ġ` (U+0120) and a line feed `Ċ` (U+010A).

/// Whether a byte stands for itself.
fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The characters of all 256 bytes.
const ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let (mut byte, mut next) = (0usize, 0x100u32);
    while byte < 256 {
        let own = matches!(byte as u8, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if own { byte as u32 } else { next };
        alphabet[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("all of U+0000 to U+01FF are characters"),
        };
        next += !own as u32;
        byte += 1;
    }
    alphabet
};

/// Appends bytes in the alphabet.
pub(crate) fn encode(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().map(|b| ALPHABET[usize::from(*b)]));
}

/// The bytes of a token's text. A character outside the alphabet, which no sound vocabulary has, stands for itself.
pub(super) fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    if let Ok(byte) = u8::try_from(code) {
        return printable(byte).then_some(byte);
    }
    // 33 control bytes and the space, then 33 of 0x7f to 0xa0, then the soft hyphen.
    let others = (0..=255u8).filter(|b| !printable(*b));
    others.zip(0x100..).find(|(_, at)| *at == code).map(|(byte, _)| byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character_and_comes_back() {
        let mut all = ALPHABET.to_vec();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
        for byte in 0..=255u8 {
            assert_eq!(byte_of(ALPHABET[usize::from(byte)]), Some(byte));
        }
        assert_eq!((ALPHABET[0x20], ALPHABET[0x0a], ALPHABET[0xad]), ('Ġ', 'Ċ', '\u{143}'));
    }

    #[test]
    fn texts_come_back() {
        let mut encoded = String::new();
        encode(" é\n".as_bytes(), &mut encoded);
        assert_eq!(encoded, "ĠÃ©Ċ");
        assert_eq!(decode(&encoded), " é\n".as_bytes());
        assert_eq!(decode("中"), "中".as_bytes());
    }
}

//! Digests as text, and the order of tie digests.

use eadem_values::{Digest, TieDigest};

const OF_ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn a_digest_is_read_back_from_its_text() {
    let digest = Digest::of(b"abc");
    assert_eq!(digest.to_string(), OF_ABC);
    assert_eq!(OF_ABC.parse(), Ok(digest));
    assert_eq!(digest.short(), "ba7816bf8f01");
    assert_eq!(format!("sha256:{}", digest.hex()), OF_ABC);
    assert_eq!(Digest::from_bytes(*digest.as_bytes()), digest);
    assert_eq!(serde_json::from_str::<Digest>(&serde_json::to_string(&digest).unwrap()).unwrap(), digest);
}

#[test]
fn other_text_is_refused() {
    let without_prefix = OF_ABC.trim_start_matches("sha256:");
    for text in ["", "sha256:", without_prefix, &OF_ABC[..70], &format!("{OF_ABC}00"), "sha256:xyz"] {
        let message = text.parse::<Digest>().unwrap_err().to_string();
        assert!(message.contains("64 hexadecimal digits"), "{message}");
    }
}

#[test]
fn tie_digests_are_ordered_as_big_endian_numbers() {
    let number = |number: u128| TieDigest::from_bytes(number.to_be_bytes());
    assert!(number(1) < number(256));
    assert!(number(u128::MAX) > number(1 << 127));
    assert_eq!(TieDigest::default(), number(0));
    assert_eq!(number(7).as_bytes()[15], 7);
}

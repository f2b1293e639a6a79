//! Secrets, and keeping them out of what people read.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// What stands where a secret would.
pub(crate) const HIDDEN: &str = "(not shown)";

/// Shorter texts occur by chance: hiding them would hide what is no secret.
const SECRET_CHARS_MIN: usize = 6;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one who must send it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// All secrets that a client has ever signed with. Clones are one list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Arc<RwLock<Vec<Secret>>>);

impl Secrets {
    pub(crate) fn add(&self, secret: &Secret) {
        if secret.0.chars().count() < SECRET_CHARS_MIN {
            return;
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(secret) {
            all.push(secret.clone());
            // One may be a part of another: the longer must be hidden first.
            all.sort_by_key(|secret| std::cmp::Reverse(secret.0.len()));
        }
    }

    /// The text with every secret hidden, also where it stands as it would in a URL.
    pub(crate) fn hide(&self, text: &str) -> String {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut hidden = text.to_owned();
        for secret in all.iter() {
            hidden = hidden.replace(&secret.0, HIDDEN);
            let encoded: String = url::form_urlencoded::byte_serialize(secret.0.as_bytes()).collect();
            if encoded != secret.0 {
                hidden = hidden.replace(&encoded, HIDDEN);
            }
        }
        hidden
    }
}

/// A location as it may be repeated to people: without what stands before the host or after `?` in a URL, which may be
/// credentials, whatever they look like.
pub(crate) fn shown_location(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // A secret key may hold slashes, so that its rest would look like a path.
    let is_plain = !rest.contains(['@', '?', '#']);
    if is_plain { text.to_owned() } else { format!("{scheme}://{HIDDEN}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_any_text() {
        let secrets = Secrets::default();
        secrets.add(&Secret::new("abc/def+ghi"));
        secrets.add(&Secret::new("abc/def+ghi/longer"));
        secrets.add(&Secret::new("us"));
        let text = secrets.hide("us: abc/def+ghi/longer, abc/def+ghi and abc%2Fdef%2Bghi");
        assert_eq!(text, "us: (not shown), (not shown) and (not shown)");
        assert_eq!(format!("{:?}", Secret::new("abc/def+ghi")), HIDDEN);
        assert!(!format!("{secrets:?}").contains("abc"));
    }

    #[test]
    fn a_location_is_repeated_without_what_may_be_credentials() {
        for (given, shown) in [
            ("s3://bucket/a/b.parquet", "s3://bucket/a/b.parquet"),
            ("/data/a@b?.parquet", "/data/a@b?.parquet"),
            ("s3://key:secret@bucket/a", "s3://(not shown)"),
            ("s3://key:sec/ret@bucket/a", "s3://(not shown)"),
            ("s3://bucket/a?X-Amz-Signature=1", "s3://(not shown)"),
            ("s3://bucket/a#key", "s3://(not shown)"),
        ] {
            assert_eq!(shown_location(given), shown);
        }
    }
}

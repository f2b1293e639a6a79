//! `Authorization: Bearer eadem_<id>_<secret>`.

use axum::http::{HeaderMap, header};
use eadem_values::Digest;
use rustls::crypto::ring;

use crate::problem::Problem;

/// What every token begins with, so that it is recognised where it should not stand.
const PREFIX: &str = "eadem_";

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token that nobody has seen yet.
pub(crate) struct NewSecret {
    /// No secret.
    pub(crate) id: String,
    /// What a client sends. It is shown once and kept nowhere.
    pub(crate) token: String,
    /// What is kept of the secret.
    pub(crate) secret_hash: Digest,
}

/// A new token of 256 bits by chance.
///
/// # Errors
/// The system has no randomness to give.
pub(crate) fn new_secret() -> Result<NewSecret, Problem> {
    let id = random_hex::<ID_BYTES>()?;
    let secret = random_hex::<SECRET_BYTES>()?;
    let secret_hash = Digest::of(secret.as_bytes());
    Ok(NewSecret { token: format!("{PREFIX}{id}_{secret}"), id, secret_hash })
}

fn random_hex<const BYTES: usize>() -> Result<String, Problem> {
    let mut bytes = [0_u8; BYTES];
    let filled = ring::default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|error| Problem::internal("there is no randomness", format!("{error:?}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a request brings as a credential.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Presented<'a> {
    /// Nothing.
    Nothing,
    /// Something that is no token of ours, whatever it is.
    Malformed,
    /// A token that may exist.
    Token { id: &'a str, secret: &'a str },
}

impl<'a> Presented<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Self::Nothing };
        // Two of them would be read differently by a proxy and by us.
        if values.next().is_some() {
            return Self::Malformed;
        }
        let token = value.to_str().ok().and_then(bearer).and_then(|token| token.strip_prefix(PREFIX));
        match token.and_then(|token| token.split_once('_')) {
            Some((id, secret)) if is_hex(id, ID_BYTES) && is_hex(secret, SECRET_BYTES) => Self::Token { id, secret },
            _ => Self::Malformed,
        }
    }
}

/// The id of the token that a request brings, whether or not its secret is right.
pub(crate) fn presented_id(headers: &HeaderMap) -> Option<&str> {
    match Presented::of(headers) {
        Presented::Token { id, .. } => Some(id),
        Presented::Nothing | Presented::Malformed => None,
    }
}

/// What follows `Bearer`, a name in which case means nothing.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, rest) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
}

fn is_hex(text: &str, bytes: usize) -> bool {
    text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether this is the secret. It takes the same time whichever byte is the first that differs.
pub(super) fn is_secret(secret: &str, known: &Digest) -> bool {
    let hash = Digest::of(secret.as_bytes());
    let pairs = hash.as_bytes().iter().zip(known.as_bytes());
    pairs.fold(0, |differing, (one, other)| differing | (one ^ other)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_new_token_is_recognised_and_no_other_secret_is() {
        let made = new_secret().unwrap();
        let other = new_secret().unwrap();
        assert_ne!(made.token, other.token);
        for scheme in ["Bearer", "bearer"] {
            let headers = headers(&[&format!("{scheme} {}", made.token)]);
            let Presented::Token { id, secret } = Presented::of(&headers) else { panic!("{scheme}") };
            assert_eq!(id, made.id);
            assert!(is_secret(secret, &made.secret_hash));
            assert!(!is_secret(secret, &other.secret_hash));
        }
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        assert_eq!(Presented::of(&headers(&[])), Presented::Nothing);
        let token = new_secret().unwrap().token;
        let upper = token.to_uppercase();
        let longer = format!("{token}0");
        for value in ["", "Bearer", "Bearer ", "Basic eDp5", "Bearer eadem_", "Bearer eadem_0_1", &token, &upper] {
            assert_eq!(Presented::of(&headers(&[value])), Presented::Malformed, "{value}");
        }
        for token in [&longer, &upper, "eadem_", "ghp_0123"] {
            let value = format!("Bearer {token}");
            assert_eq!(Presented::of(&headers(&[&value])), Presented::Malformed, "{value}");
        }
        let value = format!("Bearer {token}");
        assert_eq!(Presented::of(&headers(&[&value, &value])), Presented::Malformed);
    }
}

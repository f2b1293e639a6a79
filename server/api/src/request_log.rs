//! Names of requests, and a log of a share of them.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use eadem_semantics::Status;
use eadem_values::{Digest, EntityKey};
use serde_json::{Map, Value as Json};
use uuid::Uuid;

use crate::clock::as_us;
use crate::serving::{Answer, EntityRows, ServingPlan};

/// The header that names a request, in both directions.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer name is not taken over.
const ID_BYTES_MAX: usize = 128;

/// Of a request for many entities not all are named.
const ENTITIES_MAX: usize = 16;

/// The name of a request: the client's, or one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// What the client calls it, if that can stand in a log, else something that nobody else has.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let is_printable = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            (1..=ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        };
        if let Some(given) = headers.get(REQUEST_ID).filter(is_printable) {
            return Self(given.clone());
        }
        Self::new()
    }

    /// What no other request of any process is called: a number of this process by chance, and one that counts. Both chosen by
    /// chance would cost a call of the system each.
    fn new() -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(|| Uuid::new_v4().as_u64_pair().0);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let text = format!("{:016x}{:016x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed));
        Self(HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unnamed")))
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// A share of the answered requests for features, as events of `tracing` with the target `eadem::requests`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestLog {
    share: f64,
}

impl RequestLog {
    /// Logs this share of the requests: 0 none, 1 all.
    pub fn of_share(share: f64) -> Self {
        Self { share }
    }

    /// Whether a request is in the share: it follows from its name, so that several servers on a request's way, each with the
    /// same share, log the same ones.
    fn has(self, id: &RequestId) -> bool {
        if self.share <= 0.0 {
            return false;
        }
        let digest = Digest::of(id.0.as_bytes());
        let number = digest.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        (number as f64) < self.share * 2_f64.powi(64)
    }

    /// An entity is named by the beginning of the digest of its encoded keys: the log can be searched for one that is known,
    /// and does not list them.
    pub(crate) fn answered(
        self,
        id: &RequestId,
        plan: &ServingPlan,
        rows: &EntityRows,
        answer: &Answer,
        began: Instant,
    ) {
        if !self.has(id) {
            return;
        }
        let service = match (&plan.service.name, plan.service.version) {
            (Some(name), Some(version)) => format!("{name}@{version}"),
            // A list of features.
            _ => "-".to_owned(),
        };
        let views: Vec<String> = plan.nodes.iter().map(|node| node.view().id.to_string()).collect();
        let entity = |row: usize| {
            let key = EntityKey(rows.keys.iter().map(|keys| keys[row].clone()).collect());
            Digest::of(&key.encode()).hex()[..16].to_owned()
        };
        let entities: Vec<String> = (0..answer.rows().min(ENTITIES_MAX)).map(entity).collect();
        tracing::info!(
            target: "eadem::requests",
            id = id.as_str(),
            service,
            views = views.join(","),
            rows = answer.rows(),
            entities = entities.join(","),
            statuses = %statuses(answer),
            took_us = as_us(began.elapsed()),
            "answered"
        );
    }
}

/// How many values have each status.
fn statuses(answer: &Answer) -> Json {
    let mut counts = [0_u64; Status::ALL.len()];
    for status in answer.columns.iter().flat_map(|column| column.statuses.iter()) {
        counts[*status as usize] += 1;
    }
    let counted = Status::ALL.into_iter().filter(|status| counts[*status as usize] > 0);
    let entries = counted.map(|status| (status.name().to_owned(), Json::from(counts[status as usize])));
    Json::Object(entries.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn named(id: &str) -> RequestId {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_str(id).unwrap());
        RequestId::of(&headers)
    }

    #[test]
    fn names_are_taken_over_where_they_can_stand_in_a_log() {
        assert_eq!(named("trace-7/b").as_str(), "trace-7/b");
        for unfit in ["", "two words", &"x".repeat(ID_BYTES_MAX + 1)] {
            let own = named(unfit);
            assert_eq!(own.as_str().len(), 32, "{unfit}");
            assert_ne!(own, named(unfit));
        }
    }

    #[test]
    fn a_share_is_a_share_and_the_same_everywhere() {
        let log = RequestLog::of_share(0.25);
        let logged = (0..4_000).filter(|number| log.has(&named(&format!("request-{number}")))).count();
        assert!((850..1_150).contains(&logged), "{logged} of 4000");
        let all = (0..100).all(|number| RequestLog::of_share(1.0).has(&named(&format!("request-{number}"))));
        let none = (0..100).any(|number| RequestLog::default().has(&named(&format!("request-{number}"))));
        assert!(all && !none);
        assert_eq!(log.has(&named("request-1")), RequestLog::of_share(0.25).has(&named("request-1")));
    }
}

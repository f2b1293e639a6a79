//! One semantics of time: as-of choice, ties, TTL, status, trimming, erasure and the known-at cut, as pure functions.
//!
//! The point-in-time join, the materializer, the stores and the server call these functions and no others, so a training
//! row, a read at a past timestamp and a live read cannot disagree. Times are microseconds since the Unix epoch, UTC.

mod accept;
mod as_stored;
mod cut;
mod lifetime;
mod order;
mod status;
mod trim;

pub use accept::{MAX_AHEAD_DEFAULT_US, RefusedTime, accept_event_time};
pub use as_stored::{AsStored, InvalidAsStored};
pub use cut::KnownAtCut;
pub use lifetime::{Age, Lifetime};
pub use order::{ReadAt, RowOrder, erased, is_candidate, visible_from_us, winner};
pub use status::{Served, Status, UnknownStatus, resolve_status, row_status, serve};
pub use trim::{TrimNewestFirst, trim_keeps, trim_mask};

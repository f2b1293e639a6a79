//! What the registry says of a view, in the terms of the crates that decide a value. One translation for requests, jobs and
//! training sets: were there two, they could differ.

use eadem_query::{OutlierBound, Validation};
use eadem_registry::model::{StoredView, ValidationPolicy, ViewVersion};
use eadem_semantics::Lifetime;

/// How long a row of the view can be served.
pub fn lifetime(stored: &StoredView) -> Lifetime {
    Lifetime { ttl_us: stored.ttl_us, horizon_us: stored.horizon_us }
}

/// What the view does about outliers and about values that break a constraint.
pub fn validation(view: &ViewVersion) -> Validation {
    let bound = |bound: &eadem_registry::model::OutlierBound| OutlierBound {
        min: bound.min.clone(),
        max: bound.max.clone(),
        allow_nan: bound.allow_nan,
        allow_infinite: bound.allow_infinite,
        policy: bound.validation.map(policy),
    };
    let bounds = view.bounds.iter().map(|(feature, of_feature)| (feature.clone(), bound(of_feature)));
    Validation { policy: policy(view.validation), bounds: bounds.collect() }
}

fn policy(policy: ValidationPolicy) -> eadem_query::ValidationPolicy {
    match policy {
        ValidationPolicy::RefuseRow => eadem_query::ValidationPolicy::RefuseRow,
        ValidationPolicy::NullValue => eadem_query::ValidationPolicy::NullValue,
        ValidationPolicy::Clamp => eadem_query::ValidationPolicy::Clamp,
        ValidationPolicy::StopJob => eadem_query::ValidationPolicy::StopJob,
    }
}

//! Names of transforms, inputs and outputs, by the rules that an upload checks: better here, beside the name.

/// The longest name that a store takes as it is delivered.
const NAME_BYTES_MAX: usize = 63;
/// Columns that every table has.
const RESERVED: [&str; 3] = ["event_time", "known_at", "event_date"];
/// A training set has a column of this name beside each feature.
const RESERVED_SUFFIX: &str = "__status";

/// What is wrong with a name, if anything is.
pub(crate) fn fault_of_name(name: &str) -> Option<&'static str> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase());
    let goes_on_well = name.chars().all(|each| each.is_ascii_lowercase() || each.is_ascii_digit() || each == '_');
    if !starts_well || !goes_on_well {
        return Some("has lower-case ASCII letters, digits and _, and starts with a letter");
    }
    (name.len() > NAME_BYTES_MAX).then_some("has at most 63 bytes")
}

/// Whether the name belongs to the store's own columns.
pub(crate) fn is_reserved_for_columns(name: &str) -> bool {
    RESERVED.contains(&name) || name.ends_with(RESERVED_SUFFIX)
}

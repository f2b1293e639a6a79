//! The small languages inside definitions and requests: names and feature references.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::RegistryError;

/// What every spine and request calls the instant of a row.
pub(crate) const SPINE_TIMESTAMP: &str = "timestamp";

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A feature as a request names it: `view:feature`, `view@2:feature` or a bare `feature`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeatureName {
    /// The view; `None` for a bare name.
    pub(crate) view: Option<String>,
    /// The version; `None` is the newest.
    pub(crate) version: Option<u32>,
    /// The feature.
    pub(crate) feature: String,
}

/// An entry of a service: `view[@version]:feature|* [for role] [as alias]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceEntryName {
    /// The view.
    pub view: String,
    /// The version; `None` is the newest at `apply`.
    pub version: Option<u32>,
    /// The feature; `None` is all of them (`*`).
    pub feature: Option<String>,
    /// Names the key.
    pub role: Option<String>,
    /// The name in replies and datasets.
    pub alias: Option<String>,
}

impl fmt::Display for FeatureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(view) = &self.view {
            f.write_str(view)?;
            if let Some(version) = self.version {
                write!(f, "@{version}")?;
            }
            f.write_str(":")?;
        }
        f.write_str(&self.feature)
    }
}

impl fmt::Display for ServiceEntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.view)?;
        if let Some(version) = self.version {
            write!(f, "@{version}")?;
        }
        write!(f, ":{}", self.feature.as_deref().unwrap_or("*"))?;
        if let Some(role) = &self.role {
            write!(f, " for {role}")?;
        }
        if let Some(alias) = &self.alias {
            write!(f, " as {alias}")?;
        }
        Ok(())
    }
}

/// Checks the name of an entity, source, view, service, role or alias.
///
/// # Errors
/// What is wrong, for the end of a message that names the thing.
pub fn check_name(name: &str) -> Result<(), String> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    let is_plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !starts_well || !is_plain {
        return Err(format!("`{name}` is not a name; use lower-case letters, digits and `_`, beginning with a letter"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("the name `{name}` is longer than {NAME_BYTES_MAX} characters"));
    }
    Ok(())
}

/// Checks the name of a role: who sends a key calls it so, and beside it stands the instant.
fn check_role(role: &str) -> Result<(), String> {
    check_name(role)?;
    if role == SPINE_TIMESTAMP {
        return Err(format!(
            "the role `{role}` is reserved: requests and spines call their instant so; choose another"
        ));
    }
    Ok(())
}

/// Splits `view@2` into name and version.
fn parse_versioned(text: &str) -> Result<(String, Option<u32>), String> {
    let (name, version) = match text.split_once('@') {
        None => (text, None),
        Some((name, version)) => (name, Some(parse_version(version)?)),
    };
    check_name(name)?;
    Ok((name.to_owned(), version))
}

fn parse_version(text: &str) -> Result<u32, String> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(version) if is_number && version > 0 => Ok(version),
        _ => Err(format!("`@{text}` is not a version; versions are whole numbers from 1, such as `@2`")),
    }
}

fn check_feature(feature: &str) -> Result<(), String> {
    let is_plain = feature.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if feature.is_empty() || !is_plain {
        return Err(format!("`{feature}` is not the name of a feature; use letters, digits and `_`"));
    }
    Ok(())
}

/// Splits `name` or `name@2` as a request names a view or service. Nothing has a malformed name, so looking for it is what
/// refuses it, with the nearest one that there is.
///
/// # Errors
/// [`RegistryError::MalformedVersion`]: what follows `@` is no whole number from 1.
pub fn split_version(text: &str) -> Result<(&str, Option<u32>), RegistryError> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((name, version)) => {
            let version = parse_version(version);
            version.map(|version| (name, Some(version))).map_err(RegistryError::MalformedVersion)
        }
    }
}

/// Reads a feature as a request names it.
///
/// # Errors
/// [`RegistryError::MalformedVersion`]
pub(crate) fn feature_as_asked(text: &str) -> Result<FeatureName, RegistryError> {
    let text = text.trim();
    let Some((view, feature)) = text.split_once(':') else {
        return Ok(FeatureName { view: None, version: None, feature: text.to_owned() });
    };
    let (view, version) = split_version(view)?;
    Ok(FeatureName { view: Some(view.to_owned()), version, feature: feature.to_owned() })
}

/// Reads an entry of a service.
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn parse_service_entry(text: &str) -> Result<ServiceEntryName, String> {
    const SHAPE: &str = "write `view:feature`, `view@2:feature` or `view:*`, then `for <role>`, then `as <alias>`";
    let mut words = text.split_whitespace();
    let reference = words.next().ok_or_else(|| format!("an entry is empty; {SHAPE}"))?;
    let (view, feature) = reference.split_once(':').ok_or_else(|| format!("`{reference}` names no view; {SHAPE}"))?;
    let (view, version) = parse_versioned(view)?;
    if feature != "*" {
        check_feature(feature)?;
    }
    let mut role = None;
    let mut alias = None;
    while let Some(keyword) = words.next() {
        let slot = match keyword {
            "for" if role.is_none() && alias.is_none() => &mut role,
            "as" if alias.is_none() => &mut alias,
            _ => return Err(format!("`{keyword}` is not expected in `{text}`; {SHAPE}")),
        };
        let name = words.next().ok_or_else(|| format!("`{keyword}` is not followed by a name in `{text}`; {SHAPE}"))?;
        if keyword == "for" {
            check_role(name)?
        } else {
            check_name(name)?
        }
        *slot = Some(name.to_owned());
    }
    if feature == "*" && alias.is_some() {
        return Err(format!("`{text}` gives one alias to all features of a view; list them one by one to rename them"));
    }
    let feature = (feature != "*").then(|| feature.to_owned());
    Ok(ServiceEntryName { view, version, feature, role, alias })
}

/// What the text of a binding means where other views and the request may be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BindingName {
    RequestTimestamp,
    Request(String),
    Feature {
        view: String,
        version: Option<u32>,
        feature: String,
        role: Option<String>,
    },
    /// No dot: a column, where there is a source.
    Plain(String),
}

const REQUEST_PREFIX: &str = "request.";

pub(crate) fn names_the_request(text: &str) -> bool {
    text.trim().starts_with(REQUEST_PREFIX)
}

/// Reads `request.<field>`, `request.timestamp`, `view[@v].feature [for role]` or a plain name.
pub(crate) fn parse_binding_name(text: &str) -> Result<BindingName, String> {
    const SHAPE: &str = "write `request.<field>`, `request.timestamp`, `view.feature` or `view.feature for <role>`";
    let text = text.trim();
    if text == "request.timestamp" {
        return Ok(BindingName::RequestTimestamp);
    }
    if let Some(field) = text.strip_prefix(REQUEST_PREFIX) {
        check_name(field)?;
        return Ok(BindingName::Request(field.to_owned()));
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let (reference, role) = match words.as_slice() {
        [reference] => (*reference, None),
        [reference, "for", role] => (*reference, Some(*role)),
        _ => return Err(format!("`{text}` is not a binding; {SHAPE}")),
    };
    let Some((view, feature)) = reference.split_once(['.', ':']) else {
        if role.is_some() {
            return Err(format!("`{text}` is not a binding; {SHAPE}"));
        }
        return Ok(BindingName::Plain(reference.to_owned()));
    };
    let (view, version) = parse_versioned(view)?;
    check_feature(feature)?;
    if let Some(role) = role {
        check_role(role)?;
    }
    Ok(BindingName::Feature { view, version, feature: feature.to_owned(), role: role.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn service_entries_read_back_as_written() {
        for text in [
            "aircraft_legs:*",
            "airport_weather:visibility_km for origin",
            "airport_weather@3:visibility_km for dest as dest_visibility_km",
            "departure_context:turnaround_minutes as gap",
            "airport_weather:* for origin",
        ] {
            assert_eq!(parse_service_entry(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_service_entries_are_refused() {
        for text in [
            "",
            "seats",
            "plane:",
            ":seats",
            "plane@0:seats",
            "plane@:seats",
            "plane@+1:seats",
            "plane:seats for",
            "plane:seats as x for y",
            "plane:seats for a for b",
            "plane:* as x",
            "Plane:seats",
            "plane:seats of x",
            "plane:se-ats",
            "plane@1@2:seats",
        ] {
            assert!(parse_service_entry(text).is_err(), "{text}");
        }
    }

    #[test]
    fn requests_may_name_what_does_not_exist_but_no_malformed_version() {
        for text in ["seats", "plane:seats", "plane@2:seats", "a:b:c", "a b", ""] {
            assert_eq!(feature_as_asked(text).unwrap().to_string(), text);
        }
        for text in ["plane@x:seats", "plane@:seats", "plane@0:seats", "plane@+1:seats", "plane@1@2:seats"] {
            assert!(matches!(feature_as_asked(text), Err(RegistryError::MalformedVersion(_))), "{text}");
        }
    }

    #[test]
    fn no_role_is_called_like_the_instant_of_a_request() {
        assert!(parse_service_entry("plane:seats for timestamp").is_err());
        assert!(parse_binding_name("plane.seats for timestamp").is_err());
        assert!(parse_service_entry("plane:seats for timestamps").is_ok());
    }

    #[test]
    fn bindings_are_told_apart() {
        assert_eq!(parse_binding_name("request.timestamp").unwrap(), BindingName::RequestTimestamp);
        assert_eq!(parse_binding_name("request.origin").unwrap(), BindingName::Request("origin".into()));
        assert_eq!(parse_binding_name("wind_gust").unwrap(), BindingName::Plain("wind_gust".into()));
        assert_eq!(
            parse_binding_name("airport_weather@2.visibility_km for origin").unwrap(),
            BindingName::Feature {
                view: "airport_weather".into(),
                version: Some(2),
                feature: "visibility_km".into(),
                role: Some("origin".into())
            }
        );
        assert!(parse_binding_name("a b").is_err());
        assert!(parse_binding_name("plain for role").is_err());
    }
}

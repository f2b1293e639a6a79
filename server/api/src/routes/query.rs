//! Query strings, kept raw: an entity id must not be decoded before its commas are read.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::problem::Problem;

/// The parameters of a query string, in order.
#[derive(Debug, Default)]
pub(crate) struct RawQuery(Vec<(String, String)>);

impl RawQuery {
    /// Splits a query string; names are decoded, values are not.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // In a query string a plus is a space.
            Ok((decode(&name.replace('+', "%20"))?, value.replace('+', "%20")))
        });
        pairs.collect::<Result<_, Problem>>().map(Self)
    }

    /// 400 for a parameter that is not among `known`, does not begin with `prefix`, or stands twice.
    pub(crate) fn check(&self, known: &[&str], prefix: Option<&str>) -> Result<(), Problem> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            let is_known = known.contains(&name.as_str()) || prefix.is_some_and(|prefix| name.starts_with(prefix));
            if !is_known {
                let detail = format!("unknown query parameter `{name}`; known are {}", known.join(", "));
                return Err(Problem::bad_request("unknown_parameter", detail));
            }
            if self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                let detail = format!("query parameter `{name}` stands twice");
                return Err(Problem::bad_request("repeated_parameter", detail));
            }
        }
        Ok(())
    }

    /// A value as it stands, percent-encoded.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A value, decoded.
    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, Problem> {
        self.raw(name).map(decode).transpose()
    }

    /// A whole number; `None` where it is left out. 400 for anything else, or one that is not in the range.
    pub(crate) fn number<T: FromStr + PartialOrd + Display>(
        &self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            let detail = format!("{name} is `{text}`; it is a whole number from {} to {}", range.start(), range.end());
            Problem::bad_request("malformed_query", detail)
        })
    }

    /// `true` or `false`, which it is where it is left out. 400 for anything else.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                let detail = format!("{name} is `{other}`; it is `true` or `false`");
                Err(Problem::bad_request("malformed_query", detail))
            }
        }
    }

    /// All parameters with this prefix: the rest of the name, and the value, decoded.
    pub(crate) fn with_prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, Problem> {
        let matching = self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value)));
        matching.map(|(name, value)| Ok((name.to_owned(), decode(value)?))).collect()
    }
}

fn decode(text: &str) -> Result<String, Problem> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(|text| text.into_owned())
        .map_err(|_| Problem::bad_request("malformed_query", format!("`{text}` is not UTF-8 after percent-decoding")))
}

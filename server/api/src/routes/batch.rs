//! The body of `POST /features/batch`, read so that it takes little more memory than its limits allow, whatever it holds: what
//! is beyond a limit is counted and not kept.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};

use super::body::malformed_json;
use crate::limits::Limits;
use crate::problem::Problem;
use crate::serving::request::{Members, too_many_entities};

const FIELDS: &[&str] = &["service", "features", "entities", "request", "timestamp", "timestamps"];

/// An object inside of an object takes as much memory as so many values. No type of a value is one.
const VALUES_OF_OBJECT: usize = 16;

/// What is asked for. Text is that of the body where nothing in it is escaped.
#[derive(Debug, Default)]
pub(super) struct BatchRequest<'a> {
    pub(super) service: Option<Cow<'a, str>>,
    pub(super) features: Option<Vec<Cow<'a, str>>>,
    pub(super) entities: Vec<Members<'a>>,
    pub(super) request: Vec<Members<'a>>,
    pub(super) timestamp: Option<Cow<'a, str>>,
    pub(super) timestamps: Option<Vec<Cow<'a, str>>>,
}

impl<'a> BatchRequest<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// 400 for what is no such JSON, with line and column; 413 for more of something than the limit.
    pub(super) fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self, Problem> {
        let found = Found::default();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let read = Batch { limits, found: &found }.deserialize(&mut json);
        let asked = read.and_then(|asked| json.end().map(|()| asked)).map_err(|error| malformed_json(&error))?;
        found.check(limits)?;
        Ok(asked)
    }
}

/// How much there is of what is limited.
#[derive(Debug, Default)]
struct Found {
    features: Cell<usize>,
    entities: Cell<usize>,
    request: Cell<usize>,
    timestamps: Cell<usize>,
    values: Cell<usize>,
}

impl Found {
    fn check(&self, limits: &Limits) -> Result<(), Problem> {
        check_features(self.features.get(), limits)?;
        let entities = self.entities.get().max(self.request.get()).max(self.timestamps.get());
        if entities > limits.entities_max {
            return Err(too_many_entities(entities, limits));
        }
        let (values, values_max) = (self.values.get(), limits.values_max);
        if values > values_max {
            let detail = format!(
                "{values} values in the body of one request; at most {values_max} are taken: send several requests"
            );
            return Err(Problem::too_large("too_many_values", detail));
        }
        Ok(())
    }
}

/// # Errors
/// 413 for more features than the limit: every one of them costs where names are looked up.
pub(super) fn check_features(features: usize, limits: &Limits) -> Result<(), Problem> {
    if features <= limits.features_max {
        return Ok(());
    }
    let detail = format!("{features} features in one request; at most {} are taken", limits.features_max);
    Err(Problem::too_large("too_many_features", detail))
}

struct Batch<'l> {
    limits: &'l Limits,
    found: &'l Found,
}

impl<'de> DeserializeSeed<'de> for Batch<'_> {
    type Value = BatchRequest<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_struct("BatchRequest", FIELDS, self)
    }
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = BatchRequest<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `entities`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let Self { limits, found } = self;
        let values = Values { found: &found.values, most: limits.values_max };
        let (texts, objects) =
            (|most, found| List { of: Text, most, found }, |most, found| List { of: values, most, found });
        let mut asked = BatchRequest::default();
        let (mut entities, mut request) = (None, None);
        while let Some(name) = members.next_key_seed(Text)? {
            match &*name {
                "service" => put(&mut asked.service, &name, &mut members, Nullable(Text))?,
                "features" => {
                    let list = texts(limits.features_max, &found.features);
                    put(&mut asked.features, &name, &mut members, Nullable(list))?;
                }
                "entities" => {
                    let list = objects(limits.entities_max, &found.entities);
                    put(&mut entities, &name, &mut members, Present(list))?;
                }
                "request" => {
                    let list = objects(limits.entities_max, &found.request);
                    put(&mut request, &name, &mut members, Present(list))?;
                }
                "timestamp" => put(&mut asked.timestamp, &name, &mut members, Nullable(Text))?,
                "timestamps" => {
                    let list = texts(limits.entities_max, &found.timestamps);
                    put(&mut asked.timestamps, &name, &mut members, Nullable(list))?;
                }
                _ => return Err(A::Error::unknown_field(&name, FIELDS)),
            }
        }
        asked.entities = entities.ok_or_else(|| A::Error::missing_field("entities"))?;
        asked.request = request.unwrap_or_default();
        Ok(asked)
    }
}

/// Reads the value of a member, which may stand there once.
fn put<'de, A: MapAccess<'de>, S: DeserializeSeed<'de, Value = Option<T>>, T>(
    place: &mut Option<T>,
    name: &str,
    members: &mut A,
    value: S,
) -> Result<(), A::Error> {
    if place.is_some() {
        return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
    }
    *place = members.next_value_seed(value)?;
    Ok(())
}

/// Something that is there.
struct Present<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Present<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// Something that null stands for as well as nothing.
struct Nullable<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or null")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// A list, of which at most so many are kept, and all are counted.
struct List<'l, S> {
    of: S,
    most: usize,
    found: &'l Cell<usize>,
}

impl<'de, S: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for List<'_, S> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Copy> Visitor<'de> for List<'_, S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < self.most {
            match elements.next_element_seed(self.of)? {
                Some(element) => kept.push(element),
                None => break,
            }
        }
        let mut found = kept.len();
        if found == self.most {
            while elements.next_element::<IgnoredAny>()?.is_some() {
                found += 1;
            }
        }
        self.found.set(found);
        Ok(kept)
    }
}

/// Text, which is not copied unless something in it is escaped.
#[derive(Clone, Copy)]
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Values, as long as there are not too many of them in the whole body.
#[derive(Clone, Copy)]
struct Values<'l> {
    found: &'l Cell<usize>,
    most: usize,
}

impl Values<'_> {
    /// Counts so many more. Gives whether they may be kept.
    fn count(self, more: usize) -> bool {
        let found = self.found.get().saturating_add(more);
        self.found.set(found);
        found <= self.most
    }
}

/// The members of an entity, or the fields sent for it.
impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Members<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut kept = Members::default();
        while let Some(name) = members.next_key_seed(Text)? {
            match self.count(1) {
                true => kept.put(name, members.next_value_seed(OneValue(self))?),
                false => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(kept)
    }
}

/// A value that was counted; what is in it counts too.
#[derive(Clone, Copy)]
struct OneValue<'l>(Values<'l>);

impl<'de> DeserializeSeed<'de> for OneValue<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneValue<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut kept = Vec::new();
        // What is beyond the limit is counted as well: a refusal says how much there was.
        loop {
            if self.0.found.get() < self.0.most {
                let Some(element) = elements.next_element_seed(self)? else { break };
                self.0.count(1);
                kept.push(element);
            } else {
                if elements.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                self.0.count(1);
            }
        }
        Ok(Json::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut kept = Map::new();
        let is_kept = self.0.count(VALUES_OF_OBJECT);
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            match is_kept && self.0.count(1) {
                true => {
                    kept.insert(name.into_owned(), members.next_value_seed(self)?);
                }
                false => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Json::Object(kept))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { entities_max: 3, features_max: 2, values_max: 10, ..Limits::default() }
    }

    fn refused(body: &str) -> (u16, String, String) {
        let problem = BatchRequest::parse(body.as_bytes(), &limits()).unwrap_err();
        (problem.status, problem.code, problem.detail)
    }

    #[test]
    fn what_was_sent_is_read_and_the_last_of_two_members_counts() {
        let body = r#"{"service":"s","features":null,"entities":[{"a":1,"a":2.5},{"\u0061":"x"}],
            "request":[{"f":[1,null,{"g":-3}]},{}],"timestamps":["1","2"]}"#;
        let asked = BatchRequest::parse(body.as_bytes(), &Limits::default()).unwrap();
        assert_eq!((asked.service.as_deref(), &asked.features, &asked.timestamp), (Some("s"), &None, &None));
        let of = |entity: &Members<'_>| entity.get("a").cloned();
        assert_eq!(asked.entities.iter().map(of).collect::<Vec<_>>(), [Some(Json::from(2.5)), Some(Json::from("x"))]);
        assert_eq!(asked.request[0].get("f"), Some(&serde_json::json!([1, null, { "g": -3 }])));
        assert_eq!(asked.timestamps.unwrap(), ["1", "2"]);
    }

    #[test]
    fn what_is_no_such_body_is_refused_with_its_place() {
        for (body, expected) in [
            ("{}", "missing field `entities` at line 1 column 2"),
            (r#"{"entities":[],"entities":[]}"#, "duplicate field `entities`"),
            (r#"{"entities":null}"#, "invalid type: null, expected a list"),
            (r#"{"entities":[1]}"#, "invalid type: integer `1`, expected a map at line 1 column 14"),
            (r#"{"entitys":[]}"#, "unknown field `entitys`, expected one of `service`, `features`"),
            (r#"{"entities":[]} x"#, "trailing characters at line 1 column 17"),
            (r#"{"entities":[{}"#, "EOF while parsing a list"),
            ("[]", "expected an object with `entities`"),
        ] {
            let (status, code, detail) = refused(body);
            assert_eq!((status, code.as_str()), (400, "malformed_json"), "{body}");
            assert!(detail.contains(expected), "{body}: {detail}");
        }
    }

    /// Of a million things that are too many none but the first few are kept.
    #[test]
    fn what_is_beyond_a_limit_is_counted_and_not_kept() {
        let many = |element: &str| vec![element; 1_000_000].join(",");
        for (body, code, count) in [
            (format!(r#"{{"entities":[{}]}}"#, many(r#"{"a":1}"#)), "too_many_entities", "1000000 entities"),
            (format!(r#"{{"entities":[],"request":[{}]}}"#, many("{}")), "too_many_entities", "1000000 entities"),
            (format!(r#"{{"entities":[],"timestamps":[{}]}}"#, many("\"\"")), "too_many_entities", "1000000 entities"),
            (format!(r#"{{"entities":[],"features":[{}]}}"#, many("\"\"")), "too_many_features", "1000000 features"),
            (format!(r#"{{"entities":[{{"a":[{}]}}]}}"#, many("0")), "too_many_values", "1000001 values"),
            (format!(r#"{{"entities":[{{{}}}]}}"#, many(r#""a":0"#)), "too_many_values", "1000000 values"),
        ] {
            let (status, found, detail) = refused(&body);
            assert_eq!((status, found.as_str()), (413, code));
            assert!(detail.starts_with(count), "{detail}");
            let found = Found::default();
            let mut json = serde_json::Deserializer::from_slice(body.as_bytes());
            let kept = Batch { limits: &limits(), found: &found }.deserialize(&mut json).unwrap();
            let lists = [kept.entities.len(), kept.request.len(), kept.timestamps.map_or(0, |kept| kept.len())];
            assert!(lists.iter().all(|kept| *kept <= 3) && kept.features.is_none_or(|kept| kept.len() <= 2));
            let values = |entity: &Members<'_>| match entity.get("a") {
                Some(Json::Array(kept)) => kept.len(),
                _ => entity.names().count(),
            };
            assert!(kept.entities.iter().map(values).sum::<usize>() <= 10);
        }
    }

    #[test]
    fn as_much_as_the_limits_allow_is_taken() {
        let body = r#"{"features":["a","b"],"entities":[{"a":[0,0]},{"a":[0,0]},{"a":[0,0]}]}"#;
        assert_eq!(BatchRequest::parse(body.as_bytes(), &limits()).unwrap().entities.len(), 3);
    }
}

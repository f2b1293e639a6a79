//! What `POST /jobs/dataset` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail};
use eadem_offline::{
    DatasetOptions, KeptSpine, OutputFormat, SpineOrigin, Split, SplitBy, SplitRule, SplitShare, TIMES_MAX, TimeRange,
};
use eadem_registry::model::Placement;
use eadem_values::{parse_duration, parse_timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A new training set, one to make again, or two to compare.
#[derive(Debug)]
pub(crate) enum DatasetRequest {
    /// Make it again from its recipe.
    Rebuild(RebuildRequest),
    /// Say what has changed from one to the other.
    Diff(DiffRequest),
    /// Make it.
    Create(Box<CreateRequest>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RebuildRequest {
    /// The dataset's id.
    pub(crate) rebuild: String,
    /// The file to write: a path or URL that the server can reach.
    pub(crate) output: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffRequest {
    /// The ids of two datasets.
    pub(crate) diff: (String, String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateRequest {
    /// `name` or `name@version`.
    pub(crate) service: String,
    /// Parquet, CSV or Arrow: a path, relative to the project's folder, or a URL that the server can reach.
    #[serde(default)]
    pub(crate) spine: Option<String>,
    /// Instead of a file: a query over registered sources.
    #[serde(default)]
    pub(crate) spine_sql: Option<String>,
    /// Instead of a file: all entities at these times.
    #[serde(default)]
    pub(crate) times: Option<Times>,
    /// Whose entities, for a check: the service's own.
    #[serde(default)]
    pub(crate) entity: Option<String>,
    /// The file to write.
    pub(crate) output: String,
    /// Default: as the ending of `output` says.
    #[serde(default)]
    pub(crate) format: Option<OutputFormat>,
    #[serde(default = "default_timestamp_column")]
    pub(crate) timestamp_column: String,
    /// Key or request field → the spine's column, where the names differ.
    #[serde(default)]
    pub(crate) columns: BTreeMap<String, String>,
    /// Columns of the spine that are not written.
    #[serde(default)]
    pub(crate) leave_out: BTreeSet<String>,
    #[serde(default)]
    pub(crate) split: Option<SplitRequest>,
    /// `spine`, `none` or an instant.
    #[serde(default = "default_cut")]
    pub(crate) known_at_cut: String,
    /// The number of a commit of the one table that is read, or an instant: read what the tables held then.
    #[serde(default)]
    pub(crate) as_stored: Option<String>,
    /// Leave the status columns out.
    #[serde(default)]
    pub(crate) no_status: bool,
    /// Keep no statistics.
    #[serde(default)]
    pub(crate) no_statistics: bool,
    /// What it is made from, as it was when the job was started. The server adds it; whoever asks cannot.
    #[serde(default)]
    pub(crate) pinned: Option<PinnedInputs>,
}

/// What a training set is made from, besides definitions: a job that is resumed makes the same bytes of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PinnedInputs {
    /// The spine that was given; one that the job makes itself is kept when it is made.
    #[serde(default)]
    pub(crate) spine: Option<KeptSpine>,
    /// For each stored view, `name@version`, the commit of its table; null where nothing was loaded.
    pub(crate) tables: BTreeMap<String, Option<u64>>,
    /// For each stored view, which of its tables that is; where nothing is said, the first one.
    #[serde(default)]
    pub(crate) placements: BTreeMap<String, Placement>,
}

/// The times at which all entities are asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Times {
    /// These.
    At(Vec<String>),
    /// From one on, in equal steps, before another.
    Every(EveryTime),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EveryTime {
    every: String,
    from: String,
    to: String,
}

/// Which row is in which split.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SplitRequest {
    #[serde(default = "default_split_column")]
    column: String,
    /// By time: the splits with the instants that they lie between.
    #[serde(default)]
    time: Option<Vec<TimeRangeRequest>>,
    /// By a digest: the splits with their shares.
    #[serde(default)]
    shares: Option<Vec<ShareRequest>>,
    /// Of what: `entity`, `row`, or columns of the spine.
    #[serde(default)]
    by: Option<SplitByRequest>,
    #[serde(default)]
    salt: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeRangeRequest {
    name: String,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareRequest {
    name: String,
    share: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SplitByRequest {
    Word(String),
    Columns(Vec<String>),
}

fn default_timestamp_column() -> String {
    "timestamp".to_owned()
}

fn default_cut() -> String {
    "spine".to_owned()
}

fn default_split_column() -> String {
    "split".to_owned()
}

impl DatasetRequest {
    /// All files that it names.
    pub(crate) fn locations(&self) -> Vec<&str> {
        match self {
            Self::Create(request) => request.spine.iter().chain([&request.output]).map(String::as_str).collect(),
            Self::Rebuild(request) => vec![&request.output],
            Self::Diff(_) => Vec::new(),
        }
    }

    /// Reads a job's specification: one with `rebuild` is a rebuild, one with `diff` a comparison.
    pub(crate) fn read(spec: &Json) -> serde_json::Result<Self> {
        if spec.get("rebuild").is_some() {
            return serde_json::from_value(spec.clone()).map(Self::Rebuild);
        }
        if spec.get("diff").is_some() {
            return serde_json::from_value(spec.clone()).map(Self::Diff);
        }
        serde_json::from_value(spec.clone()).map(|request| Self::Create(Box::new(request)))
    }
}

/// Makes the path of a spine absolute: it is meant from the project's folder, wherever the server was started.
pub(crate) fn place_spine(spec: &mut Json, project: &Path) {
    let Some(spine) = spec.get_mut("spine") else { return };
    let Some(file) = spine.as_str().filter(|file| !file.contains("://")) else { return };
    *spine = Json::from(project.join(file).display().to_string());
}

/// Where the rows of a new training set come from.
#[derive(Debug)]
pub(crate) enum SpineSource<'a> {
    File(&'a str),
    Query(&'a str),
    Entities(&'a Times),
}

impl CreateRequest {
    /// The one source of rows.
    pub(crate) fn spine_source(&self) -> anyhow::Result<SpineSource<'_>> {
        let source = match (&self.spine, &self.spine_sql, &self.times) {
            (Some(file), None, None) => SpineSource::File(file),
            (None, Some(sql), None) => SpineSource::Query(sql),
            (None, None, Some(times)) => SpineSource::Entities(times),
            _ => bail!("give one of `spine` (a file), `spine_sql` (a query over sources) and `times` (all entities)"),
        };
        if self.entity.is_some() && !matches!(source, SpineSource::Entities(_)) {
            bail!("`entity` goes with `times`: a spine says itself which entities there are");
        }
        Ok(source)
    }

    /// What the file looks like.
    pub(crate) fn options(&self) -> anyhow::Result<DatasetOptions> {
        let by_name = OutputFormat::of_name(&self.output);
        let format = match (self.format, by_name) {
            (Some(format), Some(by_name)) if format != by_name => {
                bail!("output `{}`: its ending names another format than {format:?}", self.output)
            }
            (_, Some(by_name)) => by_name,
            (_, None) => bail!("output `{}`: a training set is a .parquet or an .arrow file", self.output),
        };
        Ok(DatasetOptions {
            format,
            split: self.split.as_ref().map(SplitRequest::split).transpose()?,
            left_out: self.leave_out.clone(),
            statistics: !self.no_statistics,
            spine: match self.spine_source()? {
                SpineSource::File(_) => SpineOrigin::File,
                SpineSource::Query(sql) => SpineOrigin::Query(sql.to_owned()),
                SpineSource::Entities(times) => SpineOrigin::Entities(times.in_words()),
            },
        })
    }
}

impl Times {
    /// The instants, in microseconds.
    pub(crate) fn instants_us(&self) -> anyhow::Result<Vec<i64>> {
        match self {
            Self::At(times) if times.is_empty() => bail!("`times` has no time"),
            Self::At(times) if times.len() > TIMES_MAX => bail!("there are more than {TIMES_MAX} times"),
            Self::At(times) => times.iter().map(|time| instant_us(time)).collect(),
            Self::Every(EveryTime { every, from, to }) => {
                let step_us = parse_duration(every).with_context(|| format!("every {every}"))?;
                let (from_us, to_us) = (instant_us(from)?, instant_us(to)?);
                if step_us <= 0 || from_us >= to_us {
                    bail!("every {every} from {from} to {to}: the step is above zero, and `from` before `to`");
                }
                let steps = (to_us - from_us - 1) / step_us;
                if steps >= TIMES_MAX as i64 {
                    bail!("every {every} from {from} to {to} are {} times; {TIMES_MAX} can be asked for", steps + 1);
                }
                Ok((0..=steps).map(|step| from_us + step * step_us).collect())
            }
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::At(times) => times.join(", "),
            Self::Every(EveryTime { every, from, to }) => format!("every {every} from {from} to {to}"),
        }
    }
}

/// An instant, or a day: its beginning in UTC.
pub(crate) fn instant_us(text: &str) -> anyhow::Result<i64> {
    let is_day = text.len() == 10 && text.bytes().filter(|byte| *byte == b'-').count() == 2;
    let full = if is_day { format!("{text}T00:00:00Z") } else { text.to_owned() };
    parse_timestamp(&full).with_context(|| format!("`{text}` is neither an instant nor a day"))
}

impl SplitRequest {
    fn split(&self) -> anyhow::Result<Split> {
        let rule = match (&self.time, &self.shares) {
            (Some(ranges), None) => {
                if self.by.is_some() || !self.salt.is_empty() {
                    bail!("split: `by` and `salt` go with `shares`");
                }
                SplitRule::Time(ranges.iter().map(TimeRangeRequest::range).collect::<Result<_, _>>()?)
            }
            (None, Some(shares)) => {
                let by = match &self.by {
                    None => SplitBy::Entity,
                    Some(SplitByRequest::Word(word)) if word == "entity" => SplitBy::Entity,
                    Some(SplitByRequest::Word(word)) if word == "row" => SplitBy::Row,
                    Some(SplitByRequest::Word(column)) => SplitBy::Columns(vec![column.clone()]),
                    Some(SplitByRequest::Columns(columns)) => SplitBy::Columns(columns.clone()),
                };
                let shares = shares.iter().map(|share| SplitShare::new(&share.name, share.share));
                SplitRule::Shares { by, salt: self.salt.clone(), shares: shares.collect::<Result<_, _>>()? }
            }
            _ => bail!("split: give either `time` or `shares`"),
        };
        Ok(Split { column: self.column.clone(), rule })
    }
}

impl TimeRangeRequest {
    fn range(&self) -> anyhow::Result<TimeRange> {
        let end = |text: &Option<String>| text.as_deref().map(instant_us).transpose();
        let wrong = || format!("split `{}`", self.name);
        Ok(TimeRange {
            name: self.name.clone(),
            from_us: end(&self.from).with_context(wrong)?,
            to_us: end(&self.to).with_context(wrong)?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    fn create(more: &Json) -> anyhow::Result<DatasetOptions> {
        let mut spec = json!({ "service": "s", "spine": "/spine.csv", "output": "/out.parquet" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        match DatasetRequest::read(&spec)? {
            DatasetRequest::Create(request) => request.options(),
            other => panic!("{other:?} is no new dataset"),
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (more, why) in [
            (json!({ "spine_sql": "select 1" }), "give one of"),
            (json!({ "spine": null }), "give one of"),
            (json!({ "entity": "plane" }), "`entity` goes with `times`"),
            (json!({ "format": "arrow" }), "its ending names another format"),
            (json!({ "output": "/out.csv" }), "a .parquet or an .arrow file"),
            (json!({ "split": {} }), "either `time` or `shares`"),
            (json!({ "split": { "time": [], "by": "row" } }), "go with `shares`"),
            (json!({ "split": { "time": [{ "name": "a", "to": "soon" }] } }), "split `a`"),
            (json!({ "split": { "shares": [{ "name": "a", "share": 1.5 }] } }), "its share is 1.5"),
            (json!({ "nonsense": 1 }), "unknown field `nonsense`"),
        ] {
            let error = format!("{:#}", create(&more).unwrap_err());
            assert!(error.contains(why), "{more}: {error}");
        }
        let options = create(&json!({ "output": "s3://bucket/out.feather" })).unwrap();
        assert_eq!(options.format, OutputFormat::Arrow);
    }

    #[test]
    fn a_spine_is_looked_for_in_the_projects_folder() {
        let placed = |spine: Json| {
            let mut spec = json!({ "spine": spine });
            place_spine(&mut spec, Path::new("/project"));
            spec["spine"].clone()
        };
        assert_eq!(placed(json!("sets/may.csv")), "/project/sets/may.csv");
        for kept in [json!("/sets/may.csv"), json!("s3://lake/may.csv"), json!(3), Json::Null] {
            assert_eq!(placed(kept.clone()), kept);
        }
        let mut without = json!({ "times": [] });
        place_spine(&mut without, Path::new("/project"));
        assert_eq!(without, json!({ "times": [] }));
    }

    #[test]
    fn times_are_written_out() {
        let times = |json: Json| serde_json::from_value::<Times>(json).unwrap().instants_us();
        let day_us = 86_400_000_000;
        let every = |to: &str| json!({ "every": "1d", "from": "1970-01-01", "to": to });
        assert_eq!(times(every("1970-01-03")).unwrap(), [0, day_us]);
        assert_eq!(times(every("1970-01-03T00:00:00.000001Z")).unwrap(), [0, day_us, 2 * day_us]);
        assert_eq!(times(json!(["1970-01-02"])).unwrap(), [day_us]);
        for (wrong, why) in [
            (json!([]), "no time"),
            (json!(["1970"]), "neither an instant nor a day"),
            (every("1970-01-01"), "`from` before `to`"),
            (json!({ "every": "1s", "from": "1970-01-01", "to": "1980-01-01" }), "can be asked for"),
        ] {
            let error = format!("{:#}", times(wrong.clone()).unwrap_err());
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}

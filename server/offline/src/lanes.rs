//! Which files' rows a table holds: its lanes, and what a commit adds to and takes from them.
//!
//! Every commit of a job says in its `commitInfo` which lanes it adds and which it takes away, and points to the commit
//! before it that says so. The rows of a table are always those of its lanes, no others.

use std::collections::{BTreeMap, BTreeSet};

use deltalake_core::logstore::LogStoreRef;
use eadem_values::{TIME_MAX_US, TIME_MIN_US};
use serde::{Deserialize, Serialize};

use crate::error::OfflineError;
use crate::ledger::{JobPlan, LaneOrigin, PlannedFile, ReplacedFile};
use crate::location::Location;
use crate::table::read_commit;

const INFO_LANES: &str = "eadem.lanes";
const INFO_LANES_REMOVED: &str = "eadem.lanesRemoved";
const INFO_LANES_BEFORE: &str = "eadem.lanesBefore";
const INFO_WITHDRAWN_AT: &str = "eadem.withdrawnAt";

/// Commits that are read back before one says all lanes that there are.
const LANE_COMMITS_MAX: usize = 64;

/// A range of event times, `[from, to)` in microseconds.
pub(crate) type RangeUs = (i64, i64);

/// A file whose rows are in a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedLane {
    /// Relative to the source's location.
    pub path: String,
    /// Digest of its bytes: the lane.
    pub digest: String,
    /// The range of event times that was loaded, `[from, to)` in microseconds; `None`: all.
    pub range_us: Option<(i64, i64)>,
    /// What it remembers of its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<LaneOrigin>,
    /// The job that has loaded it; `None`: nobody noted that then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_by: Option<LoadedBy>,
}

/// The job that has loaded a lane: it has stored every row of it that it looked at, left it out, or refused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedBy {
    /// The job's id.
    pub job: String,
    /// The arrival of its rows, in microseconds.
    pub arrival_us: i64,
    /// Ranges of event times that were loaded before, which it did not look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_us: Vec<(i64, i64)>,
}

/// A file by its path and the digest that it had.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LaneName {
    /// Relative to the source's location.
    pub path: String,
    /// Digest of its bytes.
    pub digest: String,
}

impl CommittedLane {
    pub(crate) fn name(&self) -> LaneName {
        LaneName { path: self.path.clone(), digest: self.digest.clone() }
    }

    /// When its rows arrived; the beginning of time where nobody noted it.
    pub(crate) fn arrival_us(&self) -> i64 {
        self.loaded_by.as_ref().map_or(i64::MIN, |loaded| loaded.arrival_us)
    }

    /// The job that has looked at the file's rows of an event time, where it is known. A row without a time that can be
    /// stored is looked at by every job that reads the file.
    pub(crate) fn looked_at(&self, event_us: Option<i64>) -> Option<&LoadedBy> {
        let loaded = self.loaded_by.as_ref()?;
        let Some(event_us) = event_us.filter(|event_us| (TIME_MIN_US..TIME_MAX_US).contains(event_us)) else {
            return Some(loaded);
        };
        let within = |(from_us, to_us): &(i64, i64)| (*from_us..*to_us).contains(&event_us);
        let is_asked_for = self.range_us.as_ref().is_none_or(within) && !loaded.left_us.iter().any(within);
        is_asked_for.then_some(loaded)
    }

    /// Whether this lane is another one loaded anew, all of it.
    fn renews(&self, other: &Self) -> bool {
        let leaves_nothing = self.loaded_by.as_ref().is_none_or(|loaded| loaded.left_us.is_empty());
        self.digest == other.digest
            && leaves_nothing
            && self.arrival_us() >= other.arrival_us()
            && covers(&[self.range_us], other.range_us)
    }
}

/// The files whose rows are in a table, by path.
pub(crate) type Lanes = BTreeMap<String, Vec<CommittedLane>>;

/// Rows that a commit takes out of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Withdrawn {
    /// Rows of these lanes.
    pub(crate) digests: BTreeSet<String>,
    /// Only event times in this range; `None`: all.
    pub(crate) range_us: Option<RangeUs>,
}

/// What a commit changes about a table's lanes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LaneChange {
    pub(crate) added: Vec<CommittedLane>,
    pub(crate) removed: Vec<LaneName>,
    pub(crate) withdrawn: Withdrawn,
}

/// What the log says about lanes up to a version.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneLog {
    pub(crate) lanes: Lanes,
    /// The latest commit that says anything about lanes.
    pub(crate) latest_commit: Option<u64>,
    /// The latest commit that took rows out.
    pub(crate) withdrawn_at: Option<u64>,
    /// Commits that had to be read for it.
    commits: usize,
}

/// Whether a range leaves out no event time that can be stored.
pub(crate) fn is_whole(range_us: Option<RangeUs>) -> bool {
    range_us.is_none_or(|(from, to)| from <= TIME_MIN_US && TIME_MAX_US <= to)
}

pub(crate) fn meet(one: Option<RangeUs>, other: Option<RangeUs>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.0 < other.1 && other.0 < one.1,
        _ => true,
    }
}

/// Whether the ranges, taken together, hold all of `asked`.
pub(crate) fn covers(loaded: &[Option<RangeUs>], asked: Option<RangeUs>) -> bool {
    if loaded.iter().any(|range| is_whole(*range)) {
        return true;
    }
    let (from, to) = asked.unwrap_or((TIME_MIN_US, TIME_MAX_US));
    let (mut from, to) = (from.max(TIME_MIN_US), to.min(TIME_MAX_US));
    let mut ranges: Vec<RangeUs> = loaded.iter().flatten().copied().collect();
    ranges.sort_unstable();
    for range in ranges {
        if range.0 > from {
            break;
        }
        from = from.max(range.1);
    }
    from >= to
}

/// The lanes of each digest: one content may have been loaded under several paths.
pub(crate) fn by_digest(lanes: &Lanes) -> BTreeMap<&str, Vec<&CommittedLane>> {
    let mut of_digest: BTreeMap<&str, Vec<&CommittedLane>> = BTreeMap::new();
    for lane in lanes.values().flatten() {
        of_digest.entry(&lane.digest).or_default().push(lane);
    }
    of_digest
}

/// What is left of `range` without `gone`.
fn without(range: Option<RangeUs>, gone: Option<RangeUs>) -> Vec<RangeUs> {
    let Some(gone) = gone else { return Vec::new() };
    let (from, to) = range.unwrap_or((TIME_MIN_US, TIME_MAX_US));
    let pieces = [(from, to.min(gone.0)), (from.max(gone.1), to)];
    pieces.into_iter().filter(|(from, to)| from < to).collect()
}

fn planned_lane(job: &str, plan: &JobPlan, file: &PlannedFile) -> CommittedLane {
    CommittedLane {
        path: file.path.clone(),
        digest: file.digest.clone(),
        range_us: plan.range_us,
        origin: file.origin.clone(),
        loaded_by: Some(LoadedBy {
            job: job.to_owned(),
            arrival_us: plan.created_at_us,
            left_us: file.loaded_us.clone(),
        }),
    }
}

/// Lanes under the path that their content has now.
fn moved<'a>(held: &'a [&CommittedLane], path: &'a str) -> impl Iterator<Item = CommittedLane> + 'a {
    held.iter().map(move |lane| CommittedLane { path: path.to_owned(), ..(*lane).clone() })
}

impl LaneChange {
    /// What the commit of a plan changes, seen from the lanes that the table has by now.
    ///
    /// # Errors
    /// A plan that has gone stale: a job that was interrupted and is resumed late would load rows a second time, or put
    /// the content of a file that others have loaded since behind an older one.
    pub(crate) fn of_plan(job: &str, plan: &JobPlan, lanes: &Lanes) -> Result<Self, OfflineError> {
        check_still_new(plan, lanes)?;
        let mut change =
            Self { added: plan.files.iter().map(|file| planned_lane(job, plan, file)).collect(), ..Self::default() };
        if plan.recompute {
            change.recompute(plan, lanes);
        } else {
            change.replace(plan, lanes);
        }
        Ok(change)
    }

    /// The lanes after this change.
    fn applied_to(&self, lanes: &Lanes) -> Lanes {
        let removed: BTreeSet<&LaneName> = self.removed.iter().collect();
        let mut after = Lanes::new();
        let kept = lanes.values().flatten().filter(|lane| !removed.contains(&lane.name()));
        for lane in kept.chain(&self.added) {
            let of_path = after.entry(lane.path.clone()).or_default();
            if of_path.contains(lane) {
                continue;
            }
            of_path.retain(|held| !lane.renews(held));
            of_path.push(lane.clone());
        }
        after
    }

    /// The lanes of changed files go, with all their rows, unless another file has that content now.
    fn replace(&mut self, plan: &JobPlan, lanes: &Lanes) {
        for replaced in &plan.replaced {
            let held = lanes.get(&replaced.path).into_iter().flatten();
            let held: Vec<&CommittedLane> = held.filter(|lane| lane.digest == replaced.digest).collect();
            if held.is_empty() {
                continue;
            }
            self.removed.push(LaneName { path: replaced.path.clone(), digest: replaced.digest.clone() });
            if let Some(path) = &replaced.kept_as {
                self.added.extend(moved(&held, path));
            }
        }
        let after = self.applied_to(lanes);
        let held: BTreeSet<&str> = after.values().flatten().map(|lane| lane.digest.as_str()).collect();
        let gone = self.removed.iter().filter(|lane| !held.contains(lane.digest.as_str()));
        self.withdrawn = Withdrawn { digests: gone.map(|lane| lane.digest.clone()).collect(), range_us: None };
    }

    /// The rows of the range go, whichever content of a file that is there they came from.
    fn recompute(&mut self, plan: &JobPlan, lanes: &Lanes) {
        let current: BTreeSet<&str> = plan.files.iter().map(|file| file.digest.as_str()).collect();
        let mut digests: BTreeSet<String> = current.iter().map(|digest| (*digest).to_owned()).collect();
        let gone = plan.range_us.filter(|_| !is_whole(plan.range_us));
        let replaced_lanes: BTreeSet<LaneName> = plan.replaced.iter().map(ReplacedFile::name).collect();
        let elsewhere = lanes.values().flatten().filter(|lane| !replaced_lanes.contains(&lane.name()));
        let elsewhere: BTreeSet<&str> = elsewhere.map(|lane| lane.digest.as_str()).collect();
        for replaced in &plan.replaced {
            let held = lanes.get(&replaced.path).into_iter().flatten();
            let held: Vec<&CommittedLane> = held.filter(|lane| lane.digest == replaced.digest).collect();
            if held.is_empty() {
                continue;
            }
            self.removed.push(LaneName { path: replaced.path.clone(), digest: replaced.digest.clone() });
            // Another file that is there has this content: it is loaded anew as that one's.
            if let Some(path) = &replaced.kept_as {
                self.added.extend(moved(&held, path));
                continue;
            }
            // The rows of a file that is gone stay, also where one that is there once had its content.
            if elsewhere.contains(replaced.digest.as_str()) {
                continue;
            }
            digests.insert(replaced.digest.clone());
            for lane in held {
                let pieces = without(lane.range_us, gone).into_iter();
                self.added.extend(pieces.map(|piece| CommittedLane { range_us: Some(piece), ..lane.clone() }));
            }
        }
        self.withdrawn = Withdrawn { digests, range_us: gone };
    }
}

fn check_still_new(plan: &JobPlan, lanes: &Lanes) -> Result<(), OfflineError> {
    let refuse = |url: &str, what: &str| {
        let reason = format!("{what} since this job was planned; cancel it and start a new one");
        Err(OfflineError::File { file: url.to_owned(), reason })
    };
    let of_digest = by_digest(lanes);
    let replaced_lanes: BTreeSet<LaneName> = plan.replaced.iter().map(ReplacedFile::name).collect();
    for file in &plan.files {
        let was_known = |lane: &&CommittedLane| lane.range_us.is_some_and(|range| file.loaded_us.contains(&range));
        let same_bytes = of_digest.get(file.digest.as_str()).into_iter().flatten().copied();
        // A recomputation takes out whatever of the file is there.
        let is_new = |lane: &CommittedLane| !plan.recompute && meet(lane.range_us, plan.range_us);
        if same_bytes.filter(|lane| !was_known(lane)).any(is_new) {
            return refuse(&file.url, "was loaded by another job");
        }
        let mut others = lanes.get(&file.path).into_iter().flatten().filter(|lane| lane.digest != file.digest);
        if others.any(|lane| !replaced_lanes.contains(&lane.name())) {
            return refuse(&file.url, "was loaded with another content by another job");
        }
    }
    for replaced in &plan.replaced {
        let held = lanes.get(&replaced.path).into_iter().flatten();
        let mut held = held.filter(|lane| lane.digest == replaced.digest);
        // Where all of its rows go, all of its range must be loaded anew.
        let rows_go = !plan.recompute && replaced.kept_as.is_none();
        if rows_go && held.any(|lane| !covers(&[plan.range_us], lane.range_us)) {
            return refuse(&replaced.path, "was loaded for another time range by another job");
        }
    }
    if plan.is_whole_source {
        let planned = plan.files.iter().map(|file| &file.path).chain(&plan.already_loaded);
        let known: BTreeSet<&String> = planned.chain(plan.replaced.iter().map(|replaced| &replaced.path)).collect();
        let is_news = |lane: &&CommittedLane| !known.contains(&lane.path) && meet(lane.range_us, plan.range_us);
        if let Some(lane) = lanes.values().flatten().find(is_news) {
            return refuse(&lane.path, "was extracted and loaded by another job");
        }
    }
    Ok(())
}

/// The commitInfo of a version, if it says anything of lanes.
async fn lane_info(
    location: &Location,
    log_store: &LogStoreRef,
    version: u64,
) -> Result<Option<serde_json::Value>, OfflineError> {
    let actions = read_commit(location, log_store, version).await?;
    let infos = actions.into_iter().map(|mut action| action["commitInfo"].take());
    Ok(infos.into_iter().find(|info| info.get(INFO_LANES).is_some()))
}

/// The latest commit, at or before `version`, that says something of lanes. Commits that do point to the one before
/// them, so that a long log of other commits is not read over and over.
async fn latest_lane_info(
    location: &Location,
    log_store: &LogStoreRef,
    version: u64,
) -> Result<Option<(u64, serde_json::Value)>, OfflineError> {
    for version in (0..=version).rev() {
        if let Some(info) = lane_info(location, log_store, version).await? {
            return Ok(Some((version, info)));
        }
    }
    Ok(None)
}

/// The latest commit, at or before `version`, that took rows out of the table.
pub(crate) async fn withdrawn_at(
    location: &Location,
    log_store: &LogStoreRef,
    version: u64,
) -> Result<Option<u64>, OfflineError> {
    let latest = latest_lane_info(location, log_store, version).await?;
    Ok(latest.and_then(|(_, info)| info[INFO_WITHDRAWN_AT].as_u64()))
}

/// What the commits up to `latest` have loaded and taken out again.
pub(crate) async fn read_lane_log(
    location: &Location,
    log_store: &LogStoreRef,
    latest: u64,
) -> Result<LaneLog, OfflineError> {
    let mut log = LaneLog::default();
    let mut gone: BTreeSet<LaneName> = BTreeSet::new();
    let mut next = latest_lane_info(location, log_store, latest).await?;
    while let Some((version, info)) = next {
        if log.latest_commit.is_none() {
            log.latest_commit = Some(version);
            log.withdrawn_at = info[INFO_WITHDRAWN_AT].as_u64();
        }
        for lane in field::<Vec<CommittedLane>>(&info, INFO_LANES)? {
            if !gone.contains(&lane.name()) {
                log.lanes.entry(lane.path.clone()).or_default().push(lane);
            }
        }
        log.commits += 1;
        // What a commit takes away was there before it: a lane that it adds itself stays.
        gone.extend(field::<Vec<LaneName>>(&info, INFO_LANES_REMOVED)?);
        next = match info[INFO_LANES_BEFORE].as_u64() {
            Some(before) => lane_info(location, log_store, before).await?.map(|info| (before, info)),
            None => None,
        };
    }
    Ok(log)
}

fn field<T: serde::de::DeserializeOwned + Default>(info: &serde_json::Value, name: &str) -> Result<T, OfflineError> {
    match info.get(name) {
        None | Some(serde_json::Value::Null) => Ok(T::default()),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|source| OfflineError::Json { what: "the lanes of a commit", source }),
    }
}

/// What the commitInfo of a new version says of lanes, where the log before it is `log`. Now and then it says all that there
/// are, so that readers need not go back to the table's beginning.
pub(crate) fn describe(
    change: &LaneChange,
    log: &LaneLog,
    withdraws_in: Option<u64>,
) -> Vec<(String, serde_json::Value)> {
    let (added, removed, before) = match log.commits < LANE_COMMITS_MAX {
        true => (change.added.clone(), change.removed.clone(), log.latest_commit),
        false => (change.applied_to(&log.lanes).into_values().flatten().collect(), Vec::new(), None),
    };
    vec![
        (INFO_LANES.to_owned(), serde_json::json!(added)),
        (INFO_LANES_REMOVED.to_owned(), serde_json::json!(removed)),
        (INFO_LANES_BEFORE.to_owned(), serde_json::json!(before)),
        (INFO_WITHDRAWN_AT.to_owned(), serde_json::json!(withdraws_in.or(log.withdrawn_at))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_together_what_none_covers_alone() {
        assert!(covers(&[None], Some((5, 9))));
        assert!(covers(&[Some((0, 5)), Some((5, 9))], Some((1, 8))));
        assert!(covers(&[Some((5, 9)), Some((0, 6))], Some((0, 9))));
        assert!(!covers(&[Some((0, 5)), Some((6, 9))], Some((1, 8))));
        assert!(!covers(&[Some((0, 5))], None));
        assert!(covers(&[Some((i64::MIN, 5)), Some((5, i64::MAX))], None));
        assert!(!covers(&[], Some((1, 2))));
    }

    #[test]
    fn a_range_taken_out_of_another_leaves_its_two_sides() {
        assert_eq!(without(Some((0, 10)), Some((3, 5))), [(0, 3), (5, 10)]);
        assert_eq!(without(Some((0, 10)), Some((0, 5))), [(5, 10)]);
        assert!(without(Some((0, 10)), None).is_empty());
        assert_eq!(without(None, Some((3, 5))), [(TIME_MIN_US, 3), (5, TIME_MAX_US)]);
        assert_eq!(without(Some((0, 2)), Some((3, 5))), [(0, 2)]);
    }

    fn lane(path: &str, digest: &str) -> CommittedLane {
        CommittedLane {
            path: path.to_owned(),
            digest: digest.to_owned(),
            range_us: None,
            origin: None,
            loaded_by: None,
        }
    }

    fn loaded(range_us: Option<RangeUs>, arrival_us: i64, left_us: &[RangeUs]) -> CommittedLane {
        let loaded_by = LoadedBy { job: format!("job-{arrival_us}"), arrival_us, left_us: left_us.to_vec() };
        CommittedLane { range_us, loaded_by: Some(loaded_by), ..lane("a", "digest") }
    }

    #[test]
    fn a_lane_that_is_loaded_anew_takes_the_place_of_what_it_was() {
        let after = |before: Vec<CommittedLane>, added: CommittedLane| {
            let change = LaneChange { added: vec![added], ..LaneChange::default() };
            change.applied_to(&Lanes::from([("a".to_owned(), before)])).remove("a").unwrap_or_default()
        };
        let (first, part) = (loaded(None, 1, &[]), loaded(Some((0, 5)), 2, &[]));
        let both = after(vec![first.clone()], part.clone());
        assert_eq!(both, [first, part.clone()], "beyond the part the first job has the say");
        let whole = loaded(None, 3, &[]);
        assert_eq!(after(both, whole.clone()), [whole]);
        let rest = loaded(None, 3, &[(0, 5)]);
        assert_eq!(after(vec![part.clone()], rest.clone()), [part.clone(), rest]);
        assert_eq!(after(vec![part.clone()], lane("a", "digest")), [part, lane("a", "digest")]);
    }

    #[test]
    fn a_job_has_looked_at_what_it_was_asked_for_and_at_rows_without_a_time() {
        let looked_at = |lane: &CommittedLane, event_us| lane.looked_at(event_us).is_some();
        let rest = loaded(Some((0, 20)), 3, &[(5, 10)]);
        for (event_us, expected) in [(0, true), (4, true), (5, false), (9, false), (10, true), (20, false)] {
            assert_eq!(looked_at(&rest, Some(event_us)), expected, "{event_us}");
        }
        assert!(looked_at(&rest, None) && looked_at(&rest, Some(i64::MAX)));
        assert!(!looked_at(&lane("a", "digest"), None), "nobody noted who loaded it");
    }

    #[test]
    fn now_and_then_a_commit_says_all_lanes() {
        let lanes = Lanes::from([("a".to_owned(), vec![lane("a", "old")]), ("b".to_owned(), vec![lane("b", "other")])]);
        let change = LaneChange {
            added: vec![lane("a", "new")],
            removed: vec![lane("a", "old").name()],
            ..LaneChange::default()
        };
        let said = |commits: usize| {
            let log = LaneLog { lanes: lanes.clone(), latest_commit: Some(9), withdrawn_at: Some(3), commits };
            let info: BTreeMap<String, serde_json::Value> = describe(&change, &log, None).into_iter().collect();
            let lanes: Vec<CommittedLane> = serde_json::from_value(info[INFO_LANES].clone()).unwrap_or_default();
            (lanes, info[INFO_LANES_REMOVED].as_array().map(Vec::len), info[INFO_LANES_BEFORE].as_u64())
        };
        assert_eq!(said(1), (vec![lane("a", "new")], Some(1), Some(9)));
        assert_eq!(said(LANE_COMMITS_MAX), (vec![lane("a", "new"), lane("b", "other")], Some(0), None));
    }
}

//! What a training set is made of, as the owner of the definitions says it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use eadem_query::{RowTransform, Validation};
use eadem_semantics::KnownAtCut;
use eadem_values::{DataType, Value};
use serde::{Deserialize, Serialize};

use super::output::OutputFormat;
use super::split::Split;
use crate::cancel::Cancel;
use crate::error::OfflineError;
use crate::location::{Location, OfflineStore};
use crate::schema::key_arrow_type;
use crate::spec::{SourceSpec, ViewSpec};
use crate::spine::KeptSpine;
use crate::table::ReadVersion;

/// A training set to make.
#[derive(Debug, Clone)]
pub struct DatasetSpec {
    /// `name@version` of the service.
    pub service: String,
    /// The digest of the service version, as text.
    pub service_digest: String,
    /// The spine: a Parquet or CSV file, as a local path or URL.
    pub spine: String,
    /// The copy of it to read, where one was kept before; `None`: the file is read, and kept.
    pub kept_spine: Option<KeptSpine>,
    /// Which of its columns mean what.
    pub columns: SpineColumns,
    /// The views that the features come from, those that others depend on first.
    pub views: Vec<ViewOfService>,
    /// The features, in the order of their columns.
    pub features: Vec<DatasetFeature>,
    /// Which knowledge counts.
    pub cut: KnownAtCut,
    /// Whether `<name>__status` stands beside each feature.
    pub with_status: bool,
    /// The engine's fingerprint, for the recipe.
    pub engine_fingerprint: String,
    /// Threads that read each view's history.
    pub workers: usize,
    /// What the file looks like, and what is kept beside it.
    pub options: DatasetOptions,
    /// Bytes of memory that the job may take, about: half of it for the joins, which are split and go through temporary
    /// files where they do not fit, the rest for what is read and written meanwhile.
    pub memory_bytes_max: usize,
    /// Places that its file must not take, besides the spine, the store, and what the views read.
    pub protected: Vec<ProtectedPlace>,
    /// Who watches.
    pub watch: DatasetWatch,
}

/// A file or folder that somebody needs as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectedPlace {
    /// What it is, such as "what source `planes` reads".
    pub what: String,
    /// Where it is: a local path or URL.
    pub location: String,
}

/// Who is told how far a training set is, and may call it off.
#[derive(Clone, Default)]
pub struct DatasetWatch {
    /// Calls it off: nothing is left of it.
    pub cancel: Cancel,
    /// Is told rows made and rows in all, after every row group.
    pub progress: Option<Arc<dyn Fn(u64, u64) + Send + Sync>>,
}

impl fmt::Debug for DatasetWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatasetWatch").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

/// What a training set's file looks like, and what is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetOptions {
    /// What kind of file.
    pub format: OutputFormat,
    /// A column that says which split a row is in.
    pub split: Option<Split>,
    /// Columns of the spine that are not written.
    pub left_out: BTreeSet<String>,
    /// Whether statistics of the features are kept with it.
    pub statistics: bool,
    /// Where the spine is from, for the record.
    pub spine: SpineOrigin,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self {
            format: OutputFormat::default(),
            split: None,
            left_out: BTreeSet::new(),
            statistics: true,
            spine: SpineOrigin::default(),
        }
    }
}

/// Where a spine is from. What it was is kept; this only says so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpineOrigin {
    /// A file.
    #[default]
    File,
    /// A query over registered sources.
    Query(String),
    /// All entities at times, in words.
    Entities(String),
}

/// The spine's columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpineColumns {
    /// The column that holds each row's time.
    pub timestamp: String,
    /// For key columns (a key's own name, or with a role `origin` or `origin.<key>`) and request fields whose column in
    /// the spine has another name: the name the service knows, and the spine's.
    pub renamed: BTreeMap<String, String>,
}

impl SpineColumns {
    /// The spine's column for a key or request field.
    pub fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.renamed.get(name).map_or(name, String::as_str)
    }
}

/// One view of a service, once for each role.
#[derive(Debug, Clone)]
pub enum ViewOfService {
    /// Rows of a table, joined point in time.
    Stored(Box<StoredView>),
    /// Computed after the join.
    OnDemand(OnDemandView),
}

/// A view with a table, in one role.
#[derive(Debug, Clone)]
pub struct StoredView {
    /// The view.
    pub view: ViewSpec,
    /// For each join key, in declared order, the name under which the spine knows it (before
    /// [`SpineColumns::renamed`]): the key's own name; with a role the role, or `role.<key>` for composite keys.
    pub keys: Vec<String>,
    /// The table's version to read.
    pub version: ReadVersion,
}

/// An on-demand view.
#[derive(Debug, Clone)]
pub struct OnDemandView {
    /// `name@version`.
    pub id: String,
    /// The digest of the view version, as text.
    pub digest: String,
    /// The component.
    pub transform: Arc<dyn RowTransform>,
    /// What happens to values that break a constraint.
    pub validation: Validation,
    /// One binding per input of the transform, in declared order.
    pub bindings: Vec<OnDemandBinding>,
}

/// What feeds an input of an on-demand view.
#[derive(Debug, Clone, PartialEq)]
pub enum OnDemandBinding {
    /// A request field; in training, a spine column of its name (or what [`SpineColumns::renamed`] says).
    Request(String),
    /// The time of the request; in training, the spine row's time.
    RequestTimestamp,
    /// The same value for every row, of the input's type.
    Literal(Value),
    /// A feature of another view.
    Feature {
        /// Position in [`DatasetSpec::views`]; before this view's own.
        view: usize,
        /// The feature's name in its view.
        feature: String,
    },
}

/// One feature of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetFeature {
    /// The column's name: an alias, or the feature's name, with a role `<role>_<feature>`.
    pub name: String,
    /// Position in [`DatasetSpec::views`].
    pub view: usize,
    /// The feature's name in its view.
    pub feature: String,
    /// What stands where the status is not `present`; `None`: null.
    pub default: Option<Value>,
}

impl ProtectedPlace {
    /// Where a source reads.
    pub fn of_source(source: &SourceSpec) -> Vec<Self> {
        let place = |location: &String| Self {
            what: format!("what source `{}` reads", source.name),
            location: location.clone(),
        };
        source.origin.locations().iter().map(place).collect()
    }

    /// Checks that a file leaves these places alone.
    ///
    /// # Errors
    /// A file that is one of them, or lies in one.
    pub fn check(places: impl IntoIterator<Item = Self>, out: &str) -> Result<(), OfflineError> {
        let place = Location::parse(out)?;
        for Self { what, location } in places {
            if place.is_within(&Location::parse(&location)?) {
                let reason = format!("is, or lies in, {what} ({location}); name another");
                return Err(OfflineError::Location { location: out.to_owned(), reason });
            }
        }
        Ok(())
    }
}

impl OnDemandView {
    /// The fields of a request that it reads.
    pub fn request_fields(&self) -> impl Iterator<Item = &str> {
        self.bindings.iter().filter_map(|binding| match binding {
            OnDemandBinding::Request(field) => Some(field.as_str()),
            _ => None,
        })
    }
}

impl DatasetSpec {
    /// The spine's column of each key that the service asks for, by the name that the service knows.
    pub fn key_columns(&self) -> BTreeMap<String, String> {
        let stored = self.views.iter().filter_map(|view| match view {
            ViewOfService::Stored(stored) => Some(&stored.keys),
            ViewOfService::OnDemand(_) => None,
        });
        stored.flatten().map(|name| (name.clone(), self.columns.column(name).to_owned())).collect()
    }

    /// Checks that every renamed column is one that the service asks for, and that the split is one.
    ///
    /// # Errors
    /// The first name that is not, with those that could be meant; see [`Split::check`].
    pub fn check_columns(&self) -> Result<(), OfflineError> {
        if let Some(split) = &self.options.split {
            split.check(self)?;
        }
        let names: BTreeMap<&str, DataType> = self.needs().into_iter().collect();
        match self.columns.renamed.keys().find(|name| !names.contains_key(name.as_str())) {
            None => Ok(()),
            Some(unknown) => {
                let names: Vec<&str> = names.into_keys().collect();
                Err(OfflineError::Dataset(format!(
                    "`{unknown}` is no key or request field of {}; those are {}",
                    self.service,
                    names.join(", ")
                )))
            }
        }
    }

    /// Checks where the training set is to be written, and gives the place.
    ///
    /// # Errors
    /// A place that is forgotten with the process, or that would take the place of what the dataset is made from (the spine, a
    /// file of a source, the offline store) or of what is [protected](Self::protected).
    pub fn check_output(&self, store: &OfflineStore, out: &str) -> Result<Location, OfflineError> {
        let place = Location::parse(out)?;
        let refuse = |reason: String| {
            Err(OfflineError::Location { location: out.to_owned(), reason: reason + "; name another" })
        };
        if OutputFormat::of_name(out) != Some(self.options.format) {
            let endings = match self.options.format {
                OutputFormat::Parquet => "`.parquet`",
                OutputFormat::Arrow => "`.arrow` or `.feather`",
            };
            return refuse(format!("does not end in {endings}, as its format says"));
        }
        if !place.is_persistent() {
            return refuse("is the memory of this process".to_owned());
        }
        if place.is_within(&store.root) {
            return refuse("lies in the offline store itself".to_owned());
        }
        if self.options.spine == SpineOrigin::File && place.is_within(&Location::parse(&self.spine)?) {
            return refuse("is the spine".to_owned());
        }
        let of_views = self.views.iter().flat_map(|view| match view {
            ViewOfService::Stored(stored) => ProtectedPlace::of_source(&stored.view.source),
            ViewOfService::OnDemand(_) => Vec::new(),
        });
        ProtectedPlace::check(of_views.chain(self.protected.iter().cloned()), out)?;
        Ok(place)
    }

    /// The names under which the service knows spine columns, apart from the timestamp, with the types that it needs.
    fn needs(&self) -> Vec<(&str, DataType)> {
        let mut needs = Vec::new();
        for view in &self.views {
            match view {
                ViewOfService::Stored(stored) => {
                    for (key, name) in stored.view.keys.iter().zip(&stored.keys) {
                        let data_type = DataType::from_arrow(&key_arrow_type(key.key_type));
                        needs.extend(data_type.map(|data_type| (name.as_str(), data_type)));
                    }
                }
                ViewOfService::OnDemand(on_demand) => {
                    for (field, binding) in on_demand.transform.description().inputs.iter().zip(&on_demand.bindings) {
                        if let OnDemandBinding::Request(name) = binding {
                            needs.push((name, field.data_type));
                        }
                    }
                }
            }
        }
        needs
    }
}

/// The types that the service needs of spine columns, for files that do not say.
pub(super) fn wanted_types(spec: &DatasetSpec) -> BTreeMap<String, DataType> {
    let needs = spec.needs().into_iter().map(|(name, data_type)| (spec.columns.column(name).to_owned(), data_type));
    [(spec.columns.timestamp.clone(), DataType::Timestamp)].into_iter().chain(needs).collect()
}

/// The features of the view of this number that the training set or one of its on-demand views asks for.
pub(super) fn features_asked(spec: &DatasetSpec, number: usize) -> BTreeSet<&str> {
    let own = spec.features.iter().filter(|feature| feature.view == number).map(|feature| feature.feature.as_str());
    let bound = spec.views.iter().flat_map(|view| match view {
        ViewOfService::OnDemand(on_demand) => on_demand.bindings.as_slice(),
        ViewOfService::Stored(_) => &[],
    });
    let bound = bound.filter_map(|binding| match binding {
        OnDemandBinding::Feature { view, feature } if *view == number => Some(feature.as_str()),
        _ => None,
    });
    own.chain(bound).collect()
}

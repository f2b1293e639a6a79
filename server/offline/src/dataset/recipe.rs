//! Recipes: how a training set was made, and making it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use eadem_semantics::KnownAtCut;
use eadem_values::Digest;
use object_store::{ObjectStoreExt, PutPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::spec::{DatasetOptions, DatasetSpec, SpineColumns, StoredView, ViewOfService};
use super::statistics::DatasetStatistics;
use super::{DatasetReport, Made, make};
use crate::cancel::unless_cancelled;
use crate::error::OfflineError;
use crate::file_bytes;
use crate::location::{Location, OfflineStore};
use crate::spec::Placement;
use crate::spine::{KeptSpine, SpineFormat};
use crate::table::{DataFile, ReadVersion};

pub(super) const RECIPE_FORMAT: u32 = 1;

/// How a dataset was made: enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of this format.
    pub format: u32,
    /// `name@version` of the service.
    pub service: String,
    /// The digest of the service version.
    pub service_digest: String,
    /// Digest of the spine's bytes, which are kept in the offline store under it.
    pub spine_digest: Digest,
    /// How they are read.
    pub spine_format: SpineFormat,
    /// Which of its columns mean what.
    pub columns: SpineColumns,
    /// Key, as the service names it → the spine's column.
    pub keys: BTreeMap<String, String>,
    /// What the file looks like, and where the spine is from.
    pub options: DatasetOptions,
    /// Which knowledge counts.
    pub cut: KnownAtCut,
    /// Whether statuses stand beside features.
    pub with_status: bool,
    /// The views, in the order of the dataset's definition.
    pub views: Vec<RecipeView>,
    /// Names of the features, in the order of their columns.
    pub features: Vec<String>,
    /// Settings of the writer.
    pub writer: String,
    /// The engine and its flags.
    pub engine_fingerprint: String,
    /// Rows.
    pub rows: u64,
    /// Digest over the canonical encoding of all rows.
    pub content_digest: Digest,
    /// Digest of the file's bytes.
    pub file_digest: Digest,
}

/// One view of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeView {
    /// `name@version`.
    pub view: String,
    /// The digest of the view version.
    pub digest: String,
    /// The component.
    pub component: Digest,
    /// Which of the view version's tables was read; `None` for an on-demand view, and in recipes from before placements could
    /// be switched: the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// The version of the table that was read; `None` for an on-demand view, or a table that did not exist.
    pub table_version: Option<u64>,
    /// The data files that were read, with digests of their bytes. Vacuum spares them.
    pub files: Vec<RecipeFile>,
}

/// A data file that a dataset was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeFile {
    /// Relative to the table.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Digest of its bytes.
    pub digest: Digest,
}

/// Makes a dataset again from its recipe. `spec` is the same service as the registry knows it; its spine, and the tables and
/// their versions, are taken from the recipe. Another engine or writer may have made it: what counts is the content.
///
/// # Errors
/// Anything that is not as the recipe says: another service, view or component, a data file that is gone or has changed,
/// and last of all another content digest. Then nothing is written.
pub async fn rebuild_dataset(
    store: &OfflineStore,
    recipe: &Recipe,
    spec: &DatasetSpec,
    out: &str,
) -> Result<DatasetReport, OfflineError> {
    let broken = |reason: String| Err(OfflineError::Recipe(reason));
    if recipe.format != RECIPE_FORMAT {
        return broken(format!("it has format {}, this build reads {RECIPE_FORMAT}", recipe.format));
    }
    if recipe.service_digest != spec.service_digest || recipe.views.len() != spec.views.len() {
        return broken(format!("{} is not the service it was made with", spec.service));
    }
    let kept = KeptSpine { digest: recipe.spine_digest, format: recipe.spine_format };
    let mut pinned = DatasetSpec {
        spine: store.kept_spine_location(&kept)?.url.to_string(),
        kept_spine: Some(kept),
        columns: recipe.columns.clone(),
        cut: recipe.cut,
        with_status: recipe.with_status,
        options: recipe.options.clone(),
        ..spec.clone()
    };
    let place = pinned.check_output(store, out)?;
    for (known, view) in recipe.views.iter().zip(&mut pinned.views) {
        let (digest, component) = match view {
            ViewOfService::Stored(stored) => (&stored.view.digest, stored.view.transform.digest()),
            ViewOfService::OnDemand(on_demand) => (&on_demand.digest, on_demand.transform.digest()),
        };
        if *digest != known.digest || *component != known.component {
            return broken(format!("{} is not the version it was made with", known.view));
        }
        if let ViewOfService::Stored(stored) = view {
            stored.view.placement = known.placement.unwrap_or(stored.view.first_placement);
            unless_cancelled(&spec.watch.cancel, check_files(store, stored, known)).await?;
            stored.version = ReadVersion::pinned(known.table_version);
        }
    }
    let Made { mut report, output } = make(store, &pinned, place).await?;
    let engines = format!("it was made by engine {}, this is {}", recipe.engine_fingerprint, spec.engine_fingerprint);
    let same_engine = recipe.engine_fingerprint == spec.engine_fingerprint;
    if report.content_digest != recipe.content_digest {
        output.discard().await?;
        let advice = if same_engine { String::new() } else { format!("; {engines}; use that build") };
        return broken(format!("it gave {}, now {}{advice}", recipe.content_digest, report.content_digest));
    }
    if !same_engine {
        report.notes.push(format!("{engines}; the content is the same"));
    }
    if report.recipe.file_digest != recipe.file_digest {
        report.notes.push("the content is the same, the bytes of the file are not: it has another writer".to_owned());
    }
    output.publish().await?;
    Ok(report)
}

/// The digest of a file's bytes: what a recipe calls [`Recipe::file_digest`].
///
/// # Errors
/// A file that cannot be read.
pub async fn file_digest_of(file: &str) -> Result<Digest, OfflineError> {
    let place = Location::parse(file)?;
    let failed = |error: object_store::Error| OfflineError::File { file: file.to_owned(), reason: error.to_string() };
    file_bytes::digest_of(place.store.as_ref(), &place.path).await.map_err(failed)
}

async fn check_files(store: &OfflineStore, stored: &StoredView, known: &RecipeView) -> Result<(), OfflineError> {
    let table = store.table(&stored.view)?;
    for file in &known.files {
        let path = object_store::path::Path::from(file.path.as_str());
        let pieces = file_bytes::pieces(table.store.as_ref(), &path).await.map_err(|error| {
            OfflineError::Recipe(format!("data file {} of {} is gone: {error}", file.path, known.view))
        })?;
        if file_bytes::digest(pieces).await? != file.digest {
            return Err(OfflineError::Recipe(format!("data file {} of {} has changed", file.path, known.view)));
        }
    }
    Ok(())
}

pub(super) async fn recipe_file(
    store: &Arc<dyn object_store::ObjectStore>,
    file: &DataFile,
) -> Result<RecipeFile, OfflineError> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let digest = name.split('.').next().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
    let digest = match digest {
        Some(digest) => digest,
        // Not named by us: it was made by another writer of the table.
        None => file_bytes::digest_of(store.as_ref(), &object_store::path::Path::from(file.path.as_str())).await?,
    };
    Ok(RecipeFile { path: file.path.clone(), bytes: file.bytes, digest })
}

impl Recipe {
    /// What tells recipes from each other: two training sets of one content may have been made in two ways.
    ///
    /// # Errors
    /// None that a recipe can have.
    pub fn digest(&self) -> Result<Digest, OfflineError> {
        let text = serde_json::to_vec(self).map_err(|source| OfflineError::Json { what: "a recipe", source })?;
        Ok(Digest::of(&text))
    }
}

/// Keeps a recipe, and the statistics of what it made, under the recipe's digest.
pub(super) async fn keep_recipe(
    store: &OfflineStore,
    recipe: &Recipe,
    statistics: Option<&DatasetStatistics>,
) -> Result<(), OfflineError> {
    let name = recipe.digest()?.hex();
    if let Some(statistics) = statistics {
        put_json(&store.statistics_location(&name)?, statistics, "statistics").await?;
    }
    put_json(&store.recipe_location(&name)?, recipe, "a recipe").await
}

async fn put_json(place: &Location, value: &impl Serialize, what: &'static str) -> Result<(), OfflineError> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| OfflineError::Json { what, source })?;
    place.store.put(&place.path, PutPayload::from(text)).await?;
    Ok(())
}

async fn get_json<T: DeserializeOwned>(place: &Location, what: &'static str) -> Result<Option<T>, OfflineError> {
    let object = match place.store.get(&place.path).await {
        Ok(object) => object,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let bytes = object.bytes().await?;
    serde_json::from_slice(&bytes).map(Some).map_err(|source| OfflineError::Json { what, source })
}

impl OfflineStore {
    /// A recipe by its [`Recipe::digest`]; `None` if the store has no such one.
    ///
    /// # Errors
    /// A recipe that cannot be read.
    pub async fn recipe(&self, digest: &Digest) -> Result<Option<Recipe>, OfflineError> {
        get_json(&self.recipe_location(&digest.hex())?, "a recipe").await
    }

    /// Takes out of the statistics that are kept with a recipe what is the value of single rows; gives what is left of them.
    ///
    /// # Errors
    /// Statistics that cannot be read or written.
    pub async fn forget_values(&self, recipe: &Digest) -> Result<Option<DatasetStatistics>, OfflineError> {
        let Some(statistics) = self.statistics(recipe).await? else { return Ok(None) };
        let left = statistics.without_values();
        put_json(&self.statistics_location(&recipe.hex())?, &left, "statistics").await?;
        Ok(Some(left))
    }

    /// The statistics of what the recipe of this digest made; `None` if they were not kept.
    ///
    /// # Errors
    /// Statistics that cannot be read.
    pub async fn statistics(&self, digest: &Digest) -> Result<Option<DatasetStatistics>, OfflineError> {
        get_json(&self.statistics_location(&digest.hex())?, "statistics").await
    }
}

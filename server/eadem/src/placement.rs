//! Switching a view's placement: a table of the other one is filled beside the one that is read, then it is read instead.
//!
//! A backfill fills both tables. What is read changes in one revision of the registry, and only if both hold the same rows:
//! with a loaded epoch where the view is online, else when the backfill has committed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use eadem_offline::{Cancel, ViewTable};
use eadem_registry::model::{Placement, ViewVersion};
use eadem_semantics::AsStored;

use crate::home::Stores;

/// A table that a backfill fills.
pub(crate) struct FilledTable {
    /// The view version in the placement of the table.
    pub(crate) view: Arc<ViewVersion>,
    /// It is not read yet: the version is being switched to its placement.
    pub(crate) is_next: bool,
}

impl FilledTable {
    /// What jobs call it: `name@version`, and the placement where it is not the version's first.
    pub(crate) fn name(&self) -> String {
        let deployment = self.view.stored.as_ref().map(|stored| &stored.deployment);
        match deployment.filter(|deployment| deployment.placement != deployment.first_placement()) {
            None => self.view.id.to_string(),
            Some(deployment) => name_in(&self.view.id.to_string(), deployment.placement),
        }
    }
}

/// The placement that a version is being switched to.
fn next_of(view: &ViewVersion) -> Option<Placement> {
    view.stored.as_ref().and_then(|stored| stored.deployment.next_placement)
}

fn placement_of(view: &ViewVersion) -> Placement {
    view.stored.as_ref().map(|stored| stored.deployment.placement).unwrap_or_default()
}

/// Whether a version is being switched to another placement.
pub(crate) fn is_being_switched(view: &ViewVersion) -> bool {
    next_of(view).is_some()
}

/// The tables of these views that a backfill fills: those that are read, and then those of the placements that views are being
/// switched to. What the first have refused is all that there is to refuse.
pub(crate) fn tables_to_fill(views: &[Arc<ViewVersion>]) -> Vec<FilledTable> {
    let read = views.iter().map(|view| FilledTable { view: Arc::clone(view), is_next: false });
    let next = views.iter().filter_map(|view| {
        let placed = view.placed(next_of(view)?);
        Some(FilledTable { view: Arc::new(placed), is_next: true })
    });
    read.chain(next).collect()
}

/// The version as it is loaded into the online store: in the placement that it is being switched to, if there is a table for
/// that.
///
/// # Errors
/// The two tables do not hold the same rows.
pub(crate) async fn to_serve(
    stores: &Stores,
    view: &Arc<ViewVersion>,
    cancel: &Cancel,
) -> anyhow::Result<Arc<ViewVersion>> {
    let Some(next) = next_of(view) else { return Ok(Arc::clone(view)) };
    let placed = Arc::new(view.placed(next));
    if table_of(stores, &placed).await?.version().await?.is_none() {
        return Ok(Arc::clone(view));
    }
    check_same_rows(stores, view, &placed, cancel).await?;
    Ok(placed)
}

/// One line about a version that is read in another placement than before; `None`: it is not.
pub(crate) fn switched_line(before: &ViewVersion, now: &ViewVersion) -> Option<String> {
    let (from, to) = (placement_of(before), placement_of(now));
    (from != to).then(|| format!("{}: switched from {from} to {to}; both tables hold the same rows", now.id))
}

/// What follows a backfill of the table of `placed`, which is not read yet: it is, if the view is not online. Says so.
///
/// # Errors
/// The two tables do not hold the same rows.
pub(crate) async fn switch_unless_online(
    stores: &Stores,
    placed: &ViewVersion,
    cancel: &Cancel,
) -> anyhow::Result<Option<String>> {
    let view = stores.registry.view(&placed.id.name, Some(placed.id.version)).await?;
    let to = placement_of(placed);
    if next_of(&view) != Some(to) {
        // Somebody was faster, or does not want it any more.
        return Ok(None);
    }
    if stores.registry.current_epoch(&view.id).await?.is_some() {
        let line = format!("{0}: the table of {to} is filled; `eadem materialize {0}` switches to it", view.id);
        return Ok(Some(line));
    }
    check_same_rows(stores, &view, placed, cancel).await?;
    stores.registry.switch_placement(&view.id, to, stores.clock.now_us()).await?;
    Ok(switched_line(&view, placed))
}

async fn table_of(stores: &Stores, view: &ViewVersion) -> anyhow::Result<ViewTable> {
    Ok(stores.offline.table(&stores.table_spec(view).await?)?)
}

/// Whether what is read now and what shall be read hold the same rows, so that no answer changes.
async fn check_same_rows(
    stores: &Stores,
    view: &ViewVersion,
    placed: &ViewVersion,
    cancel: &Cancel,
) -> anyhow::Result<()> {
    let (now, next) = (table_of(stores, view).await?, table_of(stores, placed).await?);
    let (held, other) = (now.rows_digest(cancel).await?, next.rows_digest(cancel).await?);
    if held == other {
        return Ok(());
    }
    let (from, to) = (placement_of(view), placement_of(placed));
    let found = format!(
        "its placement stays {from}: its table of {to} does not hold the same rows ({} there, {} in the one that is read)",
        other.rows, held.rows
    );
    let gone = only_in(&now, &next).await.with_context(|| found.clone())?;
    if gone.is_empty() {
        bail!("{found}; `eadem backfill {} --recompute` computes both anew from the files that are there", view.id);
    }
    bail!(
        "{found}, because these files cannot be loaded any more: {}; put them back and backfill again, or write `placement = \
         \"{from}\"`",
        gone.join(", ")
    )
}

/// The first files that only one of two tables has rows of.
async fn only_in(table: &ViewTable, other: &ViewTable) -> anyhow::Result<Vec<String>> {
    const FILES_SHOWN_MAX: usize = 5;
    let lanes = other.lanes().await?;
    let known: BTreeSet<&str> = lanes.values().flatten().map(|lane| lane.digest.as_str()).collect();
    let only = table.lanes().await?.into_values().flatten().filter(|lane| !known.contains(lane.digest.as_str()));
    let paths: BTreeSet<String> = only.map(|lane| lane.path).collect();
    Ok(paths.into_iter().take(FILES_SHOWN_MAX).collect())
}

/// Why the number of a commit says too little for this version; `None`: it has had one table all along.
pub(crate) fn ambiguous_commit(view: &ViewVersion, as_stored: AsStored) -> Option<String> {
    let stored = view.stored.as_ref().filter(|stored| !stored.deployment.earlier_placements.is_empty())?;
    let AsStored::Commit(commit) = as_stored else { return None };
    Some(format!(
        "{} has had its placement switched ({} now), and commit {commit} would be one of either table: give a time",
        view.id, stored.deployment.placement
    ))
}

/// The names that vacuum knows the tables of a version by.
pub(crate) fn table_names(view: &str) -> [String; 3] {
    [view.to_owned(), name_in(view, Placement::OnWrite), name_in(view, Placement::OnRead)]
}

/// What the table of a version is called in a placement that is not the version's first.
fn name_in(view: &str, placement: Placement) -> String {
    format!("{view}-{placement}")
}

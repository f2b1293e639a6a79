//! Copies of the embedded online store: one file, taken while rows are written, and loaded again as new epochs.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use eadem_offline::Location;
use eadem_online::{
    BackedUpTable, BackupHeader, BackupPart, BackupReader, BackupWriter, Coverage, Erasure, LoadState, Row, StoreError,
    TableId, TableSnapshot,
};
use eadem_registry::definitions::split_version;
use eadem_registry::model::{Placement, ViewRef, ViewVersion};
use eadem_registry::{Epoch, EpochState};
use eadem_semantics::erased;
use eadem_values::{Digest, ENCODING_VERSION, format_timestamp};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::home::Stores;
use crate::materialize;
use crate::output::since_text;
use crate::workers::Handle;

/// How much of a table is held at once while it is copied.
const PAGE_BYTES: usize = 1024 * 1024;
const FILE_BUFFER_BYTES: usize = 1024 * 1024;

/// What `POST /jobs/backup` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackupRequest {
    #[serde(default)]
    pub(crate) views: Vec<String>,
    /// The file: an absolute path of the machine that the store is on.
    pub(crate) out: String,
    /// Put it in the place of a file that is there.
    #[serde(default)]
    replace: bool,
}

/// What `POST /jobs/restore` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreRequest {
    #[serde(default)]
    pub(crate) views: Vec<String>,
    /// The file: an absolute path of the machine that the store is on.
    pub(crate) from: String,
    /// Also where the online store holds the view already.
    #[serde(default)]
    replace: bool,
    /// Only say what would be loaded.
    #[serde(default)]
    dry_run: bool,
}

/// Refuses places where no backup may be.
pub(crate) fn check_file(stores: &Stores, file: &str) -> Result<(), String> {
    let path = Path::new(file);
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(format!("`{file}`: name a file by its absolute path"));
    }
    let own = Location::parse(&stores.data_dir.display().to_string()).map_err(|error| error.to_string())?;
    let is_within = Location::parse(file).map_err(|error| error.to_string())?.is_within(&own);
    if is_within { Err(format!("`{file}`: name a file outside of the store's own directory")) } else { Ok(()) }
}

/// An epoch that is copied.
struct Copied {
    table: BackedUpTable,
    snapshot: Box<dyn TableSnapshot>,
}

/// Copies the epochs that are read now into one file. All are shown as they stood at one moment, whatever is written since.
pub(crate) async fn run_backup(
    stores: &Stores,
    id: &str,
    views: &[Arc<ViewVersion>],
    request: &BackupRequest,
    handle: &Arc<Handle>,
) -> anyhow::Result<Json> {
    let out = PathBuf::from(&request.out);
    refuse_existing(&out, request.replace)?;
    let copied = snapshots(stores, views).await?;
    let header = BackupHeader {
        made_at_us: stores.clock.now_us(),
        row_encoding: ENCODING_VERSION,
        tables: copied.iter().map(|copied| copied.table.clone()).collect(),
    };
    let name = out.file_name().context("it names no file")?.to_string_lossy();
    let unfinished = Unfinished(out.with_file_name(format!(".{name}.{id}.part")));
    let written = write_backup(&unfinished.0, &header, copied, handle)?;
    refuse_existing(&out, request.replace)?;
    fs::rename(&unfinished.0, &out).with_context(|| format!("renaming {}", unfinished.0.display()))?;
    sync_folder_of(&out)?;
    let bytes = fs::metadata(&out)?.len();
    let mut lines: Vec<String> = header
        .tables
        .iter()
        .zip(&written.rows)
        .map(|(table, rows)| {
            format!("{}: {rows} rows of epoch {}{}", table.view, table.table.epoch, held(&table.coverage))
        })
        .collect();
    lines.push(format!("{}: {bytes} bytes, {}", out.display(), written.digest));
    let tables: Vec<Json> =
        header.tables.iter().zip(&written.rows).map(|(table, rows)| described(table, *rows)).collect();
    Ok(json!({
        "lines": lines,
        "file": out,
        "bytes": bytes,
        "digest": written.digest,
        "views": tables,
        "erasures": written.erasures,
    }))
}

fn refuse_existing(out: &Path, replace: bool) -> anyhow::Result<()> {
    if !replace && out.exists() {
        bail!("{} is there already; name another file, or put this one in its place with --replace", out.display());
    }
    Ok(())
}

/// A file that goes away unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone after it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

async fn snapshots(stores: &Stores, views: &[Arc<ViewVersion>]) -> anyhow::Result<Vec<Copied>> {
    let (registry, online) = (&stores.registry, stores.online()?);
    let mut copied = Vec::new();
    for epoch in registry.epochs(None).await?.into_iter().filter(|epoch| epoch.state == EpochState::Current) {
        if !views.is_empty() && !views.iter().any(|view| view.id == epoch.view) {
            continue;
        }
        let view = registry.view(&epoch.view.name, Some(epoch.view.version)).await?;
        let table = TableId { view: view.digest, epoch: u64::from(epoch.epoch) };
        let snapshot = online.snapshot(table).with_context(|| {
            format!(
                "the online store is a database ({}): back it up with the database's own tools, such as nodetool snapshot",
                online.kind()
            )
        })?;
        let snapshot = snapshot.with_context(|| view.id.to_string())?;
        let status = snapshot.status();
        let table = BackedUpTable {
            view: view.id.to_string(),
            table,
            epoch_created_at_us: epoch.created_at_us,
            placement: epoch.placement.as_str().to_owned(),
            coverage: status.coverage.clone(),
            rows: status.rows,
        };
        copied.push(Copied { table, snapshot });
    }
    if let Some(view) = views.iter().find(|view| !copied.iter().any(|copied| copied.table.view == view.id.to_string()))
    {
        bail!("{} is not in the online store; materialize it first", view.id);
    }
    if copied.is_empty() {
        bail!("the online store serves no view yet: there is nothing to copy; materialize first");
    }
    Ok(copied)
}

/// What was written.
struct Written {
    rows: Vec<u64>,
    erasures: u64,
    digest: Digest,
}

fn write_backup(
    path: &Path,
    header: &BackupHeader,
    copied: Vec<Copied>,
    handle: &Arc<Handle>,
) -> anyhow::Result<Written> {
    let writing = || format!("writing {}", path.display());
    let file = File::create(path).with_context(writing)?;
    let to = BufWriter::with_capacity(FILE_BUFFER_BYTES, file);
    let mut writer = BackupWriter::begin(to, header).with_context(writing)?;
    let total: u64 = header.tables.iter().map(|table| table.rows).sum();
    let mut done = 0;
    let mut written = Written { rows: Vec::with_capacity(copied.len()), erasures: 0, digest: Digest::of(&[]) };
    let mut erased: Vec<Box<dyn TableSnapshot>> = Vec::with_capacity(copied.len());
    for (number, Copied { table, mut snapshot }) in copied.into_iter().enumerate() {
        let mut rows_of_table = 0;
        loop {
            if handle.cancel.is_cancelled() {
                bail!("cancelled");
            }
            let rows = snapshot.next_rows(PAGE_BYTES).with_context(|| table.view.clone())?;
            if rows.is_empty() {
                break;
            }
            writer.rows(number, &rows).with_context(writing)?;
            rows_of_table += rows.len() as u64;
            done += rows.len() as u64;
            handle.steps(done, total, done, format!("{}: {rows_of_table} rows", table.view));
        }
        written.rows.push(rows_of_table);
        erased.push(snapshot);
    }
    // After all rows: what a snapshot has left out as erased stands among them.
    for (table, snapshot) in header.tables.iter().zip(erased) {
        let erasures: Vec<Erasure> = snapshot
            .erasures()?
            .into_iter()
            .map(|(key, up_to_us)| Erasure { view: table.table.view, key, up_to_us })
            .collect();
        written.erasures += erasures.len() as u64;
        writer.erasures(&erasures).with_context(writing)?;
    }
    let (to, digest) = writer.finish().with_context(writing)?;
    let file = to.into_inner().map_err(|error| error.into_error()).with_context(writing)?;
    file.sync_all().with_context(writing)?;
    Ok(Written { digest, ..written })
}

fn sync_folder_of(file: &Path) -> anyhow::Result<()> {
    let folder = file.parent().context("a file has a folder")?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("syncing {}", folder.display()))
}

/// What a table holds for certain, behind a line about it.
fn held(coverage: &Coverage) -> String {
    let since = match coverage.complete_since_us {
        None => ", which proves nothing".to_owned(),
        Some(since_us) => format!(", complete since {}", since_text(since_us)),
    };
    let commit = coverage.offline_commit.map(|commit| format!(", from offline commit {commit}"));
    since + &commit.unwrap_or_default()
}

fn described(table: &BackedUpTable, rows: u64) -> Json {
    json!({
        "view": table.view,
        "epoch": table.table.epoch,
        "rows": rows,
        "offline_commit": table.coverage.offline_commit,
        "complete_since": table.coverage.complete_since_us.map(since_text),
    })
}

/// A backup that was read once from end to end.
struct Checked {
    header: BackupHeader,
    digest: Digest,
    erasures: Vec<Erasure>,
}

/// A table that is to be loaded.
struct Planned {
    /// Its place in the backup.
    number: usize,
    view: Arc<ViewVersion>,
    placement: Placement,
    backed_up: BackedUpTable,
}

/// Loads what a file holds as new epochs, and switches to each as it is whole. Nothing is changed before the whole file was
/// found sound and every view that is wanted was found fit.
pub(crate) async fn run_restore(
    stores: &Stores,
    views: &[Arc<ViewVersion>],
    request: &RestoreRequest,
    handle: &Arc<Handle>,
) -> anyhow::Result<Json> {
    let from = Path::new(&request.from);
    let checked = check(from, handle).with_context(|| from.display().to_string())?;
    if checked.header.row_encoding != ENCODING_VERSION {
        let found = checked.header.row_encoding;
        bail!("{}: its rows have encoding {found}, and this release reads {ENCODING_VERSION}", from.display());
    }
    let planned = plan(stores, views, &checked.header, request.replace).await?;
    let made = format_timestamp(checked.header.made_at_us);
    let mut lines = vec![format!("{}: sound, made {made}, {}", from.display(), checked.digest)];
    let mut restored = Vec::new();
    if request.dry_run {
        for Planned { backed_up, .. } in &planned {
            lines.push(format!("{}: would load {} rows{}", backed_up.view, backed_up.rows, held(&backed_up.coverage)));
            restored.push(described(backed_up, backed_up.rows));
        }
    } else {
        make_erasures(stores, &planned, &checked.erasures).await?;
        for loaded in load(stores, from, &planned, handle).await.with_context(|| from.display().to_string())? {
            let Planned { backed_up, .. } = loaded.planned;
            let (rows, epoch) = (loaded.rows, loaded.epoch);
            lines.push(format!("{}: {rows} rows in epoch {epoch}{}", backed_up.view, held(&backed_up.coverage)));
            let mut view = described(backed_up, rows);
            view["epoch"] = json!(epoch);
            view["backed_up_epoch"] = json!(backed_up.table.epoch);
            restored.push(view);
        }
    }
    Ok(json!({
        "lines": lines,
        "file": from,
        "digest": checked.digest,
        "made_at": made,
        "dry_run": request.dry_run,
        "views": restored,
    }))
}

fn open(from: &Path) -> anyhow::Result<BackupReader<BufReader<File>>> {
    Ok(BackupReader::open(BufReader::with_capacity(FILE_BUFFER_BYTES, File::open(from)?))?)
}

/// Reads a backup to its end, which proves that it is as it was written.
fn check(from: &Path, handle: &Arc<Handle>) -> anyhow::Result<Checked> {
    let mut reader = open(from)?;
    let total: u64 = reader.header().tables.iter().map(|table| table.rows).sum();
    let mut erasures = Vec::new();
    let mut done = 0;
    while let Some(part) = reader.next_part()? {
        if handle.cancel.is_cancelled() {
            bail!("cancelled");
        }
        match part {
            BackupPart::Rows { rows, .. } => {
                done += rows.len() as u64;
                // Checking is the first half of the work.
                handle.steps(done, 2 * total, 0, "checking the backup".to_owned());
            }
            BackupPart::Erasures(more) => erasures.extend(more),
        }
    }
    let digest = reader.digest().context("the end of a backup has its digest")?;
    Ok(Checked { header: reader.header().clone(), digest, erasures })
}

/// What is to be loaded; refuses everything if anything that is wanted does not fit.
async fn plan(
    stores: &Stores,
    views: &[Arc<ViewVersion>],
    header: &BackupHeader,
    replace: bool,
) -> anyhow::Result<Vec<Planned>> {
    if let Some(view) = views.iter().find(|view| !header.tables.iter().any(|table| table.view == view.id.to_string())) {
        let held: Vec<&str> = header.tables.iter().map(|table| table.view.as_str()).collect();
        bail!("the backup does not hold {}; it holds {}", view.id, held.join(", "));
    }
    let mut planned = Vec::new();
    let mut hindrances = Vec::new();
    for (number, table) in header.tables.iter().enumerate() {
        if !views.is_empty() && !views.iter().any(|view| view.id.to_string() == table.view) {
            continue;
        }
        match fit(stores, table, replace).await? {
            Ok((view, placement)) => planned.push(Planned { number, view, placement, backed_up: table.clone() }),
            Err(hindrance) => hindrances.push(format!("{}: {hindrance}", table.view)),
        }
    }
    if !hindrances.is_empty() {
        let of_others = match planned.is_empty() {
            true => "",
            false => "\nnothing was loaded; name the views that are to be loaded without these",
        };
        bail!("{}{of_others}", hindrances.join("\n"));
    }
    Ok(planned)
}

type Fit = Result<(Arc<ViewVersion>, Placement), String>;

/// Whether a table may be loaded, and why not: it must be what the registry knows, and must not take the place of newer rows.
async fn fit(stores: &Stores, table: &BackedUpTable, replace: bool) -> anyhow::Result<Fit> {
    let registry = &stores.registry;
    let id = view_ref(&table.view)?;
    let view = match registry.view(&id.name, Some(id.version)).await {
        Ok(view) => view,
        Err(error) if error.is_not_found() => {
            return Ok(Err("the registry does not know it; apply its definition first".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    if view.digest != table.table.view {
        return Ok(Err("the registry knows another definition under this name and version".to_owned()));
    }
    let Some(placement) = Placement::from_name(&table.placement) else {
        return Ok(Err(format!("its rows hold `{}`, which this release does not know", table.placement)));
    };
    let placed = view.stored.as_ref().map(|stored| stored.deployment.placement);
    if let Some(placed) = placed.filter(|placed| *placed != placement) {
        return Ok(Err(format!(
            "it was placed {placement} when it was copied, and is placed {placed} now; materialize"
        )));
    }
    if let Some(hindrance) = offline_hindrance(stores, &view, &table.coverage).await? {
        return Ok(Err(hindrance));
    }
    let hindrance = match registry.current_epoch(&view.id).await? {
        Some(current) => epoch_hindrance(stores, &view, &current, table, replace).await?,
        None => None,
    };
    Ok(hindrance.map_or(Ok((view, placement)), Err))
}

/// The rows must come from the offline table that is there, and none of them must have been taken out of it since.
async fn offline_hindrance(stores: &Stores, view: &ViewVersion, coverage: &Coverage) -> anyhow::Result<Option<String>> {
    let Some(commit) = coverage.offline_commit.and_then(|commit| u64::try_from(commit).ok()) else { return Ok(None) };
    let table = stores.offline.table(&stores.table_spec(view).await?)?;
    let version = table.version().await?;
    if version.is_none_or(|version| version < commit) {
        let version = version.map_or_else(|| "has no rows".to_owned(), |version| format!("is at commit {version}"));
        return Ok(Some(format!(
            "it was loaded from offline commit {commit}, and the offline table {version}: it is another one; materialize"
        )));
    }
    let withdrawn = table.withdrawn_at().await?.filter(|withdrawn| *withdrawn > commit);
    Ok(withdrawn.map(|withdrawn| {
        format!("it holds rows that were taken out in offline commit {withdrawn}, after it was loaded; materialize")
    }))
}

/// What is served now must not be newer than the backup, nor be replaced unasked.
async fn epoch_hindrance(
    stores: &Stores,
    view: &ViewVersion,
    current: &Epoch,
    table: &BackedUpTable,
    replace: bool,
) -> anyhow::Result<Option<String>> {
    let number = current.epoch;
    let status = match stores.online()?.status(TableId { view: view.digest, epoch: u64::from(number) }).await {
        Ok(status) if status.state == LoadState::Ready => Some(status),
        Ok(_) | Err(StoreError::UnknownTable(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(status) = status else {
        let is_same = u64::from(number) == table.table.epoch && current.created_at_us == table.epoch_created_at_us;
        return Ok((!is_same).then(|| {
            format!(
                "the registry names epoch {number}, made {}, which is lost and is not the one in the backup (epoch {}, made \
                 {}): it may have held newer rows; materialize",
                format_timestamp(current.created_at_us),
                table.table.epoch,
                format_timestamp(table.epoch_created_at_us)
            )
        }));
    };
    if is_ahead(&status.coverage, &table.coverage) {
        return Ok(Some(format!(
            "epoch {number} is served and holds newer rows{}; the backup holds older ones{}",
            held(&status.coverage),
            held(&table.coverage)
        )));
    }
    let rows = status.rows;
    Ok((!replace)
        .then(|| format!("epoch {number} is served, with {rows} rows; --replace switches to what the backup holds")))
}

/// Whether one table has seen what the other has not.
fn is_ahead(coverage: &Coverage, other: &Coverage) -> bool {
    let has_newer_lane = |(lane, position): (&String, &i64)| other.lanes.get(lane).is_none_or(|known| position > known);
    coverage.offline_commit > other.offline_commit || coverage.lanes.iter().any(has_newer_lane)
}

fn view_ref(text: &str) -> anyhow::Result<ViewRef> {
    let (name, version) = split_version(text)?;
    let version = version.with_context(|| format!("`{text}` is no view version"))?;
    Ok(ViewRef { name: name.to_owned(), version })
}

/// Erasures come first: no row that was erased is ever seen again.
async fn make_erasures(stores: &Stores, planned: &[Planned], erasures: &[Erasure]) -> anyhow::Result<()> {
    let online = stores.online()?;
    let is_wanted = |erasure: &&Erasure| planned.iter().any(|planned| planned.view.digest == erasure.view);
    for erasure in erasures.iter().filter(is_wanted) {
        online.erase(erasure.view, &erasure.key, erasure.up_to_us).await?;
    }
    Ok(())
}

/// A table that was loaded.
struct Loaded<'a> {
    planned: &'a Planned,
    epoch: u32,
    rows: u64,
}

async fn load<'a>(
    stores: &Stores,
    from: &Path,
    planned: &'a [Planned],
    handle: &Arc<Handle>,
) -> anyhow::Result<Vec<Loaded<'a>>> {
    let mut rows = Rows { reader: open(from)?, ahead: None };
    let total: u64 = rows.reader.header().tables.iter().map(|table| table.rows).sum();
    let mut loaded: Vec<Loaded<'_>> = Vec::with_capacity(planned.len());
    // Tables stand in the file as in its header, and so do those that are wanted.
    for planned in planned {
        let rows_before: u64 = loaded.iter().map(|loaded| loaded.rows).sum();
        let report = |rows: u64| {
            let done = rows_before + rows;
            handle.steps(total + done, 2 * total, done, format!("{}: {rows} rows", planned.backed_up.view));
        };
        let now_us = stores.clock.now_us();
        let epoch = stores.registry.create_epoch(&planned.view.id, planned.placement, now_us).await?.epoch;
        let table = TableId { view: planned.view.digest, epoch: u64::from(epoch) };
        match load_table(stores, table, planned, &mut rows, handle, report).await {
            Ok(rows) => loaded.push(Loaded { planned, epoch, rows }),
            Err(error) => {
                materialize::give_epoch_up(stores, &planned.view, epoch, table).await;
                return Err(error.context(planned.backed_up.view.clone()));
            }
        }
        materialize::switch(stores, &planned.view, epoch).await?;
    }
    Ok(loaded)
}

async fn load_table(
    stores: &Stores,
    table: TableId,
    planned: &Planned,
    rows: &mut Rows,
    handle: &Arc<Handle>,
    report: impl Fn(u64),
) -> anyhow::Result<u64> {
    let online = stores.online()?;
    online.create_epoch(table).await?;
    let erasures = stores.registry.erasures_now().await?;
    let erasures = planned.view.stored.as_ref().and_then(|stored| erasures.of(&stored.entity.name).cloned());
    let mut count = 0;
    while let Some(mut rows) = rows.next_of(planned.number)? {
        if handle.cancel.is_cancelled() {
            bail!("cancelled");
        }
        if let Some(erasures) = &erasures {
            // The copy may be older than the erasure.
            rows.retain(|row| match row.key.decode() {
                Ok(key) => !erased(row.order.event_time_us, erasures.up_to_us(&key)),
                Err(_) => true,
            });
        }
        count += rows.len() as u64;
        online.bulk_load(table, rows).await?;
        report(count);
    }
    online.finish_load(table, planned.backed_up.coverage.clone()).await?;
    Ok(count)
}

/// The rows of a backup, table after table.
struct Rows {
    reader: BackupReader<BufReader<File>>,
    /// What was read of a later table.
    ahead: Option<(usize, Vec<Row>)>,
}

impl Rows {
    /// The next rows of a table; `None`: there are no more. Those of tables before it are passed over.
    fn next_of(&mut self, wanted: usize) -> anyhow::Result<Option<Vec<Row>>> {
        loop {
            let (table, rows) = match self.ahead.take() {
                Some(ahead) => ahead,
                None => match self.reader.next_part()? {
                    Some(BackupPart::Rows { table, rows }) => (table, rows),
                    Some(BackupPart::Erasures(_)) => continue,
                    None => return Ok(None),
                },
            };
            if table > wanted {
                self.ahead = Some((table, rows));
                return Ok(None);
            }
            if table == wanted {
                return Ok(Some(rows));
            }
        }
    }
}

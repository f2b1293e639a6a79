//! A spine without a file: every entity that the tables know at given times.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow_schema::{Field, Schema};
use eadem_values::{BatchEncoder, DataType, decode_rows};
use futures::TryStreamExt;

use super::KeptSpine;
use super::writer::SpineWriter;
use crate::cancel::unless_cancelled;
use crate::dataset::{DatasetSpec, StoredView, ViewOfService};
use crate::error::OfflineError;
use crate::history_exec::History;
use crate::leaf_exec::Leaf;
use crate::location::OfflineStore;
use crate::read::ScanRange;
use crate::schema::key_arrow_type;
use crate::source::to_canonical;

/// Entities that a spine can be made of; each takes about a hundred bytes of memory meanwhile.
pub const ENTITIES_MAX: usize = 5_000_000;

/// Instants at which they can be asked for.
pub const TIMES_MAX: usize = 100_000;

/// Rows that such a spine can have.
pub const SPINE_ROWS_MAX: u64 = 1_000_000_000;

/// Rows that are written at once.
const BATCH_ROWS: usize = 65_536;

impl DatasetSpec {
    /// The views whose tables say which entities there are: those whose keys are all that the service asks for.
    ///
    /// # Errors
    /// A service that asks for more than one entity has, or for a field of the request: only a spine can give these.
    pub fn views_of_entity(&self) -> Result<Vec<&StoredView>, OfflineError> {
        let mut keys: Vec<&str> = Vec::new();
        let mut fields: Vec<&str> = Vec::new();
        for view in &self.views {
            match view {
                ViewOfService::Stored(stored) => keys.extend(stored.keys.iter().map(String::as_str)),
                ViewOfService::OnDemand(on_demand) => fields.extend(on_demand.request_fields()),
            }
        }
        for names in [&mut keys, &mut fields] {
            names.sort_unstable();
            names.dedup();
        }
        if !fields.is_empty() {
            let message = format!(
                "{} needs fields of a request ({}), which no table has; give a spine",
                self.service,
                fields.join(", ")
            );
            return Err(OfflineError::Dataset(message));
        }
        let has_all = |stored: &&StoredView| keys.iter().all(|key| stored.keys.iter().any(|known| known == key));
        let stored = self.views.iter().filter_map(|view| match view {
            ViewOfService::Stored(stored) => Some(stored.as_ref()),
            ViewOfService::OnDemand(_) => None,
        });
        let views: Vec<&StoredView> = stored.filter(has_all).collect();
        if views.is_empty() {
            let message = format!(
                "{} needs the keys {}, and none of its views has all of them: which of them occur together only a spine \
                 can say",
                self.service,
                keys.join(", ")
            );
            return Err(OfflineError::Dataset(message));
        }
        Ok(views)
    }
}

/// Makes a spine of every entity of the service at each of `times_us` at which it is known: at which a row of it, in one
/// of the tables of [`DatasetSpec::views_of_entity`], is a candidate under the cut. The rows are in the order of the
/// times, then of the keys' encoding. `name` tells spines from each other that are made at the same time.
///
/// # Errors
/// See [`DatasetSpec::views_of_entity`]; no time, or too many; too many entities or rows; an unreadable table; cancellation.
pub async fn keep_entities_spine(
    store: &OfflineStore,
    spec: &DatasetSpec,
    times_us: &[i64],
    name: &str,
) -> Result<KeptSpine, OfflineError> {
    let refused = |message: String| OfflineError::Dataset(message);
    if times_us.is_empty() || times_us.len() > TIMES_MAX {
        return Err(refused(format!("there are {} times; 1 to {TIMES_MAX} can be asked for", times_us.len())));
    }
    let views = spec.views_of_entity()?;
    let Some(first) = views.first() else { return Err(refused("there is no view".to_owned())) };
    let mut times_us = times_us.to_vec();
    times_us.sort_unstable();
    times_us.dedup();
    let latest_us = times_us.last().copied().unwrap_or(i64::MIN);
    // All of them have the same keys, in whatever order.
    let names = first.keys.clone();
    let cancel = &spec.watch.cancel;
    let known_from = unless_cancelled(cancel, known_from(store, spec, &views, &names, latest_us)).await?;

    let mut fields = Vec::new();
    let mut data_types = Vec::new();
    for (key, name) in first.view.keys.iter().zip(&names) {
        let arrow_type = key_arrow_type(key.key_type);
        data_types.extend(DataType::from_arrow(&arrow_type));
        fields.push(Field::new(spec.columns.column(name), arrow_type, false));
    }
    fields.push(Field::new(&spec.columns.timestamp, DataType::Timestamp.to_arrow(), false));
    let schema = Arc::new(Schema::new(fields));
    let mut writer = SpineWriter::begin(store, name, schema.clone()).await?;
    let write = async {
        for at_us in times_us {
            let known = known_from.iter().filter(|(_, from_us)| *from_us <= at_us);
            let known: Vec<&[u8]> = known.map(|(key, _)| key.as_ref()).collect();
            for part in known.chunks(BATCH_ROWS) {
                cancel.check()?;
                if writer.rows() + part.len() as u64 > SPINE_ROWS_MAX {
                    return Err(refused(format!(
                        "the spine would have more than {SPINE_ROWS_MAX} rows; ask for fewer times"
                    )));
                }
                let mut columns: Vec<ArrayRef> = decode_rows(&data_types, part.iter().map(|key| Some(*key)))?;
                let times = TimestampMicrosecondArray::from(vec![at_us; part.len()]).with_timezone("UTC");
                columns.push(Arc::new(times));
                writer.write(&RecordBatch::try_new(schema.clone(), columns)?).await?;
            }
        }
        Ok::<(), OfflineError>(())
    };
    match unless_cancelled(cancel, write).await {
        Ok(()) => writer.finish(store).await,
        Err(error) => Err(writer.discard_after(error).await),
    }
}

/// The encoded keys of every entity, in order, and the first instant at which it is known.
async fn known_from(
    store: &OfflineStore,
    spec: &DatasetSpec,
    views: &[&StoredView],
    names: &[String],
    latest_us: i64,
) -> Result<Vec<(Box<[u8]>, i64)>, OfflineError> {
    let mut known: HashMap<Box<[u8]>, i64> = HashMap::new();
    for stored in views {
        let order: Vec<usize> =
            names.iter().filter_map(|name| stored.keys.iter().position(|known| known == name)).collect();
        let table = store.table(&stored.view)?;
        let Some(state) = table.state(stored.version).await? else { continue };
        let range = ScanRange { from_us: i64::MIN, to_us: latest_us };
        let keys = stored.view.keys.len();
        // One part after the other: what is kept of them is one map.
        let mut batches = History::new(table, &state, range, 1).await?.read(0)?;
        let mut encoded = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            spec.watch.cancel.check()?;
            let columns = order.iter().map(|at| to_canonical(batch.column(*at)).map_err(OfflineError::Dataset));
            let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
            let encoder = BatchEncoder::try_new(&columns)?;
            let event_times = batch.column(keys).as_primitive::<TimestampMicrosecondType>().values();
            let known_ats = batch.column(keys + 1).as_primitive::<TimestampMicrosecondType>().values();
            for row in 0..batch.num_rows() {
                let Some(from_us) = spec.cut.visible_from_times_us(event_times[row], known_ats[row]) else { continue };
                encoded.clear();
                encoder.encode_row(row, &mut encoded);
                if let Some(known) = known.get_mut(encoded.as_slice()) {
                    *known = from_us.min(*known);
                    continue;
                }
                if known.len() == ENTITIES_MAX {
                    let message = format!("there are more than {ENTITIES_MAX} entities; give a spine");
                    return Err(OfflineError::Dataset(message));
                }
                known.insert(encoded.as_slice().into(), from_us);
            }
        }
    }
    let mut known: Vec<(Box<[u8]>, i64)> = known.into_iter().collect();
    known.sort_unstable();
    Ok(known)
}

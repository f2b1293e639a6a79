//! Reading a view's table for some entities: the row that wins at each read, from as little of the table as shows it.
//!
//! Of the files that a read may need, those that end latest come first, one, then two, then four and more at once, until no
//! file is left that could hold a better row. Of a file only those pages of the key columns are read that the indexes let
//! through, then times and tie digests of the rows found, and in the end the values of the winners.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::DataType as ArrowType;
use eadem_semantics::{Lifetime, ReadAt, RowOrder, is_candidate};
use eadem_values::{DataType, EntityKey, KeyValue, TieDigest, Value, value_at};
use futures::{StreamExt, TryStreamExt};
use hashbrown::HashMap;

use crate::error::OfflineError;
use crate::read::{ScanRange, tie_column, typed_column};
use crate::schema::{COLUMN_ERROR, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_TIE, from_storage, key_arrow_type};
use crate::state::TableFiles;
use crate::table::{DataFile, ReadVersion, ViewTable};

/// Files that are searched at once, at most: each holds some pages in memory, and where nothing was found in the newest files
/// the wait for an object store must not be paid for each of them in turn.
const FILES_AT_ONCE: usize = 8;

/// Rows of one batch of keys, times or values.
const BATCH_ROWS: usize = 16_384;

/// What a read for one entity found.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityRead {
    /// The table's version that was read.
    pub version: u64,
    /// The winner's place in the order of rows.
    pub order: RowOrder,
    /// Its values, in the order of [`crate::HistoryBatch::values`].
    pub values: Vec<Value>,
    /// Why its transform failed, if it did.
    pub error: Option<String>,
}

impl ViewTable {
    /// For each entity the row that wins at its read, looking no further back than `lifetime` allows: one answer per key,
    /// all from one version of the table. Every data file is searched at most once, however many entities there are.
    ///
    /// # Errors
    /// A table that cannot be read; files of a past version that are gone; another number of reads than of keys.
    pub async fn read_entities(
        &self,
        keys: &[EntityKey],
        reads: &[ReadAt],
        lifetime: Lifetime,
        version: ReadVersion,
    ) -> Result<Vec<Option<EntityRead>>, OfflineError> {
        if keys.len() != reads.len() {
            let message = format!("{} keys, {} reads", keys.len(), reads.len());
            return Err(eadem_query::QueryError::Shape(message).into());
        }
        let found = self.search(keys, reads, lifetime, version).await;
        let mut found = match found {
            // Between a look at the log and one at the files these may have been replaced, and the old ones vacuumed.
            Err(OfflineError::Vacuumed { .. }) if version == ReadVersion::Current => {
                self.forget();
                self.search(keys, reads, lifetime, version).await
            }
            found => found,
        }?;
        if let Some(erased) = self.erased().await? {
            for (key, read) in keys.iter().zip(&mut found) {
                // Whatever it beat lies before it, and is erased as well.
                let is_erased = |read: &EntityRead| erased.takes(key, read.order.event_time_us);
                if read.as_ref().is_some_and(is_erased) {
                    *read = None;
                }
            }
        }
        Ok(found)
    }

    async fn search(
        &self,
        keys: &[EntityKey],
        reads: &[ReadAt],
        lifetime: Lifetime,
        version: ReadVersion,
    ) -> Result<Vec<Option<EntityRead>>, OfflineError> {
        let Some(table) = self.files(version).await? else { return Ok(vec![None; keys.len()]) };
        let mut search = Search::new(keys, reads, lifetime);
        let mut next = 0;
        let mut at_once = 1;
        while next < table.newest_first.len() {
            let mut wave = Vec::new();
            while wave.len() < at_once
                && let Some(file) = table.newest_first.get(next)
            {
                if let Some(part) = search.part_of(file) {
                    wave.push((next, part));
                }
                next += 1;
            }
            let searched: Vec<(usize, Vec<FoundRow>)> = futures::stream::iter(wave)
                .map(|(number, part)| {
                    let (file, search) = (&table.newest_first[number], &search);
                    async move { Ok::<_, OfflineError>((number, self.search_file(file, search, part).await?)) }
                })
                .buffered(FILES_AT_ONCE)
                .try_collect()
                .await?;
            for (number, rows) in searched {
                search.take(number, &rows);
            }
            at_once = (at_once * 2).min(FILES_AT_ONCE);
        }
        self.fetch(&table, &search.best).await
    }

    /// The rows of a file that belong to entities whose reads may need it.
    async fn search_file(
        &self,
        file: &DataFile,
        search: &Search<'_>,
        part: SearchPart,
    ) -> Result<Vec<FoundRow>, OfflineError> {
        let index = self.file_index(file).await?;
        let keys: Vec<&EntityKey> = part.entities.iter().map(|entity| search.entities[*entity]).collect();
        let rows = self.rows_to_search(file, &index, &keys, part.range).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = self.schema.keys.iter().map(|(name, _)| name.as_str()).collect();
        let matcher = Matcher::new(&keys);
        let mut numbers = rows.iter().cloned().flatten();
        let mut matching: Vec<(u64, usize)> = Vec::new();
        let mut batches = self.stream_rows(file, &index, &names, &rows, BATCH_ROWS)?;
        while let Some(batch) = batches.try_next().await.map_err(|error| self.file_error(file, error))? {
            let columns = self.key_columns(&batch)?;
            let mut last = None;
            for (row, number) in numbers.by_ref().take(batch.num_rows()).enumerate() {
                // Rows of one entity mostly lie together.
                let found = match last {
                    Some((before, found)) if same_key(&columns, before, row) => found,
                    _ => matcher.find(&columns, row),
                };
                last = Some((row, found));
                matching.extend(found.map(|key| (number, part.entities[key])));
            }
        }
        let wanted: Vec<u64> = matching.iter().map(|(row, _)| *row).collect();
        let orders = self.orders(file, &index, &wanted).await?;
        let found = matching.into_iter().zip(orders);
        Ok(found.map(|((row, entity), order)| FoundRow { row, entity, order }).collect())
    }

    fn key_columns(&self, batch: &RecordBatch) -> Result<Vec<KeyColumn>, OfflineError> {
        let column = |(name, key_type): &(String, eadem_values::KeyType)| {
            let column = typed_column(batch, name, &key_arrow_type(*key_type))?;
            Ok(match column.as_primitive_opt::<Int64Type>() {
                Some(numbers) => KeyColumn::Numbers(numbers.clone()),
                None => KeyColumn::Texts(column.as_string::<i32>().clone()),
            })
        };
        self.schema.keys.iter().map(column).collect()
    }

    /// Where these rows of a file stand in the order of rows.
    async fn orders(
        &self,
        file: &DataFile,
        index: &crate::file_index::FileIndex,
        rows: &[u64],
    ) -> Result<Vec<RowOrder>, OfflineError> {
        let mut orders = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(orders);
        }
        let columns = [COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_TIE];
        let mut batches = self.stream_rows(file, index, &columns, &ranges(rows), BATCH_ROWS)?;
        while let Some(batch) = batches.try_next().await.map_err(|error| self.file_error(file, error))? {
            let time = |name: &str| typed_column(&batch, name, &DataType::Timestamp.to_arrow());
            let (event_times, known_ats) = (time(COLUMN_EVENT_TIME)?, time(COLUMN_KNOWN_AT)?);
            let event_times = event_times.as_primitive::<TimestampMicrosecondType>();
            let known_ats = known_ats.as_primitive::<TimestampMicrosecondType>();
            let ties: BinaryArray = tie_column(&typed_column(&batch, COLUMN_TIE, &ArrowType::Binary)?)?;
            orders.extend((0..batch.num_rows()).map(|row| RowOrder {
                event_time_us: event_times.value(row),
                known_at_us: known_ats.value(row),
                tie: TieDigest::from_bytes(<[u8; 16]>::try_from(ties.value(row)).unwrap_or_default()),
            }));
        }
        match orders.len() == rows.len() {
            true => Ok(orders),
            false => Err(self.short_file(file, rows.len(), orders.len())),
        }
    }

    fn short_file(&self, file: &DataFile, wanted: usize, found: usize) -> OfflineError {
        let reason = format!("{wanted} rows of a data file were asked for, {found} found: the file is damaged");
        OfflineError::File { file: self.file_url(file), reason }
    }

    /// The winners with their values.
    async fn fetch(
        &self,
        table: &TableFiles,
        best: &[Option<BestRow>],
    ) -> Result<Vec<Option<EntityRead>>, OfflineError> {
        let mut by_file: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for row in best.iter().flatten() {
            by_file.entry(row.file).or_default().push(row.row);
        }
        let fetched: BTreeMap<usize, FetchedRows> = futures::stream::iter(by_file)
            .map(|(number, mut rows)| async move {
                rows.sort_unstable();
                rows.dedup();
                let fetched = self.fetch_rows(&table.newest_first[number], rows).await?;
                Ok::<_, OfflineError>((number, fetched))
            })
            .buffered(FILES_AT_ONCE)
            .try_collect()
            .await?;
        let read = |best: &BestRow| {
            let rows = fetched.get(&best.file);
            let place = rows.and_then(|rows| rows.numbers.binary_search(&best.row).ok());
            let (Some(rows), Some(place)) = (rows, place) else {
                return Err(self.short_file(&table.newest_first[best.file], 1, 0));
            };
            let values = rows.values.iter().map(|column| value_at(column.as_ref(), place));
            Ok(EntityRead {
                version: table.version,
                order: best.order,
                values: values.collect::<Result<_, _>>()?,
                error: rows.errors.is_valid(place).then(|| rows.errors.value(place).to_owned()),
            })
        };
        best.iter().map(|best| best.as_ref().map(read).transpose()).collect()
    }

    async fn fetch_rows(&self, file: &DataFile, numbers: Vec<u64>) -> Result<FetchedRows, OfflineError> {
        let index = self.file_index(file).await?;
        let mut names: Vec<&str> = self.schema.values.iter().map(|value| value.column.as_str()).collect();
        names.push(COLUMN_ERROR);
        let batches = self.stream_rows(file, &index, &names, &ranges(&numbers), BATCH_ROWS)?;
        let batches: Vec<RecordBatch> = batches.try_collect().await.map_err(|error| self.file_error(file, error))?;
        let found = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        let Some(schema) = batches.first().map(RecordBatch::schema).filter(|_| found == numbers.len()) else {
            return Err(self.short_file(file, numbers.len(), found));
        };
        let rows = arrow_select::concat::concat_batches(&schema, &batches)?;
        let value = |value: &crate::schema::ValueColumn| {
            let column = rows.column(schema.index_of(&value.column)?);
            from_storage(column, value.data_type)
        };
        let values = self.schema.values.iter().map(value).collect::<Result<_, OfflineError>>()?;
        let errors = typed_column(&rows, COLUMN_ERROR, &ArrowType::Utf8)?.as_string::<i32>().clone();
        Ok(FetchedRows { numbers, values, errors })
    }
}

/// Values of some rows of a file.
struct FetchedRows {
    /// The rows' numbers, ascending.
    numbers: Vec<u64>,
    values: Vec<ArrayRef>,
    errors: StringArray,
}

/// Consecutive numbers as ranges; they ascend and are distinct.
fn ranges(numbers: &[u64]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if last.end == *number => last.end += 1,
            _ => ranges.push(*number..*number + 1),
        }
    }
    ranges
}

enum KeyColumn {
    Texts(StringArray),
    Numbers(Int64Array),
}

impl KeyColumn {
    fn is(&self, row: usize, part: &KeyValue) -> bool {
        match (self, part) {
            (Self::Texts(texts), KeyValue::Utf8(text)) => texts.is_valid(row) && texts.value(row) == text,
            (Self::Numbers(numbers), KeyValue::Int64(number)) => numbers.is_valid(row) && numbers.value(row) == *number,
            _ => false,
        }
    }
}

fn same_key(columns: &[KeyColumn], left: usize, right: usize) -> bool {
    columns.iter().all(|column| match column {
        KeyColumn::Texts(texts) => {
            texts.is_valid(left) && texts.is_valid(right) && texts.value(left) == texts.value(right)
        }
        KeyColumn::Numbers(numbers) => {
            numbers.is_valid(left) && numbers.is_valid(right) && numbers.value(left) == numbers.value(right)
        }
    })
}

/// Finds rows of some entities, by the first part of their keys and then by the others.
struct Matcher<'a> {
    keys: &'a [&'a EntityKey],
    by_text: HashMap<&'a str, Vec<usize>>,
    by_number: HashMap<i64, Vec<usize>>,
}

impl<'a> Matcher<'a> {
    fn new(keys: &'a [&'a EntityKey]) -> Self {
        let mut matcher = Self { keys, by_text: HashMap::new(), by_number: HashMap::new() };
        for (number, key) in keys.iter().enumerate() {
            match key.0.first() {
                Some(KeyValue::Utf8(text)) => matcher.by_text.entry(text).or_default().push(number),
                Some(KeyValue::Int64(part)) => matcher.by_number.entry(*part).or_default().push(number),
                None => {}
            }
        }
        matcher
    }

    /// Which of the keys a row has; keys are distinct.
    fn find(&self, columns: &[KeyColumn], row: usize) -> Option<usize> {
        let candidates = match columns.first()? {
            KeyColumn::Texts(texts) if texts.is_valid(row) => self.by_text.get(texts.value(row))?,
            KeyColumn::Numbers(numbers) if numbers.is_valid(row) => self.by_number.get(&numbers.value(row))?,
            _ => return None,
        };
        let has_key = |key: &&usize| {
            let parts = &self.keys[**key].0;
            parts.len() == columns.len() && parts.iter().zip(columns).skip(1).all(|(part, column)| column.is(row, part))
        };
        candidates.iter().find(has_key).copied()
    }
}

/// A row of one of the entities.
struct FoundRow {
    row: u64,
    /// Position in [`Search::entities`].
    entity: usize,
    order: RowOrder,
}

/// What is asked of one file.
struct SearchPart {
    /// Positions in [`Search::entities`].
    entities: Vec<usize>,
    /// The event times of all their reads that may need the file.
    range: ScanRange,
}

/// Reads of entities, and the best row that each has met so far.
struct Search<'a> {
    reads: &'a [ReadAt],
    ranges: Vec<ScanRange>,
    /// Distinct.
    entities: Vec<&'a EntityKey>,
    /// An entity may be asked for at several instants.
    reads_of: Vec<Vec<usize>>,
    best: Vec<Option<BestRow>>,
}

struct BestRow {
    order: RowOrder,
    /// Position in [`TableFiles::newest_first`].
    file: usize,
    /// The row's number in it.
    row: u64,
}

impl<'a> Search<'a> {
    fn new(keys: &'a [EntityKey], reads: &'a [ReadAt], lifetime: Lifetime) -> Self {
        let mut entities: Vec<&EntityKey> = Vec::new();
        let mut reads_of: Vec<Vec<usize>> = Vec::new();
        let mut numbers: HashMap<&EntityKey, usize> = HashMap::new();
        for (read, key) in keys.iter().enumerate() {
            let entity = *numbers.entry(key).or_insert_with(|| {
                entities.push(key);
                reads_of.push(Vec::new());
                entities.len() - 1
            });
            reads_of[entity].push(read);
        }
        let ranges = reads.iter().map(|read| ScanRange::readable(lifetime, read.at_us, read.at_us)).collect();
        Self { reads, ranges, entities, reads_of, best: keys.iter().map(|_| None).collect() }
    }

    /// Whether a file may hold a better row for a read: not if it ends before the best so far.
    fn is_open(&self, read: usize, file: &DataFile) -> bool {
        let may_beat = |best: &BestRow| file.event_time_us.is_none_or(|(_, latest)| best.order.event_time_us <= latest);
        self.ranges[read].meets(file) && self.best[read].as_ref().is_none_or(may_beat)
    }

    /// What is asked of a file; `None` if no read needs it any more.
    fn part_of(&self, file: &DataFile) -> Option<SearchPart> {
        let mut part: Option<SearchPart> = None;
        for (entity, reads) in self.reads_of.iter().enumerate() {
            let open = reads.iter().filter(|read| self.is_open(**read, file)).map(|read| self.ranges[*read]);
            let Some(range) = open.reduce(ScanRange::with) else { continue };
            let part = part.get_or_insert(SearchPart { entities: Vec::new(), range });
            part.entities.push(entity);
            part.range = part.range.with(range);
        }
        part
    }

    fn take(&mut self, file: usize, rows: &[FoundRow]) {
        for FoundRow { row, entity, order } in rows {
            for read in &self.reads_of[*entity] {
                let range = self.ranges[*read];
                let is_seen = range.from_us <= order.event_time_us && is_candidate(order, self.reads[*read]);
                if is_seen && self.best[*read].as_ref().is_none_or(|best| *order > best.order) {
                    self.best[*read] = Some(BestRow { order: *order, file, row: *row });
                }
            }
        }
    }
}

//! What is known of a data file without reading its rows: its footer, the indexes of its pages, its bloom filters. By these a
//! read for some entities leaves out what cannot hold them. Nothing here decides which row wins: a file without any of them
//! gives the same answer, only later.

use std::ops::Range;
use std::sync::Arc;

use eadem_values::{EntityKey, KeyValue};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;

use crate::error::OfflineError;
use crate::object_file::ObjectFile;
use crate::read::ScanRange;
use crate::schema::COLUMN_EVENT_TIME;
use crate::table::{DataFile, ViewTable};

/// For more entities than these, whole row groups are likely to be needed: bloom filters would be read in vain.
const BLOOM_ENTITIES_MAX: usize = 32;

/// Bloom filters of one file that are fetched at once.
const BLOOM_READS_AT_ONCE: usize = 8;

/// A data file's footer with the indexes of its pages, where it has them.
#[derive(Debug)]
pub(crate) struct FileIndex {
    pub(crate) reader: ArrowReaderMetadata,
}

impl FileIndex {
    pub(crate) fn metadata(&self) -> &Arc<ParquetMetaData> {
        self.reader.metadata()
    }

    /// Rows of the file.
    pub(crate) fn rows(&self) -> u64 {
        unsigned(self.metadata().file_metadata().num_rows())
    }

    /// The place of a flat column among the file's columns.
    fn leaf(&self, name: &str) -> Option<usize> {
        let columns = self.metadata().file_metadata().schema_descr().columns();
        columns.iter().position(|column| matches!(column.path().parts(), [only] if only == name))
    }

    /// Row groups with the numbers of their rows in the file.
    fn groups(&self) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        let mut first = 0;
        self.metadata().row_groups().iter().enumerate().map(move |(number, group)| {
            let rows = first..first + unsigned(group.num_rows());
            first = rows.end;
            (number, rows)
        })
    }

    /// The rows of a row group, counted in the file, whose pages may hold a value that `wanted` has in this column.
    fn rows_with(&self, group: usize, rows: &Range<u64>, leaf: usize, wanted: &Wanted) -> Vec<Range<u64>> {
        match self.pages_with(group, rows, leaf, wanted) {
            Some(pages) => pages,
            None if self.group_may_hold(group, leaf, wanted) => vec![rows.clone()],
            None => Vec::new(),
        }
    }

    /// `None` where the file has no index of the column's pages.
    fn pages_with(&self, group: usize, rows: &Range<u64>, leaf: usize, wanted: &Wanted) -> Option<Vec<Range<u64>>> {
        let columns = self.metadata().column_index()?.get(group)?.get(leaf)?;
        let pages = self.metadata().offset_index()?.get(group)?.get(leaf)?.page_locations();
        let may_hold = |page: usize| match columns {
            ColumnIndexMetaData::INT64(index) => match (index.min_value(page), index.max_value(page)) {
                (Some(least), Some(greatest)) => wanted.has_number_in(*least, *greatest),
                _ => !index.is_null_page(page),
            },
            ColumnIndexMetaData::BYTE_ARRAY(index) => match (index.min_value(page), index.max_value(page)) {
                (Some(least), Some(greatest)) => wanted.has_text_in(least, greatest),
                _ => !index.is_null_page(page),
            },
            _ => true,
        };
        if columns.num_pages() != pages.len() as u64 {
            return None;
        }
        let mut kept: Vec<Range<u64>> = Vec::new();
        for page in (0..pages.len()).filter(|page| may_hold(*page)) {
            let first = rows.start + unsigned(pages[page].first_row_index);
            let end = pages.get(page + 1).map_or(rows.end, |next| rows.start + unsigned(next.first_row_index));
            match kept.last_mut() {
                Some(last) if last.end == first => last.end = end,
                _ => kept.push(first..end),
            }
        }
        Some(kept)
    }

    fn group_may_hold(&self, group: usize, leaf: usize, wanted: &Wanted) -> bool {
        let statistics = self.metadata().row_group(group).column(leaf).statistics();
        // Older writers ordered texts by signed bytes.
        let statistics = statistics.filter(|statistics| !statistics.is_min_max_deprecated());
        match statistics {
            Some(Statistics::Int64(statistics)) => match (statistics.min_opt(), statistics.max_opt()) {
                (Some(least), Some(greatest)) => wanted.has_number_in(*least, *greatest),
                _ => true,
            },
            Some(Statistics::ByteArray(statistics)) => match (statistics.min_bytes_opt(), statistics.max_bytes_opt()) {
                (Some(least), Some(greatest)) => wanted.has_text_in(least, greatest),
                _ => true,
            },
            _ => true,
        }
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// What one column is asked for.
enum Wanted {
    /// Ascending.
    Texts(Vec<String>),
    /// Ascending.
    Numbers(Vec<i64>),
    /// Ends included.
    Between(i64, i64),
}

impl Wanted {
    /// Part `part` of the keys.
    fn of_keys(keys: &[&EntityKey], part: usize) -> Self {
        let mut texts = Vec::new();
        let mut numbers = Vec::new();
        for key in keys {
            match key.0.get(part) {
                Some(KeyValue::Utf8(text)) => texts.push(text.clone()),
                Some(KeyValue::Int64(number)) => numbers.push(*number),
                None => {}
            }
        }
        texts.sort_unstable();
        numbers.sort_unstable();
        if texts.is_empty() { Self::Numbers(numbers) } else { Self::Texts(texts) }
    }

    /// Bounds of texts may be cut short, but never so that they leave a text out.
    fn has_text_in(&self, least: &[u8], greatest: &[u8]) -> bool {
        let Self::Texts(texts) = self else { return true };
        let first = texts.partition_point(|text| text.as_bytes() < least);
        texts.get(first).is_some_and(|text| text.as_bytes() <= greatest)
    }

    fn has_number_in(&self, least: i64, greatest: i64) -> bool {
        match self {
            Self::Texts(_) => true,
            Self::Between(from, to) => *from <= greatest && least <= *to,
            Self::Numbers(numbers) => {
                let first = numbers.partition_point(|number| *number < least);
                numbers.get(first).is_some_and(|number| *number <= greatest)
            }
        }
    }
}

/// What both have; both ascend and have no overlaps of their own.
fn intersection(left: &[Range<u64>], right: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    let mut both = Vec::new();
    while let (Some(ours), Some(theirs)) = (left.peek(), right.peek()) {
        let (start, end) = (ours.start.max(theirs.start), ours.end.min(theirs.end));
        if start < end {
            both.push(start..end);
        }
        if ours.end <= theirs.end {
            left.next();
        } else {
            right.next();
        }
    }
    both
}

impl ViewTable {
    /// A data file's index: read once, and kept while there is room.
    pub(crate) async fn file_index(&self, file: &DataFile) -> Result<Arc<FileIndex>, OfflineError> {
        let url = self.file_url(file);
        if let Some(index) = self.caches.indexes.get(&url) {
            return Ok(index);
        }
        let mut reader = self.object_file(file);
        // Types are the table's, not those that another writer had in memory.
        let options =
            ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Optional);
        let reader = ArrowReaderMetadata::load_async(&mut reader, options).await;
        let reader = reader.map_err(|error| self.file_error(file, error))?;
        let weight = reader.metadata().memory_size() + url.len();
        Ok(self.caches.indexes.insert(url, FileIndex { reader }, weight))
    }

    /// The rows of a file, counted in it, that may be rows of these entities within these event times.
    pub(crate) async fn rows_to_search(
        &self,
        file: &DataFile,
        index: &FileIndex,
        keys: &[&EntityKey],
        range: ScanRange,
    ) -> Result<Vec<Range<u64>>, OfflineError> {
        let names = self.schema.keys.iter().map(|(name, _)| name.as_str());
        let wanted = names.enumerate().map(|(part, name)| (name, Wanted::of_keys(keys, part)));
        let times = (COLUMN_EVENT_TIME, Wanted::Between(range.from_us, range.to_us));
        let columns: Vec<(usize, Wanted)> =
            wanted.chain([times]).filter_map(|(name, wanted)| Some((index.leaf(name)?, wanted))).collect();
        let mut found = Vec::new();
        for (group, rows) in index.groups() {
            let mut kept = vec![rows.clone()];
            for (leaf, wanted) in &columns {
                if kept.is_empty() {
                    break;
                }
                kept = intersection(&kept, &index.rows_with(group, &rows, *leaf, wanted));
            }
            if !kept.is_empty() {
                found.push((group, kept));
            }
        }
        if keys.len() > BLOOM_ENTITIES_MAX {
            return Ok(found.into_iter().flat_map(|(_, rows)| rows).collect());
        }
        let kept: Vec<Vec<Range<u64>>> = futures::stream::iter(found)
            .map(|(group, rows)| async move {
                let may_hold = self.group_may_have(file, index, group, keys).await?;
                Ok::<_, OfflineError>(if may_hold { rows } else { Vec::new() })
            })
            .buffered(BLOOM_READS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(kept.into_iter().flatten().collect())
    }

    /// Whether the bloom filters of a row group let any of these entities through.
    async fn group_may_have(
        &self,
        file: &DataFile,
        index: &FileIndex,
        group: usize,
        keys: &[&EntityKey],
    ) -> Result<bool, OfflineError> {
        let mut left: Vec<&EntityKey> = keys.to_vec();
        for (part, (name, _)) in self.schema.keys.iter().enumerate() {
            let Some(leaf) = index.leaf(name) else { continue };
            let Some(bloom) = self.bloom(file, index, group, leaf).await? else { continue };
            left.retain(|key| match key.0.get(part) {
                Some(KeyValue::Utf8(text)) => bloom.check(text.as_str()),
                Some(KeyValue::Int64(number)) => bloom.check(number),
                None => true,
            });
        }
        Ok(!left.is_empty())
    }

    async fn bloom(
        &self,
        file: &DataFile,
        index: &FileIndex,
        group: usize,
        leaf: usize,
    ) -> Result<Option<Arc<Sbbf>>, OfflineError> {
        let column = index.metadata().row_group(group).column(leaf);
        let (Some(offset), Some(length)) = (column.bloom_filter_offset(), column.bloom_filter_length()) else {
            return Ok(None);
        };
        let identity = (self.file_url(file), group, leaf);
        if let Some(bloom) = self.caches.blooms.get(&identity) {
            return Ok(Some(bloom));
        }
        let (offset, length) = (unsigned(offset), unsigned(length.into()));
        let bytes = self.store.get_range(&Path::from(file.path.as_str()), offset..offset + length).await;
        let bytes = bytes.map_err(|error| self.file_error(file, ParquetError::External(Box::new(error))))?;
        let bloom = Sbbf::from_bytes(&bytes).map_err(|error| self.file_error(file, error))?;
        let weight = bytes.len() + identity.0.len();
        Ok(Some(self.caches.blooms.insert(identity, bloom, weight)))
    }

    /// Some columns of some rows of a file, the rows ascending and counted in it. Of the columns only the pages are read that
    /// hold those rows, where the file has an index of them.
    pub(crate) fn stream_rows(
        &self,
        file: &DataFile,
        index: &FileIndex,
        columns: &[&str],
        rows: &[Range<u64>],
        batch_rows: usize,
    ) -> Result<ParquetRecordBatchStream<ObjectFile>, OfflineError> {
        let (mut groups, mut ranges) = (Vec::new(), Vec::new());
        // Selections count the rows of the chosen row groups only.
        let mut rows_before = 0;
        for (group, rows_of_group) in index.groups() {
            let chosen = intersection(rows, std::slice::from_ref(&rows_of_group));
            if chosen.is_empty() {
                continue;
            }
            let place = |row: u64| (row - rows_of_group.start + rows_before) as usize;
            ranges.extend(chosen.iter().map(|rows| place(rows.start)..place(rows.end)));
            rows_before += rows_of_group.end - rows_of_group.start;
            groups.push(group);
        }
        let selection = RowSelection::from_consecutive_ranges(ranges.into_iter(), rows_before as usize);
        let schema = index.reader.schema();
        let roots = columns.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        let mask = ProjectionMask::roots(index.reader.parquet_schema(), roots);
        ParquetRecordBatchStreamBuilder::new_with_metadata(self.object_file(file), index.reader.clone())
            .with_projection(mask)
            .with_row_groups(groups)
            .with_row_selection(selection)
            .with_batch_size(batch_rows)
            .build()
            .map_err(|error| self.file_error(file, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    // What looks like a list of numbers is a list of one range.
    #[allow(clippy::single_range_in_vec_init)]
    fn ranges_meet_where_both_are() {
        let both = |left: &[Range<u64>], right: &[Range<u64>]| intersection(left, right);
        assert_eq!(both(&[0..10, 20..30], &[5..25]), [5..10, 20..25]);
        assert_eq!(both(&[0..10], &[10..20]), []);
        assert_eq!(both(&[0..4, 6..8], &[0..1, 2..7, 7..8]), [0..1, 2..4, 6..7, 7..8]);
        assert_eq!(both(&[], &[0..9]), []);
    }

    #[test]
    fn what_is_wanted_is_found_between_bounds() {
        let key = |text: &str, number: i64| EntityKey(vec![KeyValue::Utf8(text.to_owned()), KeyValue::Int64(number)]);
        let keys = [key("m", 5), key("b", -3)];
        let keys: Vec<&EntityKey> = keys.iter().collect();
        let texts = Wanted::of_keys(&keys, 0);
        assert!(texts.has_text_in(b"a", b"b") && texts.has_text_in(b"m", b"m") && texts.has_text_in(b"", b"z"));
        assert!(!texts.has_text_in(b"c", b"l") && !texts.has_text_in(b"n", b"z") && !texts.has_text_in(b"", b"a"));
        let numbers = Wanted::of_keys(&keys, 1);
        assert!(numbers.has_number_in(5, 9) && numbers.has_number_in(-3, -3));
        assert!(!numbers.has_number_in(-2, 4) && !numbers.has_number_in(6, i64::MAX));
        let times = Wanted::Between(10, 20);
        assert!(times.has_number_in(20, 30) && times.has_number_in(0, 10) && !times.has_number_in(21, 22));
    }
}

//! Rows of a table's files, read by their place: each file is read once, and of it only the rows asked for, whatever order
//! they are asked in.

use std::sync::Arc;

use arrow_array::{RecordBatch, UInt32Array};
use arrow_schema::{DataType as ArrowType, Field, Schema, SchemaRef};
use datafusion::error::{DataFusionError, Result};
use eadem_query::TieReader;
use eadem_values::TieDigest;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};

use crate::decode_thread::on_own_thread;
use crate::error::OfflineError;
use crate::object_file::Scan;
use crate::read::{tie_column, typed_column};
use crate::schema::COLUMN_TIE;
use crate::table::{DataFile, ViewTable};

/// Rows of one batch of a read.
const BATCH_ROWS: usize = 65_536;

/// Rows that are decoded together: runs so long that leaving some out costs less than decoding them.
const BLOCK_ROWS: u32 = 64;

/// A row's place: the number of its file among those that are read, then its number in that file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) row: u32,
}

impl Place {
    pub(crate) fn from_number(number: u64) -> Self {
        Self { file: (number >> 32) as usize, row: number as u32 }
    }

    pub(crate) fn first_of(file: usize) -> u64 {
        (file as u64) << 32
    }
}

/// Some files of a table, in the order that places count them.
#[derive(Debug, Clone)]
pub(crate) struct PlacedFiles {
    pub(crate) table: ViewTable,
    pub(crate) files: Arc<[DataFile]>,
    /// Files that are read at once.
    pub(crate) readers: usize,
}

/// What is made of some rows of a file as they are stored.
type Conversion<T> = dyn Fn(&RecordBatch) -> std::result::Result<T, OfflineError> + Send + Sync;

/// Rows that were read, each once, and where they are.
#[derive(Debug)]
pub(crate) struct PlacedRows<T> {
    pub(crate) batches: Vec<T>,
    /// For each place that was asked for; the batch after all others stands for none.
    pub(crate) picks: Vec<Pick>,
}

impl PlacedFiles {
    /// The rows at these places, of the columns of `schema` as `convert` makes them: of some rows as many.
    ///
    /// # Errors
    /// A place in another file; a file that cannot be read.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        places: impl ExactSizeIterator<Item = Option<u64>>,
        schema: &SchemaRef,
        convert: Arc<Conversion<T>>,
    ) -> Result<PlacedRows<T>> {
        let Wanted { reads, picks } = Wanted::of(places, self.files.len())?;
        let read = |read: FileRead| {
            let (placed, schema, convert) = (self.clone(), Arc::clone(schema), Arc::clone(&convert));
            on_own_thread(async move {
                placed.read_rows(&placed.files[read.file], &read.rows, &schema, convert.as_ref()).await
            })
        };
        let reads = futures::stream::iter(reads.into_iter().map(read)).buffered(self.readers).try_collect().await;
        let reads: Vec<Vec<Rows<T>>> = reads.map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(PlacedRows::of(reads, picks))
    }

    /// These rows of a file, ascending.
    async fn read_rows<T>(
        &self,
        file: &DataFile,
        rows: &[u32],
        schema: &SchemaRef,
        convert: &Conversion<T>,
    ) -> std::result::Result<Vec<Rows<T>>, OfflineError> {
        let (reader, damaged) = self.table.open_file::<String>(file);
        let index = self.table.file_index(file).await?;
        let metadata = index.reader.clone();
        let roots: Vec<usize> = schema
            .fields()
            .iter()
            .map(|field| Ok(metadata.schema().index_of(field.name())?))
            .collect::<std::result::Result<_, OfflineError>>()?;
        let columns = ProjectionMask::roots(metadata.parquet_schema(), roots);
        let Blocks { selection, positions } = Blocks::of(rows, index.rows());
        let scan = Scan { rows: Some(selection), ..Scan::of_columns(metadata, columns, BATCH_ROWS) };
        let mut batches = reader.scan(scan).map_err(|error| damaged(error.to_string()))?;
        let mut taken = Vec::new();
        let mut positions = positions.as_slice();
        let mut first = 0_u32;
        while let Some(batch) = batches.try_next().await.map_err(|error| damaged(error.to_string()))? {
            let end = first + batch.num_rows() as u32;
            let (here, later) = positions.split_at(positions.partition_point(|position| *position < end));
            let picks = UInt32Array::from_iter_values(here.iter().map(|position| position - first));
            let of_batch = convert(&arrow_select::take::take_record_batch(&batch, &picks)?)?;
            taken.push(Rows { rows: here.len(), of_batch });
            (first, positions) = (end, later);
        }
        let found: usize = taken.iter().map(|taken| taken.rows).sum();
        if found != rows.len() {
            return Err(damaged(format!("{} rows were asked for, {found} found", rows.len())));
        }
        Ok(taken)
    }

    async fn read_ties(&self, places: &[u64]) -> Result<Vec<TieDigest>> {
        let external = |error| DataFusionError::External(Box::new(error));
        let schema = Arc::new(Schema::new(vec![Field::new(COLUMN_TIE, ArrowType::Binary, false)]));
        let of_ties = Arc::clone(&schema);
        let convert = move |stored: &RecordBatch| {
            let ties = typed_column(stored, COLUMN_TIE, &ArrowType::Binary)?;
            Ok(RecordBatch::try_new(Arc::clone(&of_ties), vec![ties])?)
        };
        let places = places.iter().copied().map(Some);
        let PlacedRows { batches, picks } = self.read(places, &schema, Arc::new(convert)).await?;
        let columns = batches.iter().map(|batch| tie_column(batch.column(0)).map_err(external));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let lost = |error| DataFusionError::Internal(format!("a tie digest is lost: {error}"));
        picks
            .iter()
            .map(|pick| <[u8; 16]>::try_from(columns[pick.batch as usize].value(pick.row as usize)).map_err(lost))
            .map(|tie| tie.map(TieDigest::from_bytes))
            .collect()
    }
}

impl TieReader for PlacedFiles {
    fn ties<'a>(&'a self, places: &'a [u64]) -> BoxFuture<'a, Result<Vec<TieDigest>>> {
        self.read_ties(places).boxed()
    }
}

/// What is decoded for some rows of a file: whole blocks, of which the rows are then taken.
///
/// Decoding a run of values costs less than the bookkeeping of single rows: every fifth of 5 M rows × 10 columns took 0.6 s
/// of processor time as a selection of its own, and 0.32 s so; every five-hundredth 0.17 s either way.
struct Blocks {
    selection: RowSelection,
    /// Where each row stands among the decoded ones.
    positions: Vec<u32>,
}

impl Blocks {
    /// Of `rows`, ascending and distinct, in a file of `rows_in_file`. Rows behind its end have no position.
    fn of(rows: &[u32], rows_in_file: u64) -> Self {
        let rows_in_file = u32::try_from(rows_in_file).unwrap_or(u32::MAX);
        let mut selectors: Vec<RowSelector> = Vec::new();
        let mut positions = Vec::with_capacity(rows.len());
        // Rows of the file that the selectors speak of, and those among them that are not decoded.
        let (mut covered, mut skipped) = (0_u32, 0_u32);
        for row in rows.iter().copied().take_while(|row| *row < rows_in_file) {
            if row >= covered {
                let from = row - row % BLOCK_ROWS;
                let to = from.saturating_add(BLOCK_ROWS).min(rows_in_file);
                if from > covered {
                    selectors.push(RowSelector::skip((from - covered) as usize));
                    skipped += from - covered;
                }
                selectors.push(RowSelector::select((to - from) as usize));
                covered = to;
            }
            positions.push(row - skipped);
        }
        // Neighbouring blocks become one run.
        Self { selection: selectors.into(), positions }
    }
}

/// Rows of one file, ascending.
struct FileRead {
    file: usize,
    rows: Vec<u32>,
}

/// A row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pick {
    pub(crate) batch: u32,
    pub(crate) row: u32,
}

/// What was made of so many rows.
struct Rows<T> {
    rows: usize,
    of_batch: T,
}

impl<T> PlacedRows<T> {
    /// Of the batches of each read, and picks of the rows of reads.
    fn of(reads: Vec<Vec<Rows<T>>>, mut picks: Vec<Pick>) -> Self {
        // For each read its first batch, and behind which of its rows each of its batches ends.
        let mut ends_of_reads: Vec<(u32, Vec<u32>)> = Vec::with_capacity(reads.len());
        let mut batches: Vec<T> = Vec::new();
        for read in reads {
            let mut end = 0;
            let ends = read.iter().map(|batch| {
                end += batch.rows as u32;
                end
            });
            ends_of_reads.push((batches.len() as u32, ends.collect()));
            batches.extend(read.into_iter().map(|batch| batch.of_batch));
        }
        for pick in &mut picks {
            let Some((first_batch, ends)) = ends_of_reads.get(pick.batch as usize) else {
                pick.batch = batches.len() as u32;
                continue;
            };
            let batch = ends.partition_point(|end| *end <= pick.row);
            pick.batch = first_batch + batch as u32;
            pick.row -= if batch == 0 { 0 } else { ends[batch - 1] };
        }
        Self { batches, picks }
    }
}

/// Which rows are read, and which of them stands where.
struct Wanted {
    reads: Vec<FileRead>,
    /// For each place that was asked for, counting reads as batches; the one after all others stands for none.
    picks: Vec<Pick>,
}

impl Wanted {
    /// Of places in so many files.
    ///
    /// # Errors
    /// A place in another file.
    fn of(places: impl ExactSizeIterator<Item = Option<u64>>, files: usize) -> Result<Self> {
        // For each file its rows, each before the number of the output row that asks for it.
        let mut by_file: Vec<Vec<u64>> = vec![Vec::new(); files];
        // Until the number of reads is known, what finds nothing points nowhere.
        let mut picks = vec![Pick { batch: u32::MAX, row: 0 }; places.len()];
        for (output_row, number) in places.enumerate() {
            let Some(place) = number.map(Place::from_number) else { continue };
            let Some(rows) = by_file.get_mut(place.file) else {
                return Err(DataFusionError::Internal(format!("there is no file {}", place.file)));
            };
            rows.push((u64::from(place.row) << 32) | output_row as u64);
        }
        let mut reads: Vec<FileRead> = Vec::new();
        for (file, mut asked) in by_file.into_iter().enumerate().filter(|(_, asked)| !asked.is_empty()) {
            asked.sort_unstable();
            let mut rows: Vec<u32> = Vec::with_capacity(asked.len());
            for row_and_output in asked {
                let (row, output_row) = ((row_and_output >> 32) as u32, row_and_output as u32);
                if rows.last() != Some(&row) {
                    rows.push(row);
                }
                picks[output_row as usize] = Pick { batch: reads.len() as u32, row: rows.len() as u32 - 1 };
            }
            reads.push(FileRead { file, rows });
        }
        let nothing = Pick { batch: reads.len() as u32, row: 0 };
        picks.iter_mut().filter(|pick| pick.batch == u32::MAX).for_each(|pick| *pick = nothing);
        Ok(Self { reads, picks })
    }
}

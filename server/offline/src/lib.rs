//! The offline store: Delta tables of views, backfill jobs that fill them, and training sets made from them.
//!
//! One Delta table per view version, and another one where its placement was switched. A job writes data files first and
//! makes all of them visible in one commit; until then its ledger knows them and nobody else does. What this crate needs of
//! others (a job ledger, a transform) is a trait it owns or takes from `eadem-query`; it knows neither the registry nor the
//! online store.

mod backfill;
mod bind;
mod cache;
mod cancel;
mod commit;
mod compact;
mod dataset;
mod decode_thread;
mod doomed;
mod effect;
mod entity_read;
mod erase_files;
mod erasure;
mod error;
mod expression;
mod extracts;
mod fetch_exec;
mod file_bytes;
mod file_index;
mod history_exec;
mod lanes;
mod leaf_exec;
mod ledger;
mod location;
mod object_file;
mod packed_rows;
mod partition;
mod pieces;
mod placed_files;
mod press;
mod quarantine;
mod read;
mod replace;
mod same_rows;
mod schema;
mod shrink;
mod sort;
mod source;
mod spec;
mod spine;
mod state;
mod stop;
mod table;
mod upload;
mod vacuum;
mod waiting_rows;

pub use backfill::{Backfill, BackfillOptions, BackfillReport, Progress, ProgressSink, plan_backfill, run_backfill};
pub use cancel::{Cancel, unless_cancelled};
pub use compact::{CompactOptions, CompactProgress, CompactReport, Compaction, compact};
pub use dataset::{
    ChangedValue, ColumnChanges, DatasetDiff, DatasetFeature, DatasetOptions, DatasetReport, DatasetRows, DatasetSpec,
    DatasetStatistics, DatasetWatch, DiffSide, FeatureStatistics, LengthStatistics, MatchedBy, OnDemandBinding,
    OnDemandView, OutputFormat, Pair, ProtectedPlace, Recipe, RecipeFile, RecipeView, SAMPLE_ROWS_MAX, SpineColumns,
    SpineOrigin, SpineReport, Split, SplitBy, SplitRule, SplitShare, StatisticsBuilder, StoredView, TimeRange,
    TopValue, ViewOfService, create_dataset, diff_datasets, file_digest_of, open_rows, rebuild_dataset,
};
pub use doomed::DoomedFiles;
pub use effect::{
    ChangedRow, Effect, EffectOptions, EffectOutcome, EffectProgress, EffectReport, FeatureChange, FeatureEffect,
    OutcomeCount, compare_versions,
};
pub use entity_read::EntityRead;
pub use erase_files::{ErasedTable, Erasure, ErasureReport, LookedInto, doomed_files, erase_rows};
pub use erasure::{ErasedEntities, ErasureLedger};
pub use error::OfflineError;
pub use expression::EXPRESSION_FUNCTIONS;
pub use extracts::DeletedFiles;
pub use lanes::{CommittedLane, LaneName, LoadedBy};
pub use ledger::{
    ChunkOutcome, ChunkPart, Claim, JobLedger, JobPlan, LaneOrigin, LedgerError, MemoryLedger, Part, PlannedChunk,
    PlannedFile, ReplacedFile,
};
pub use location::{Location, OfflineStore, StoreLimits, StoreSetting, limit_object_stores, s3_settings};
pub use quarantine::{
    EntryState, Quarantine, QuarantineCursor, QuarantineEntry, QuarantineFilter, QuarantinePage, QuarantineSummary,
    QuarantinedRow, RefusalCounts, Replay, ReplayOptions, ReplayReport, RowOutcome, run_replay,
};
pub use read::{FileScan, HistoryBatch, ScanRange, TableScan};
pub use same_rows::RowsDigest;
pub use schema::{
    COLUMN_ERROR, COLUMN_EVENT_DATE, COLUMN_EVENT_TIME, COLUMN_KNOWN_AT, COLUMN_LANE, COLUMN_SEQUENCE, COLUMN_TIE,
    TableSchema,
};
pub use source::{CursorKind, CursorValue, InspectedColumn, input_column, inspect};
pub use spec::{
    Binding, CsvFormat, EventTime, JoinKey, KnownAt, Origin, Placement, PostgresQuery, SourceSpec, ViewSpec,
};
pub use spine::{
    ENTITIES_MAX, ErasedInSpine, KeptSpine, QueriedSpine, SPINE_ROWS_MAX, Spine, SpineFile, SpineFormat, SpineQuery,
    SpineUse, TIMES_MAX, keep_entities_spine, tables_of_query,
};
pub use state::StoredVersion;
pub use stop::StopThreshold;
pub use table::{DataFile, ReadVersion, TableContents, ViewTable};
pub use vacuum::{FilesInUse, InUse, PlaceReport, VacuumOptions, VacuumProgress, VacuumReport};

//! What a side of F6 has written, from the footers of its files.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};

/// A folder of data files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) rows: i64,
    pub(crate) bytes: u64,
    pub(crate) files: usize,
    /// Names of folders that hold data files.
    pub(crate) partitions: BTreeSet<String>,
    /// Name, type and codec of every column of any file.
    pub(crate) columns: BTreeSet<String>,
}

/// Reads the footers of all data files below `folder`.
pub(crate) fn written(folder: &Path) -> Result<Written> {
    let mut written = Written::default();
    add(folder, &mut written)?;
    Ok(written)
}

fn add(folder: &Path, written: &mut Written) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        // The log of a Delta table keeps Parquet files of its own.
        let is_log = path.file_name().is_some_and(|name| name == "_delta_log");
        if path.is_dir() && !is_log {
            add(&path, written)?;
        }
        if path.extension().is_some_and(|extension| extension == "parquet") {
            add_file(&path, written).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn add_file(path: &Path, written: &mut Written) -> Result<()> {
    let file = File::open(path)?;
    written.files += 1;
    written.bytes += file.metadata()?.len();
    let reader = SerializedFileReader::new(file)?;
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    written.partitions.insert(folder.to_string_lossy().into_owned());
    for group in reader.metadata().row_groups() {
        written.rows += group.num_rows();
        for column in group.columns() {
            let codec = column.compression().to_string();
            let codec = codec.split('(').next().unwrap_or_default();
            written.columns.insert(format!("{} {} {codec}", column.column_path(), column.column_type()));
        }
    }
    Ok(())
}

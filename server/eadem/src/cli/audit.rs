//! `audit`: the values that the store serves at the spine's instants against the training set, bit for bit.
//!
//! The two sides are computed by different paths: the training set by the point-in-time join over the offline table, the
//! served values by the online store over the routes. What they share is what must be the same: the component, the
//! semantics of time and the encoding.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use arrow_array::cast::AsArray as _;
use arrow_array::{Array as _, ArrayRef, RecordBatch};
use clap::Args;
use eadem_offline::{Spine, open_rows};
use eadem_registry::model::{RequestField, RequiredKey};
use eadem_values::{DataType, KeyType, Value, format_timestamp, value_at, value_from_json, value_to_json};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::jobs::run_job;
use super::{Context, name_and_value};
use crate::client::{Client, encoded};
use crate::output::Progress;

/// Compare served values with training values, bit for bit.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// A service: `name` or `name@version`.
    #[arg(long)]
    service: String,
    /// The spine: Parquet, CSV or Arrow with keys, request fields and a timestamp.
    #[arg(long)]
    spine: PathBuf,
    /// The spine's column of timestamps.
    #[arg(long, default_value = "timestamp")]
    timestamp_column: String,
    /// A key or request field that has another name in the spine: --column origin=from_airport
    #[arg(long = "column", value_name = "NAME=COLUMN", value_parser = name_and_value)]
    columns: Vec<(String, String)>,
    /// A training set of exactly this spine and service; default: one is made for the audit.
    #[arg(long)]
    dataset: Option<PathBuf>,
    /// Rows asked for in one request.
    #[arg(long, default_value_t = 256)]
    batch_rows: usize,
    /// Flip one bit of one training value before comparing: the audit must fail.
    #[arg(long)]
    plant: bool,
}

/// The part of a service's description that an audit needs.
#[derive(Debug, Deserialize)]
struct Service {
    name: String,
    version: u32,
    entries: Vec<Entry>,
    keys: Vec<RequiredKey>,
    request_fields: Vec<RequestField>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    output_name: String,
    data_type: DataType,
}

/// What an audit found. One value per feature and spine row that names an entity.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    service: String,
    /// Values compared: `online` + `offline`.
    pub(crate) compared: u64,
    /// Values whose bits, or whose status, differ.
    pub(crate) differing: u64,
    /// Bits that differ, over all values; a value present on one side only counts as one.
    pub(crate) differing_bits: u64,
    /// Values that the online store alone proved.
    pub(crate) online: u64,
    /// Values for which history was asked too.
    pub(crate) offline: u64,
    /// Values that differ although both sides found a row.
    transform_identity: u64,
    /// Values that differ because the two sides found other rows.
    input_identity: u64,
    /// Spine rows left out because a key is null: no request can name their entity.
    rows_without_key: u64,
    /// Values by status.
    statuses: Map<String, Json>,
    /// Differing values by cause.
    causes: BTreeMap<&'static str, u64>,
    /// The first differences.
    differences: Vec<Difference>,
    /// What was planted, if anything.
    planted: Option<String>,
}

#[derive(Debug, Serialize)]
struct Difference {
    row: usize,
    feature: String,
    entity: Json,
    timestamp: String,
    training: Json,
    training_status: String,
    served: Json,
    served_status: String,
    served_by: String,
    cause: &'static str,
}

const DIFFERENCES_SHOWN: usize = 20;

impl Audit {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client().await?;
        let report = self.compare(context, &client).await?;
        context.printer.result(&report, report_text)?;
        match (self.plant, report.differing) {
            (false, 0) => Ok(()),
            (false, differing) => {
                bail!("{differing} of {} values differ between training and serving", report.compared)
            }
            (true, 0) => bail!("the planted bit was not found: the audit is blind"),
            (true, 1) => bail!("the planted bit was found, and nothing else differs"),
            (true, differing) => bail!(
                "{differing} of {} values differ, not only the planted one: audit without --plant first",
                report.compared
            ),
        }
    }

    async fn compare(&self, context: &Context, client: &Client) -> anyhow::Result<Report> {
        if self.batch_rows == 0 {
            bail!("--batch-rows must be at least 1");
        }
        let service: Service = client.get(&format!("/registry/services/{}", encoded(&self.service))).await?;
        let scratch = tempfile::tempdir()?;
        let dataset = match &self.dataset {
            Some(dataset) => dataset.clone(),
            None => self.make_dataset(context, client, &scratch.path().join("training.parquet")).await?,
        };
        let spine = self.read_spine(&service).await?;
        let training = read_training(&dataset).await?;
        if spine.rows != training.num_rows() {
            bail!(
                "the spine has {} rows, the training set {}: they do not belong together",
                spine.rows,
                training.num_rows()
            );
        }
        let rows = spine.rows_with_keys();
        let mut training = TrainingValues::of(&service, &training)?;
        let mut report = Report {
            service: format!("{}@{}", service.name, service.version),
            rows_without_key: (spine.rows - rows.len()) as u64,
            ..Report::default()
        };
        if self.plant {
            report.planted = Some(training.plant(&service, &rows)?);
        }
        let mut progress = Progress::new("audit", context.printer.format);
        let mut done = 0;
        for part in rows.chunks(self.batch_rows) {
            let request = spine.request(&report.service, part)?;
            let reply: Json = client.post("/features/batch?include=metadata", &request).await?;
            let results = reply["results"].as_array().cloned().unwrap_or_default();
            if results.len() != part.len() {
                bail!("the server answered {} of {} rows", results.len(), part.len());
            }
            for (row, served) in part.iter().zip(&results) {
                compare_row(&service, &training, *row, served, &mut report)?;
            }
            done += part.len();
            progress.update(done as u64, rows.len() as u64, &format!("{} values", report.compared));
        }
        progress.finish();
        Ok(report)
    }

    async fn make_dataset(&self, context: &Context, client: &Client, out: &Path) -> anyhow::Result<PathBuf> {
        let spec = json!({
            "service": self.service,
            "spine": super::data::file_or_url(&self.spine)?,
            "output": out,
            "timestamp_column": self.timestamp_column,
            "columns": self.columns.iter().cloned().collect::<BTreeMap<String, String>>(),
        });
        run_job(context, client, "dataset", &spec).await?;
        Ok(out.to_owned())
    }

    /// The spine's column for a key or request field.
    fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.columns.iter().find(|(known, _)| known == name).map_or(name, |(_, column)| column.as_str())
    }

    /// Reads the spine as a training set does.
    async fn read_spine(&self, service: &Service) -> anyhow::Result<SpineColumns> {
        let mut wanted = BTreeMap::from([(self.timestamp_column.clone(), DataType::Timestamp)]);
        for key in &service.keys {
            wanted.insert(self.column(&key.name).to_owned(), type_of_key(key.key_type));
        }
        for field in &service.request_fields {
            wanted.insert(self.column(&field.name).to_owned(), field.data_type);
        }
        let spine = Spine::read(&super::data::file_or_url(&self.spine)?, &wanted).await?;
        let named =
            |name: &str, data_type| spine.column(self.column(name), data_type).map(|column| (name.to_owned(), column));
        let keys = service.keys.iter().map(|key| named(&key.name, type_of_key(key.key_type)));
        let fields = service.request_fields.iter().map(|field| named(&field.name, field.data_type));
        Ok(SpineColumns {
            rows: spine.rows.num_rows(),
            keys: keys.collect::<Result<_, _>>()?,
            request_fields: fields.collect::<Result<_, _>>()?,
            instants: spine.column(&self.timestamp_column, DataType::Timestamp)?,
        })
    }
}

fn type_of_key(key_type: KeyType) -> DataType {
    match key_type {
        KeyType::Utf8 => DataType::Utf8,
        KeyType::Int64 => DataType::Int64,
    }
}

/// What a request takes from the spine, by the names that the service knows.
struct SpineColumns {
    rows: usize,
    keys: Vec<(String, ArrayRef)>,
    request_fields: Vec<(String, ArrayRef)>,
    instants: ArrayRef,
}

impl SpineColumns {
    /// The rows that a request can ask for: those that name their entity.
    fn rows_with_keys(&self) -> Vec<usize> {
        (0..self.rows).filter(|row| self.keys.iter().all(|(_, column)| column.is_valid(*row))).collect()
    }

    fn request(&self, service: &str, rows: &[usize]) -> anyhow::Result<Json> {
        let mut entities = Vec::with_capacity(rows.len());
        let mut request = Vec::with_capacity(rows.len());
        let mut timestamps = Vec::with_capacity(rows.len());
        for row in rows {
            entities.push(fields_of_row(&self.keys, *row)?);
            request.push(fields_of_row(&self.request_fields, *row)?);
            match value_at(self.instants.as_ref(), *row)? {
                Value::Timestamp(us) => timestamps.push(format_timestamp(us)),
                _ => bail!("row {row} of the spine has no time"),
            }
        }
        Ok(json!({ "service": service, "entities": entities, "request": request, "timestamps": timestamps }))
    }
}

fn fields_of_row(columns: &[(String, ArrayRef)], row: usize) -> anyhow::Result<Map<String, Json>> {
    let field =
        |(name, column): &(String, ArrayRef)| Ok((name.clone(), value_to_json(&value_at(column.as_ref(), row)?)));
    columns.iter().map(field).collect()
}

/// The training set, by feature and row.
struct TrainingValues {
    values: Vec<Vec<Value>>,
    statuses: Vec<Vec<String>>,
}

impl TrainingValues {
    fn of(service: &Service, dataset: &RecordBatch) -> anyhow::Result<Self> {
        let mut values = Vec::new();
        let mut statuses = Vec::new();
        for entry in &service.entries {
            let missing = || format!("the training set has no column of feature `{}`", entry.output_name);
            let column = dataset.column_by_name(&entry.output_name).with_context(missing)?;
            values.push((0..dataset.num_rows()).map(|row| value_at(column.as_ref(), row)).collect::<Result<_, _>>()?);
            let status_name = format!("{}__status", entry.output_name);
            let status = dataset.column_by_name(&status_name);
            let status = status.with_context(|| {
                format!("the training set has no column `{status_name}`; make it without --no-status")
            })?;
            let status = arrow::compute::cast(status, &arrow_schema::DataType::Utf8)?;
            let status = status.as_string::<i32>();
            statuses.push((0..status.len()).map(|row| status.value(row).to_owned()).collect());
        }
        Ok(Self { values, statuses })
    }

    /// Flips the lowest bit of the first present number in one of these rows, and says which.
    fn plant(&mut self, service: &Service, rows: &[usize]) -> anyhow::Result<String> {
        for (feature, entry) in service.entries.iter().enumerate() {
            for row in rows.iter().copied() {
                let flipped = match &self.values[feature][row] {
                    Value::Float64(value) if !value.is_finite() => continue,
                    Value::Float32(value) if !value.is_finite() => continue,
                    Value::Float64(value) => Value::Float64(f64::from_bits(value.to_bits() ^ 1)),
                    Value::Float32(value) => Value::Float32(f32::from_bits(value.to_bits() ^ 1)),
                    Value::Int64(value) => Value::Int64(value ^ 1),
                    Value::Boolean(value) => Value::Boolean(!value),
                    _ => continue,
                };
                if self.statuses[feature][row] == "present" {
                    self.values[feature][row] = flipped;
                    return Ok(format!("one bit of `{}` in row {row} of the training set", entry.output_name));
                }
            }
        }
        bail!("there is no present number in which a bit could be planted")
    }
}

fn compare_row(
    service: &Service,
    training: &TrainingValues,
    row: usize,
    served: &Json,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (feature, entry) in service.entries.iter().enumerate() {
        let name = &entry.output_name;
        let served_json =
            served["features"].get(name).with_context(|| format!("the server left `{name}` out of row {row}"))?;
        let served_value = value_from_json(entry.data_type, served_json)?;
        let served_status = served["status"][name].as_str().unwrap_or("present");
        let store = served["metadata"][name]["store"].as_str().unwrap_or_default();
        match store {
            "online" => report.online += 1,
            "offline" => report.offline += 1,
            other => bail!("the server names the store `{other}` for `{name}`, which is neither online nor offline"),
        }
        report.compared += 1;
        count_status(&mut report.statuses, served_status);
        let training_value = &training.values[feature][row];
        let training_status = training.statuses[feature][row].as_str();
        let bits = differing_bits(training_value, &served_value);
        let same_status = training_status == served_status;
        if bits == 0 && same_status {
            continue;
        }
        report.differing += 1;
        report.differing_bits += bits.max(1);
        let (identity, cause) = cause(training_status, served_status);
        match identity {
            Identity::Transform => report.transform_identity += 1,
            Identity::Input => report.input_identity += 1,
        }
        *report.causes.entry(cause).or_default() += 1;
        if report.differences.len() < DIFFERENCES_SHOWN {
            report.differences.push(Difference {
                row,
                feature: name.clone(),
                entity: served["entity"].clone(),
                timestamp: served["timestamp"].as_str().unwrap_or_default().to_owned(),
                training: value_to_json(training_value),
                training_status: training_status.to_owned(),
                served: served_json.clone(),
                served_status: served_status.to_owned(),
                served_by: store.to_owned(),
                cause,
            });
        }
    }
    Ok(())
}

fn count_status(statuses: &mut Map<String, Json>, status: &str) {
    let count = statuses.get(status).and_then(Json::as_u64).unwrap_or_default();
    statuses.insert(status.to_owned(), Json::from(count + 1));
}

/// Which part of the promise a difference breaks.
enum Identity {
    /// The same row gives the same bits.
    Transform,
    /// Both sides see the same row.
    Input,
}

/// What kind of difference it is, and its likely cause, as far as the two statuses tell.
fn cause(training_status: &str, served_status: &str) -> (Identity, &'static str) {
    match (training_status, served_status) {
        ("error", _) | (_, "error") => (Identity::Transform, "a transform or a store failed on one side"),
        ("missing", _) => (
            Identity::Input,
            "input: serving found a row that training did not; it was stored after the training set was made",
        ),
        (_, "missing") => (Identity::Input, "input: training found a row that serving did not; materialize the view"),
        (training, served) if training == served => {
            (Identity::Transform, "other bits: one was changed, or the two sides chose other rows")
        }
        _ => (Identity::Input, "input: the two sides chose other rows"),
    }
}

/// How many bits differ in the canonical encoding; every byte that only one side has counts as eight.
fn differing_bits(a: &Value, b: &Value) -> u64 {
    let (a, b) =
        (eadem_values::encode_values(std::slice::from_ref(a)), eadem_values::encode_values(std::slice::from_ref(b)));
    let common: u32 = a.iter().zip(&b).map(|(a, b)| (a ^ b).count_ones()).sum();
    u64::from(common) + 8 * a.len().abs_diff(b.len()) as u64
}

async fn read_training(path: &Path) -> anyhow::Result<RecordBatch> {
    let rows = open_rows(&super::data::file_or_url(path)?).await?;
    let batches: Vec<RecordBatch> = rows.batches.try_collect().await?;
    Ok(arrow::compute::concat_batches(&rows.schema, &batches)?)
}

pub(crate) fn report_text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(planted) = &report.planted {
        text.push_str(&format!("planted: {planted}\n"));
    }
    for difference in &report.differences {
        text.push_str(&format!(
            "row {} {} of {} at {}: training {} ({}), served {} ({}, {}); {}\n",
            difference.row,
            difference.feature,
            difference.entity,
            difference.timestamp,
            difference.training,
            difference.training_status,
            difference.served,
            difference.served_status,
            difference.served_by,
            difference.cause,
        ));
    }
    let statuses: Vec<String> = report.statuses.iter().map(|(status, count)| format!("{status} {count}")).collect();
    text.push_str(&format!("statuses: {}\n", statuses.join(", ")));
    text.push_str(&format!(
        "identity: {} values compared, {} differing bits\nonline: {}, offline: {}",
        report.compared, report.differing_bits, report.online, report.offline
    ));
    text.push_str(&format!(
        "\ntransform identity: {} values differ\ninput identity: {} values differ",
        report.transform_identity, report.input_identity
    ));
    for (cause, values) in &report.causes {
        text.push_str(&format!("\n  {values} × {cause}"));
    }
    if report.rows_without_key > 0 {
        text.push_str(&format!("\nrows left out for a null key: {}", report.rows_without_key));
    }
    text
}

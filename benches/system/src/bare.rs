//! What serving from a database is measured against: the least that a server has to do that asks the database with the same
//! driver. It parses the same request, runs the same two statements at once and writes the same JSON.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use eadem_online::ScyllaConfig;
use eadem_values::{DataType, EntityKey, KeyValue, decode_row, format_timestamp, value_to_json};
use scylla::client::session::Session;
use scylla::response::PagingState;
use scylla::statement::prepared::PreparedStatement;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::serving::FEATURES;

#[derive(Deserialize)]
struct Asked {
    entities: Vec<Entity>,
    // Parsed as the other side must, though nothing here depends on it.
    #[serde(rename = "service")]
    _service: String,
}

#[derive(Deserialize, Serialize)]
struct Entity {
    entity_id: String,
}

/// Event time, known-at, tie digest, body, erasures.
type Columns<'a> = (i64, i64, &'a [u8], &'a [u8], Option<Vec<i64>>);

struct Bare {
    session: Session,
    newest_row: PreparedStatement,
    /// The two tables. Both views are the same function of the same rows, so it does not matter which is which.
    tables: [Uuid; 2],
    /// `"amount_1":` and so on, of both tables.
    names: [Vec<String>; 2],
}

/// Serves what `eadem materialize` wrote to the database at this URL, two views of payments, until the process is killed.
pub(crate) fn run(url: &str) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let router = Router::new().route("/features/batch", post(answer)).with_state(Arc::new(Bare::open(url).await?));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("serving on http://{}", listener.local_addr()?);
        Ok(axum::serve(listener, router).await?)
    })
}

impl Bare {
    async fn open(url: &str) -> Result<Self> {
        let config = ScyllaConfig::parse(url)?;
        // The store's own settings: consistency, retries, speculation.
        let session = config.session_builder()?.build().await?;
        let keyspace = &config.keyspace;
        // The store's statement for a read, set as the store sets it.
        let text = format!(
            "SELECT event_time, known_at, tie, body, erased_up_to FROM {keyspace}.rows WHERE incarnation = ? AND entity = ? \
             AND event_time <= ?"
        );
        let mut newest_row = session.prepare(text).await?;
        newest_row.set_is_idempotent(true);
        newest_row.set_page_size(1);
        let found = session.query_unpaged(format!("SELECT incarnation FROM {keyspace}.epochs"), ()).await?;
        let found = found.into_rows_result()?;
        let tables = found.rows::<(Uuid,)>()?.map(|row| Ok(row?.0)).collect::<Result<Vec<_>>>()?;
        let Ok(tables) = <[Uuid; 2]>::try_from(tables) else { bail!("there are not two tables in {url}") };
        let names = [1, 2].map(|number| FEATURES.iter().map(|name| format!("\"{name}_{number}\":")).collect());
        Ok(Self { session, newest_row, tables, names })
    }

    /// Writes the features of an entity.
    async fn write(&self, entity: &Entity, at_us: i64, text: &mut Vec<u8>) -> Result<()> {
        let key = EntityKey(vec![KeyValue::Utf8(entity.entity_id.clone())]).encode();
        let read = |table: Uuid| {
            self.session.execute_single_page(&self.newest_row, (table, key.as_slice(), at_us), PagingState::start())
        };
        let ((first, _), (second, _)) = tokio::try_join!(read(self.tables[0]), read(self.tables[1]))?;
        let mut separator = b'{';
        for (found, names) in [first, second].into_iter().zip(&self.names) {
            let found = found.into_rows_result()?;
            let (_, _, _, body, _) = found.first_row::<Columns<'_>>()?;
            // No error and no origin stand before the values.
            let (flags, encoded) = body.split_first().context("an empty body")?;
            ensure!(*flags == 0, "a row with an error or an origin");
            for (name, value) in names.iter().zip(decode_row(&types(), encoded)?) {
                text.push(separator);
                text.extend_from_slice(name.as_bytes());
                serde_json::to_writer(&mut *text, &value_to_json(&value))?;
                separator = b',';
            }
        }
        text.push(b'}');
        Ok(())
    }

    async fn reply(&self, asked: &Asked) -> Result<Vec<u8>> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_us = i64::try_from(since_1970.as_micros()).unwrap_or_default();
        let timestamp = format_timestamp(at_us);
        let mut text = b"{\"results\":[".to_vec();
        for (number, entity) in asked.entities.iter().enumerate() {
            text.extend_from_slice(if number == 0 { b"{\"entity\":" } else { b",{\"entity\":" });
            serde_json::to_writer(&mut text, entity)?;
            text.extend_from_slice(b",\"features\":");
            self.write(entity, at_us, &mut text).await?;
            text.extend_from_slice(format!(",\"timestamp\":\"{timestamp}\"}}").as_bytes());
        }
        text.extend_from_slice(b"]}");
        Ok(text)
    }
}

/// Those of [`FEATURES`].
fn types() -> [DataType; FEATURES.len()] {
    FEATURES.map(|name| match name {
        "merchant_category" => DataType::Utf8,
        "is_foreign" => DataType::Boolean,
        _ => DataType::Float64,
    })
}

async fn answer(State(bare): State<Arc<Bare>>, Json(asked): Json<Asked>) -> Response {
    match bare.reply(&asked).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

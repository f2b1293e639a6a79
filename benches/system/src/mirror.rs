//! What the serving bars are measured against: the least that a server of the same replies has to do. It parses the same
//! request, looks the values up in a map and encodes the same JSON.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use eadem_values::format_timestamp;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

/// What it answers: for every entity its features, in the order of their names.
type Known = HashMap<String, Features>;

struct Features(Vec<(String, serde_json::Value)>);

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[derive(Deserialize)]
struct Asked {
    entities: Vec<Entity>,
    // Parsed as the other side must, though nothing here depends on them.
    #[serde(rename = "service")]
    _service: String,
    #[serde(rename = "request", default)]
    _request: Vec<Moment>,
}

#[derive(Deserialize, Serialize)]
struct Entity {
    entity_id: String,
}

#[derive(Deserialize)]
struct Moment {
    #[serde(rename = "txn_lat")]
    _lat: f64,
    #[serde(rename = "txn_lon")]
    _lon: f64,
    #[serde(rename = "txn_amount")]
    _amount: f64,
}

#[derive(Serialize)]
struct Reply<'a> {
    results: Vec<EntityReply<'a>>,
}

#[derive(Serialize)]
struct EntityReply<'a> {
    entity: &'a Entity,
    features: &'a Features,
    timestamp: &'a str,
}

/// Serves what stands in the file `known`, a JSON object of objects, until the process is killed.
pub(crate) fn run(known: &Path) -> Result<()> {
    let text = std::fs::read(known).with_context(|| known.display().to_string())?;
    let known: HashMap<String, serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&text)?;
    let known: Known =
        known.into_iter().map(|(entity, features)| (entity, Features(features.into_iter().collect()))).collect();
    let router = Router::new().route("/features/batch", post(answer)).with_state(Arc::new(known));
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("serving on http://{}", listener.local_addr()?);
        Ok(axum::serve(listener, router).await?)
    })
}

async fn answer(State(known): State<Arc<Known>>, Json(asked): Json<Asked>) -> Response {
    let nothing = Features(Vec::new());
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = format_timestamp(i64::try_from(since_1970.as_micros()).unwrap_or_default());
    let of = |entity| EntityReply {
        entity,
        features: known.get(&entity.entity_id).unwrap_or(&nothing),
        timestamp: &timestamp,
    };
    let reply = Reply { results: asked.entities.iter().map(of).collect() };
    Json(reply).into_response()
}

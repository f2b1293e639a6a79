//! The interface as an OpenAPI document, made from the table of routes.

use axum::Json;
use serde_json::{Map, Value, json};

use super::ROUTES;

pub(super) async fn serve() -> Json<Value> {
    Json(openapi())
}

/// The OpenAPI 3.1 document of every route.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let mut operations = Map::new();
        for (method, summary) in route.methods {
            operations.insert((*method).to_owned(), operation(route.path, method, summary));
        }
        paths.insert(route.path.to_owned(), Value::Object(operations));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "eadem",
            "description": "A feature store whose feature logic is WebAssembly.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn operation(path: &str, method: &str, summary: &str) -> Value {
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(query_parameters(path, method));
    let mut operation = json!({
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "2XX": { "description": "success", "content": { "application/json": { "schema": reply_schema(path) } } },
            "4XX": problem_response("the request is at fault"),
            "5XX": problem_response("the server is at fault"),
        },
    });
    if method == "post" {
        operation["requestBody"] = json!({ "required": true, "content": request_content(path) });
    }
    operation
}

fn query_parameters(path: &str, method: &str) -> Vec<Value> {
    let parameter = |name: &str, description: &str| json!({ "name": name, "in": "query", "description": description, "schema": { "type": "string" } });
    let one_entity = [
        ("features", "names, separated by commas: name, view:name or view@version:name"),
        ("service", "name or name@version, instead of features"),
        ("entity", "the entity type, where there are several"),
        ("timestamp", "RFC 3339; default: now"),
        ("include", "metadata: status, event time, view version, digest and store of each value"),
        ("request.<field>", "a field of the request, for on-demand features"),
    ];
    match (path, method) {
        ("/features/{entity_id}", "get") => one_entity.iter().map(|(name, text)| parameter(name, text)).collect(),
        ("/features", "get") => {
            std::iter::once(parameter("entity_id", "composite keys in declared order, joined by commas"))
                .chain(one_entity.iter().map(|(name, text)| parameter(name, text)))
                .collect()
        }
        ("/features/batch", "post") => vec![parameter("include", one_entity[4].1)],
        ("/transforms", "post") => vec![
            parameter("strict_nan", "true: compile it so that there is only one NaN, whatever the check finds"),
            parameter(
                "seed",
                "of the rows that the laws are checked on, to see a refusal again; default: a random one",
            ),
        ],
        _ => Vec::new(),
    }
}

fn request_content(path: &str) -> Value {
    match path {
        "/transforms" => json!({ "application/wasm": { "schema": { "type": "string", "format": "binary" } } }),
        "/features/batch" => {
            json!({ "application/json": { "schema": { "$ref": "#/components/schemas/BatchRequest" } } })
        }
        _ => json!({ "application/json": { "schema": { "type": "object" } } }),
    }
}

fn reply_schema(path: &str) -> Value {
    match path {
        "/features/{entity_id}" | "/features" => json!({ "$ref": "#/components/schemas/Features" }),
        "/features/batch" => json!({
            "type": "object",
            "properties": { "results": { "type": "array", "items": { "$ref": "#/components/schemas/Features" } } },
        }),
        _ => json!({ "type": "object" }),
    }
}

fn problem_response(description: &str) -> Value {
    json!({
        "description": description,
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    })
}

fn schemas() -> Value {
    json!({
        "Features": {
            "type": "object",
            "required": ["features", "timestamp"],
            "properties": {
                "entity_id": { "description": "the id asked for (GET)" },
                "entity": { "type": "object", "description": "the keys asked for (batch)" },
                "features": { "type": "object", "description": "every feature asked for; null where it has no value" },
                "timestamp": { "type": "string", "format": "date-time" },
                "status": {
                    "type": "object",
                    "description": "features that are not present",
                    "additionalProperties": { "enum": ["missing", "expired", "null", "error"] },
                },
                "metadata": { "type": "object" },
            },
        },
        "BatchRequest": {
            "type": "object",
            "required": ["entities"],
            "properties": {
                "service": { "type": "string" },
                "features": { "type": "array", "items": { "type": "string" } },
                "entities": { "type": "array", "items": { "type": "object" } },
                "request": { "type": "array", "items": { "type": "object" } },
                "timestamp": { "type": "string", "format": "date-time" },
                "timestamps": { "type": "array", "items": { "type": "string", "format": "date-time" } },
            },
        },
        "Problem": {
            "type": "object",
            "required": ["type", "title", "status", "code", "detail"],
            "properties": {
                "type": { "type": "string" },
                "title": { "type": "string" },
                "status": { "type": "integer" },
                "code": { "type": "string" },
                "detail": { "type": "string" },
                "errors": { "type": "array", "items": { "type": "string" } },
                "retry_after_s": { "type": "integer" },
            },
        },
    })
}

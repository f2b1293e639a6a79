//! Schemas of the interface that have to do with people: projects, tokens, the trail.

use eadem_registry::{Quota, Role};
use serde_json::{Value, json};

use super::openapi::digest;
use super::tokens::EXPIRES_IN_S_MAX;

pub(super) fn schemas() -> Value {
    let instant = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    json!({
        "NewProject": {
            "type": "object",
            "additionalProperties": false,
            "required": ["name"],
            "properties": { "name": project_name() },
        },
        "Quotas": {
            "type": "object",
            "additionalProperties": false,
            "description": "what is not named stays as it is; null lifts a limit",
            "properties": quotas(&json!({ "type": ["integer", "null"], "minimum": 0, "maximum": i64::MAX })),
        },
        "Project": {
            "type": "object",
            "required": ["name", "created_at", "quotas"],
            "properties": {
                "name": project_name(),
                "created_at": instant("when it was made"),
                "quotas": {
                    "type": "object",
                    "description": "what is not in it is not limited",
                    "properties": quotas(&json!({ "type": "integer" })),
                },
            },
        },
        "NewToken": {
            "type": "object",
            "additionalProperties": false,
            "required": ["name", "role"],
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 100 },
                "role": { "enum": Role::ALL },
                "project": {
                    "type": ["string", "null"],
                    "description": "the project that it is for; default: that of whoever makes it, or all",
                },
                "expires_in_s": {
                    "type": ["integer", "null"],
                    "minimum": 1,
                    "maximum": EXPIRES_IN_S_MAX,
                    "description": "seconds until it is no longer taken; default: never",
                },
            },
        },
        "Token": {
            "type": "object",
            "required": ["id", "name", "role", "project", "state", "created_at", "created_by"],
            "properties": {
                "token": { "type": "string", "description": "what a client sends; only in the answer that makes it" },
                "id": { "type": "string" },
                "name": { "type": "string" },
                "role": { "enum": Role::ALL },
                "project": { "type": ["string", "null"], "description": "null: all" },
                "state": { "enum": ["valid", "expired", "revoked"] },
                "created_at": instant("when it was made"),
                "created_by": { "type": "string" },
                "expires_at": { "type": ["string", "null"], "format": "date-time" },
                "revoked_at": { "type": ["string", "null"], "format": "date-time" },
                "revoked_by": { "type": ["string", "null"] },
                "last_used_at": { "type": ["string", "null"], "format": "date-time", "description": "up to a minute behind" },
            },
        },
        "TrailHead": {
            "type": "object",
            "description": "the last entry; kept elsewhere, it proves later that nothing up to it was touched",
            "required": ["sequence", "hash"],
            "properties": { "sequence": { "type": "integer" }, "hash": digest() },
        },
        "TrailEntry": {
            "type": "object",
            "required": ["sequence", "at_us", "name", "verb", "object", "outcome", "detail", "count", "previous", "hash"],
            "properties": {
                "sequence": { "type": "integer", "description": "1, 2, 3, … without gaps" },
                "at": instant("when"),
                "at_us": { "type": "integer", "description": "the same, in microseconds since the epoch" },
                "token_id": { "type": ["string", "null"] },
                "name": { "type": "string", "description": "the token's, or what stands in its place" },
                "project": { "type": ["string", "null"], "description": "that the token is for; null: all" },
                "address": { "type": ["string", "null"], "description": "where the request came from" },
                "request_id": { "type": ["string", "null"] },
                "verb": { "type": "string" },
                "object": { "type": "string" },
                "before": { "type": ["string", "null"], "description": "the digest of what stood there before" },
                "after": { "type": ["string", "null"], "description": "the digest of what stands there now" },
                "outcome": { "enum": ["done", "refused"] },
                "detail": { "type": "string" },
                "count": { "type": "integer", "description": "how many equal events it stands for" },
                "previous": digest(),
                "hash": digest(),
            },
        },
    })
}

fn project_name() -> Value {
    json!({ "type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$" })
}

/// A schema for each quota.
fn quotas(schema: &Value) -> Value {
    Value::Object(Quota::ALL.into_iter().map(|quota| (quota.name().to_owned(), schema.clone())).collect())
}

//! The interface as an OpenAPI document, made from the table of routes.

use axum::Json;
use eadem_registry::SEARCH_KINDS;
use serde_json::{Map, Value, json};

use super::{ROUTES, openapi_access, takes_body};
use crate::access::Access;
use crate::effect::EFFECT_ROWS_MAX;
use crate::jobs::{JobKind, JobState};
use crate::serving::reply::ARROW_STREAM;
use eadem_registry::LINEAGE_NODES_MAX;

pub(super) async fn serve() -> Json<Value> {
    Json(openapi())
}

/// The OpenAPI 3.1 document of every route.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let mut operations = Map::new();
        for (method, access, summary) in route.methods {
            operations.insert((*method).to_owned(), operation(route.path, method, *access, summary));
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
        "components": {
            "schemas": all_schemas(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "eadem_<id>_<secret>; a server that nobody has made a token for needs none. A token of one project \
                                    asks in that one; one of all projects names another than `default` by the header `Eadem-Project`",
                },
            },
        },
    })
}

fn operation(path: &str, method: &str, access: Access, summary: &str) -> Value {
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": path_part(path, method, name) }))
        .collect();
    parameters.extend(query_parameters(path, method));
    let mut operation = json!({
        "summary": summary,
        "parameters": parameters,
        "responses": responses(path, method, access),
    });
    match access {
        Access::Everybody => operation["security"] = json!([]),
        Access::AtLeast(role) => {
            operation["security"] = json!([{ "token": [] }]);
            operation["x-eadem-role"] = json!(role);
        }
    }
    if let Some(content) = request_content(path).filter(|_| method == "post") {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

/// What may stand in a path at `{name}`.
fn path_part(path: &str, method: &str, name: &str) -> Value {
    match (path, method, name) {
        ("/registry/{kind}", _, "kind") => json!({ "enum": ["entities", "sources", "views", "services"] }),
        ("/registry/{kind}/{name}", _, "kind") => {
            json!({ "enum": ["entities", "sources", "transforms", "views", "features", "services"] })
        }
        ("/registry/{kind}/{name}/{action}", _, "kind") => json!({ "enum": ["transforms", "views", "services"] }),
        (_, _, "action") => json!({ "enum": ["deprecate", "retire"] }),
        ("/lineage/{kind}/{name}", _, "kind") => {
            json!({ "enum": ["source", "entity", "transform", "view", "feature", "service", "dataset"] })
        }
        ("/jobs/{id}", "post", _) => json!({ "enum": JobKind::ALL.map(JobKind::name) }),
        (_, _, "digest") => digest(),
        _ => json!({ "type": "string", "minLength": 1 }),
    }
}

/// Every status that the route answers with.
fn responses(path: &str, method: &str, access: Access) -> Value {
    let mut responses = Map::new();
    for (status, description) in successes(path, method) {
        let response = json!({ "description": description, "content": reply_content(path, method) });
        responses.insert((*status).to_owned(), response);
    }
    let of_route = problems(path, method).iter();
    for (status, description) in of_route.chain(PROBLEMS_OF_EVERY_ROUTE) {
        responses.insert((*status).to_owned(), problem_response(description));
    }
    if takes_body(path, &method.to_ascii_uppercase()) {
        responses.insert("408".to_owned(), problem_response("the body does not arrive in time"));
    }
    if access != Access::Everybody {
        responses.insert("429".to_owned(), problem_response("the project asks for more than it may have"));
        let unauthorized = json!({
            "description": "there is no token, or none that is taken",
            "headers": { "www-authenticate": { "schema": { "type": "string" } } },
            "content": problem_content(),
        });
        responses.insert("401".to_owned(), unauthorized);
    }
    responses.sort_keys();
    Value::Object(responses)
}

fn successes(path: &str, method: &str) -> &'static [(&'static str, &'static str)] {
    match (path, method) {
        ("/transforms", "post") => &[("200", "it was there, or it would be accepted"), ("201", "it was accepted")],
        ("/tokens" | "/projects", "post") => &[("201", "it was made")],
        ("/jobs/{id}" | "/jobs/{id}/resume" | "/erasures", "post") => &[("202", "the job is at work")],
        _ => &[("200", "success")],
    }
}

const PROBLEMS_OF_EVERY_ROUTE: &[(&str, &str)] = &[
    ("400", "the request is not what the route takes"),
    ("403", "the token's role or project is another, or a page of another origin asks"),
    ("421", "the request is for another host"),
    ("500", "the server is at fault"),
    ("503", "too many requests are being served, or the stores do not answer; come back later"),
];

/// What else may be wrong with a request, by route.
fn problems(path: &str, method: &str) -> &'static [(&'static str, &'static str)] {
    match (path, method) {
        ("/features/{entity_id}" | "/features", _) => &[
            ("404", "a name that nothing has, or nothing was stored"),
            ("410", "what was stored then is no longer there, or a version is retired"),
            ("413", "more features or reads than one request may have"),
            ("414", "the entity id is too long"),
            ("422", "a value that is none of its type"),
        ],
        ("/features/batch", _) => &[
            ("404", "a name that nothing has, or nothing was stored"),
            ("410", "what was stored then is no longer there, or a version is retired"),
            ("413", "a body, or more entities or values, than one request may have"),
            ("422", "a key or a field that is none of its type, or missing"),
        ],
        ("/transforms", "post") => &[
            ("408", "the component does not arrive in time"),
            ("409", "it was accepted before, and otherwise"),
            ("413", "the component is too large"),
            ("422", "the component is refused"),
        ],
        ("/registry/plan" | "/registry/apply", _) => &[
            ("404", "a name that nothing has"),
            ("409", "somebody applied meanwhile, or the definitions contradict what is there"),
            ("413", "the body is too large"),
            ("422", "the definitions have mistakes, or the effect is beyond what the policy tolerates"),
        ],
        ("/registry/{kind}/{name}/{action}", _) => &[
            ("404", "a name that nothing has"),
            ("409", "something depends on it, or it is marked that way already"),
            ("413", "the body is too large"),
        ],
        ("/jobs/{id}", "post") => &[
            ("404", "a kind of job or a name that nothing has"),
            ("409", "the job contradicts what is there or at work"),
            ("410", "a version is retired"),
            ("413", "the body is too large"),
            ("422", "the job cannot be done as it was asked for"),
        ],
        ("/erasures", _) => &[("404", "no such entity type"), ("413", "the body is too large")],
        ("/jobs/{id}" | "/jobs/{id}/resume", _) => {
            &[("404", "no such job"), ("409", "the job is at work, done, or being committed")]
        }
        ("/projects", "post") => &[("409", "it exists already"), ("413", "the body is too large")],
        ("/projects/{name}/quotas" | "/tokens", "post") => {
            &[("404", "no such project"), ("413", "the body is too large")]
        }
        ("/transforms" | "/datasets" | "/search" | "/jobs" | "/quarantine" | "/online", _) => &[],
        ("/projects" | "/tokens" | "/trail" | "/trail/verification", _) => &[],
        ("/metrics" | "/healthz" | "/readyz" | "/openapi.json", _) => &[],
        _ => &[("404", "a name that nothing has")],
    }
}

fn query_parameters(path: &str, method: &str) -> Vec<Value> {
    let parameter = |name: &str, description: &str| json!({ "name": name, "in": "query", "description": description, "schema": query_value(name) });
    let choice = |name: &str, names: Vec<&str>| json!({ "name": name, "in": "query", "description": format!("only jobs of this {name}"), "schema": { "enum": names } });
    let one_entity = [
        ("features", "names, separated by commas: name, view:name or view@version:name"),
        ("service", "name or name@version, instead of features"),
        ("entity", "the entity type, where there are several"),
        ("timestamp", "RFC 3339; default: now"),
        (
            "as_stored",
            "the number of a commit of the one view that is read, or RFC 3339: answer from what the offline store held then",
        ),
        (
            "include",
            "metadata: status, event time, view version, digest and store of each value; explain: also where each comes from and how long it took",
        ),
        (
            "deadline_ms",
            "for how many milliseconds the request may be waited for, at most as long as the server allows",
        ),
        ("request.<field>", "a field of the request, for on-demand features"),
    ];
    match (path, method) {
        ("/features/{entity_id}", "get") => one_entity.iter().map(|(name, text)| parameter(name, text)).collect(),
        ("/features", "get") => {
            std::iter::once(parameter("entity_id", "composite keys in declared order, joined by commas"))
                .chain(one_entity.iter().map(|(name, text)| parameter(name, text)))
                .collect()
        }
        ("/features/batch", "post") => one_entity[4..7].iter().map(|(name, text)| parameter(name, text)).collect(),
        ("/transforms", "post") => vec![
            parameter("dry_run", "true: check it and store nothing"),
            parameter("strict_nan", "true: compile it so that there is only one NaN, whatever the check finds"),
            parameter(
                "seed",
                "of the rows that the laws are checked on, to see a refusal again; default: a random one",
            ),
        ],
        ("/jobs", "get") => vec![
            choice("state", JobState::ALL.map(JobState::name).to_vec()),
            choice("kind", JobKind::ALL.map(JobKind::name).to_vec()),
            json!({
                "name": "limit",
                "in": "query",
                "description": "at most so many, the newest",
                "schema": { "type": "integer", "minimum": 0 },
            }),
        ],
        ("/quarantine/{view}", "get") => vec![
            parameter("job", "only rows that this job has refused"),
            parameter("reason", "only rows whose reason has this text in it"),
            parameter(
                "all",
                "true: also rows that a replay has settled, or that another job has refused again or loaded since; default: false",
            ),
            parameter("limit", "rows of a page, 1 to 1000; default: 100"),
            parameter("cursor", "`next` of the page before"),
        ],
        ("/search", "get") => vec![
            json!({
                "name": "q",
                "in": "query",
                "required": true,
                "description": "words that all occur, or begin words that do; owner:word and tag:word say where",
                "schema": { "type": "string" },
            }),
            parameter("kind", "only service, view, feature, transform, source or entity; several with commas"),
            parameter("limit", "at most so many, 1 to 1000; default: 20"),
        ],
        ("/trail", "get") => vec![
            json!({
                "name": "since",
                "in": "query",
                "description": "only entries at or after this instant",
                "schema": { "type": "string", "format": "date-time" },
            }),
            json!({
                "name": "after",
                "in": "query",
                "description": "only entries after this number, the oldest first; without, the newest first",
                "schema": { "type": "integer", "minimum": 0, "maximum": i64::MAX },
            }),
            parameter("limit", "entries of a page, 1 to 1000; default: 100"),
        ],
        ("/trail/verification", "get") => vec![json!({
            "name": "head",
            "in": "query",
            "description": "an end of the trail that was kept elsewhere: sequence, colon, hash",
            "schema": { "type": "string", "pattern": "^[0-9]{1,18}:sha256:[0-9a-f]{64}$" },
        })],
        ("/registry/{kind}/{name}", "get") => vec![json!({
            "name": "include",
            "in": "query",
            "description": "tables: also what a view's offline and online tables hold",
            "schema": { "enum": ["tables"] },
        })],
        ("/lineage/{kind}/{name}", "get") => vec![
            json!({
                "name": "direction",
                "in": "query",
                "description": "which way to go from the object",
                "schema": { "enum": ["upstream", "downstream", "both"], "default": "both" },
            }),
            json!({
                "name": "format",
                "in": "query",
                "description": "dot: the language of Graphviz",
                "schema": { "enum": ["json", "dot"], "default": "json" },
            }),
            json!({
                "name": "nodes_max",
                "in": "query",
                "description": "at most so many nodes, the nearest; `is_cut` says that there are more",
                "schema": { "type": "integer", "minimum": 1, "maximum": LINEAGE_NODES_MAX, "default": LINEAGE_NODES_MAX },
            }),
        ],
        _ => Vec::new(),
    }
}

/// What a parameter of this name may be, in whichever query.
fn query_value(name: &str) -> Value {
    match name {
        "timestamp" => json!({ "type": "string", "format": "date-time" }),
        "include" => json!({ "enum": ["metadata", "explain"] }),
        "strict_nan" | "dry_run" | "all" => json!({ "type": "boolean" }),
        "seed" => json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
        "deadline_ms" => json!({ "type": "integer", "minimum": 1, "maximum": u64::MAX }),
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 1_000 }),
        _ => json!({ "type": "string" }),
    }
}

/// `None`: the route takes no body.
fn request_content(path: &str) -> Option<Value> {
    let json_of = |schema: Value| Some(json!({ "application/json": { "schema": schema } }));
    match path {
        "/transforms" => Some(json!({ "application/wasm": { "schema": binary() } })),
        "/features/batch" => json_of(reference("BatchRequest")),
        "/registry/plan" | "/registry/apply" => json_of(reference("Definitions")),
        "/projects" => json_of(reference("NewProject")),
        "/projects/{name}/quotas" => json_of(reference("Quotas")),
        "/tokens" => json_of(reference("NewToken")),
        "/registry/{kind}/{name}/{action}" => json_of(mark_body()),
        "/jobs/{id}/resume" => None,
        "/erasures" => json_of(reference("EraseJob")),
        "/jobs/{id}" => json_of(json!({
            "description":
                "for backfill, materialize, dataset (a new one, one to make again, two to compare), compact, vacuum, replay, backup, restore, erase",
            "anyOf": JOB_BODIES.map(reference),
        })),
        _ => None,
    }
}

/// The bodies of `POST /jobs/{id}`, in the order of the kinds.
const JOB_BODIES: [&str; 11] = [
    "BackfillJob",
    "MaterializeJob",
    "DatasetJob",
    "DatasetRebuildJob",
    "DatasetDiffJob",
    "CompactJob",
    "VacuumJob",
    "ReplayJob",
    "BackupJob",
    "RestoreJob",
    "EraseJob",
];

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

pub(super) fn digest() -> Value {
    json!({ "type": "string", "pattern": "^sha256:[0-9a-f]{64}$" })
}

fn binary() -> Value {
    json!({ "type": "string", "format": "binary" })
}

fn reply_content(path: &str, method: &str) -> Value {
    let json_of = |schema: Value| json!({ "application/json": { "schema": schema } });
    let features = |schema: Value| {
        json!({
            "application/json": { "schema": schema },
            ARROW_STREAM: { "schema": binary() },
        })
    };
    match (path, method) {
        ("/metrics", _) => json!({ "text/plain": { "schema": { "type": "string" } } }),
        ("/features/{entity_id}" | "/features", _) => features(reference("Features")),
        ("/features/batch", _) => features(json!({
            "type": "object",
            "properties": {
                "results": { "type": "array", "items": reference("Features") },
                "timing": timing(),
            },
        })),
        ("/jobs", _) => json_of(json!({
            "type": "object",
            "properties": { "jobs": { "type": "array", "items": reference("Job") } },
        })),
        ("/jobs/{id}" | "/jobs/{id}/resume" | "/erasures", _) => json_of(reference("Job")),
        ("/registry/{kind}/{name}/{action}", _) => json_of(marked()),
        ("/registry/plan", "post") => json!({
            "application/json": { "schema": {} },
            "text/event-stream": { "schema": {
                "type": "string",
                "description": "events whose data is JSON: {\"progress\": …}, and at last {\"plan\": …} or {\"problem\": …}",
            } },
        }),
        ("/lineage/{kind}/{name}", _) => json!({
            "application/json": { "schema": {} },
            "text/vnd.graphviz": { "schema": { "type": "string" } },
        }),
        ("/search", _) => json_of(json!({
            "type": "object",
            "required": ["hits", "is_cut"],
            "properties": {
                "hits": { "type": "array", "items": search_hit(), "description": "best first" },
                "is_cut": { "type": "boolean", "description": "there may be more" },
            },
        })),
        ("/projects", "get") => json_of(json!({
            "type": "object",
            "properties": { "projects": { "type": "array", "items": reference("Project") } },
        })),
        ("/projects" | "/projects/{name}" | "/projects/{name}/quotas", _) => json_of(reference("Project")),
        ("/tokens", "get") => json_of(json!({
            "type": "object",
            "properties": { "tokens": { "type": "array", "items": reference("Token") } },
        })),
        ("/tokens" | "/tokens/{id}", _) => json_of(reference("Token")),
        ("/trail", _) => json_of(json!({
            "type": "object",
            "properties": {
                "entries": { "type": "array", "items": reference("TrailEntry") },
                "head": reference("TrailHead"),
            },
        })),
        ("/trail/verification", _) => json_of(json!({
            "type": "object",
            "properties": {
                "entries": { "type": "integer", "description": "that were read" },
                "head": reference("TrailHead"),
                "faults": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": { "sequence": { "type": "integer" }, "what": { "type": "string" } },
                    },
                },
            },
        })),
        ("/quarantine", _) => json_of(json!({
            "type": "object",
            "properties": { "views": { "type": "array", "items": reference("Quarantine") } },
        })),
        ("/quarantine/{view}", _) => json_of(json!({
            "type": "object",
            "properties": {
                "view": { "type": "string" },
                "rows": { "type": "array", "items": reference("RefusedRow") },
                "next": { "type": ["string", "null"], "description": "the cursor of the next page" },
            },
        })),
        ("/quarantine/{view}/{id}", _) => json_of(json!({
            "type": "object",
            "properties": {
                "view": { "type": "string" },
                "rows": {
                    "type": "array", "items": reference("RefusedRow"),
                    "description": "its refusals, the last one first",
                },
                "hindrance": { "type": ["string", "null"], "description": "why it cannot be replayed" },
            },
        })),
        ("/datasets/{id}", _) => json_of(reference("Dataset")),
        ("/jobs/{id}/events", _) => json!({
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "description":
                        "events `progress`, the last one `end`, or `lost` where the registry does not say any more how the job stands; \
                         the data of each is a Job as JSON",
                },
            },
        }),
        _ => json_of(json!({ "type": "object" })),
    }
}

fn dataset_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "name": { "type": "string", "description": "name@version of its service" },
            "rows": { "type": "integer" },
            "content_digest": digest(),
            "output": { "type": "string", "description": "the file that was written" },
            "created_at": { "type": "string", "format": "date-time" },
            "recipe": { "type": "object", "description": "how it was made: enough to make it again" },
            "report": {
                "type": "object",
                "description": "what was found; an older record may lack some of it",
                "properties": {
                    "spine": { "type": "object", "description": "rows of the spine, and those for which nothing was found" },
                    "statistics": { "type": ["object", "null"], "description": "what the features look like" },
                    "errors": {
                        "type": "array",
                        "description": "the first hundred rows on which an on-demand view failed",
                        "items": {
                            "type": "object",
                            "properties": {
                                "view": { "type": "string" },
                                "row": { "type": "integer", "description": "its number in the spine, from 0" },
                                "reason": { "type": "string" },
                            },
                        },
                    },
                    "plans": {
                        "type": "array",
                        "description": "the plan of each join, as EXPLAIN shows it",
                        "items": { "type": "string" },
                    },
                    "notes": { "type": "array", "items": { "type": "string" } },
                },
            },
            "columns": { "type": "array", "description": "its features", "items": { "type": "object" } },
            "erased": {
                "type": ["object", "null"],
                "description": "the erasure that has deleted files which it was made of",
            },
        },
    })
}

fn split_schema() -> Value {
    let text = || json!({ "type": "string" });
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "a column that says which split a row is in, by either time or shares",
        "properties": {
            "column": { "type": "string", "default": "split" },
            "time": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["name"],
                    "properties": { "name": text(), "from": text(), "to": text() },
                },
            },
            "shares": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["name", "share"],
                    "properties": { "name": text(), "share": { "type": "number" } },
                },
            },
            "by": {
                "description": "what stays together: entity, row, or columns of the spine",
                "anyOf": [text(), { "type": "array", "items": text() }],
                "default": "entity",
            },
            "salt": { "type": "string", "default": "" },
        },
    })
}

/// The body of `deprecate` and `retire`; it may be left out.
fn mark_body() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "message": { "type": "string", "description": "what to do instead", "maxLength": 500 },
            "undo": { "type": "boolean", "default": false, "description": "take the mark away" },
        },
    })
}

fn marked() -> Value {
    json!({
        "type": "object",
        "required": ["kind", "versions", "mark", "warnings", "definitions_revision", "text"],
        "properties": {
            "kind": { "enum": ["transform", "view", "service"] },
            "versions": { "type": "array", "items": { "type": "string" } },
            "mark": {
                "type": ["object", "null"],
                "properties": {
                    "state": { "enum": ["deprecated", "retired"] },
                    "message": { "type": "string" },
                    "at_us": { "type": "integer" },
                },
            },
            "warnings": { "type": "array", "items": { "type": "string" } },
            "definitions_revision": { "type": "integer" },
            "text": { "type": "string", "description": "the same for people" },
        },
    })
}

fn search_hit() -> Value {
    json!({
        "type": "object",
        "required": ["kind", "name", "summary", "owner", "state"],
        "properties": {
            "kind": { "enum": SEARCH_KINDS },
            "name": { "type": "string", "description": "of a feature: view:feature" },
            "summary": { "type": "string", "description": "the first line of its documentation" },
            "owner": { "type": "string" },
            "state": { "enum": ["live", "deprecated", "retired"] },
        },
    })
}

fn timing() -> Value {
    json!({ "type": "object", "description": "with include=explain: where the time went, in microseconds" })
}

fn problem_response(description: &str) -> Value {
    json!({ "description": description, "content": problem_content() })
}

fn problem_content() -> Value {
    json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } })
}

fn all_schemas() -> Value {
    let (mut all, Value::Object(of_access)) = (schemas(), openapi_access::schemas()) else { return schemas() };
    if let Value::Object(all) = &mut all {
        all.extend(of_access);
        // Not among the others: the macro that makes these has no room for more.
        all.insert("Dataset".to_owned(), dataset_schema());
    }
    all
}

fn schemas() -> Value {
    let instant = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    let views = |verb: &str| {
        let description = format!("name or name@version of the views to {verb}; default: every stored view");
        json!({ "type": "array", "items": { "type": "string" }, "description": description })
    };
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
                "metadata": { "type": "object", "description": "with include: where each value comes from" },
                "rows": {
                    "type": "array",
                    "description": "with include=explain: every row that was read",
                    "items": { "type": "object" },
                },
                "timing": timing(),
            },
        },
        "BatchRequest": {
            "type": "object",
            "additionalProperties": false,
            "required": ["entities"],
            "oneOf": [{ "required": ["service"] }, { "required": ["features"] }],
            "properties": {
                "service": { "type": "string", "description": "name or name@version" },
                "features": { "type": "array", "items": { "type": "string" }, "minItems": 1 },
                "entities": {
                    "type": "array",
                    "description": "the keys of each entity",
                    "items": { "type": "object", "additionalProperties": { "type": ["string", "integer"] } },
                },
                "request": {
                    "type": "array",
                    "description": "the fields of the request for each entity, for on-demand features",
                    "items": { "type": "object" },
                },
                "timestamp": { "type": "string", "format": "date-time", "description": "of all entities; default: now" },
                "timestamps": {
                    "type": "array",
                    "description": "one for each entity",
                    "items": { "type": "string", "format": "date-time" },
                },
            },
        },
        "Definitions": {
            "type": "object",
            "additionalProperties": false,
            "required": ["files"],
            "properties": {
                "files": {
                    "type": "array",
                    "description": "every file of definitions; together they are the whole",
                    "items": {
                        "type": "object",
                        "required": ["path", "text"],
                        "properties": {
                            "path": { "type": "string", "description": "for messages" },
                            "text": { "type": "string", "description": "TOML" },
                        },
                    },
                },
                "transforms": {
                    "type": "object",
                    "description": "transform as the definitions name it: digest of its component",
                    "additionalProperties": digest(),
                },
                "effect": {
                    "type": "object",
                    "additionalProperties": false,
                    "description": "run history through the old and the new version of each view",
                    "properties": { "rows": {
                        "type": "integer", "minimum": 1, "maximum": EFFECT_ROWS_MAX,
                        "description": "at most about so many of each view; default: policy.effect_rows",
                    } },
                },
                "accept": {
                    "type": "string", "minLength": 1, "maxLength": 500,
                    "description": "for apply: why an effect beyond what the policy tolerates is accepted",
                },
                "revision": {
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "description": "only if the definitions are still at this revision",
                },
            },
        },
        "BackfillJob": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "views": views("compute"),
                "from": instant("only event times at or after it"),
                "to": instant("only event times before it"),
                "recompute": {
                    "type": "boolean",
                    "description": "rows of the range that are stored are computed anew from the files that are there",
                },
                "stop_share": {
                    "type": "number", "minimum": 0, "maximum": 1,
                    "description": "commit nothing of a view if a greater share of its rows is refused; default: the view's own",
                },
                "stop_rows_min": {
                    "type": "integer", "minimum": 1, "description": "of fewer rows no share is taken; default: the view's own, or 100",
                },
            },
        },
        "MaterializeJob": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "views": views("load"),
                "as_of": instant("what online_history is counted back from; default: now"),
                "incremental": {
                    "type": "boolean", "default": false,
                    "description": "merge only rows that came since into what is served, where that can be done",
                },
                "rows_per_s_max": {
                    "type": "integer", "minimum": 0, "maximum": u64::MAX,
                    "description": "rows a second, at most; 0: as fast as it goes; default: jobs.materialize_rows_per_s_max",
                },
            },
        },
        "DatasetJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["service", "output"],
            "description": "rows come from one of spine, spine_sql and times",
            "properties": {
                "service": { "type": "string", "description": "name or name@version" },
                "spine": { "type": "string", "description": "a Parquet, CSV or Arrow file that the server can reach" },
                "spine_sql": { "type": "string", "description": "a query over registered sources, each a table" },
                "times": {
                    "description": "all entities at these instants or days, or in steps of a duration",
                    "anyOf": [
                        { "type": "array", "items": { "type": "string" } },
                        {
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["every", "from", "to"],
                            "properties": {
                                "every": { "type": "string", "description": "a duration, such as 1d" },
                                "from": { "type": "string" },
                                "to": { "type": "string", "description": "not included" },
                            },
                        },
                    ],
                },
                "entity": { "type": "string", "description": "with times: whose entities, as a check" },
                "output": { "type": "string", "description": "the file to write: .parquet or .arrow" },
                "format": { "enum": ["parquet", "arrow"], "description": "default: as the ending of output says" },
                "timestamp_column": { "type": "string", "default": "timestamp" },
                "columns": {
                    "type": "object",
                    "description": "key or request field: the spine's column, where the names differ",
                    "additionalProperties": { "type": "string" },
                },
                "leave_out": {
                    "type": "array",
                    "description": "columns of the spine that are not written",
                    "items": { "type": "string" },
                },
                "split": split_schema(),
                "known_at_cut": { "type": "string", "description": "spine, none or an instant", "default": "spine" },
                "as_stored": {
                    "type": "string",
                    "description": "the number of a commit of the one table that is read, or an instant: what the tables held then",
                },
                "no_status": { "type": "boolean", "default": false },
                "no_statistics": { "type": "boolean", "default": false },
            },
        },
        "DatasetDiffJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["diff"],
            "properties": {
                "diff": {
                    "type": "array",
                    "description": "the ids of two training sets",
                    "items": { "type": "string" },
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        },
        "ReplayJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["view"],
            "properties": {
                "view": { "type": "string", "description": "name or name@version; default: the newest version" },
                "job": { "type": "string", "description": "only rows that this job has refused" },
                "reason": { "type": "string", "description": "only rows whose reason has this text in it" },
                "row": { "type": "string", "description": "only the row of this id" },
                "limit": {
                    "type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 100_000,
                    "description": "at most so many rows, those that were replayed least often first",
                },
            },
        },
        "Quarantine": {
            "type": "object",
            "properties": {
                "view": { "type": "string" },
                "refused": { "type": "integer", "description": "rows that are refused now" },
                "reasons": { "type": "object", "additionalProperties": { "type": "integer" } },
                "replayed": { "type": "integer", "description": "rows that replays have stored" },
                "dropped": { "type": "integer", "description": "rows that the transform dropped in replays" },
            },
        },
        "RefusedRow": {
            "type": "object",
            "properties": {
                "id": { "type": "string", "description": "digest of the file and number of the row" },
                "state": { "enum": ["refused", "replayed", "dropped", "refused_again", "loaded_since"] },
                "kind": { "type": "string", "description": "the reason without values" },
                "reason": { "type": "string" },
                "file": { "type": "string" },
                "row": { "type": "integer", "description": "its number in the file, from 0" },
                "keys": { "type": "object" },
                "event_time": { "type": ["string", "integer", "null"] },
                "known_at": { "type": ["string", "integer", "null"] },
                "inputs": { "type": "object" },
                "text": { "type": ["string", "null"], "description": "all that is kept of a row that could not be read" },
                "incomplete": { "type": "boolean", "description": "a value could not be had from the source" },
                "arrival": instant("when it arrived"),
                "job": { "type": "string" },
                "attempt": { "type": "integer", "description": "replays behind this refusal" },
                "settled_by": { "type": ["string", "null"], "description": "the job that says so, unless it is refused" },
            },
        },
        "DatasetRebuildJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["rebuild", "output"],
            "properties": {
                "rebuild": { "type": "string", "description": "the id of a training set" },
                "output": { "type": "string", "description": "the file to write, of the same kind as before" },
            },
        },
        "CompactJob": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "views": views("compact"),
                "target_bytes": {
                    "type": "integer",
                    "minimum": 1_048_576,
                    "maximum": 1_073_741_824,
                    "description": "files of a date are put together up to about this many bytes; default: 67108864",
                },
            },
        },
        "VacuumJob": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "retain": {
                    "type": "string",
                    "description": "how long versions of tables can be read after others have taken their place; default: 7d",
                },
                "dry_run": { "type": "boolean", "description": "only say what would be deleted" },
            },
        },
        "BackupJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["out"],
            "properties": {
                "views": {
                    "type": "array",
                    "items": { "type": "string" },
                    "description": "name or name@version of the views to copy; default: every view that is served",
                },
                "out": { "type": "string", "description": "the file to write: an absolute path of the server's machine" },
                "replace": { "type": "boolean", "description": "put it in the place of a file that is there" },
            },
        },
        "RestoreJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["from"],
            "properties": {
                "views": {
                    "type": "array",
                    "items": { "type": "string" },
                    "description": "name or name@version of the views to load; default: every view in the file",
                },
                "from": { "type": "string", "description": "the file to read: an absolute path of the server's machine" },
                "replace": { "type": "boolean", "description": "also where a view is served already, unless its rows are newer" },
                "dry_run": { "type": "boolean", "description": "only say what would be loaded" },
            },
        },
        "Job": {
            "type": "object",
            "required": ["id", "kind", "state", "spec", "created_at", "progress"],
            "properties": {
                "id": { "type": "string" },
                "kind": { "enum": JobKind::ALL.map(JobKind::name) },
                "state": { "enum": JobState::ALL.map(JobState::name) },
                "spec": { "type": "object", "description": "what it was asked to do, versions pinned" },
                "created_at": { "type": "string", "format": "date-time" },
                "finished_at": { "type": "string", "format": "date-time" },
                "progress": {
                    "type": "object",
                    "properties": {
                        "done": { "type": "integer" },
                        "total": { "type": "integer" },
                        "rows": { "type": "integer" },
                        "refused": { "type": "integer" },
                        "rows_per_s": { "type": "number" },
                        "seconds_left": { "type": "number", "description": "where it can be known" },
                        "chunks_done": { "type": "integer" },
                        "chunks": { "type": "integer" },
                        "workers": { "type": "integer", "description": "processes that are at work" },
                        "memory_bytes_max": { "type": "integer", "description": "for rows, in each process" },
                        "message": { "type": "string" },
                    },
                },
                "result": { "type": "object", "description": "what came of it" },
                "error": { "type": "string", "description": "why it broke off" },
            },
        },
        "EraseJob": {
            "type": "object",
            "additionalProperties": false,
            "required": ["entity", "keys"],
            "properties": {
                "entity": { "type": "string", "description": "the entity type" },
                "keys": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 100_000,
                    "items": { "type": "object" },
                    "description": "of each entity an object with all its join keys",
                },
                "up_to": instant("rows with an event time up to (and with) this one are erased; default: now"),
            },
        },
        "Problem": {
            "type": "object",
            "additionalProperties": false,
            "required": ["type", "title", "status", "code", "detail"],
            "properties": {
                "type": { "type": "string", "pattern": "^urn:eadem:problem:[a-z_]+$" },
                "title": { "type": "string" },
                "status": { "type": "integer", "minimum": 400, "maximum": 599 },
                "code": { "type": "string", "pattern": "^[a-z_]+$", "description": "stable, for programs" },
                "detail": { "type": "string", "description": "what was wrong, and what to do" },
                "errors": { "type": "array", "items": { "type": "string" }, "description": "several mistakes" },
                "retry_after_s": { "type": "integer", "minimum": 1 },
                "law": { "type": "string", "description": "of a refused component: the law that it breaks" },
                "seed": { "type": "integer", "minimum": 0, "description": "of a refused component: the seed with which it shows" },
                "row": { "type": "integer", "minimum": 0, "description": "of a refused component: the first row where it shows" },
                "field": { "type": "string", "description": "of a refused component: the input or output at fault" },
            },
        },
    })
}

//! Lineage: which source columns and request fields a feature comes from, and which services and datasets read it.
//!
//! A transform is opaque, so every input of a view version leads to all of its features.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

use crate::definitions::{FeatureName, parse_feature_name, parse_versioned};
use crate::error::{ObjectKind, RegistryError};
use crate::model::ViewRef;
use crate::store::{Registry, Snapshot, read, read_digest, unsigned};

/// What a node of the lineage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LineageKind {
    /// `source.column`
    SourceColumn,
    /// `request.field`
    RequestField,
    /// `view@version.input`
    TransformInput,
    /// `view@version:feature`
    Feature,
    /// `service@version`
    Service,
    /// A dataset's id.
    Dataset,
}

/// A node of the lineage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LineageNode {
    /// What it is.
    pub kind: LineageKind,
    /// Unique within its kind.
    pub name: String,
}

/// An edge in the direction in which values flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LineageEdge {
    /// Where values come from.
    pub from: LineageNode,
    /// Where they go.
    pub to: LineageNode,
    /// The digest of the transform they pass through, for edges from an input to a feature.
    pub transform: Option<Digest>,
    /// The role under which a feature is read, or the expression behind a source column.
    pub note: Option<String>,
}

/// Which way to look from an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LineageDirection {
    /// What it comes from.
    Upstream,
    /// What reads it.
    Downstream,
    /// Both.
    Both,
}

/// The lineage of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The nodes that the object itself is or consists of.
    pub roots: Vec<LineageNode>,
    /// All nodes, roots included, sorted.
    pub nodes: Vec<LineageNode>,
    /// All edges, sorted.
    pub edges: Vec<LineageEdge>,
}

impl LineageKind {
    /// As it stands in JSON, for people with a space.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SourceColumn => "source column",
            Self::RequestField => "request field",
            Self::TransformInput => "transform input",
            Self::Feature => "feature",
            Self::Service => "service",
            Self::Dataset => "dataset",
        }
    }
}

impl Lineage {
    /// One edge a line, for people: `source column landings.arr_delay → transform input aircraft_legs@1.arr_delay`.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for edge in &self.edges {
            let (from, to) = (&edge.from, &edge.to);
            let _infallible = write!(text, "{} {} → {} {}", from.kind.as_str(), from.name, to.kind.as_str(), to.name);
            if let Some(transform) = &edge.transform {
                let _infallible = write!(text, " (transform {})", transform.short());
            }
            if let Some(note) = &edge.note {
                let _infallible = write!(text, " ({note})");
            }
            text.push('\n');
        }
        if self.edges.is_empty() {
            for node in &self.nodes {
                let _infallible = writeln!(text, "{} {}", node.kind.as_str(), node.name);
            }
        }
        text
    }

    /// The graph in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        let numbers: BTreeMap<&LineageNode, usize> =
            self.nodes.iter().enumerate().map(|(number, node)| (node, number)).collect();
        let mut text = String::from("digraph lineage {\n  rankdir=LR;\n  node [shape=box];\n");
        for (node, number) in &numbers {
            let label = dot_text(&format!("{}\n{}", node.kind.as_str(), node.name));
            let style = if self.roots.contains(node) { ", style=bold" } else { "" };
            let _infallible = writeln!(text, "  n{number} [label={label}{style}];");
        }
        for edge in &self.edges {
            let (Some(from), Some(to)) = (numbers.get(&edge.from), numbers.get(&edge.to)) else { continue };
            let label = match (&edge.transform, &edge.note) {
                (Some(transform), _) => format!(" [label={}]", dot_text(&transform.short())),
                (None, Some(note)) => format!(" [label={}]", dot_text(note)),
                (None, None) => String::new(),
            };
            let _infallible = writeln!(text, "  n{from} -> n{to}{label};");
        }
        text.push_str("}\n");
        text
    }
}

fn dot_text(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

impl Registry {
    /// The lineage of an object, column by column. `name` is, by kind: `source` or `source.column`; an entity; the name
    /// or digest of a transform; `view` or `view@version`; `view:feature`, `view@version:feature` or a bare feature;
    /// `service` or `service@version`; a dataset's id or name. Without version, the newest.
    ///
    /// # Errors
    /// No such object; a kind without lineage.
    pub async fn lineage(
        &self,
        kind: ObjectKind,
        name: &str,
        direction: LineageDirection,
    ) -> Result<Lineage, RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let roots = find_roots(&mut snapshot, kind, name).await?;
        let mut found = Found { nodes: roots.iter().cloned().collect(), edges: BTreeSet::new() };
        if direction != LineageDirection::Downstream {
            walk(&mut snapshot, &roots, true, &mut found).await?;
        }
        if direction != LineageDirection::Upstream {
            walk(&mut snapshot, &roots, false, &mut found).await?;
        }
        Ok(Lineage { roots, nodes: found.nodes.into_iter().collect(), edges: found.edges.into_iter().collect() })
    }
}

struct Found {
    nodes: BTreeSet<LineageNode>,
    edges: BTreeSet<LineageEdge>,
}

async fn walk(
    connection: &mut SqliteConnection,
    roots: &[LineageNode],
    upstream: bool,
    found: &mut Found,
) -> Result<(), RegistryError> {
    let mut seen: BTreeSet<LineageNode> = roots.iter().cloned().collect();
    let mut open: VecDeque<LineageNode> = roots.iter().cloned().collect();
    while let Some(node) = open.pop_front() {
        let edges =
            if upstream { edges_into(connection, &node).await? } else { edges_out_of(connection, &node).await? };
        for edge in edges {
            let next = if upstream { edge.from.clone() } else { edge.to.clone() };
            found.nodes.insert(next.clone());
            found.edges.insert(edge);
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    Ok(())
}

fn node(kind: LineageKind, name: impl Into<String>) -> LineageNode {
    LineageNode { kind, name: name.into() }
}

fn plain_edge(from: LineageNode, to: LineageNode) -> LineageEdge {
    LineageEdge { from, to, transform: None, note: None }
}

fn feature_node(view: &ViewRef, feature: &str) -> LineageNode {
    node(LineageKind::Feature, format!("{view}:{feature}"))
}

fn input_node(view: &ViewRef, input: &str) -> LineageNode {
    node(LineageKind::TransformInput, format!("{view}.{input}"))
}

/// `view@2:feature` or `view@2.input` as this module writes it.
fn split_view(name: &str, separator: char) -> Result<(ViewRef, &str), RegistryError> {
    let damaged = || RegistryError::damaged(format!("lineage node `{name}`"));
    let (view, rest) = name.split_once(separator).ok_or_else(damaged)?;
    let (name, version) = view.split_once('@').ok_or_else(damaged)?;
    let version = version.parse().map_err(|_| damaged())?;
    Ok((ViewRef { name: name.to_owned(), version }, rest))
}

/// Selects the inputs of view versions with what feeds them.
const BINDINGS: &str = "
    SELECT view.name AS view_name, view_version.version AS view_version, field.name AS input,
           binding.kind, binding.name, binding.role, transform.digest,
           source_meaning.name AS source, expression.expression,
           upstream_view.name AS upstream_name, upstream.version AS upstream_version
    FROM view_binding AS binding
        JOIN view_version USING (view_version_id)
        JOIN view USING (view_id)
        JOIN transform USING (transform_id)
        JOIN transform_field AS field
            ON field.transform_id = transform.transform_id AND field.direction = 'input'
                AND field.position = binding.position
        LEFT JOIN source_meaning USING (meaning_id)
        LEFT JOIN source_expression AS expression
            ON expression.meaning_id = view_version.meaning_id AND expression.name = binding.name
                AND binding.kind = 'column'
        LEFT JOIN view_version AS upstream ON upstream.view_version_id = binding.upstream_version_id
        LEFT JOIN view AS upstream_view ON upstream_view.view_id = upstream.view_id
";

enum BindingFilter<'a> {
    /// The bindings of one view version, or of one of its inputs.
    Of { view: &'a ViewRef, input: Option<&'a str> },
    /// The bindings that read a column of a source.
    Column { source: &'a str, column: &'a str },
    /// The bindings that read a request field.
    Request(&'a str),
    /// The bindings that read a feature.
    Feature { view: &'a ViewRef, feature: &'a str },
}

async fn binding_edges(
    connection: &mut SqliteConnection,
    filter: BindingFilter<'_>,
) -> Result<Vec<LineageEdge>, RegistryError> {
    let mut query = sqlx::QueryBuilder::new(BINDINGS);
    match filter {
        BindingFilter::Of { view, input } => {
            query.push(" WHERE view.name = ").push_bind(view.name.clone());
            query.push(" AND view_version.version = ").push_bind(view.version);
            if let Some(input) = input {
                query.push(" AND field.name = ").push_bind(input.to_owned());
            }
        }
        BindingFilter::Column { source, column } => {
            query.push(" WHERE binding.kind = 'column' AND source_meaning.name = ").push_bind(source.to_owned());
            query.push(" AND binding.name = ").push_bind(column.to_owned());
        }
        BindingFilter::Request(field) => {
            query.push(" WHERE binding.kind = 'request' AND binding.name = ").push_bind(field.to_owned());
        }
        BindingFilter::Feature { view, feature } => {
            query.push(" WHERE binding.kind = 'feature' AND upstream_view.name = ").push_bind(view.name.clone());
            query.push(" AND upstream.version = ").push_bind(view.version);
            query.push(" AND binding.name = ").push_bind(feature.to_owned());
        }
    }
    let rows = query.build().fetch_all(connection).await?;
    let mut edges = Vec::with_capacity(rows.len());
    for row in rows {
        let view = ViewRef { name: row.try_get("view_name")?, version: unsigned(row.try_get("view_version")?)? };
        let input: String = row.try_get("input")?;
        let kind: String = row.try_get("kind")?;
        let name: Option<String> = row.try_get("name")?;
        let name = name.unwrap_or_default();
        let to = input_node(&view, &input);
        let edge = match kind.as_str() {
            "column" => {
                let source: String = row.try_get("source")?;
                let from = node(LineageKind::SourceColumn, format!("{source}.{name}"));
                LineageEdge { note: row.try_get("expression")?, ..plain_edge(from, to) }
            }
            "request" => plain_edge(node(LineageKind::RequestField, format!("request.{name}")), to),
            "request_timestamp" => plain_edge(node(LineageKind::RequestField, "request.timestamp"), to),
            "feature" => {
                let upstream = ViewRef {
                    name: row.try_get("upstream_name")?,
                    version: unsigned(row.try_get("upstream_version")?)?,
                };
                LineageEdge { note: role_note(row.try_get("role")?), ..plain_edge(feature_node(&upstream, &name), to) }
            }
            _ => continue,
        };
        edges.push(edge);
    }
    Ok(edges)
}

fn role_note(role: Option<String>) -> Option<String> {
    role.map(|role| format!("for {role}"))
}

/// From every input of a view version (or one) to every feature of it (or one).
async fn transform_edges(
    connection: &mut SqliteConnection,
    view: &ViewRef,
    input: Option<&str>,
    feature: Option<&str>,
) -> Result<Vec<LineageEdge>, RegistryError> {
    let rows = sqlx::query(
        "SELECT transform.digest, input.name AS input, output.name AS feature
         FROM view_version JOIN view USING (view_id) JOIN transform USING (transform_id)
             JOIN transform_field AS input ON input.transform_id = transform.transform_id AND input.direction = 'input'
             JOIN transform_field AS output
                 ON output.transform_id = transform.transform_id AND output.direction = 'output'
         WHERE view.name = ? AND version = ?
             AND input.name = coalesce(?, input.name) AND output.name = coalesce(?, output.name)",
    )
    .bind(&view.name)
    .bind(view.version)
    .bind(input)
    .bind(feature)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let from = input_node(view, row.try_get("input")?);
            let to = feature_node(view, row.try_get("feature")?);
            Ok(LineageEdge { transform: Some(read_digest(row.try_get("digest")?)?), ..plain_edge(from, to) })
        })
        .collect()
}

async fn edges_into(
    connection: &mut SqliteConnection,
    target: &LineageNode,
) -> Result<Vec<LineageEdge>, RegistryError> {
    match target.kind {
        LineageKind::SourceColumn | LineageKind::RequestField => Ok(Vec::new()),
        LineageKind::TransformInput => {
            let (view, input) = split_view(&target.name, '.')?;
            binding_edges(connection, BindingFilter::Of { view: &view, input: Some(input) }).await
        }
        LineageKind::Feature => {
            let (view, feature) = split_view(&target.name, ':')?;
            transform_edges(connection, &view, None, Some(feature)).await
        }
        LineageKind::Service => {
            let rows = sqlx::query(
                "SELECT view.name AS view, view_version.version, feature, role
                 FROM service_entry JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE service.name || '@' || service_version.version = ?",
            )
            .bind(&target.name)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| feature_edge(row, target)).collect()
        }
        LineageKind::Dataset => {
            let service: Option<String> = sqlx::query_scalar(
                "SELECT service.name || '@' || version FROM dataset
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE dataset_id = ?",
            )
            .bind(&target.name)
            .fetch_optional(&mut *connection)
            .await?;
            if let Some(service) = service {
                return Ok(vec![plain_edge(node(LineageKind::Service, service), target.clone())]);
            }
            let rows = sqlx::query(
                "SELECT view.name AS view, view_version.version, feature, role
                 FROM dataset_column JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                 WHERE dataset_id = ?",
            )
            .bind(&target.name)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| feature_edge(row, target)).collect()
        }
    }
}

fn feature_edge(row: &sqlx::sqlite::SqliteRow, target: &LineageNode) -> Result<LineageEdge, RegistryError> {
    let view = ViewRef { name: row.try_get("view")?, version: unsigned(row.try_get("version")?)? };
    let from = feature_node(&view, row.try_get("feature")?);
    Ok(LineageEdge { note: role_note(row.try_get("role")?), ..plain_edge(from, target.clone()) })
}

async fn edges_out_of(
    connection: &mut SqliteConnection,
    origin: &LineageNode,
) -> Result<Vec<LineageEdge>, RegistryError> {
    match origin.kind {
        LineageKind::SourceColumn => {
            let Some((source, column)) = origin.name.split_once('.') else { return Ok(Vec::new()) };
            binding_edges(connection, BindingFilter::Column { source, column }).await
        }
        LineageKind::RequestField => {
            let field = origin.name.strip_prefix("request.").unwrap_or(&origin.name);
            binding_edges(connection, BindingFilter::Request(field)).await
        }
        LineageKind::TransformInput => {
            let (view, input) = split_view(&origin.name, '.')?;
            transform_edges(connection, &view, Some(input), None).await
        }
        LineageKind::Feature => {
            let (view, feature) = split_view(&origin.name, ':')?;
            let mut edges = binding_edges(connection, BindingFilter::Feature { view: &view, feature }).await?;
            let services = sqlx::query(
                "SELECT service.name || '@' || service_version.version AS target, role
                 FROM service_entry JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE view.name = ? AND view_version.version = ? AND feature = ?",
            )
            .bind(&view.name)
            .bind(view.version)
            .bind(feature)
            .fetch_all(&mut *connection)
            .await?;
            let datasets = sqlx::query(
                "SELECT dataset_id AS target, role
                 FROM dataset_column JOIN dataset USING (dataset_id)
                     JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                 WHERE service_version_id IS NULL AND view.name = ? AND view_version.version = ? AND feature = ?",
            )
            .bind(&view.name)
            .bind(view.version)
            .bind(feature)
            .fetch_all(&mut *connection)
            .await?;
            for (kind, rows) in [(LineageKind::Service, services), (LineageKind::Dataset, datasets)] {
                for row in rows {
                    let to = node(kind, row.try_get::<String, _>("target")?);
                    edges.push(LineageEdge { note: role_note(row.try_get("role")?), ..plain_edge(origin.clone(), to) });
                }
            }
            Ok(edges)
        }
        LineageKind::Service => {
            let datasets: Vec<String> = sqlx::query_scalar(
                "SELECT dataset_id FROM dataset
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE service.name || '@' || version = ?",
            )
            .bind(&origin.name)
            .fetch_all(connection)
            .await?;
            let to_dataset = |id: String| plain_edge(origin.clone(), node(LineageKind::Dataset, id));
            Ok(datasets.into_iter().map(to_dataset).collect())
        }
        LineageKind::Dataset => Ok(Vec::new()),
    }
}

async fn find_roots(snapshot: &mut Snapshot, kind: ObjectKind, name: &str) -> Result<Vec<LineageNode>, RegistryError> {
    match kind {
        ObjectKind::Source => source_roots(snapshot, name).await,
        ObjectKind::Entity => entity_roots(snapshot, name).await,
        ObjectKind::Transform => transform_roots(snapshot, name).await,
        ObjectKind::View => {
            let (view, version) = parse_versioned(name).map_err(RegistryError::Invalid)?;
            let id = read::require_view_version(snapshot, &view, version).await?;
            view_features(snapshot, id).await
        }
        ObjectKind::Feature => {
            let name: FeatureName = parse_feature_name(name).map_err(RegistryError::Invalid)?;
            let version = crate::resolve::view_of_feature(snapshot, &name).await?;
            Ok(vec![feature_node(&version.id, &name.feature)])
        }
        ObjectKind::Service => {
            let (service, version) = parse_versioned(name).map_err(RegistryError::Invalid)?;
            let (_, version) = read::require_service_version(snapshot, &service, version).await?;
            Ok(vec![node(LineageKind::Service, format!("{service}@{version}"))])
        }
        ObjectKind::Dataset => {
            let id = read::require_dataset_id(snapshot, name).await?;
            Ok(vec![node(LineageKind::Dataset, id)])
        }
        ObjectKind::Job => Err(RegistryError::Invalid("jobs have no lineage".into())),
    }
}

async fn view_features(snapshot: &mut Snapshot, id: i64) -> Result<Vec<LineageNode>, RegistryError> {
    let version = read::load_view_version(snapshot, id).await?;
    Ok(version.description.outputs.iter().map(|output| feature_node(&version.id, &output.name)).collect())
}

/// The columns of a source that it has now or that some view version reads.
async fn source_roots(snapshot: &mut Snapshot, name: &str) -> Result<Vec<LineageNode>, RegistryError> {
    let (source, column) = match name.split_once('.') {
        Some((source, column)) => (source, Some(column)),
        None => (name, None),
    };
    let columns: Vec<String> = sqlx::query_scalar(
        "SELECT source_column.name FROM source_column JOIN source USING (source_id) WHERE source.name = ?1
         UNION
         SELECT binding.name FROM view_binding AS binding JOIN view_version USING (view_version_id)
             JOIN source_meaning USING (meaning_id)
         WHERE binding.kind = 'column' AND source_meaning.name = ?1 ORDER BY 1",
    )
    .bind(source)
    .fetch_all(&mut **snapshot)
    .await?;
    if read::load_source(snapshot, source).await?.is_none() {
        return Err(RegistryError::not_found(ObjectKind::Source, source, ""));
    }
    let wanted: Vec<LineageNode> = columns
        .iter()
        .filter(|found| column.is_none_or(|column| column == found.as_str()))
        .map(|found| node(LineageKind::SourceColumn, format!("{source}.{found}")))
        .collect();
    match column {
        Some(column) if wanted.is_empty() => {
            let nearest = crate::definitions::did_you_mean(column, columns.iter().map(String::as_str));
            Err(RegistryError::not_found(ObjectKind::Source, name, nearest))
        }
        _ => Ok(wanted),
    }
}

async fn entity_roots(snapshot: &mut Snapshot, name: &str) -> Result<Vec<LineageNode>, RegistryError> {
    if read::load_entity(snapshot, name).await?.is_none() {
        return Err(RegistryError::not_found(ObjectKind::Entity, name, ""));
    }
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT head_version_id FROM view JOIN view_version ON view_version_id = head_version_id
             JOIN entity_shape USING (shape_id)
         WHERE entity_shape.name = ? ORDER BY view.name",
    )
    .bind(name)
    .fetch_all(&mut **snapshot)
    .await?;
    let mut roots = Vec::new();
    for id in ids {
        roots.extend(view_features(snapshot, id).await?);
    }
    Ok(roots)
}

async fn transform_roots(snapshot: &mut Snapshot, name: &str) -> Result<Vec<LineageNode>, RegistryError> {
    let digest: Option<Digest> = name.parse().ok();
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM transform WHERE name = ? OR digest = ?")
        .bind(name)
        .bind(digest.map(|digest| digest.as_bytes().to_vec()))
        .fetch_one(&mut **snapshot)
        .await?;
    if known == 0 {
        return Err(RegistryError::not_found(ObjectKind::Transform, name, ""));
    }
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT view_version_id FROM view_version JOIN view USING (view_id) JOIN transform USING (transform_id)
         WHERE transform.name = ? OR transform.digest = ? ORDER BY view.name, version",
    )
    .bind(name)
    .bind(digest.map(|digest| digest.as_bytes().to_vec()))
    .fetch_all(&mut **snapshot)
    .await?;
    let mut roots = Vec::new();
    for id in ids {
        roots.extend(view_features(snapshot, id).await?);
    }
    Ok(roots)
}

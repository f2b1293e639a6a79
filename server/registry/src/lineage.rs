//! Lineage: which source columns and request fields a feature comes from, and which services and datasets read it.
//!
//! A transform is opaque, so every input of a view version leads to all of its features. So do the columns that decide
//! which row a feature is read from: join keys, times, the event id, and what `where` looks at.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Row};

use crate::definitions::{feature_as_asked, split_version};
use crate::error::{ObjectKind, RegistryError};
use crate::model::{BoundTo, EventTime, KnownAt, Source, StoredView, ViewRef, ViewVersion};
use crate::store::{Registry, Session, Snapshot, read, read_digest, unsigned};

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
    /// The role under which a feature is read, the expression that a source column goes through, or what a source column
    /// decides: `join key`, `event time`, …
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
    /// Whether there are more nodes than were asked for: these are the nearest.
    #[serde(default)]
    pub is_cut: bool,
}

/// Nodes of a lineage, at most.
pub const LINEAGE_NODES_MAX: usize = 10_000;

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
        if self.is_cut {
            let _infallible = writeln!(text, "! {}", self.cut_notice());
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
        if self.is_cut {
            let _infallible = writeln!(text, "  label={};", dot_text(&self.cut_notice()));
        }
        text.push_str("}\n");
        text
    }

    /// What to say of a lineage that is not whole.
    fn cut_notice(&self) -> String {
        format!(
            "only the {} nearest nodes are shown, and there are more: ask for one feature or column, or for one direction",
            self.nodes.len()
        )
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
        self.lineage_within(kind, name, direction, LINEAGE_NODES_MAX).await
    }

    /// The same, of the nearest nodes: at most `nodes_max`, and at most [`LINEAGE_NODES_MAX`].
    ///
    /// # Errors
    /// As [`Registry::lineage`].
    pub async fn lineage_within(
        &self,
        kind: ObjectKind,
        name: &str,
        direction: LineageDirection,
        nodes_max: usize,
    ) -> Result<Lineage, RegistryError> {
        let nodes_max = nodes_max.clamp(1, LINEAGE_NODES_MAX);
        let mut snapshot = self.snapshot().await?;
        let mut roots = find_roots(&mut snapshot, kind, name).await?;
        let is_cut = roots.len() > nodes_max;
        roots.truncate(nodes_max);
        let mut found = Found { nodes: roots.iter().cloned().collect(), edges: BTreeSet::new(), nodes_max, is_cut };
        if direction != LineageDirection::Downstream {
            walk(&mut snapshot, &roots, true, &mut found).await?;
        }
        if direction != LineageDirection::Upstream {
            walk(&mut snapshot, &roots, false, &mut found).await?;
        }
        let Found { nodes, edges, is_cut, .. } = found;
        Ok(Lineage { roots, nodes: nodes.into_iter().collect(), edges: edges.into_iter().collect(), is_cut })
    }
}

struct Found {
    nodes: BTreeSet<LineageNode>,
    edges: BTreeSet<LineageEdge>,
    nodes_max: usize,
    /// Whether a node was left out.
    is_cut: bool,
}

impl Found {
    /// Whether there is room for the node, or it is there.
    fn has_room_for(&mut self, node: &LineageNode) -> bool {
        let has_room = self.nodes.len() < self.nodes_max || self.nodes.contains(node);
        self.is_cut |= !has_room;
        has_room
    }
}

async fn walk(
    snapshot: &mut Snapshot,
    roots: &[LineageNode],
    upstream: bool,
    found: &mut Found,
) -> Result<(), RegistryError> {
    let mut seen: BTreeSet<LineageNode> = roots.iter().cloned().collect();
    let mut open: VecDeque<LineageNode> = roots.iter().cloned().collect();
    while let Some(node) = open.pop_front() {
        let edges = if upstream { edges_into(snapshot, &node).await? } else { edges_out_of(snapshot, &node).await? };
        for edge in edges {
            let next = if upstream { edge.from.clone() } else { edge.to.clone() };
            if !found.has_room_for(&next) {
                continue;
            }
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

/// `service@2` as this module writes it.
fn split_service(name: &str) -> Result<(&str, i64), RegistryError> {
    let damaged = || RegistryError::damaged(format!("lineage node `{name}`"));
    let (service, version) = name.split_once('@').ok_or_else(damaged)?;
    Ok((service, version.parse().map_err(|_| damaged())?))
}

/// A source column that a view version uses, as the edge to what it feeds or decides.
fn column_edges(view: &ViewVersion, file_columns: &BTreeSet<String>) -> Vec<LineageEdge> {
    let Some(stored) = &view.stored else { return Vec::new() };
    let names = ColumnNames { source: &stored.source, file_columns };
    let mut edges = Vec::new();
    for binding in &view.bindings {
        let BoundTo::Column(column) = &binding.from else { continue };
        let to = input_node(&view.id, &binding.input.name);
        edges.push(LineageEdge { note: stored.source.columns.get(column).cloned(), ..names.edge(column, &to) });
        edges.extend(names.edges_from_behind(column, &to, ""));
    }
    for (column, decides) in deciding_columns(stored, &names) {
        for output in &view.description.outputs {
            let to = feature_node(&view.id, &output.name);
            edges.push(LineageEdge { note: Some(decides.to_owned()), ..names.edge(&column, &to) });
            edges.extend(names.edges_from_behind(&column, &to, decides));
        }
    }
    edges
}

/// The columns that decide which row a read finds, each with what it decides.
fn deciding_columns(stored: &StoredView, names: &ColumnNames<'_>) -> Vec<(String, &'static str)> {
    let source = &stored.source;
    let mut columns: Vec<(String, &'static str)> =
        stored.entity.keys.iter().map(|key| (key.name.clone(), "join key")).collect();
    if let EventTime::Column(column) = &source.event_time {
        columns.push((column.clone(), "event time"));
    }
    if let KnownAt::Column(column) = &source.known_at {
        columns.push((column.clone(), "known at"));
    }
    columns.extend(source.event_id.iter().map(|column| (column.clone(), "event id")));
    let filter = source.filter.as_deref().unwrap_or_default();
    columns.extend(names.named_in(filter, true).map(|column| (column, "where")));
    columns
}

/// The columns of a source, to find them in its expressions.
struct ColumnNames<'a> {
    source: &'a Source,
    /// Those of its files, or declared, as the registry last saw them.
    file_columns: &'a BTreeSet<String>,
}

impl ColumnNames<'_> {
    fn edge(&self, column: &str, to: &LineageNode) -> LineageEdge {
        plain_edge(node(LineageKind::SourceColumn, format!("{}.{column}", self.source.name)), to.clone())
    }

    /// Edges from the file's columns that a computed column is made of. One of the same name is the same node.
    fn edges_from_behind(&self, column: &str, to: &LineageNode, decides: &str) -> Vec<LineageEdge> {
        let Some(expression) = self.source.columns.get(column) else { return Vec::new() };
        let separator = if decides.is_empty() { "" } else { ", " };
        let note = format!("{decides}{separator}through {column} = {expression}");
        let behind = self.named_in(expression, false).filter(|behind| behind != column);
        behind.map(|behind| LineageEdge { note: Some(note.clone()), ..self.edge(&behind, to) }).collect()
    }

    /// The columns that an expression names; with `computed`, also those that other expressions make.
    fn named_in(&self, expression: &str, computed: bool) -> impl Iterator<Item = String> {
        let computed = self.source.columns.keys().filter(move |_| computed);
        let known: BTreeSet<&String> = self.file_columns.iter().chain(computed).collect();
        identifiers(expression).into_iter().filter(move |name| known.contains(name))
    }
}

/// The words of an expression that could be columns: quoted names as they stand, texts left out.
fn identifiers(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = expression.chars().peekable();
    while let Some(first) = rest.next() {
        if first == '\'' {
            let _text = quoted_until(&mut rest, first);
        } else if first == '"' {
            found.insert(quoted_until(&mut rest, first));
        } else if is_word(first) {
            let mut word = String::from(first);
            while let Some(next) = rest.next_if(|next| is_word(*next)) {
                word.push(next);
            }
            found.insert(word);
        }
    }
    found
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// What stands up to the closing quote; a doubled quote is one of the text.
fn quoted_until(rest: &mut Peekable<Chars<'_>>, quote: char) -> String {
    let mut text = String::new();
    while let Some(next) = rest.next() {
        let is_closing = next == quote && rest.next_if_eq(&quote).is_none();
        if is_closing {
            break;
        }
        text.push(next);
    }
    text
}

/// Where the values of one input come from, unless it is a column of a source.
fn binding_edge(from: &BoundTo, to: LineageNode) -> Option<LineageEdge> {
    match from {
        BoundTo::Request(field) => Some(plain_edge(request_node(field), to)),
        BoundTo::RequestTimestamp => Some(plain_edge(request_node("timestamp"), to)),
        BoundTo::Feature(upstream) => {
            let note = role_note(upstream.role.clone());
            Some(LineageEdge { note, ..plain_edge(feature_node(&upstream.view, &upstream.feature), to) })
        }
        BoundTo::Column(_) | BoundTo::Literal(_) => None,
    }
}

fn request_node(field: &str) -> LineageNode {
    node(LineageKind::RequestField, format!("request.{field}"))
}

/// The edges from source columns into a view version.
async fn edges_from_columns(snapshot: &mut Snapshot, view: &ViewVersion) -> Result<Vec<LineageEdge>, RegistryError> {
    let Some(stored) = &view.stored else { return Ok(Vec::new()) };
    let columns = read::load_columns(snapshot, &stored.source.name).await?;
    let file_columns = columns.into_iter().map(|column| column.name).collect();
    Ok(column_edges(view, &file_columns))
}

/// The edges out of a source column, into every view version that uses it.
async fn edges_out_of_column(
    snapshot: &mut Snapshot,
    source: &str,
    origin: &LineageNode,
) -> Result<Vec<LineageEdge>, RegistryError> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT view_version_id FROM view_version JOIN source_meaning USING (meaning_id) WHERE source_meaning.name = $1",
    )
    .bind(source)
    .fetch_all(snapshot.sql())
    .await?;
    let mut edges = Vec::new();
    for id in ids {
        let view = read::load_view_version(snapshot, id).await?;
        edges.extend(edges_from_columns(snapshot, &view).await?);
    }
    edges.retain(|edge| edge.from == *origin);
    Ok(edges)
}

/// The edges out of a request field or feature, into the inputs that are bound to it.
async fn edges_into_inputs(snapshot: &mut Snapshot, origin: &LineageNode) -> Result<Vec<LineageEdge>, RegistryError> {
    /// Bindings with the inputs that they feed.
    const INPUTS: &str = "SELECT view.name AS view, view_version.version, field.name AS input, binding.role
         FROM view_binding AS binding
             JOIN view_version ON view_version.view_version_id = binding.view_version_id
             JOIN view ON view.view_id = view_version.view_id
             JOIN transform_field AS field ON field.transform_id = view_version.transform_id
                 AND field.direction = 'input' AND field.position = binding.position
         WHERE";
    let rows = match origin.kind {
        LineageKind::Feature => {
            let (upstream, feature) = split_view(&origin.name, ':')?;
            let upstream = read::require_view_version(snapshot, &upstream.name, Some(upstream.version)).await?;
            let bound = format!("{INPUTS} binding.upstream_version_id = $1 AND binding.name = $2");
            let bound = sqlx::query(AssertSqlSafe(bound)).bind(upstream).bind(feature);
            bound.fetch_all(snapshot.sql()).await?
        }
        _ => {
            let field = origin.name.strip_prefix("request.").unwrap_or(&origin.name);
            // A field may be called `timestamp`, as the instant that the request is about.
            let bound = format!(
                "{INPUTS} (binding.kind = 'request' AND binding.name = $1)
                     OR (binding.kind = 'request_timestamp' AND $2 = 1)"
            );
            let bound = sqlx::query(AssertSqlSafe(bound)).bind(field).bind(i64::from(field == "timestamp"));
            bound.fetch_all(snapshot.sql()).await?
        }
    };
    rows.iter()
        .map(|row| {
            let view = ViewRef { name: row.try_get("view")?, version: unsigned(row.try_get("version")?)? };
            let to = input_node(&view, row.try_get("input")?);
            Ok(LineageEdge { note: role_note(row.try_get("role")?), ..plain_edge(origin.clone(), to) })
        })
        .collect()
}

/// A view version that a node of the lineage names.
async fn view_of(snapshot: &mut Snapshot, view: &ViewRef) -> Result<Arc<ViewVersion>, RegistryError> {
    let id = read::require_view_version(snapshot, &view.name, Some(view.version)).await?;
    read::load_view_version(snapshot, id).await
}

fn role_note(role: Option<String>) -> Option<String> {
    role.map(|role| format!("for {role}"))
}

/// From every input of a view version (or one) to every feature of it (or one).
async fn transform_edges(
    connection: &mut Session,
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
         WHERE view.name = $1 AND version = $2
             AND input.name = coalesce($3, input.name) AND output.name = coalesce($4, output.name)",
    )
    .bind(&view.name)
    .bind(i64::from(view.version))
    .bind(input)
    .bind(feature)
    .fetch_all(connection.sql())
    .await?;
    rows.into_iter()
        .map(|row| {
            let from = input_node(view, row.try_get("input")?);
            let to = feature_node(view, row.try_get("feature")?);
            Ok(LineageEdge { transform: Some(read_digest(row.try_get("digest")?)?), ..plain_edge(from, to) })
        })
        .collect()
}

async fn edges_into(snapshot: &mut Snapshot, target: &LineageNode) -> Result<Vec<LineageEdge>, RegistryError> {
    match target.kind {
        LineageKind::SourceColumn | LineageKind::RequestField => Ok(Vec::new()),
        LineageKind::TransformInput => {
            let (view, input) = split_view(&target.name, '.')?;
            let view = view_of(snapshot, &view).await?;
            let mut edges = edges_from_columns(snapshot, &view).await?;
            edges.retain(|edge| edge.to == *target);
            let bound = view.bindings.iter().filter(|binding| binding.input.name == input);
            edges.extend(bound.filter_map(|binding| binding_edge(&binding.from, target.clone())));
            Ok(edges)
        }
        LineageKind::Feature => {
            let (view, feature) = split_view(&target.name, ':')?;
            let mut edges = transform_edges(snapshot, &view, None, Some(feature)).await?;
            let view = view_of(snapshot, &view).await?;
            let deciding = edges_from_columns(snapshot, &view).await?.into_iter();
            edges.extend(deciding.filter(|edge| edge.to == *target));
            Ok(edges)
        }
        LineageKind::Service => {
            let (service, version) = split_service(&target.name)?;
            let rows = sqlx::query(
                "SELECT view.name AS view, view_version.version, feature, role
                 FROM service_entry JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE service.name = $1 AND service_version.version = $2",
            )
            .bind(service)
            .bind(version)
            .fetch_all(snapshot.sql())
            .await?;
            rows.iter().map(|row| feature_edge(row, target)).collect()
        }
        LineageKind::Dataset => {
            let service: Option<String> = sqlx::query_scalar(
                "SELECT service.name || '@' || version FROM dataset
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE dataset_id = $1",
            )
            .bind(&target.name)
            .fetch_optional(snapshot.sql())
            .await?;
            if let Some(service) = service {
                return Ok(vec![plain_edge(node(LineageKind::Service, service), target.clone())]);
            }
            let rows = sqlx::query(
                "SELECT view.name AS view, view_version.version, feature, role
                 FROM dataset_column JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                 WHERE dataset_id = $1",
            )
            .bind(&target.name)
            .fetch_all(snapshot.sql())
            .await?;
            rows.iter().map(|row| feature_edge(row, target)).collect()
        }
    }
}

fn feature_edge(row: &sqlx::any::AnyRow, target: &LineageNode) -> Result<LineageEdge, RegistryError> {
    let view = ViewRef { name: row.try_get("view")?, version: unsigned(row.try_get("version")?)? };
    let from = feature_node(&view, row.try_get("feature")?);
    Ok(LineageEdge { note: role_note(row.try_get("role")?), ..plain_edge(from, target.clone()) })
}

async fn edges_out_of(snapshot: &mut Snapshot, origin: &LineageNode) -> Result<Vec<LineageEdge>, RegistryError> {
    match origin.kind {
        LineageKind::SourceColumn => {
            let source = origin.name.split_once('.').map_or(origin.name.as_str(), |(source, _)| source);
            edges_out_of_column(snapshot, source, origin).await
        }
        LineageKind::RequestField => edges_into_inputs(snapshot, origin).await,
        LineageKind::TransformInput => {
            let (view, input) = split_view(&origin.name, '.')?;
            transform_edges(snapshot, &view, Some(input), None).await
        }
        LineageKind::Feature => {
            let (view, feature) = split_view(&origin.name, ':')?;
            let mut edges = edges_into_inputs(snapshot, origin).await?;
            let services = sqlx::query(
                "SELECT service.name || '@' || service_version.version AS target, role
                 FROM service_entry JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE view.name = $1 AND view_version.version = $2 AND feature = $3",
            )
            .bind(&view.name)
            .bind(i64::from(view.version))
            .bind(feature)
            .fetch_all(snapshot.sql())
            .await?;
            let datasets = sqlx::query(
                "SELECT dataset_id AS target, role
                 FROM dataset_column JOIN dataset USING (dataset_id)
                     JOIN view_version USING (view_version_id) JOIN view USING (view_id)
                 WHERE service_version_id IS NULL AND view.name = $1 AND view_version.version = $2 AND feature = $3",
            )
            .bind(&view.name)
            .bind(i64::from(view.version))
            .bind(feature)
            .fetch_all(snapshot.sql())
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
            let (service, version) = split_service(&origin.name)?;
            let datasets: Vec<String> = sqlx::query_scalar(
                "SELECT dataset_id FROM dataset
                     JOIN service_version USING (service_version_id) JOIN service USING (service_id)
                 WHERE service.name = $1 AND version = $2",
            )
            .bind(service)
            .bind(version)
            .fetch_all(snapshot.sql())
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
            let (view, version) = split_version(name)?;
            let id = read::require_view_version(snapshot, view, version).await?;
            view_features(snapshot, id).await
        }
        ObjectKind::Feature => {
            let name = feature_as_asked(name)?;
            let version = crate::resolve::view_of_feature(snapshot, &name).await?;
            Ok(vec![feature_node(&version.id, &name.feature)])
        }
        ObjectKind::Service => {
            let (service, version) = split_version(name)?;
            let (_, version, _) = read::require_service_version(snapshot, service, version).await?;
            Ok(vec![node(LineageKind::Service, format!("{service}@{version}"))])
        }
        ObjectKind::Dataset => {
            let id = read::require_dataset_id(snapshot, name).await?;
            Ok(vec![node(LineageKind::Dataset, id)])
        }
        ObjectKind::Job | ObjectKind::Project | ObjectKind::Token => {
            Err(RegistryError::Invalid(format!("a {kind} has no lineage")))
        }
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
        "SELECT source_column.name FROM source_column JOIN source USING (source_id) WHERE source.name = $1
         UNION
         SELECT binding.name FROM view_binding AS binding JOIN view_version USING (view_version_id)
             JOIN source_meaning USING (meaning_id)
         WHERE binding.kind = 'column' AND source_meaning.name = $1 ORDER BY 1",
    )
    .bind(source)
    .fetch_all(snapshot.sql())
    .await?;
    if read::load_source(snapshot, source).await?.is_none() {
        return Err(read::unknown_source(snapshot, source).await?);
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
        return Err(read::unknown_entity(snapshot, name).await?);
    }
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT head_version_id FROM view JOIN view_version ON view_version_id = head_version_id
             JOIN entity_shape USING (shape_id)
         WHERE entity_shape.name = $1 ORDER BY view.name",
    )
    .bind(name)
    .fetch_all(snapshot.sql())
    .await?;
    let mut roots = Vec::new();
    for id in ids {
        roots.extend(view_features(snapshot, id).await?);
    }
    Ok(roots)
}

async fn transform_roots(snapshot: &mut Snapshot, name: &str) -> Result<Vec<LineageNode>, RegistryError> {
    let digest: Option<Digest> = name.parse().ok();
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM transform WHERE name = $1 OR digest = $2")
        .bind(name)
        .bind(digest.map(|digest| digest.as_bytes().to_vec()))
        .fetch_one(snapshot.sql())
        .await?;
    if known == 0 {
        return Err(RegistryError::not_found(ObjectKind::Transform, name, ""));
    }
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT view_version_id FROM view_version JOIN view USING (view_id) JOIN transform USING (transform_id)
         WHERE transform.name = $1 OR transform.digest = $2 ORDER BY view.name, version",
    )
    .bind(name)
    .bind(digest.map(|digest| digest.as_bytes().to_vec()))
    .fetch_all(snapshot.sql())
    .await?;
    let mut roots = Vec::new();
    for id in ids {
        roots.extend(view_features(snapshot, id).await?);
    }
    Ok(roots)
}

//! Lineage, both ways, in all three forms.

use std::collections::BTreeMap;

use eadem_registry::model::ViewRef;
use eadem_registry::{DatasetColumn, DatasetRecord, LineageDirection, LineageKind, ObjectKind};
use eadem_values::{DataType, Digest};
use serde_json::json;

use crate::support::{Company, FEATURES, NOW_US, column, company, company_with};

async fn founded() -> Company {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    registry.apply(&company_with(&FEATURES.replace("ttl = \"2d\"", "ttl = \"3d\""))).await;
    let dataset = |id: &str, service| DatasetRecord {
        id: id.into(),
        name: "training".into(),
        service,
        rows: 3,
        content_digest: Digest::of(id.as_bytes()),
        output: "/sets/training.parquet".into(),
        report: json!({ "statistics": null }),
        recipe: json!({ "spine": "departures" }),
        columns: vec![DatasetColumn {
            name: "last_delay".into(),
            view: ViewRef { name: "aircraft_legs".into(), version: 1 },
            feature: "last_delay".into(),
            role: None,
        }],
        created_at_us: NOW_US,
    };
    registry.registry.record_dataset(&dataset("d-1", Some(("departure_delay".into(), 1)))).await.unwrap();
    registry.registry.record_dataset(&dataset("d-2", None)).await.unwrap();
    registry
}

#[tokio::test]
async fn downstream_of_a_column() {
    let registry = founded().await;
    let lineage = registry
        .registry
        .lineage(ObjectKind::Source, "landings.arr_delay", LineageDirection::Downstream)
        .await
        .unwrap();
    insta::assert_snapshot!(lineage.to_text());
}

#[tokio::test]
async fn columns_that_decide_and_columns_behind_expressions_lead_to_features() {
    let mut registry = Company::found().await;
    let landings = registry.inspector.0.get_mut("landings").unwrap();
    landings.extend(["arrived", "arr_time", "it's late"].map(|name| column(name, DataType::Int64)));
    let mut definitions = company();
    let source = &mut definitions.sources.get_mut("landings").unwrap().source;
    source.filter = Some("arr_time is not null and \"it's late\" > 3 and tailnum <> 'distance'".into());
    registry.apply(&definitions).await;
    let lineage = async |name: &str, direction| {
        let lineage = registry.registry.lineage(ObjectKind::Source, name, direction).await.unwrap();
        lineage.edges.into_iter().map(|edge| (edge.to.name, edge.note.unwrap_or_default())).collect::<Vec<_>>()
    };
    let feature = |feature: &str, note: &str| (format!("aircraft_legs@1:{feature}"), note.to_owned());
    for (name, notes) in [
        ("landings.it's late", vec!["where"]),
        ("landings.tailnum", vec!["join key", "where"]),
        ("landings.arrived", vec!["event time, through landed_at = to_timestamp_micros(arrived)"]),
    ] {
        let edges = lineage(name, LineageDirection::Downstream).await;
        for note in notes {
            for output in ["last_landed_at", "last_delay"] {
                assert!(edges.contains(&feature(output, note)), "{name} {note} {output}: {edges:?}");
            }
        }
    }
    let into_input =
        ("aircraft_legs@1.landed_at".to_owned(), "through landed_at = to_timestamp_micros(arrived)".to_owned());
    assert!(lineage("landings.arrived", LineageDirection::Downstream).await.contains(&into_input));
    let edges = lineage("landings.distance", LineageDirection::Downstream).await;
    assert!(!edges.iter().any(|(_, note)| note == "where"), "a text is no column: {edges:?}");

    let upstream = registry.registry.lineage(ObjectKind::Feature, "last_delay", LineageDirection::Upstream).await;
    let columns: Vec<String> = upstream
        .unwrap()
        .nodes
        .into_iter()
        .filter(|node| node.kind == LineageKind::SourceColumn)
        .map(|node| node.name)
        .collect();
    let expected = ["arr_delay", "arr_time", "arrived", "distance", "it's late", "landed_at", "tailnum"];
    assert_eq!(columns, expected.map(|name| format!("landings.{name}")));
}

#[tokio::test]
async fn upstream_of_a_dataset() {
    let registry = founded().await;
    let lineage = registry.registry.lineage(ObjectKind::Dataset, "d-1", LineageDirection::Upstream).await.unwrap();
    insta::assert_snapshot!(lineage.to_text());
}

#[tokio::test]
async fn both_ways_of_a_feature_as_a_graph() {
    let registry = founded().await;
    let lineage = registry
        .registry
        .lineage(ObjectKind::Feature, "departure_context@1:turnaround_minutes", LineageDirection::Both)
        .await
        .unwrap();
    insta::assert_snapshot!(lineage.to_dot());
    let json = serde_json::to_value(&lineage).unwrap();
    assert_eq!(json["roots"][0]["kind"], "feature");
    assert_eq!(json["nodes"].as_array().unwrap().len(), lineage.nodes.len());
}

#[tokio::test]
async fn every_kind_of_object_has_roots() {
    let registry = founded().await;
    for (kind, name, roots) in [
        (ObjectKind::Source, "landings", 5),
        (ObjectKind::Entity, "aircraft", 2),
        (ObjectKind::Transform, "aircraft_legs", 4),
        (ObjectKind::View, "aircraft_legs@1", 2),
        (ObjectKind::View, "aircraft_legs", 2),
        (ObjectKind::Feature, "gusty", 1),
        (ObjectKind::Service, "departure_delay", 1),
        (ObjectKind::Dataset, "training", 1),
    ] {
        let lineage = registry.registry.lineage(kind, name, LineageDirection::Both).await.unwrap();
        assert_eq!(lineage.roots.len(), roots, "{kind} {name}");
    }
    for (kind, name) in [
        (ObjectKind::Source, "landing"),
        (ObjectKind::Source, "landings.nothing"),
        (ObjectKind::Entity, "ship"),
        (ObjectKind::Transform, "nothing"),
        (ObjectKind::View, "nothing"),
        (ObjectKind::Feature, "nothing"),
        (ObjectKind::Service, "departure_delay@9"),
        (ObjectKind::Dataset, "nothing"),
    ] {
        let error = registry.registry.lineage(kind, name, LineageDirection::Both).await.unwrap_err();
        assert!(error.is_not_found(), "{kind} {name}: {error}");
    }
}

/// The nodes of a graph with their labels, its edges, its own label.
type Dot = (BTreeMap<String, String>, Vec<(String, String)>, Option<String>);

/// Reads the language of Graphviz as far as it is written here.
fn read_dot(dot: &str) -> Dot {
    /// The quoted text at the beginning, and what follows it.
    fn quoted(text: &str) -> (String, &str) {
        let mut rest = text.strip_prefix('"').unwrap_or_else(|| panic!("no quote: {text}")).char_indices();
        let mut value = String::new();
        while let Some((at, character)) = rest.next() {
            match character {
                '"' => return (value, &text[at + 2..]),
                '\\' => match rest.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    other => panic!("unknown escape {other:?} in {text}"),
                },
                '\n' => panic!("a line ends inside of a text: {text}"),
                other => value.push(other),
            }
        }
        panic!("the text is not closed: {text}")
    }
    let mut lines = dot.lines();
    assert_eq!(lines.next(), Some("digraph lineage {"));
    let (mut nodes, mut edges, mut label, mut is_closed) = (BTreeMap::new(), Vec::new(), None, false);
    for line in lines {
        assert!(!is_closed, "after the end: {line}");
        let line = line.trim();
        if line == "}" {
            is_closed = true;
            continue;
        }
        let statement = line.strip_suffix(';').unwrap_or_else(|| panic!("no end: {line}"));
        if matches!(statement, "rankdir=LR" | "node [shape=box]") {
            continue;
        }
        if let Some(text) = statement.strip_prefix("label=") {
            label = Some(quoted(text).0);
            continue;
        }
        let (id, rest) = statement.split_once(' ').unwrap_or((statement, ""));
        let rest = match rest.strip_prefix("-> ") {
            Some(rest) => {
                let (to, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                edges.push((id.to_owned(), to.to_owned()));
                rest
            }
            None => {
                let (text, _) = quoted(rest.strip_prefix("[label=").unwrap());
                nodes.insert(id.to_owned(), text);
                rest
            }
        };
        if !rest.is_empty() {
            let after = quoted(rest.strip_prefix("[label=").unwrap()).1;
            assert!(matches!(after, "]" | ", style=bold]"), "{line}");
        }
    }
    assert!(is_closed, "{dot}");
    assert!(edges.iter().all(|(from, to)| nodes.contains_key(from) && nodes.contains_key(to)), "{dot}");
    (nodes, edges, label)
}

#[tokio::test]
async fn the_graph_can_be_read_whatever_names_and_expressions_hold() {
    let mut registry = Company::found().await;
    let landings = registry.inspector.0.get_mut("landings").unwrap();
    landings.push(column("a \"quoted\" \\ name", DataType::Float64));
    let features = FEATURES.replace("ttl = \"2d\"", "ttl = \"2d\"\nbind.arr_delay = 'a \"quoted\" \\ name'");
    registry.apply(&company_with(&features)).await;
    let lineage =
        registry.registry.lineage(ObjectKind::Service, "departure_delay", LineageDirection::Both).await.unwrap();
    let (nodes, edges, label) = read_dot(&lineage.to_dot());
    assert_eq!((nodes.len(), edges.len(), label), (lineage.nodes.len(), lineage.edges.len(), None));
    let quoted = "source column\nlandings.a \"quoted\" \\ name";
    assert!(nodes.values().any(|name| name == quoted), "{nodes:?}");
}

#[tokio::test]
async fn a_lineage_is_bounded_and_says_so() {
    let registry = founded().await;
    let all = registry.registry.lineage(ObjectKind::Entity, "airport", LineageDirection::Both).await.unwrap();
    assert!(!all.is_cut && !all.to_text().contains('!'));
    let total = all.nodes.len();
    for nodes_max in 1..=total {
        let cut = registry
            .registry
            .lineage_within(ObjectKind::Entity, "airport", LineageDirection::Both, nodes_max)
            .await
            .unwrap();
        assert_eq!((cut.nodes.len(), cut.is_cut), (nodes_max, nodes_max < total));
        assert!(cut.nodes.iter().all(|node| all.nodes.contains(node)));
        assert!(cut.edges.iter().all(|edge| cut.nodes.contains(&edge.from) && cut.nodes.contains(&edge.to)));
        let (nodes, _, label) = read_dot(&cut.to_dot());
        let notice = format!("only the {nodes_max} nearest nodes are shown, and there are more");
        assert_eq!(nodes.len(), nodes_max);
        assert_eq!(label.is_some_and(|label| label.starts_with(&notice)), cut.is_cut);
        assert_eq!(cut.to_text().contains(&format!("! {notice}")), cut.is_cut);
    }
}

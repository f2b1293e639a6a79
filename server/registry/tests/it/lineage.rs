//! Lineage, both ways, in all three forms.

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

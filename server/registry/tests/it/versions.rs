//! What a change means to readers, and what becomes of versions that are on their way out.

use eadem_registry::definitions::Definitions;
use eadem_registry::model::ViewRef;
use eadem_registry::{
    ChangeClass, DatasetColumn, DatasetRecord, LifecycleChange, LifecycleState, ObjectKind, PlanReport, RegistryError,
    SchemaChangeKind, TrailFilter,
};
use eadem_values::{Constraint, DataType, Digest, Field};
use serde_json::json;

use crate::support::{Company, FEATURES, NOW_US, company, company_with, legs_transform, weather_transform};

/// What the plan says about views and services, without what they are made of.
fn classes(report: &PlanReport) -> String {
    let mut text = String::new();
    for change in report.changes.iter().filter(|change| change.class.is_some()) {
        let class = change.class.map(|class| class.to_string()).unwrap_or_default();
        text.push_str(&format!("{} {} {class}\n", change.kind, change.name));
        for schema in &change.schema {
            let kind = serde_json::to_value(schema.kind).unwrap();
            let (class, features) = (schema.class, schema.features.join(", "));
            text.push_str(&format!("  {class} {} [{features}] {}\n", kind.as_str().unwrap(), schema.text));
        }
    }
    text
}

async fn plan_of(company: &Company, definitions: &Definitions) -> PlanReport {
    company.plan(definitions).await.unwrap().report().clone()
}

/// A company with everything applied, and then another `aircraft_legs` transform with these outputs.
async fn with_outputs(outputs: Vec<Field>) -> (Company, PlanReport) {
    let mut founded = Company::found().await;
    founded.apply(&company()).await;
    let mut legs = legs_transform();
    legs.outputs = outputs;
    founded.upload(&legs).await;
    let report = plan_of(&founded, &company()).await;
    (founded, report)
}

#[tokio::test]
async fn a_feature_that_is_added_is_compatible_and_the_others_may_mean_something_else() {
    let mut outputs = legs_transform().outputs;
    outputs.push(Field::new("legs", DataType::Int64, true));
    let (_, report) = with_outputs(outputs).await;
    insta::assert_snapshot!(classes(&report));
}

#[tokio::test]
async fn types_nullability_and_units_break() {
    let mut last_delay = Field::new("last_delay", DataType::Float64, false);
    last_delay.constraints = vec![Constraint::Unit("min".into())];
    let outputs = vec![Field::new("last_landed_at", DataType::Timestamp, true), last_delay];
    let (_, report) = with_outputs(outputs).await;
    insta::assert_snapshot!(classes(&report));

    let outputs =
        vec![Field::new("last_landed_at", DataType::Timestamp, false), Field::new("last_delay", DataType::Utf8, true)];
    let (_, report) = with_outputs(outputs).await;
    insta::assert_snapshot!("a_type_breaks", classes(&report));
}

#[tokio::test]
async fn a_feature_that_is_gone_breaks() {
    let (_, report) = with_outputs(vec![Field::new("last_landed_at", DataType::Timestamp, false)]).await;
    insta::assert_snapshot!(classes(&report));
}

#[tokio::test]
async fn meaning_breaks_and_settings_do_not() {
    let founded = Company::found().await;
    founded.apply(&company()).await;
    for (name, from, to) in [
        ("lifetime", "ttl = \"3h\"", "ttl = \"4h\""),
        ("binding", "gust_limit = 25", "gust_limit = 26"),
        ("default", "gusty = false", "gusty = true"),
        ("settings", "tags = [\"delay\", \"aircraft\"]", "tags = [\"delay\"]\nonline_history = \"7d\""),
        ("request", "bind.scheduled_at = \"request.scheduled_at\"", "bind.scheduled_at = \"request.planned_at\""),
    ] {
        assert!(FEATURES.contains(from), "{name}");
        let report = plan_of(&founded, &company_with(&FEATURES.replace(from, to))).await;
        insta::assert_snapshot!(format!("class_of_{name}"), classes(&report));
    }
    let mut moved = company();
    moved.sources.get_mut("landings").unwrap().source.filter = Some("arr_time > 5".into());
    insta::assert_snapshot!("class_of_source", classes(&plan_of(&founded, &moved).await));
}

#[tokio::test]
async fn the_pairs_of_a_plan_are_the_versions_that_take_each_others_place() {
    let founded = Company::found().await;
    let first = founded.plan(&company()).await.unwrap();
    assert!(first.version_pairs().is_empty(), "what is new takes nobody's place");
    founded.apply(&company()).await;
    let plan = founded.plan(&company_with(&FEATURES.replace("ttl = \"2d\"", "ttl = \"3d\""))).await.unwrap();
    let pairs: Vec<(String, String)> =
        plan.version_pairs().iter().map(|pair| (pair.before.id.to_string(), pair.after.id.to_string())).collect();
    let pair = |name: &str| (format!("{name}@1"), format!("{name}@2"));
    assert_eq!(pairs, [pair("aircraft_legs"), pair("departure_context")]);
    let classes: Vec<Option<ChangeClass>> = plan
        .report()
        .changes
        .iter()
        .filter(|change| change.schema.iter().any(|schema| schema.kind == SchemaChangeKind::MeaningChanged))
        .map(|change| change.class)
        .collect();
    assert_eq!(classes, [Some(ChangeClass::Breaking); 3]);
}

fn deprecate(message: &str) -> LifecycleChange {
    LifecycleChange::Mark(LifecycleState::Deprecated, message.to_owned())
}

fn retire() -> LifecycleChange {
    LifecycleChange::Mark(LifecycleState::Retired, String::new())
}

/// A company whose `airport_weather` has two versions. Context and service follow to the second.
async fn with_two_versions() -> Company {
    let founded = Company::found().await;
    founded.apply(&company()).await;
    founded.apply(&company_with(&two_versions())).await;
    founded
}

fn two_versions() -> String {
    FEATURES.replace("ttl = \"3h\"", "ttl = \"4h\"")
}

async fn mark(
    company: &Company,
    kind: ObjectKind,
    name: &str,
    change: &LifecycleChange,
) -> Result<Vec<String>, RegistryError> {
    company.registry.mark(kind, name, change, NOW_US + 5).await.map(|marked| marked.versions)
}

#[tokio::test]
async fn a_deprecated_version_works_and_warns_whoever_names_it_anew() {
    let founded = with_two_versions().await;
    let plan_before = founded.plan(&company_with(&two_versions())).await.unwrap();
    let marked = mark(&founded, ObjectKind::View, "airport_weather@1", &deprecate("use @2")).await.unwrap();
    assert_eq!(marked, ["airport_weather@1"]);
    let stale = founded.registry.apply(&plan_before, NOW_US).await.unwrap_err();
    assert!(stale.to_string().contains("view airport_weather (version 1 deprecated: use @2)"), "{stale}");

    let view = founded.registry.view("airport_weather", Some(1)).await.unwrap();
    assert_eq!(view.mark.as_ref().map(|mark| mark.text()).as_deref(), Some("deprecated: use @2"));
    assert!(founded.registry.view("airport_weather", None).await.unwrap().mark.is_none());
    let service = founded.registry.resolve_service("departure_delay@1").await.unwrap();
    assert_eq!(service.deprecations(), ["view airport_weather@1 is deprecated: use @2"]);
    assert!(founded.registry.resolve_service("departure_delay").await.unwrap().deprecations().is_empty());

    let unchanged = plan_of(&founded, &company_with(&two_versions())).await;
    assert!(unchanged.warnings.is_empty() && unchanged.is_empty(), "{unchanged}");
    let named = format!("{}\n[service.anew]\nfeatures = [\"airport_weather@1:gusty\"]\n", two_versions());
    let report = plan_of(&founded, &company_with(&named)).await;
    let expected = ["service anew reads view airport_weather@1, which is deprecated: use @2"];
    assert_eq!(report.warnings, expected);
    assert!(report.to_string().contains(&format!("! {}\n", expected[0])), "{report}");

    let again = mark(&founded, ObjectKind::View, "airport_weather@1", &deprecate("use @2")).await.unwrap_err();
    assert_eq!(again.to_string(), "airport_weather@1 is deprecated already; nothing was changed");
    mark(&founded, ObjectKind::View, "airport_weather@1", &deprecate("really, use @2")).await.unwrap();
    mark(&founded, ObjectKind::View, "airport_weather@1", &LifecycleChange::Undo(LifecycleState::Deprecated))
        .await
        .unwrap();
    assert!(founded.registry.view("airport_weather", Some(1)).await.unwrap().mark.is_none());
    let history = founded.registry.describe(ObjectKind::View, "airport_weather").await.unwrap().history;
    let actions: Vec<&str> = history.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "version 1 no longer deprecated",
            "version 1 deprecated: really, use @2",
            "version 1 deprecated: use @2",
            "new version 2; 1 keeps serving",
            "new, version 1"
        ]
    );
}

#[tokio::test]
async fn nothing_is_retired_that_something_depends_on() {
    let founded = with_two_versions().await;
    let job = json!({ "views": ["airport_weather@1"] });
    founded.registry.create_job("j-1", "backfill", &job, NOW_US).await.unwrap();
    let refused = mark(&founded, ObjectKind::View, "airport_weather@1", &retire()).await.unwrap_err();
    let RegistryError::InUse { dependants, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(
        dependants,
        &["backfill job j-1, which is not over", "service departure_delay@1", "view departure_context@1"]
    );
    let transform = mark(&founded, ObjectKind::Transform, "airport_weather", &retire()).await.unwrap_err();
    let RegistryError::InUse { dependants, .. } = &transform else { panic!("{transform:?}") };
    assert_eq!(dependants, &["view airport_weather@1", "view airport_weather@2"]);
    let newest = mark(&founded, ObjectKind::Service, "departure_delay@2", &retire()).await.unwrap_err();
    assert!(newest.to_string().contains("the name `departure_delay`, which stands for departure_delay@2"), "{newest}");
    assert!(mark(&founded, ObjectKind::Entity, "airport", &retire()).await.is_err());

    founded.registry.finish_job("j-1", eadem_registry::JobState::Cancelled, &json!({}), NOW_US).await.unwrap();
    for (kind, name) in [
        (ObjectKind::Service, "departure_delay@1"),
        (ObjectKind::View, "departure_context@1"),
        (ObjectKind::View, "airport_weather@1"),
    ] {
        mark(&founded, kind, name, &retire()).await.unwrap();
    }
    let undo = LifecycleChange::Undo(LifecycleState::Retired);
    let refused = mark(&founded, ObjectKind::Service, "departure_delay@1", &undo).await.unwrap_err();
    assert!(refused.to_string().contains("departure_delay@1 needs view airport_weather@1"), "{refused}");
    for (kind, name) in [
        (ObjectKind::View, "airport_weather@1"),
        (ObjectKind::View, "departure_context@1"),
        (ObjectKind::Service, "departure_delay@1"),
    ] {
        mark(&founded, kind, name, &undo).await.unwrap();
    }
    assert!(founded.registry.resolve_service("departure_delay@1").await.unwrap().mark.is_none());
}

/// A change is checked for the versions that it changes, and for no others of the name.
#[tokio::test]
async fn what_a_mark_leaves_as_it_is_keeps_nothing_from_being_marked() {
    let founded = with_two_versions().await;
    for (kind, name) in [
        (ObjectKind::Service, "departure_delay@1"),
        (ObjectKind::View, "departure_context@1"),
        (ObjectKind::View, "airport_weather@1"),
    ] {
        mark(&founded, kind, name, &retire()).await.unwrap();
    }
    let service = (ObjectKind::Service, "departure_delay");
    assert_eq!(mark(&founded, service.0, service.1, &deprecate("old")).await.unwrap(), ["departure_delay@2"]);
    // The first one stays retired, so it is nobody's concern that it could not come back.
    let undo = LifecycleChange::Undo(LifecycleState::Deprecated);
    assert_eq!(mark(&founded, service.0, service.1, &undo).await.unwrap(), ["departure_delay@2"]);
    let undo = LifecycleChange::Undo(LifecycleState::Retired);
    let refused = mark(&founded, service.0, service.1, &undo).await.unwrap_err();
    assert!(refused.to_string().contains("departure_delay@1 needs view airport_weather@1"), "{refused}");
}

/// What happens to a transform is noted under its name, however it was named.
#[tokio::test]
async fn a_transform_that_is_named_by_its_digest_has_its_history_under_its_name() {
    let mut founded = Company::found().await;
    let digest = founded.upload(&weather_transform()).await;
    mark(&founded, ObjectKind::Transform, &digest.to_string(), &deprecate("old")).await.unwrap();
    let described = founded.registry.describe(ObjectKind::Transform, "airport_weather").await.unwrap();
    let actions: Vec<&str> = described.history.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, [format!("version {digest} deprecated: old")]);
    let changes = founded.registry.definition_changes(0).await.unwrap();
    assert_eq!(changes[0].object_name, "airport_weather");
    let by_digest = founded.registry.describe(ObjectKind::Transform, &digest.to_string()).await.unwrap();
    assert_eq!(by_digest.history, described.history);
    let trail = founded.registry.trail(&TrailFilter { newest_first: true, limit: 1, ..TrailFilter::default() }).await;
    assert_eq!(trail.unwrap()[0].object, format!("transform airport_weather@{digest}"));
}

#[tokio::test]
async fn what_is_retired_is_not_served_not_named_and_its_number_stays_taken() {
    let mut founded = with_two_versions().await;
    let dataset = DatasetRecord {
        id: "d-1".into(),
        name: "training".into(),
        service: Some(("departure_delay".into(), 1)),
        rows: 3,
        content_digest: Digest::of(b"d-1"),
        output: "/sets/training.parquet".into(),
        report: json!({}),
        recipe: json!({}),
        columns: vec![DatasetColumn {
            name: "gusty".into(),
            view: ViewRef { name: "airport_weather".into(), version: 1 },
            feature: "gusty".into(),
            role: None,
        }],
        created_at_us: NOW_US,
    };
    founded.registry.record_dataset(&dataset).await.unwrap();
    let marked = founded.registry.mark(ObjectKind::Service, "departure_delay@1", &retire(), NOW_US).await.unwrap();
    let warning = "could not be rebuilt once its tables are deleted: training set training (d-1)";
    assert_eq!(marked.warnings, [warning]);
    mark(&founded, ObjectKind::View, "departure_context@1", &retire()).await.unwrap();
    mark(&founded, ObjectKind::View, "airport_weather@1", &retire()).await.unwrap();

    let asked = founded.registry.resolve_features(&["airport_weather@1:gusty".to_owned()], None).await.unwrap_err();
    assert!(matches!(&asked, RegistryError::Retired { name, .. } if name == "airport_weather@1"), "{asked}");
    let named = format!("{}\n[service.anew]\nfeatures = [\"airport_weather@1:gusty\"]\n", two_versions());
    let errors = founded.plan_errors(&company_with(&named)).await;
    assert!(
        errors.contains("view airport_weather@1 is retired; `eadem retire view airport_weather@1 --undo`"),
        "{errors}"
    );
    let back = founded.plan_errors(&company()).await;
    assert!(back.contains("view airport_weather: what it says is a version that is not served any more"), "{back}");
    assert!(plan_of(&founded, &company_with(&two_versions())).await.is_empty());

    // A version that is made now takes the next number.
    let mut weather = weather_transform();
    weather.doc = "Another component.".into();
    founded.upload(&weather).await;
    let third = founded.plan(&company_with(&two_versions())).await.unwrap();
    let change = third.report().changes.iter().find(|change| change.name == "airport_weather").unwrap();
    assert_eq!((change.version, change.version_before), (Some(3), Some(2)));

    // As a whole: nothing stands for the name any more, and nothing follows it.
    mark(&founded, ObjectKind::Service, "departure_delay", &retire()).await.unwrap();
    mark(&founded, ObjectKind::View, "departure_context", &retire()).await.unwrap();
    let marked = mark(&founded, ObjectKind::View, "airport_weather", &retire()).await.unwrap();
    assert_eq!(marked, ["airport_weather@2"], "the first was retired before");
    let bare = founded.registry.resolve_features(&["gusty".to_owned()], None).await.unwrap_err();
    assert!(bare.is_not_found(), "{bare}");
    let mistyped = founded.registry.resolve_features(&["gustyy".to_owned()], None).await.unwrap_err();
    assert!(!mistyped.to_string().contains("did you mean"), "it is retired: {mistyped}");
    let mistyped = founded.registry.resolve_features(&["last_delayy".to_owned()], None).await.unwrap_err();
    assert!(mistyped.to_string().contains("did you mean `last_delay`"), "{mistyped}");
    let mut only_ground = company();
    only_ground.views.clear();
    only_ground.services.clear();
    only_ground.sources.get_mut("observations").unwrap().source.filter = Some("visib > 1".into());
    let plan = founded.plan(&only_ground).await.unwrap();
    let changed: Vec<&str> = plan.report().changes.iter().map(|change| change.name.as_str()).collect();
    assert!(!changed.contains(&"airport_weather"), "what is retired follows nothing: {}", plan.report());
    let described = founded.registry.describe(ObjectKind::View, "airport_weather@2").await.unwrap();
    assert!(described.state.as_ref().is_some_and(|mark| mark.is_retired()));
    assert_eq!(described.versions.iter().filter(|version| version.state.is_some()).count(), 2);
}

#[tokio::test]
async fn a_description_says_what_depends_on_an_object_and_why_an_effect_was_accepted() {
    let founded = Company::found().await;
    founded.apply(&company()).await;
    let mut plan = founded.plan(&company_with(&two_versions())).await.unwrap();
    plan.accept_effect("the station was recalibrated", "view airport_weather: 9 of 10 rows change");
    founded.registry.apply(&plan, NOW_US + 7).await.unwrap();
    let view = founded.registry.describe(ObjectKind::View, "airport_weather@1").await.unwrap();
    assert_eq!(view.used_by, ["view departure_context@1", "service departure_delay@1"]);
    assert_eq!(view.history[0].accepted.as_deref(), Some("the station was recalibrated"));
    assert_eq!((view.history[1].accepted.as_deref(), view.history[0].at_us), (None, NOW_US + 7));
    let newest: Vec<(&str, bool)> =
        view.versions.iter().map(|version| (version.version.as_str(), version.is_newest)).collect();
    assert_eq!(newest, [("1", false), ("2", true)]);
    let source = founded.registry.describe(ObjectKind::Source, "observations").await.unwrap();
    assert_eq!(source.used_by, ["view airport_weather@1", "view airport_weather@2"]);
    let entity = founded.registry.describe(ObjectKind::Entity, "aircraft").await.unwrap();
    assert_eq!(entity.used_by, ["view aircraft_legs@1"]);
    let transform = founded.registry.describe(ObjectKind::Transform, "airport_weather").await.unwrap();
    assert_eq!(transform.used_by, ["view airport_weather@1", "view airport_weather@2"]);
    let feature = founded.registry.describe(ObjectKind::Feature, "airport_weather@1:visibility_km").await.unwrap();
    assert_eq!(feature.used_by, ["view departure_context@1", "service departure_delay@1"]);
    let unread = founded.registry.describe(ObjectKind::Feature, "gusty").await.unwrap();
    assert!(unread.used_by.is_empty() && unread.versions.len() == 2, "{unread:?}");
    for (kind, name) in [
        (ObjectKind::Feature, "gust"),
        (ObjectKind::View, "airport_wether"),
        (ObjectKind::Source, "x"),
        (ObjectKind::Entity, "x"),
        (ObjectKind::Transform, "x"),
        (ObjectKind::Service, "departure_delay@9"),
    ] {
        assert!(founded.registry.describe(kind, name).await.unwrap_err().is_not_found(), "{kind} {name}");
    }
}

//! What `plan` shows and `apply` does.

use eadem_registry::model::{
    ColumnType, Deployment, OutlierBound, Partition, Placement, SourceColumn, StopThreshold, ValidationPolicy, ViewRef,
};
use eadem_registry::{ChangeClass, Registry, RegistryError, SchemaChange, SchemaChangeKind, TrailFilter};
use eadem_values::{Constraint, DataType, ElementType, Field, Value};
use serde_json::json;

use crate::support::{
    Company, FEATURES, NOW_US, PROJECT, column, company, company_with, context_transform, legs_transform, parse,
    weather_transform,
};

/// The numbers of the versions of `aircraft_legs`.
async fn versions_of_legs(company: &Company) -> Vec<u32> {
    let views = company.registry.views().await.unwrap();
    views.into_iter().find(|view| view.newest.id.name == "aircraft_legs").unwrap().versions
}

#[tokio::test]
async fn a_first_plan_creates_everything() {
    let registry = Company::found().await;
    let plan = registry.plan(&company()).await.unwrap();
    insta::assert_snapshot!(plan.report());
}

#[tokio::test]
async fn applying_again_changes_nothing() {
    let registry = Company::found().await;
    let first = registry.apply(&company()).await;
    assert!(first.changed);
    let plan = registry.plan(&company()).await.unwrap();
    assert_eq!(
        plan.report().to_string(),
        "0 new, 0 changed, 8 unchanged, 0 breaking\nplanned against revision 1 (apply --revision 1 refuses any other)"
    );
    let second = registry.registry.apply(&plan, NOW_US).await.unwrap();
    assert_eq!((second.changed, second.definitions_revision), (false, first.definitions_revision));
}

#[tokio::test]
async fn meaning_makes_versions_and_followers_move() {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    let changed = company_with(&FEATURES.replace("ttl = \"2d\"", "ttl = \"3d\""));
    let plan = registry.plan(&changed).await.unwrap();
    insta::assert_snapshot!(plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let old = registry.registry.view("aircraft_legs", Some(1)).await.unwrap();
    let new = registry.registry.view("aircraft_legs", None).await.unwrap();
    assert_eq!(old.stored.as_ref().unwrap().ttl_us, Some(172_800_000_000));
    assert_eq!((new.id.version, new.stored.as_ref().unwrap().ttl_us), (2, Some(259_200_000_000)));
    assert_eq!(registry.registry.resolve_service("departure_delay@1").await.unwrap().version, Some(1));
    assert_eq!(registry.registry.resolve_service("departure_delay").await.unwrap().version, Some(2));

    let back = registry.plan(&company()).await.unwrap();
    insta::assert_snapshot!("back_to_an_earlier_version", back.report());
    registry.registry.apply(&back, NOW_US).await.unwrap();
    assert_eq!(registry.registry.view("aircraft_legs", None).await.unwrap().id.version, 1);
    assert_eq!(versions_of_legs(&registry).await, [1, 2]);
    assert_eq!(registry.registry.resolve_service("departure_delay").await.unwrap().version, Some(1));
}

#[tokio::test]
async fn followers_move_even_when_their_files_are_elsewhere() {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    let mut only_legs = company_with(&FEATURES.replace("ttl = \"2d\"", "ttl = \"3d\""));
    only_legs.entities.clear();
    only_legs.sources.clear();
    only_legs.services.clear();
    only_legs.views.retain(|name, _| name == "aircraft_legs");
    let plan = registry.plan(&only_legs).await.unwrap();
    insta::assert_snapshot!(plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let whole = registry.plan(&company_with(&FEATURES.replace("ttl = \"2d\"", "ttl = \"3d\""))).await.unwrap();
    assert!(whole.is_empty(), "the same state as applying all files: {}", whole.report());
}

#[tokio::test]
async fn followers_that_cannot_follow_are_left_as_they_are() {
    let mut registry = Company::found().await;
    registry.apply(&company()).await;
    let mut legs = legs_transform();
    legs.outputs = vec![Field::new("last_delay", DataType::Float64, true)];
    registry.upload(&legs).await;
    let mut only_legs = company();
    only_legs.services.clear();
    only_legs.views.retain(|name, _| name == "aircraft_legs");
    let plan = registry.plan(&only_legs).await.unwrap();
    insta::assert_snapshot!(plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let service = registry.registry.resolve_service("departure_delay").await.unwrap();
    let outputs: Vec<&str> = service.entries.iter().map(|entry| entry.output_name.as_str()).collect();
    let expected = ["last_delay", "origin_visibility_km", "dest_visibility", "turnaround_minutes"];
    assert_eq!(outputs, expected, "`*` is expanded again, the on-demand view keeps what it reads");
    let views: Vec<String> = service.views.keys().map(ToString::to_string).collect();
    assert_eq!(views, ["aircraft_legs@1", "aircraft_legs@2", "airport_weather@1", "departure_context@1"]);

    let whole = registry.plan_errors(&company()).await;
    insta::assert_snapshot!("a_feature_that_is_gone", whole);
}

#[tokio::test]
async fn what_reads_a_view_that_is_left_behind_is_applied() {
    let mut registry = Company::found().await;
    registry.apply(&company()).await;
    let mut legs = legs_transform();
    legs.outputs = vec![Field::new("last_delay", DataType::Float64, true)];
    registry.upload(&legs).await;
    let mut later = next_transform();
    later.name = "later".into();
    later.inputs = vec![Field::new("gap", DataType::Float64, true)];
    registry.upload(&later).await;
    let features = format!(
        "{}\n[view.later]\ntransform = \"transforms/later\"\n\
         bind.gap = \"departure_context.turnaround_minutes\"\n\
         [service.gaps]\nfeatures = [\"departure_context:turnaround_minutes\", \"later:x\"]\n",
        FEATURES
    );
    let mut written = company_with(&features);
    written.services.retain(|name, _| name == "gaps");
    written.views.retain(|name, _| name == "aircraft_legs" || name == "later");
    let plan = registry.plan(&written).await.unwrap();
    let left_behind = &plan.report().left_behind;
    assert!(left_behind.len() == 1 && left_behind[0].starts_with("view departure_context: "), "{left_behind:?}");
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let views = registry.registry.resolve_service("gaps").await.unwrap().views;
    let views: Vec<String> = views.keys().map(ToString::to_string).collect();
    assert_eq!(views, ["aircraft_legs@1", "airport_weather@1", "departure_context@1", "later@1"]);
}

#[tokio::test]
async fn pinned_names_stay() {
    let registry = Company::found().await;
    let pinned = FEATURES
        .replace("\"aircraft_legs.last_landed_at\"", "\"aircraft_legs@1.last_landed_at\"")
        .replace("\"aircraft_legs:*\"", "\"aircraft_legs@1:*\"");
    registry.apply(&company_with(&pinned)).await;
    let plan = registry.plan(&company_with(&pinned.replace("ttl = \"2d\"", "ttl = \"3d\""))).await.unwrap();
    insta::assert_snapshot!(plan.report());
}

#[tokio::test]
async fn deployment_makes_no_version() {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    let project = PROJECT.replace("data/flights/", "s3://flights/").replace("max_ahead = \"2h\"", "max_ahead = \"3h\"");
    let features = FEATURES
        .replace("ttl = \"2d\"", "ttl = \"2d\"\nonline_history = \"7d\"\ncache = \"5s\"\nvalidation = \"clamp\"")
        .replace("tags = [\"delay\", \"aircraft\"]", "tags = [\"delay\"]\ndoc = \"Legs.\"");
    let with_clamp = parse(&[("eadem.toml", &project), ("features/all.toml", &features)]).unwrap();
    registry.apply(&with_clamp).await;
    let features = features.replace("online_history = \"7d\"\n", "").replace("tags = [\"delay\"]\n", "");
    let mut hourly = parse(&[("eadem.toml", &project), ("features/all.toml", &features)]).unwrap();
    hourly.views.get_mut("aircraft_legs").unwrap().deployment.partition = Partition::Hour;
    let plan = registry.plan(&hourly).await.unwrap();
    insta::assert_snapshot!(plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let view = registry.registry.view("aircraft_legs", None).await.unwrap();
    assert_eq!(view.id.version, 2, "the policy made a version, the partitions did not");
    assert_eq!(view.stored.as_ref().unwrap().deployment.partition, Partition::Hour);
    assert_eq!(view.stored.as_ref().unwrap().deployment.cache_us, Some(5_000_000));
    assert_eq!(view.stored.as_ref().unwrap().source.origin.as_ref().unwrap().place.to_string(), "s3://flights/");
    assert_eq!(view.about.doc, "Legs.");
}

/// What rows are read as is meaning, where they lie is not, and types count for the views that use them.
#[tokio::test]
async fn how_rows_are_written_makes_versions_and_where_they_lie_does_not() {
    let registry = Company::found().await;
    let with = |origin: &str| {
        let project = PROJECT.replace("parquet = \"data/flights/\"", origin);
        assert_ne!(project, PROJECT);
        parse(&[("eadem.toml", &project), ("features/all.toml", FEATURES)]).unwrap()
    };
    let version = async || registry.registry.view("aircraft_legs", None).await.unwrap().id.version;
    for (origin, expected) in [
        ("parquet = \"elsewhere\"", 1),
        ("csv = \"p\"", 2),
        ("csv = { path = \"q\" }", 2),
        ("csv = { path = \"q\", null = \"NA\" }", 3),
        ("csv = { path = \"q\", null = \"NA\" }\ntypes = { arr_delay = \"float64\" }", 4),
        ("csv = { path = \"q\", null = \"NA\" }\ntypes = { arr_delay = \"float64\", other = \"int64\" }", 4),
        ("json = \"q\"\ntypes = { arr_delay = \"float64\" }", 5),
        ("delta = \"q\"", 6),
        ("postgres = { url_env = \"A\", query = \"select 1\" }", 7),
        ("postgres = { url_env = \"B\", query = \"select 1\", cursor = \"id\" }", 7),
        ("postgres = { url_env = \"B\", query = \"select 2\" }", 8),
    ] {
        registry.apply(&with(origin)).await;
        assert_eq!(version().await, expected, "{origin}");
        let source = registry.registry.source("landings").await.unwrap();
        assert_eq!(source, with(origin).sources["landings"].source, "{origin}");
    }
    // What the first version read as Parquet is a query now: it has nothing to read any more.
    let first = registry.registry.view("aircraft_legs", Some(1)).await.unwrap();
    assert_eq!(first.stored.as_ref().unwrap().source.origin, None);
}

#[tokio::test]
async fn bounds_are_typed_stored_and_part_of_the_version() {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    let with = |bounds: &str| company_with(&FEATURES.replace("ttl = \"2d\"", &format!("ttl = \"2d\"\n{bounds}")));
    let bounds = "bounds.last_delay = { min = -1e3, max = 5000, validation = \"clamp\" }\n\
                  bounds.last_landed_at = { min = 2000-01-01T00:00:00Z }";
    let plan = registry.plan(&with(bounds)).await.unwrap();
    insta::assert_snapshot!(plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let view = registry.registry.view("aircraft_legs", None).await.unwrap();
    assert_eq!(view.id.version, 2);
    let expected = OutlierBound {
        min: Some(Value::Float64(-1000.0)),
        max: Some(Value::Float64(5000.0)),
        validation: Some(ValidationPolicy::Clamp),
        ..OutlierBound::default()
    };
    assert_eq!(view.bounds["last_delay"], expected);
    assert_eq!(view.bounds["last_landed_at"].min, Some(Value::Timestamp(946_684_800_000_000)));
    let json = serde_json::to_value(view.as_ref()).unwrap();
    assert_eq!(
        (&json["bounds"]["last_delay"]["max"], &json["bounds"]["last_landed_at"]["max"]),
        (&5000.0.into(), &json!(null))
    );

    // The share of refused rows that stops a job decides no value.
    let stopping = format!("{bounds}\nstop_share = 0.05\nstop_rows_min = 1000");
    let plan = registry.plan(&with(&stopping)).await.unwrap();
    insta::assert_snapshot!("a_stop_threshold_makes_no_version", plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let view = registry.registry.view("aircraft_legs", None).await.unwrap();
    assert_eq!(view.id.version, 2);
    let stop = view.stored.as_ref().unwrap().deployment.stop;
    assert_eq!(stop, Some(StopThreshold { share_ppm: 50_000, rows_min: 1000 }));
    let again = registry.plan(&with(&stopping)).await.unwrap();
    assert!(again.report().to_string().starts_with("0 new, 0 changed, 8 unchanged"), "{}", again.report());
}

#[tokio::test]
async fn bounds_that_do_not_fit_their_feature_are_refused() {
    let registry = Company::found().await;
    let features = FEATURES
        .replace(
            "ttl = \"2d\"",
            "ttl = \"2d\"\nplacement = \"on_read\"\nvalidation = \"clamp\"\nbounds.last_dely = { min = 1 }\n\
             bounds.last_delay = { max = 1, validation = \"refuse_row\" }\n\
             bounds.last_landed_at = { nan = true }",
        )
        .replace("ttl = \"3h\"", "ttl = \"3h\"\nbounds.gusty = { min = 0 }\nbounds.visibility_km = { max = -1 }");
    insta::assert_snapshot!(registry.plan_errors(&company_with(&features)).await);
    for (bound, word) in [
        ("{ min = 2, max = 1 }", "`min` is greater than `max`"),
        ("{ max = inf }", "must be finite"),
        ("{ max = \"high\" }", "`max`"),
        ("{ nan = true, infinite = true }", "keep every value"),
    ] {
        let features = FEATURES.replace("ttl = \"2d\"", &format!("ttl = \"2d\"\nbounds.last_delay = {bound}"));
        let errors = registry.plan_errors(&company_with(&features)).await;
        assert!(errors.contains(word) && errors.contains("bounds of `last_delay`"), "{bound}: {errors}");
    }
}

#[tokio::test]
async fn columns_that_a_view_never_sees_make_no_version_of_it() {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    let unrelated = PROJECT.replace("unused = \"hour + 1\"", "other = \"hour + 2\"");
    let plan =
        registry.plan(&parse(&[("eadem.toml", &unrelated), ("features/all.toml", FEATURES)]).unwrap()).await.unwrap();
    insta::assert_snapshot!("unrelated_column", plan.report());
    let related = PROJECT.replace("arr_time is not null", "arr_time is not null and unused > 1");
    let plan =
        registry.plan(&parse(&[("eadem.toml", &related), ("features/all.toml", FEATURES)]).unwrap()).await.unwrap();
    insta::assert_snapshot!("related_column", plan.report());
}

#[tokio::test]
async fn breaking_changes_are_marked() {
    let mut registry = Company::found().await;
    registry.apply(&company()).await;
    let mut weather = weather_transform();
    weather.outputs[0].constraints = vec![Constraint::Unit("miles".into())];
    weather.outputs[1] = Field::new("gusty", DataType::Int64, true);
    weather.outputs.remove(2);
    registry.upload(&weather).await;
    let features = FEATURES
        .replace("defaults = { gusty = false, codes = [\"none\"] }", "")
        .replace("    \"airport_weather:visibility_km for dest as dest_visibility\",\n", "")
        .replace("\"request.scheduled_at\"", "\"request.departs_at\"");
    let plan = registry.plan(&company_with(&features)).await.unwrap();
    insta::assert_snapshot!(plan.report());
}

#[tokio::test]
async fn stale_plans_are_refused_with_what_changed() {
    let registry = Company::found().await;
    let slow = registry.plan(&company()).await.unwrap();
    registry.apply(&company_with(&FEATURES.replace("ttl = \"2d\"", "ttl = \"3d\""))).await;
    let error = registry.registry.apply(&slow, NOW_US).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Stale { planned: 0, current: 1, changes } if changes.len() == 8));
    insta::assert_snapshot!(error);
    assert_eq!(versions_of_legs(&registry).await, [1], "nothing of it was written");
}

#[tokio::test]
async fn a_registry_opens_again_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.db");
    let first = Registry::open(&file).await.unwrap();
    let component = b"component";
    first.put_transform(component, &weather_transform(), &Default::default(), NOW_US).await.unwrap();
    let revision = first.revision().await.unwrap();
    first.close().await;
    let second = Registry::open(&file).await.unwrap();
    assert_eq!(second.revision().await.unwrap(), revision);
    let records = second.transforms(Some("airport_weather")).await.unwrap();
    assert_eq!(*records[0].description, weather_transform());
    assert_eq!(second.component(&records[0].digest).await.unwrap(), component);
}

#[tokio::test]
async fn unknown_names_and_columns() {
    let registry = Company::found().await;
    let features = FEATURES
        .replace("entity = \"aircraft\"", "entity = \"aircrafts\"")
        .replace("source = \"observations\"", "source = \"observation\"")
        .replace("aircraft_legs:*", "aircraft_leg:*");
    insta::assert_snapshot!("unknown_names", registry.plan_errors(&company_with(&features)).await);
    let features = FEATURES
        .replace(
            "bind = { gust_limit = 25 }",
            "bind = { gust_limt = 25, gust_limit = \"wind_gusts\", visib = \"request.x\" }",
        )
        .replace("airport_weather.visibility_km for origin", "airport_weather.visibility for origin")
        .replace("gusty = false", "gustyy = false");
    insta::assert_snapshot!("unknown_columns", registry.plan_errors(&company_with(&features)).await);
    let project = PROJECT
        .replace("event_time = \"landed_at\"", "event_time = \"landed\"")
        .replace("event_id = \"airport\"", "event_id = \"visib\"");
    let definitions = parse(&[("eadem.toml", &project)]).unwrap();
    insta::assert_snapshot!("unknown_times", registry.plan_errors(&definitions).await);
}

#[tokio::test]
async fn wrong_types() {
    let mut registry = Company::found().await;
    let landings = registry.inspector.0.get_mut("landings").unwrap();
    landings[0] = column("tailnum", DataType::Int64);
    landings[1] =
        SourceColumn { name: "landed_at".into(), column_type: ColumnType::Other("Timestamp(Nanosecond, None)".into()) };
    landings[2] = column("arr_delay", DataType::Float32);
    let features = FEATURES
        .replace("bind = { gust_limit = 25 }", "bind = { gust_limit = { literal = 'fast' } }")
        .replace("gusty = false", "gusty = 1")
        .replace("bind.asked_at = \"request.timestamp\"", "bind.asked_at = \"airport_weather.gusty for origin\"")
        .replace("bind.max_gap_h = 12", "bind.max_gap_h = \"request.timestamp\"");
    insta::assert_snapshot!(registry.plan_errors(&company_with(&features)).await);
    let other_features = FEATURES
        .replace("bind.asked_at = \"request.timestamp\"", "bind.asked_at = \"airport_weather.gusty for origin\"")
        .replace("bind.max_gap_h = 12", "bind.max_gap_h = \"request.timestamp\"");
    registry.inspector = crate::support::inspector();
    insta::assert_snapshot!("wrong_types_on_demand", registry.plan_errors(&company_with(&other_features)).await);
}

#[tokio::test]
async fn unbound_inputs_of_on_demand_views_and_roles_without_entity() {
    let registry = Company::found().await;
    let features = FEATURES
        .replace("bind.max_gap_h = 12\n", "")
        .replace("bind.scheduled_at = \"request.scheduled_at\"", "bind.scheduled_at = \"scheduled_at\"");
    insta::assert_snapshot!("unbound", registry.plan_errors(&company_with(&features)).await);
    let features = FEATURES
        .replace("\"departure_context:turnaround_minutes\"", "\"departure_context:turnaround_minutes for origin\"");
    insta::assert_snapshot!("role_without_entity", registry.plan_errors(&company_with(&features)).await);
}

#[tokio::test]
async fn cycles() {
    let mut registry = Company::found().await;
    let mut context = context_transform();
    context.outputs.push(Field::new("again", DataType::Float64, true));
    registry.upload(&context).await;
    let features = FEATURES
        .replace(
            "[service.departure_delay]",
            "[view.second]\ntransform = \"transforms/departure_context\"
bind.scheduled_at = \"request.scheduled_at\"\nbind.asked_at = \"request.timestamp\"
bind.last_landed_at = \"aircraft_legs.last_landed_at\"\nbind.visibility = \"departure_context.turnaround_minutes\"
bind.max_gap_h = 12\n\n[service.departure_delay]",
        )
        .replace("airport_weather.visibility_km for origin", "second.turnaround_minutes");
    insta::assert_snapshot!(registry.plan_errors(&company_with(&features)).await);
}

/// A cycle through views that are only in the registry stands where the files close it, whatever the views are called.
#[tokio::test]
async fn cycles_through_the_registry_stand_where_the_files_close_them() {
    for (written, registered) in [
        ("a", ["b", "c"]),
        ("a", ["c", "b"]),
        ("b", ["a", "c"]),
        ("b", ["c", "a"]),
        ("c", ["a", "b"]),
        ("c", ["b", "a"]),
    ] {
        let mut registry = Company::found().await;
        registry.upload(&next_transform()).await;
        let [near, far] = registered;
        let definitions = |statements: &[(&str, &str)]| {
            let views = statements.iter().map(|(view, reads)| {
                format!("[view.{view}]\ntransform = 'transforms/next'\nbind = {{ a = '{reads}', b = '{reads}' }}\n")
            });
            parse(&[("features/loop.toml", &views.collect::<String>())]).unwrap()
        };
        let (near_x, far_x, written_x) = (format!("{near}.x"), format!("{far}.x"), format!("{written}.x"));
        registry.apply(&definitions(&[(written, "request.a"), (near, &written_x), (far, &near_x)])).await;
        let errors = registry.plan_errors(&definitions(&[(written, &far_x)])).await;
        let expected =
            format!("features/loop.toml:3: view {written}: reads itself: {written} → {far} → {near} → {written}");
        assert!(errors.contains(&expected), "{errors}\nlacks\n{expected}");
    }
}

#[tokio::test]
async fn names_that_collide() {
    let mut registry = Company::found().await;
    let features = FEATURES.replace(
        "    \"departure_context:turnaround_minutes\",",
        "    \"airport_weather:visibility_km for origin\",\n    \"airport_weather:gusty for dest as last_delay\",
    \"aircraft_legs:last_delay as tailnum\",\n    \"departure_context:turnaround_minutes as scheduled_at\",
    \"airport_weather:gusty for dest as event_time\",",
    );
    insta::assert_snapshot!("names_in_a_service", registry.plan_errors(&company_with(&features)).await);
    let features = FEATURES.replace("dest as dest_visibility", "dest as tailnum").replace(
        "\"departure_context:turnaround_minutes\"",
        "\"departure_context:turnaround_minutes as scheduled_at\"",
    );
    insta::assert_snapshot!("names_of_the_spine", registry.plan_errors(&company_with(&features)).await);
    let mut legs = legs_transform();
    legs.outputs = vec![
        Field::new("tailnum", DataType::Utf8, true),
        Field::new("_seq", DataType::Int64, true),
        Field::new("delay", DataType::Int64, true),
        Field::new("Delay", DataType::Int64, true),
        Field::new("known_at", DataType::Int64, true),
        Field::new("delay__status", DataType::Int64, true),
    ];
    registry.upload(&legs).await;
    let mut only_legs = company();
    only_legs.services.clear();
    only_legs.views.retain(|name, _| name == "aircraft_legs");
    insta::assert_snapshot!("names_of_outputs", registry.plan_errors(&only_legs).await);
}

#[tokio::test]
async fn placements_that_could_change_a_value_are_refused() {
    let registry = Company::found().await;
    let features = FEATURES
        .replace("ttl = \"2d\"", "ttl = \"2d\"\nplacement = \"on_read\"")
        .replace("ttl = \"3h\"", "ttl = \"3h\"\nplacement = \"on_read\"");
    insta::assert_snapshot!(registry.plan_errors(&company_with(&features)).await);
}

#[tokio::test]
async fn a_placement_is_asked_for_and_stays_until_it_is_switched() {
    let registry = Company::found().await;
    let clamped = FEATURES.replace("ttl = \"2d\"", "ttl = \"2d\"\nvalidation = \"clamp\"");
    let on_read = clamped.replace("ttl = \"2d\"", "ttl = \"2d\"\nplacement = \"on_read\"");
    let deployment = async |version| {
        let view = registry.registry.view("aircraft_legs", Some(version)).await.unwrap();
        view.stored.as_ref().unwrap().deployment.clone()
    };
    let placed = |placement, next_placement| Deployment { placement, next_placement, ..Deployment::default() };
    let (on, next) = (Placement::OnWrite, Some(Placement::OnRead));
    registry.apply(&company_with(&clamped)).await;
    let asked = registry.plan(&company_with(&on_read)).await.unwrap();
    insta::assert_snapshot!(asked.report());
    registry.registry.apply(&asked, NOW_US).await.unwrap();
    assert_eq!(deployment(1).await, placed(on, next), "it is read where it was");
    assert!(registry.plan(&company_with(&on_read)).await.unwrap().is_empty());
    // What is not in the files stays asked for.
    let mut without = company_with(&on_read);
    without.views.retain(|name, _| name != "aircraft_legs");
    without.services.clear();
    registry.apply(&without).await;
    assert_eq!(deployment(1).await, placed(on, next));
    // Called off.
    registry.apply(&company_with(&clamped)).await;
    assert_eq!(deployment(1).await, placed(on, None));
    let id = ViewRef { name: "aircraft_legs".into(), version: 1 };
    let refused = registry.registry.switch_placement(&id, Placement::OnRead, NOW_US).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Conflict(_)), "{refused}");

    // A plan that was made before it was switched does not switch it back.
    registry.apply(&company_with(&on_read)).await;
    let retained = on_read.replace("ttl = \"2d\"", "ttl = \"2d\"\nonline_history = \"1d\"");
    let made_before = registry.plan(&company_with(&retained)).await.unwrap();
    registry.registry.switch_placement(&id, Placement::OnRead, NOW_US + 7).await.unwrap();
    registry.registry.switch_placement(&id, Placement::OnRead, NOW_US + 8).await.unwrap();
    registry.registry.apply(&made_before, NOW_US + 9).await.unwrap();
    let switched = deployment(1).await;
    assert_eq!((switched.placement, switched.next_placement), (Placement::OnRead, None));
    assert_eq!((switched.first_placement(), switched.online_history_us), (Placement::OnWrite, Some(86_400_000_000)));
    assert_eq!(switched.placement_at(NOW_US + 6), Placement::OnWrite);
    assert_eq!(switched.placement_at(NOW_US + 7), Placement::OnRead);
    let entries = registry.registry.trail(&TrailFilter { limit: 100, ..TrailFilter::default() }).await.unwrap();
    assert!(entries.iter().any(|entry| entry.detail == "on_write → on_read"), "{entries:?}");

    // A new version may be placed as it likes.
    registry.apply(&company_with(&clamped.replace("ttl = \"2d\"", "ttl = \"3d\""))).await;
    assert_eq!(deployment(2).await, placed(Placement::OnWrite, None));
    // Back to the first one, which has to be switched again where another placement is asked for.
    let back = registry.plan(&company_with(&clamped)).await.unwrap();
    insta::assert_snapshot!("an_earlier_version_placed_otherwise", back.report());
}

#[tokio::test]
async fn constants_that_a_backfill_cannot_feed_are_refused() {
    let mut registry = Company::found().await;
    let mut legs = legs_transform();
    legs.inputs.extend([
        Field::new("carriers", DataType::List(ElementType::Utf8), false),
        Field::new("weights", DataType::Vector(2), false),
        Field::new("since", DataType::Timestamp, false),
    ]);
    registry.upload(&legs).await;
    let mut context = context_transform();
    context.inputs.push(Field::new("carriers", DataType::List(ElementType::Utf8), false));
    registry.upload(&context).await;
    let features = FEATURES
        .replace(
            "tags = [\"delay\", \"aircraft\"]",
            "bind.carriers = [\"UA\"]\nbind.weights = [0.5, 0.5]\nbind.since = 2013-01-01T00:00:00Z",
        )
        .replace("bind.max_gap_h = 12", "bind.max_gap_h = 12\nbind.carriers = [\"UA\"]");
    insta::assert_snapshot!(registry.plan_errors(&company_with(&features)).await);
}

#[tokio::test]
async fn transforms_and_sources_that_are_not_there() {
    let mut registry = Company::found().await;
    registry.transforms.clear();
    registry.inspector.0.remove("landings");
    insta::assert_snapshot!(registry.plan_errors(&company()).await);
}

#[tokio::test]
async fn transforms_by_digest_are_checked_by_name() {
    let registry = Company::found().await;
    let digest = registry.registry.transforms(Some("aircraft_legs")).await.unwrap()[0].digest;
    let by_digest = |name: &str| FEATURES.replace("\"transforms/aircraft_legs\"", &format!("\"{name}@{digest}\""));
    let errors = registry.plan_errors(&company_with(&by_digest("legs"))).await;
    assert!(errors.ends_with("calls itself `aircraft_legs`, not `legs`"), "{errors}");
    registry.apply(&company_with(&by_digest("aircraft_legs"))).await;
    assert!(registry.plan(&company()).await.unwrap().is_empty(), "folder and digest name the same component");
}

#[tokio::test]
async fn entity_keys_are_meaning() {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    let project =
        PROJECT.replace("keys = { tailnum = \"utf8\" }", "keys = { tailnum = \"utf8\", distance = \"int64\" }");
    let only_project = parse(&[("eadem.toml", &project)]).unwrap();
    let plan = registry.plan(&only_project).await.unwrap();
    insta::assert_snapshot!(plan.report());
    registry.registry.apply(&plan, NOW_US).await.unwrap();
    let keys: Vec<String> = registry
        .registry
        .resolve_service("departure_delay")
        .await
        .unwrap()
        .keys
        .into_iter()
        .map(|key| key.name)
        .collect();
    assert_eq!(keys, ["dest", "distance", "origin", "tailnum"]);
    let old = registry.registry.view("aircraft_legs", Some(1)).await.unwrap();
    assert_eq!(old.stored.as_ref().unwrap().entity.keys.len(), 1, "versions keep the keys they were made with");
}

#[tokio::test]
async fn chains_of_views_are_bounded() {
    let mut registry = Company::found().await;
    registry.upload(&next_transform()).await;
    let chain = |length: usize| {
        let mut text =
            "[view.v0]\ntransform = 'transforms/next'\nbind = { a = 'request.a', b = 'request.b' }\n".to_owned();
        for view in 1..length {
            let upstream = view - 1;
            text.push_str(&format!(
                "[view.v{view}]\ntransform = 'transforms/next'\nbind = {{ a = 'v{upstream}.x', b = 'v{upstream}.x' }}\n"
            ));
        }
        text.push_str(&format!("[service.s]\nfeatures = ['v{}:x']\n", length - 1));
        parse(&[("features/chain.toml", &text)]).unwrap()
    };
    registry.apply(&chain(32)).await;
    let service = registry.registry.resolve_service("s").await.unwrap();
    assert_eq!((service.views.len(), service.request_fields.len()), (32, 2));
    let errors = registry.plan_errors(&chain(400)).await;
    assert!(errors.contains("reads through too many views in a row"), "{errors}");
}

/// An on-demand view that others of its kind can read.
fn next_transform() -> eadem_values::Description {
    eadem_values::Description {
        name: "next".into(),
        doc: String::new(),
        owner: String::new(),
        total: true,
        inputs: vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Int64, true)],
        outputs: vec![Field::new("x", DataType::Int64, true)],
    }
}

/// `[view.<prefix><number>]` for each number, each reading the one before; the first of all reads the request.
fn links(name: impl Fn(usize) -> String, numbers: std::ops::Range<usize>) -> eadem_registry::definitions::Definitions {
    let link = |number: usize| {
        let reads = if number == 0 { "request.a".to_owned() } else { format!("{}.x", name(number - 1)) };
        let view = name(number);
        format!("[view.{view}]\ntransform = 'transforms/next'\nbind = {{ a = '{reads}', b = '{reads}' }}\n")
    };
    parse(&[("features/chain.toml", &numbers.map(link).collect::<String>())]).unwrap()
}

#[tokio::test]
async fn chains_are_bounded_in_whatever_order_their_views_are_met() {
    let mut registry = Company::found().await;
    registry.upload(&next_transform()).await;
    let padded = |number: usize| format!("v{number:03}");
    let backwards = |number: usize| format!("v{:03}", 999 - number);
    for name in [&padded as &dyn Fn(usize) -> String, &backwards] {
        let errors = registry.plan_errors(&links(name, 0..33)).await;
        assert!(errors.contains("reads through too many views in a row"), "{errors}");
        assert!(errors.starts_with("features/chain.toml:"), "{errors}");
        registry.plan(&links(name, 0..32)).await.unwrap();
    }
}

#[tokio::test]
async fn chains_are_bounded_across_applies() {
    let mut registry = Company::found().await;
    registry.upload(&next_transform()).await;
    let padded = |number: usize| format!("v{number:03}");
    registry.apply(&links(padded, 0..20)).await;
    registry.apply(&links(padded, 20..32)).await;
    let errors = registry.plan_errors(&links(padded, 32..34)).await;
    let place =
        "features/chain.toml:3: view v032: input `a`: reads through too many views in a row: 32 stand behind v031@1";
    assert!(errors.contains(place), "{errors}");
}

#[tokio::test]
async fn request_fields_that_change_break_callers() {
    let mut registry = Company::found().await;
    registry.upload(&next_transform()).await;
    let definitions = |a: &str| {
        let text = format!(
            "[view.v]\ntransform = 'transforms/next'\nbind = {{ a = 'request.{a}', b = 'request.b' }}\n\
             [service.s]\nfeatures = ['v:x']"
        );
        parse(&[("features/s.toml", &text)]).unwrap()
    };
    let breaks = async |registry: &Company, a: &str| {
        let plan = registry.plan(&definitions(a)).await.unwrap();
        let service = plan.report().changes.iter().find(|change| change.name == "s").unwrap().clone();
        let of_request = |change: &&SchemaChange| {
            change.kind == SchemaChangeKind::RequestChanged && change.class == ChangeClass::Breaking
        };
        service.schema.iter().filter(of_request).map(|change| change.text.clone()).collect::<Vec<_>>()
    };
    registry.apply(&definitions("a")).await;
    assert_eq!(breaks(&registry, "other").await, ["callers must not send request field `a` any more"]);
    let mut strict = next_transform();
    strict.inputs[0].nullable = false;
    registry.upload(&strict).await;
    assert_eq!(breaks(&registry, "a").await, ["request field `a` may not be left out or null any more"]);
}

#[tokio::test]
async fn a_request_field_has_one_type() {
    let mut registry = Company::found().await;
    let mut mixed = next_transform();
    mixed.inputs[1] = Field::new("b", DataType::Utf8, true);
    mixed.name = "mixed".into();
    registry.upload(&mixed).await;
    registry.upload(&next_transform()).await;
    let within_one_view =
        parse(&[("f.toml", "[view.v]\ntransform = 'transforms/mixed'\nbind.a = 'request.q'\nbind.b = 'request.q'")]);
    assert_eq!(
        registry.plan_errors(&within_one_view.unwrap()).await,
        "f.toml:4: view v: input `b` is utf8, but request field `q` is int64 for input `a`; bind one of them to \
         another field"
    );
    let through_another = parse(&[(
        "f.toml",
        "[view.first]\ntransform = 'transforms/next'\nbind = { a = 'request.p', b = 'request.q' }\n\
         [view.second]\ntransform = 'transforms/mixed'\nbind = { a = 'first.x', b = 'request.q' }",
    )]);
    let errors = registry.plan_errors(&through_another.unwrap()).await;
    assert!(errors.starts_with("f.toml:6: view second: request field `q` would have to be utf8 and int64"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_applies_lose_nothing() {
    const APPLIERS: u32 = 8;
    let mut registry = Company::found().await;
    registry.apply(&company()).await;
    registry.second_process().await;
    let registry = std::sync::Arc::new(registry);
    let mut appliers = tokio::task::JoinSet::new();
    for number in 0..APPLIERS {
        let registry = std::sync::Arc::clone(&registry);
        appliers.spawn(async move {
            let own_view = format!(
                "[view.own_{number}]\nentity = 'aircraft'\nsource = 'landings'\n\
                 transform = 'transforms/aircraft_legs'\nttl = '{}d'",
                number + 1
            );
            let definitions = parse(&[("features/own.toml", &own_view)]).unwrap();
            let through = if number % 2 == 0 { &registry.registry } else { registry.second.as_ref().unwrap() };
            loop {
                let plan = through.plan(&definitions, &registry.transforms, &registry.inspector).await.unwrap();
                match through.apply(&plan, NOW_US).await {
                    Ok(applied) => return applied.definitions_revision,
                    Err(RegistryError::Stale { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        });
    }
    let mut revisions = appliers.join_all().await;
    revisions.sort_unstable();
    assert_eq!(revisions, (2..2 + u64::from(APPLIERS)).collect::<Vec<_>>(), "one history, one step each");
    assert_eq!(registry.registry.views().await.unwrap().len(), 3 + APPLIERS as usize);
}

//! From names in requests to what must be read.

use eadem_registry::RegistryError;
use eadem_registry::model::{BoundTo, ResolvedService};
use eadem_values::{DataType, Digest, Value};

use crate::support::{Company, FEATURES, company, company_with};

fn names(features: &[&str]) -> Vec<String> {
    features.iter().map(|name| (*name).to_owned()).collect()
}

async fn founded() -> Company {
    let registry = Company::found().await;
    registry.apply(&company()).await;
    registry
}

fn keys(service: &ResolvedService) -> Vec<String> {
    service.keys.iter().map(|key| format!("{} = {}.{} {}", key.name, key.entity, key.join_key, key.key_type)).collect()
}

#[tokio::test]
async fn a_service_names_all_it_needs() {
    let registry = founded().await;
    let service = registry.registry.resolve_service("departure_delay").await.unwrap();
    assert_eq!((service.name.as_deref(), service.version), (Some("departure_delay"), Some(1)));
    let outputs: Vec<(String, DataType)> =
        service.entries.iter().map(|entry| (entry.output_name.clone(), entry.data_type)).collect();
    assert_eq!(
        outputs,
        [
            ("last_landed_at".to_owned(), DataType::Timestamp),
            ("last_delay".to_owned(), DataType::Float64),
            ("origin_visibility_km".to_owned(), DataType::Float64),
            ("dest_visibility".to_owned(), DataType::Float64),
            ("turnaround_minutes".to_owned(), DataType::Float64),
        ]
    );
    assert_eq!(
        keys(&service),
        ["dest = airport.airport utf8", "origin = airport.airport utf8", "tailnum = aircraft.tailnum utf8"]
    );
    assert_eq!(service.request_fields.len(), 1);
    assert_eq!(service.request_fields[0].name, "scheduled_at");
    assert_eq!(service.request_fields[0].data_type, DataType::Timestamp);
    assert!(!service.request_fields[0].nullable);
    assert_eq!(service.views.len(), 3);
}

#[tokio::test]
async fn upstreams_of_on_demand_views_come_along() {
    let registry = founded().await;
    let asked = names(&["turnaround_minutes"]);
    let resolved = registry.registry.resolve_features(&asked, None).await.unwrap();
    assert_eq!(resolved.entries[0].output_name, "turnaround_minutes");
    assert_eq!(keys(&resolved), ["origin = airport.airport utf8", "tailnum = aircraft.tailnum utf8"]);
    let views: Vec<String> = resolved.views.keys().map(ToString::to_string).collect();
    assert_eq!(views, ["aircraft_legs@1", "airport_weather@1", "departure_context@1"]);
    let context = &resolved.views[&resolved.entries[0].view];
    assert!(context.is_on_demand());
    assert_eq!(context.bindings[4].from, BoundTo::Literal(Value::Int64(12)));
    assert_eq!(context.bindings[1].from, BoundTo::RequestTimestamp);
}

#[tokio::test]
async fn literals_and_defaults_have_the_types_of_what_they_feed() {
    let registry = Company::found().await;
    let mut definitions = company();
    let observations = &mut definitions.sources.get_mut("observations").unwrap().source;
    observations.time_zone = Some("America/New_York".into());
    registry.apply(&definitions).await;
    let weather = registry.registry.view("airport_weather", None).await.unwrap();
    assert_eq!(weather.bindings[2].from, BoundTo::Literal(Value::Float64(25.0)));
    assert_eq!(weather.defaults["codes"], Value::ListUtf8(vec!["none".into()]));
    assert_eq!(weather.defaults["gusty"], Value::Boolean(false));
    let stored = weather.stored.as_ref().unwrap();
    assert_eq!((stored.ttl_us, stored.horizon_us), (Some(10_800_000_000), Some(86_400_000_000)));
    assert_eq!(stored.source.time_zone.as_deref(), Some("America/New_York"));
}

#[tokio::test]
async fn names_in_replies_are_the_names_as_asked() {
    let registry = founded().await;
    let asked = names(&["airport_weather@1:gusty", "visibility_km", "airport_weather:codes"]);
    let resolved = registry.registry.resolve_features(&asked, Some("airport")).await.unwrap();
    let outputs: Vec<&str> = resolved.entries.iter().map(|entry| entry.output_name.as_str()).collect();
    assert_eq!(outputs, ["airport_weather@1:gusty", "visibility_km", "airport_weather:codes"]);
    assert_eq!(keys(&resolved), ["airport = airport.airport utf8"]);
}

#[tokio::test]
async fn unknown_names_are_told_from_malformed_ones() {
    let registry = founded().await;
    let registry = &registry.registry;
    let mut messages = Vec::new();
    for (features, entity) in [
        (&["visibilty_km"][..], None),
        (&["airport_weather:visibilty"], None),
        (&["airport_wether:gusty"], None),
        (&["airport_weather@7:gusty"], None),
        (&["gusty"], Some("airprot")),
        (&["last_delay"], Some("airport")),
        (&["a b"], None),
        (&["airport_weather:gusty:"], None),
        (&["Airport-Weather:gusty"], None),
    ] {
        let error = registry.resolve_features(&names(features), entity).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        messages.push(error.to_string());
    }
    for service in ["departure_dealy", "departure_delay@3", "Departure_Delay"] {
        let error = registry.resolve_service(service).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        messages.push(error.to_string());
    }
    for (features, entity) in
        [(&[][..], None), (&["gusty", "gusty"], None), (&["aircraft_legs:last_delay"], Some("airport"))]
    {
        let error = registry.resolve_features(&names(features), entity).await.unwrap_err();
        assert!(error.is_callers_fault() && !error.is_not_found(), "{error}");
        messages.push(error.to_string());
    }
    for version in ["x", "", "0", "+1", "1@2", "4294967296"] {
        let feature = registry.resolve_features(&[format!("airport_weather@{version}:gusty")], None).await.unwrap_err();
        let service = registry.resolve_service(&format!("departure_delay@{version}")).await.unwrap_err();
        for error in [feature, service] {
            assert!(matches!(error, RegistryError::MalformedVersion(_)), "{version}: {error}");
            messages.push(error.to_string());
        }
    }
    insta::assert_snapshot!(messages.join("\n"));
}

#[tokio::test]
async fn a_service_version_has_the_digest_of_its_text() {
    let registry = founded().await;
    let service = registry.registry.resolve_service("departure_delay@1").await.unwrap();
    let mut text = "eadem service version 1\nservice \"departure_delay\"\n".to_owned();
    for entry in &service.entries {
        let digest = service.views[&entry.view].digest;
        let role = entry.role.as_ref().map(|role| format!(" for \"{role}\"")).unwrap_or_default();
        text.push_str(&format!("entry \"{}\" {digest} \"{}\"{role}\n", entry.output_name, entry.feature));
    }
    assert_eq!(service.digest, Some(Digest::of(text.as_bytes())));
    assert_eq!(registry.registry.resolve_features(&names(&["gusty"]), None).await.unwrap().digest, None);
}

#[tokio::test]
async fn bare_names_must_be_unambiguous() {
    let registry = Company::found().await;
    let second = FEATURES.replace(
        "[service.departure_delay]",
        "[view.weather_too]\nentity = \"airport\"\nsource = \"observations\"
transform = \"transforms/airport_weather\"\nbind = { gust_limit = 30 }\n\n[service.departure_delay]",
    );
    registry.apply(&company_with(&second)).await;
    let error = registry.registry.resolve_features(&names(&["gusty"]), None).await.unwrap_err();
    assert!(matches!(error, RegistryError::Ambiguous { .. }));
    assert_eq!(
        error.to_string(),
        "feature `gusty` is ambiguous: write one of airport_weather:gusty, weather_too:gusty"
    );
    assert!(registry.registry.resolve_features(&names(&["weather_too:gusty"]), None).await.is_ok());
}

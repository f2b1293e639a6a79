//! Full-text search over what is defined.

use eadem_registry::{
    LifecycleChange, LifecycleState, ObjectKind, RegistryError, Search, SearchHitState, SearchResult,
};
use eadem_values::Description;

use crate::support::{Company, FEATURES, NOW_US, company, company_with, context_transform, weather_transform};

async fn search(company: &Company, text: &str, kinds: &[&str], limit: usize) -> SearchResult {
    let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    company.registry.search(&Search { text, kinds: &kinds, limit }).await.unwrap()
}

async fn found(company: &Company, text: &str) -> Vec<String> {
    let result = search(company, text, &[], 20).await;
    assert!(!result.is_cut);
    result.hits.into_iter().map(|hit| format!("{} {}", hit.kind, hit.name)).collect()
}

#[tokio::test]
async fn every_word_must_occur_and_names_come_first() {
    let registry = Company::found().await;
    assert_eq!(found(&registry, "weather").await, ["transform airport_weather"], "uploads are found before any apply");
    registry.apply(&company()).await;
    let weather = found(&registry, "weather").await;
    assert_eq!(weather.first().map(String::as_str), Some("view airport_weather"), "{weather:?}");
    assert!(weather.contains(&"feature airport_weather:visibility_km".to_owned()), "{weather:?}");
    assert_eq!(found(&registry, "VISIB weather").await, ["feature airport_weather:visibility_km"], "beginnings count");
    assert_eq!(
        found(&registry, "station visibility").await,
        ["feature airport_weather:visibility_km"],
        "its documentation"
    );
    assert_eq!(found(&registry, "isibility").await, [""; 0], "but not other parts of words");
    assert_eq!(found(&registry, "weather nonsense").await, [""; 0]);
    assert_eq!(found(&registry, "owner:weather").await, [""; 0], "it is in no owner's name");
    let owned = ["transform aircraft_legs", "transform airport_weather"];
    assert_eq!(found(&registry, "owner:ops").await, owned);
    assert_eq!(found(&registry, "owner:ops weather").await, owned[1..], "with a word that stands elsewhere");
    assert_eq!(found(&registry, "tag:weather").await, [""; 0], "it is no tag");
    let tagged = ["view aircraft_legs", "feature aircraft_legs:last_delay", "feature aircraft_legs:last_landed_at"];
    assert_eq!(found(&registry, "tag:delay").await, tagged);
    assert_eq!(found(&registry, "tag:delay tag:aircraft landed").await, tagged[2..]);
    let only_services = search(&registry, "departure", &["service"], 20).await;
    assert!(only_services.hits.iter().all(|hit| hit.kind == "service"), "{only_services:?}");
    assert_eq!(only_services.hits.len(), 1);
    let one = search(&registry, "airport", &[], 1).await;
    assert_eq!((one.hits.len(), one.is_cut), (1, true));
}

#[tokio::test]
async fn what_is_no_longer_so_is_not_found() {
    let mut registry = Company::found().await;
    registry.apply(&company()).await;
    assert_eq!(found(&registry, "gusty").await, ["feature airport_weather:gusty"]);
    let mut renamed = weather_transform();
    renamed.outputs[1].name = "windy".into();
    renamed.outputs[0].doc = "Kilometres.".into();
    registry.upload(&renamed).await;
    registry.apply(&company_with(&FEATURES.replace("gusty = false, ", ""))).await;
    assert_eq!(found(&registry, "gusty").await, [""; 0]);
    assert_eq!(found(&registry, "windy").await, ["feature airport_weather:windy"]);
    assert_eq!(found(&registry, "station visibility").await, [""; 0]);
    let again = registry.another_process().await;
    let hits = again.search(&Search { text: "windy", kinds: &[], limit: 5 }).await.unwrap().hits;
    assert_eq!(hits.len(), 1);
}

/// What is on its way out is found, and says so.
#[tokio::test]
async fn a_hit_says_whether_it_is_on_its_way_out() {
    let mut registry = Company::found().await;
    registry.apply(&company()).await;
    let states = async |registry: &Company, text: &str| -> Vec<(String, SearchHitState)> {
        let hits = search(registry, text, &[], 20).await.hits.into_iter();
        hits.map(|hit| (format!("{} {}", hit.kind, hit.name), hit.state)).collect()
    };
    let all_are = |found: &[(String, SearchHitState)], state: SearchHitState| {
        !found.is_empty() && found.iter().all(|(_, found)| *found == state)
    };
    let found = states(&registry, "departure").await;
    assert!(all_are(&found, SearchHitState::Live), "{found:?}");
    let retired = LifecycleChange::Mark(LifecycleState::Retired, String::new());
    let deprecated = LifecycleChange::Mark(LifecycleState::Deprecated, String::new());
    registry.registry.mark(ObjectKind::Service, "departure_delay", &retired, NOW_US).await.unwrap();
    registry.registry.mark(ObjectKind::View, "departure_context", &deprecated, NOW_US).await.unwrap();
    registry.registry.mark(ObjectKind::Transform, "departure_context", &deprecated, NOW_US).await.unwrap();
    let found = states(&registry, "departure").await;
    let expected = [
        ("service departure_delay", SearchHitState::Retired),
        ("view departure_context", SearchHitState::Deprecated),
        ("feature departure_context:turnaround_minutes", SearchHitState::Deprecated),
        ("transform departure_context", SearchHitState::Deprecated),
    ];
    assert_eq!(found, expected.map(|(name, state)| (name.to_owned(), state)));
    // A newer upload is not deprecated, and the name stands for that one.
    let newer = Description { doc: "Newer.".into(), ..context_transform() };
    registry.upload(&newer).await;
    assert_eq!(states(&registry, "departure").await[3].1, SearchHitState::Live);
}

#[tokio::test]
async fn a_search_that_cannot_be_understood_says_why() {
    let company = Company::found().await;
    let kinds = ["vieuw".to_owned()];
    for (search, expected) in [
        (Search { text: " -- ", kinds: &[], limit: 1 }, "a search needs a word"),
        (Search { text: &"a ".repeat(17), kinds: &[], limit: 1 }, "takes 16 words, not 17"),
        (Search { text: "a", kinds: &kinds, limit: 1 }, "nothing of the kind `vieuw`"),
        (Search { text: "a", kinds: &[], limit: 0 }, "gives 1 to 1000 objects"),
    ] {
        let error = company.registry.search(&search).await.unwrap_err();
        assert!(matches!(error, RegistryError::Invalid(_)) && error.to_string().contains(expected), "{error}");
    }
}

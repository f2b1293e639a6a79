//! Full-text search over what is defined.

use eadem_registry::{RegistryError, Search, SearchResult};

use crate::support::{Company, FEATURES, company, company_with, weather_transform};

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

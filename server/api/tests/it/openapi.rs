//! The interface is written down: a change of it is a change of this file.

use std::path::Path;

#[test]
fn the_document_is_the_golden_one() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let current = format!("{}\n", serde_json::to_string_pretty(&eadem_api::openapi()).unwrap());
    if std::env::var_os("EADEM_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &current).unwrap();
    }
    let written = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(written == current, "openapi.json is not the current interface; EADEM_WRITE_GOLDEN=1 writes it");
}

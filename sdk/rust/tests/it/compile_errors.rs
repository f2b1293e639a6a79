use std::process::Command;

/// Each file in `tests/ui` must fail to compile with exactly the message beside it. After a deliberate change run with
/// `TRYBUILD=overwrite`, and read the difference as an author would.
#[test]
fn mistakes_are_explained_where_they_are_made() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    // The words around the SDK's own in these are the compiler's, and change with it.
    if compiler_is("1.95.") {
        cases.compile_fail("tests/ui/compiler/*.rs");
    }
}

fn compiler_is(release: &str) -> bool {
    let version = Command::new("rustc").arg("-V").output().expect("rustc runs");
    String::from_utf8_lossy(&version.stdout).starts_with(&format!("rustc {release}"))
}

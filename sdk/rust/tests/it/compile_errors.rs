/// Each file in `tests/ui` must fail to compile with exactly the message beside it. After a deliberate change run with
/// `TRYBUILD=overwrite`, and read the difference as an author would.
#[test]
fn mistakes_are_explained_where_they_are_made() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

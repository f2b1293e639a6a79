use eadem::contract::{Constraint, DataType, ElementType, Field, LengthRange, Literal};
use eadem::prelude::*;
use eadem::{Transform, describe};

const SPEED_MAX: f64 = 1_200.0;

#[derive(Input)]
struct Leg<'a> {
    /// Where from.
    origin: &'a str,
    r#type: Option<String>,
    #[field(rename = "dest")]
    destination: Option<&'a str>,
    #[allow(dead_code)]
    seen_at: Timestamp,
}

#[derive(Output)]
struct Summary {
    /// Speed in the air,
    /// averaged over the leg.
    ///
    /// Null on the ground.
    #[field(min = 0, max = SPEED_MAX, unit = "km/h")]
    speed: Option<f64>,
    #[field(min = -5, max = 5)]
    steps: i64,
    #[field(min = 0.1)]
    share: f32,
    #[field(allowed = ["a", "b"], length = 1)]
    kind: String,
    #[field(allowed = [true])]
    good: bool,
    #[field(length = 2.., not_null)]
    codes: Option<Vec<String>>,
    #[field(length = ..=9)]
    raw: Vec<u8>,
    shape: [f32; 8],
    numbers: Vec<f64>,
    counts: Vec<i64>,
    at: Timestamp,
}

/// What a leg was like.
///
/// More of it.
#[transform(owner = "ops", name = "leg_summary")]
fn summary(leg: Leg) -> Summary {
    Summary {
        speed: None,
        steps: leg.origin.len() as i64,
        share: 0.0,
        kind: leg.r#type.unwrap_or_default(),
        good: leg.destination.is_some(),
        codes: None,
        raw: Vec::new(),
        shape: [0.0; 8],
        numbers: Vec::new(),
        counts: Vec::new(),
        at: Timestamp::default(),
    }
}

/// Called like a word of the language.
#[transform(owner = "ops")]
fn r#match(leg: Leg) -> Summary {
    summary(leg)
}

#[transform(owner = "ops")]
fn may_drop(leg: Leg) -> Option<Summary> {
    Some(summary(leg))
}

#[transform(owner = "ops")]
fn may_fail(leg: Leg) -> Result<Summary, &'static str> {
    Ok(summary(leg))
}

#[transform(owner = "ops")]
fn may_do_both(leg: Leg) -> Result<Option<Summary>, String> {
    Ok(Some(summary(leg)))
}

fn output(name: &str) -> Field {
    let outputs = describe::<summary>().outputs;
    outputs.into_iter().find(|field| field.name == name).unwrap()
}

fn constraints(name: &str) -> String {
    format!("{:?}", output(name).constraints)
}

fn expected(constraints: &[Constraint]) -> String {
    format!("{constraints:?}")
}

#[test]
fn names_owners_and_docs_come_from_the_source() {
    let description = describe::<summary>();
    assert_eq!(description.name, "leg_summary");
    assert_eq!(description.owner, "ops");
    assert_eq!(description.doc, "What a leg was like.\n\nMore of it.");
    let names: Vec<&str> = description.inputs.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(names, ["origin", "type", "dest", "seen_at"]);
    assert_eq!(description.inputs[0].doc, "Where from.");
    assert_eq!(output("speed").doc, "Speed in the air,\naveraged over the leg.\n\nNull on the ground.");
    assert_eq!(describe::<may_drop>().name, "may_drop");
    assert_eq!(describe::<r#match>().name, "match");
}

#[test]
fn types_and_nullability_come_from_the_fields() {
    let description = describe::<summary>();
    let nullable: Vec<bool> = description.inputs.iter().map(|field| field.nullable).collect();
    assert_eq!(nullable, [false, true, true, false]);
    let types: Vec<String> = description.outputs.iter().map(|field| format!("{:?}", field.data_type)).collect();
    let expected = [
        DataType::Float64,
        DataType::Int64,
        DataType::Float32,
        DataType::Utf8,
        DataType::Boolean,
        DataType::List(ElementType::Utf8),
        DataType::Binary,
        DataType::Vector(8),
        DataType::List(ElementType::Float64),
        DataType::List(ElementType::Int64),
        DataType::Timestamp,
    ];
    assert_eq!(types, expected.map(|data_type| format!("{data_type:?}")));
}

#[test]
fn constraints_take_the_type_of_their_field() {
    assert_eq!(
        constraints("speed"),
        expected(&[
            Constraint::Min(Literal::Float64(0.0)),
            Constraint::Max(Literal::Float64(SPEED_MAX)),
            Constraint::Unit("km/h".to_owned()),
        ])
    );
    assert_eq!(
        constraints("steps"),
        expected(&[Constraint::Min(Literal::Int64(-5)), Constraint::Max(Literal::Int64(5))])
    );
    let as_f32 = f64::from(0.1_f32);
    assert_eq!(constraints("share"), expected(&[Constraint::Min(Literal::Float64(as_f32))]));
    assert_eq!(
        constraints("kind"),
        expected(&[
            Constraint::Allowed(vec![Literal::Utf8("a".to_owned()), Literal::Utf8("b".to_owned())]),
            Constraint::Length(LengthRange { min: 1, max: 1 }),
        ])
    );
    assert_eq!(constraints("good"), expected(&[Constraint::Allowed(vec![Literal::Boolean(true)])]));
    assert_eq!(
        constraints("codes"),
        expected(&[Constraint::Length(LengthRange { min: 2, max: u32::MAX }), Constraint::NotNull])
    );
    assert_eq!(constraints("raw"), expected(&[Constraint::Length(LengthRange { min: 0, max: 9 })]));
}

#[test]
fn the_return_type_says_whether_a_transform_is_total() {
    assert!(summary::describe().total);
    assert!(!may_drop::describe().total);
    assert!(!may_fail::describe().total);
    assert!(!may_do_both::describe().total);
}

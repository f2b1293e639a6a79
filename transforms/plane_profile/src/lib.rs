//! An aircraft from its registration. The data does not change; it has gaps.

use eadem::prelude::*;

/// One row of the registry of planes.
#[derive(Input)]
pub struct Registration<'a> {
    /// Year of manufacture.
    pub year: Option<i64>,
    /// For example `Fixed wing multi engine`.
    pub r#type: Option<&'a str>,
    /// As written in the registry: `AIRBUS INDUSTRIE`.
    pub manufacturer: Option<&'a str>,
    /// As written in the registry: `A320-214`.
    pub model: Option<&'a str>,
    /// Number of engines.
    pub engines: Option<i64>,
    /// Number of seats.
    pub seats: Option<i64>,
    /// Kind of engine: `Turbo-fan`.
    pub engine: Option<&'a str>,
}

/// What a model sees of an aircraft.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct PlaneProfile {
    /// Maker in lower case, without legal form: `airbus` for all of Airbus.
    #[field(length = 1..=40)]
    pub maker: Option<String>,
    /// The model's family, up to the first dash: `a320`.
    pub family: Option<String>,
    /// Year of manufacture; null where it is missing or cannot be.
    #[field(min = 1903, max = 2100)]
    pub built_year: Option<i64>,
    /// Number of engines.
    #[field(min = 0, max = 12)]
    pub engines: Option<i64>,
    /// Number of seats.
    #[field(min = 0, max = 1000)]
    pub seats: Option<i64>,
    /// Seats per engine.
    #[field(min = 0.0)]
    pub seats_per_engine: Option<f64>,
    /// Driven by jets.
    pub is_jet: bool,
    /// How large: `small` up to 20 seats, `regional` up to 100, `narrow` up to 220, else `wide`.
    #[field(allowed = ["small", "regional", "narrow", "wide"])]
    pub size_class: Option<&'static str>,
    /// How much of the registration was filled in, from 0 to 1.
    #[field(min = 0.0, max = 1.0)]
    pub completeness: f32,
}

/// The first powered flight was in 1903.
const YEAR_MIN: i64 = 1903;
const YEAR_MAX: i64 = 2100;
const COLUMNS: u8 = 7;

/// An aircraft as its registration describes it.
#[transform(owner = "fleet")]
pub fn plane_profile(plane: Registration) -> PlaneProfile {
    let engines = plane.engines.filter(|engines| (0..=12).contains(engines));
    let seats = plane.seats.filter(|seats| (0..=1000).contains(seats));
    let filled = [
        plane.year.is_some(),
        plane.r#type.is_some(),
        plane.manufacturer.is_some(),
        plane.model.is_some(),
        plane.engines.is_some(),
        plane.seats.is_some(),
        plane.engine.is_some(),
    ];
    let filled_count = filled.into_iter().map(u8::from).sum::<u8>();
    PlaneProfile {
        maker: plane.manufacturer.and_then(maker),
        family: plane.model.and_then(family),
        built_year: plane.year.filter(|year| (YEAR_MIN..=YEAR_MAX).contains(year)),
        engines,
        seats,
        seats_per_engine: seats_per_engine(seats, engines),
        is_jet: plane.engine.is_some_and(|engine| matches!(engine, "Turbo-fan" | "Turbo-jet")),
        size_class: seats.map(size_class),
        completeness: f32::from(filled_count) / f32::from(COLUMNS),
    }
}

/// The first word says who built it, except where two names stand for one maker.
fn maker(registered: &str) -> Option<String> {
    let first_word = registered.split_whitespace().next()?.to_ascii_lowercase();
    Some(match first_word.as_str() {
        "mcdonnell" => "mcdonnell douglas".to_owned(),
        _ => first_word,
    })
}

fn family(model: &str) -> Option<String> {
    let family = model.split('-').next().unwrap_or_default().trim();
    (!family.is_empty()).then(|| family.to_ascii_lowercase())
}

fn seats_per_engine(seats: Option<i64>, engines: Option<i64>) -> Option<f64> {
    match (seats, engines) {
        (Some(seats), Some(engines)) if engines > 0 => Some(seats as f64 / engines as f64),
        _ => None,
    }
}

fn size_class(seats: i64) -> &'static str {
    match seats {
        ..=20 => "small",
        21..=100 => "regional",
        101..=220 => "narrow",
        _ => "wide",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Registration = Registration {
        year: None,
        r#type: None,
        manufacturer: None,
        model: None,
        engines: None,
        seats: None,
        engine: None,
    };

    #[test]
    fn an_airliner() {
        let profile = plane_profile(Registration {
            year: Some(1998),
            r#type: Some("Fixed wing multi engine"),
            manufacturer: Some("AIRBUS INDUSTRIE"),
            model: Some("A320-214"),
            engines: Some(2),
            seats: Some(182),
            engine: Some("Turbo-fan"),
        });
        assert_eq!(profile.maker.as_deref(), Some("airbus"));
        assert_eq!(profile.family.as_deref(), Some("a320"));
        assert_eq!(profile.seats_per_engine, Some(91.0));
        assert_eq!(profile.size_class, Some("narrow"));
        assert!(profile.is_jet);
        assert_eq!(profile.completeness, 1.0);
    }

    #[test]
    fn a_registration_without_anything() {
        let profile = plane_profile(NOTHING);
        assert_eq!(profile.maker, None);
        assert_eq!(profile.seats_per_engine, None);
        assert!(!profile.is_jet);
        assert_eq!(profile.completeness, 0.0);
    }

    #[test]
    fn what_cannot_be_is_null() {
        let profile = plane_profile(Registration { year: Some(0), engines: Some(0), seats: Some(2), ..NOTHING });
        assert_eq!(profile.built_year, None);
        assert_eq!(profile.engines, Some(0));
        assert_eq!(profile.seats_per_engine, None);
        assert_eq!(profile.size_class, Some("small"));
    }

    #[test]
    fn blank_names_are_null() {
        let profile = plane_profile(Registration { manufacturer: Some("  "), model: Some("-X"), ..NOTHING });
        assert_eq!((profile.maker, profile.family), (None, None));
    }
}

//! The hourly report of an airport's weather station, in the units that a delay model needs.

use eadem::prelude::*;

/// One hourly report; American units.
#[derive(Input)]
pub struct Report {
    /// Temperature.
    #[field(unit = "°F")]
    pub temp: Option<f64>,
    /// Dew point.
    #[field(unit = "°F")]
    pub dewp: Option<f64>,
    /// Relative humidity.
    #[field(unit = "%")]
    pub humid: Option<f64>,
    /// Direction that the wind comes from.
    #[field(unit = "degrees")]
    pub wind_dir: Option<f64>,
    /// Mean speed of the wind.
    #[field(unit = "mph")]
    pub wind_speed: Option<f64>,
    /// Speed of gusts; reported only when there are any.
    #[field(unit = "mph")]
    pub wind_gust: Option<f64>,
    /// Precipitation of the hour.
    #[field(unit = "in")]
    pub precip: Option<f64>,
    /// Pressure at sea level.
    #[field(unit = "mbar")]
    pub pressure: Option<f64>,
    /// How far one sees.
    #[field(unit = "miles")]
    pub visib: Option<f64>,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct AirportWeather {
    /// Temperature; null where the station did not report.
    #[field(min = -90.0, max = 60.0, unit = "°C")]
    pub temperature_c: Option<f64>,
    /// Visibility in km; null where the station did not report.
    #[field(min = 0.0, unit = "km")]
    pub visibility_km: Option<f64>,
    /// Part of the wind that blows towards the north; negative towards the south.
    #[field(unit = "m/s")]
    pub wind_north_ms: Option<f64>,
    /// Part of the wind that blows towards the east; negative towards the west.
    #[field(unit = "m/s")]
    pub wind_east_ms: Option<f64>,
    /// Gusts above the limit for small aircraft.
    pub gusty: bool,
    /// Precipitation of the hour.
    #[field(min = 0.0, unit = "mm")]
    pub precipitation_mm: Option<f64>,
    /// Relative humidity from 0 to 1.
    #[field(min = 0.0, max = 1.0)]
    pub humidity: Option<f32>,
    /// Wet and near freezing: wings may need de-icing.
    pub icing: bool,
    /// The rules one may fly by, from visibility alone: `vfr`, `mvfr`, `ifr` or `lifr`.
    #[field(allowed = ["vfr", "mvfr", "ifr", "lifr"])]
    pub flight_rules: Option<&'static str>,
    /// Pressure below the standard atmosphere.
    pub low_pressure: Option<bool>,
}

const KM_PER_MILE: f64 = 1.609_344;
const MS_PER_MPH: f64 = 0.447_04;
const MM_PER_INCH: f64 = 25.4;
/// 25 knots.
const GUSTY_MPH: f64 = 28.77;
const STANDARD_PRESSURE_MBAR: f64 = 1013.25;

/// Weather at an airport, as the crew reads it.
#[transform(owner = "ops")]
pub fn airport_weather(report: Report) -> AirportWeather {
    let temperature_c = report.temp.map(celsius).filter(|celsius| (-90.0..=60.0).contains(celsius));
    let (wind_north_ms, wind_east_ms) = wind(report.wind_dir, report.wind_speed);
    AirportWeather {
        temperature_c,
        visibility_km: report.visib.map(|miles| miles * KM_PER_MILE).filter(|km| *km >= 0.0),
        wind_north_ms,
        wind_east_ms,
        gusty: report.wind_gust.is_some_and(|mph| mph > GUSTY_MPH),
        precipitation_mm: report.precip.map(|inches| inches * MM_PER_INCH).filter(|mm| *mm >= 0.0),
        humidity: report.humid.map(|percent| (percent / 100.0) as f32).filter(|part| (0.0..=1.0).contains(part)),
        icing: icing(temperature_c, report.dewp.map(celsius)),
        flight_rules: report.visib.and_then(flight_rules),
        low_pressure: report.pressure.map(|mbar| mbar < STANDARD_PRESSURE_MBAR),
    }
}

fn celsius(fahrenheit: f64) -> f64 {
    (fahrenheit - 32.0) / 1.8
}

/// The direction says where the wind comes from, so it blows the other way.
fn wind(direction_degrees: Option<f64>, speed_mph: Option<f64>) -> (Option<f64>, Option<f64>) {
    let (Some(degrees), Some(mph)) = (direction_degrees, speed_mph) else { return (None, None) };
    let radians = degrees.to_radians();
    let speed_ms = mph * MS_PER_MPH;
    (Some(-speed_ms * math::cos(radians)), Some(-speed_ms * math::sin(radians)))
}

/// Between −10 and +2 °C with the dew point close by, water settles as ice.
fn icing(temperature_c: Option<f64>, dew_point_c: Option<f64>) -> bool {
    match (temperature_c, dew_point_c) {
        (Some(temperature), Some(dew_point)) => (-10.0..=2.0).contains(&temperature) && temperature - dew_point < 3.0,
        _ => false,
    }
}

/// Null for what is no distance.
fn flight_rules(visibility_miles: f64) -> Option<&'static str> {
    match visibility_miles {
        miles if miles < 0.0 || miles.is_nan() => None,
        miles if miles < 1.0 => Some("lifr"),
        miles if miles < 3.0 => Some("ifr"),
        miles if miles <= 5.0 => Some("mvfr"),
        _ => Some("vfr"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Report = Report {
        temp: None,
        dewp: None,
        humid: None,
        wind_dir: None,
        wind_speed: None,
        wind_gust: None,
        precip: None,
        pressure: None,
        visib: None,
    };

    #[test]
    fn a_winter_morning() {
        let weather = airport_weather(Report {
            temp: Some(32.0),
            dewp: Some(30.2),
            humid: Some(92.0),
            wind_dir: Some(270.0),
            wind_speed: Some(10.0),
            wind_gust: Some(30.0),
            precip: Some(0.1),
            pressure: Some(1012.0),
            visib: Some(2.0),
        });
        assert_eq!(weather.temperature_c, Some(0.0));
        assert!(weather.icing && weather.gusty);
        assert_eq!(weather.flight_rules, Some("ifr"));
        assert_eq!(weather.low_pressure, Some(true));
        assert!(weather.wind_east_ms.is_some_and(|east| (east - 4.4704).abs() < 1e-12), "a west wind blows east");
        assert!(weather.wind_north_ms.is_some_and(|north| north.abs() < 1e-12));
        assert!(weather.precipitation_mm.is_some_and(|mm| (mm - 2.54).abs() < 1e-12));
    }

    #[test]
    fn a_silent_station_gives_nulls() {
        let weather = airport_weather(SILENT);
        assert_eq!(weather.visibility_km, None);
        assert_eq!(weather.wind_north_ms, None);
        assert!(!weather.gusty && !weather.icing);
    }

    #[test]
    fn a_wind_without_direction_is_null() {
        let weather = airport_weather(Report { wind_speed: Some(3.0), ..SILENT });
        assert_eq!((weather.wind_north_ms, weather.wind_east_ms), (None, None));
    }

    #[test]
    fn what_cannot_be_is_null() {
        let weather = airport_weather(Report { temp: Some(1e6), humid: Some(140.0), visib: Some(-1.0), ..SILENT });
        assert_eq!((weather.temperature_c, weather.humidity, weather.visibility_km), (None, None, None));
        assert_eq!(weather.flight_rules, None);
    }
}

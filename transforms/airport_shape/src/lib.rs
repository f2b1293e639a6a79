//! Where an airport lies, in forms that a model and a database can use.

use eadem::prelude::*;

/// One airport.
#[derive(Input)]
pub struct Airport<'a> {
    /// Latitude.
    #[field(unit = "degrees")]
    pub lat: f64,
    /// Longitude.
    #[field(unit = "degrees")]
    pub lon: f64,
    /// Height above sea level.
    #[field(unit = "ft")]
    pub alt: i64,
    /// Hours from UTC in winter.
    pub tz: i64,
    /// Daylight saving time: `A` as in the United States, `N` none, `U` unknown.
    pub dst: &'a str,
}

/// What a model sees of it.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct AirportShape {
    /// Close places have close vectors: the point on the unit sphere (three numbers), the height in thousands of metres, the
    /// winter time zone as a point on a 24-hour dial (two), and twice the latitude as a point on a circle (two).
    pub place: [f32; 8],
    /// The cell of the globe, about one metre wide: eight bytes whose first n bits name a larger cell around it.
    #[field(length = 8)]
    pub cell: Vec<u8>,
    /// Height above sea level.
    #[field(unit = "m")]
    pub altitude_m: f32,
    /// Clocks change in summer.
    pub saves_daylight: bool,
}

const METRES_PER_FOOT: f64 = 0.3048;

/// An airport's place on the globe.
#[transform(owner = "network-planning")]
pub fn airport_shape(airport: Airport) -> AirportShape {
    let latitude = airport.lat.to_radians();
    let longitude = airport.lon.to_radians();
    let zone = (airport.tz as f64 * 15.0).to_radians();
    let altitude_m = airport.alt as f64 * METRES_PER_FOOT;
    let place = [
        math::cos(latitude) * math::cos(longitude),
        math::cos(latitude) * math::sin(longitude),
        math::sin(latitude),
        altitude_m / 1_000.0,
        math::sin(zone),
        math::cos(zone),
        math::sin(2.0 * latitude),
        math::cos(2.0 * latitude),
    ];
    AirportShape {
        place: place.map(|number| number as f32),
        cell: cell(airport.lat, airport.lon).to_be_bytes().to_vec(),
        altitude_m: altitude_m as f32,
        saves_daylight: airport.dst == "A",
    }
}

/// Bits of longitude and latitude in turn, the most significant first.
fn cell(latitude_degrees: f64, longitude_degrees: f64) -> u64 {
    let across = fraction((longitude_degrees + 180.0) / 360.0);
    let up = fraction((latitude_degrees + 90.0) / 180.0);
    spread(across) << 1 | spread(up)
}

/// A number from 0 to 1 as 32 bits; what lies outside, and what is no number, goes to the nearest end.
fn fraction(part: f64) -> u32 {
    (part * 4_294_967_296.0) as u32
}

/// The bits of a number with a zero before each.
fn spread(number: u32) -> u64 {
    let mut bits = u64::from(number);
    bits = (bits | bits << 16) & 0x0000_ffff_0000_ffff;
    bits = (bits | bits << 8) & 0x00ff_00ff_00ff_00ff;
    bits = (bits | bits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    bits = (bits | bits << 2) & 0x3333_3333_3333_3333;
    (bits | bits << 1) & 0x5555_5555_5555_5555
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(lat: f64, lon: f64) -> AirportShape {
        airport_shape(Airport { lat, lon, alt: 18, tz: -5, dst: "A" })
    }

    #[test]
    fn the_first_three_numbers_are_a_point_on_the_sphere() {
        let [x, y, z, ..] = shape(40.64, -73.78).place;
        assert!((x * x + y * y + z * z - 1.0).abs() < 1e-6);
    }

    #[test]
    fn neighbours_share_the_beginning_of_their_cells() {
        let newark = shape(40.6925, -74.168_667).cell;
        let kennedy = shape(40.639_751, -73.778_925).cell;
        let seattle = shape(47.449, -122.309_306).cell;
        assert_eq!(newark.first_chunk::<2>(), kennedy.first_chunk::<2>());
        assert_ne!(newark.first_chunk::<2>(), seattle.first_chunk::<2>());
    }

    #[test]
    fn the_corners_of_the_map_are_cells_too() {
        assert_eq!(cell(-90.0, -180.0), 0);
        assert_eq!(cell(90.0, 180.0), u64::MAX);
        assert_eq!(cell(0.0, 0.0), 0b11 << 62);
        assert_eq!(cell(f64::NAN, f64::NAN), 0);
    }

    #[test]
    fn feet_become_metres() {
        assert!((shape(0.0, 0.0).altitude_m - 5.4864).abs() < 1e-4);
    }
}

//! The hubs around an airport, nearest first: where its passengers connect, and where its delays come from.

use eadem::prelude::*;

/// One airport.
#[derive(Input)]
pub struct Airport {
    /// Latitude.
    #[field(unit = "degrees")]
    pub lat: f64,
    /// Longitude.
    #[field(unit = "degrees")]
    pub lon: f64,
}

/// The hubs within reach, nearest first; the three lists belong together.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct NearestHubs {
    /// Their codes.
    #[field(length = ..=5)]
    pub hubs: Vec<&'static str>,
    /// How far away they are, along the globe.
    #[field(length = ..=5, unit = "km")]
    pub distances_km: Vec<f64>,
    /// The direction in which they lie, clockwise from north, 0 to 359.
    #[field(length = ..=5, unit = "degrees")]
    pub bearings: Vec<i64>,
}

struct Hub {
    code: &'static str,
    latitude_degrees: f64,
    longitude_degrees: f64,
}

const fn hub(code: &'static str, latitude_degrees: f64, longitude_degrees: f64) -> Hub {
    Hub { code, latitude_degrees, longitude_degrees }
}

/// The busiest airports of the United States in 2013.
const HUBS: [Hub; 10] = [
    hub("ATL", 33.636_719, -84.428_067),
    hub("ORD", 41.978_603, -87.904_842),
    hub("LAX", 33.942_536, -118.408_075),
    hub("DFW", 32.896_828, -97.037_997),
    hub("DEN", 39.861_656, -104.673_178),
    hub("JFK", 40.639_751, -73.778_925),
    hub("SFO", 37.618_972, -122.374_889),
    hub("CLT", 35.214, -80.943_139),
    hub("LAS", 36.080_056, -115.152_25),
    hub("PHX", 33.434_278, -112.011_583),
];
/// A hub farther away than that is no neighbour.
const REACH_KM: f64 = 1_500.0;
const HUBS_MAX: usize = 5;
const EARTH_RADIUS_KM: f64 = 6_371.008_8;

/// The hubs within 1,500 km of an airport.
#[transform(owner = "network-planning")]
pub fn nearest_hubs(airport: Airport) -> NearestHubs {
    let mut in_reach: Vec<(f64, &Hub)> = HUBS
        .iter()
        .map(|hub| (distance_km(&airport, hub), hub))
        .filter(|(distance_km, _)| *distance_km <= REACH_KM)
        .collect();
    in_reach.sort_by(|(a_km, a), (b_km, b)| a_km.total_cmp(b_km).then(a.code.cmp(b.code)));
    in_reach.truncate(HUBS_MAX);
    NearestHubs {
        hubs: in_reach.iter().map(|(_, hub)| hub.code).collect(),
        distances_km: in_reach.iter().map(|(distance_km, _)| *distance_km).collect(),
        bearings: in_reach.iter().map(|(_, hub)| bearing_degrees(&airport, hub)).collect(),
    }
}

/// By the haversine formula, on a globe.
fn distance_km(airport: &Airport, hub: &Hub) -> f64 {
    let latitude = airport.lat.to_radians();
    let hub_latitude = hub.latitude_degrees.to_radians();
    let half_up = math::sin((hub_latitude - latitude) / 2.0);
    let half_across = math::sin((hub.longitude_degrees - airport.lon).to_radians() / 2.0);
    let haversine = half_up * half_up + math::cos(latitude) * math::cos(hub_latitude) * half_across * half_across;
    2.0 * EARTH_RADIUS_KM * math::asin(math::sqrt(haversine.min(1.0)))
}

fn bearing_degrees(airport: &Airport, hub: &Hub) -> i64 {
    let latitude = airport.lat.to_radians();
    let hub_latitude = hub.latitude_degrees.to_radians();
    let across = (hub.longitude_degrees - airport.lon).to_radians();
    let east = math::sin(across) * math::cos(hub_latitude);
    let north = math::cos(latitude) * math::sin(hub_latitude)
        - math::sin(latitude) * math::cos(hub_latitude) * math::cos(across);
    (math::round(math::atan2(east, north).to_degrees()) as i64).rem_euclid(360)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newark_lies_beside_kennedy() {
        let around = nearest_hubs(Airport { lat: 40.6925, lon: -74.168_667 });
        assert_eq!(around.hubs, ["JFK", "CLT", "ORD", "ATL"]);
        let nearest_km = around.distances_km.first().copied().unwrap_or(f64::NAN);
        assert!((nearest_km - 33.4).abs() < 0.5, "{nearest_km}");
        assert_eq!(around.bearings.first(), Some(&100));
        assert!(around.distances_km.is_sorted());
    }

    #[test]
    fn the_lists_belong_together() {
        let around = nearest_hubs(Airport { lat: 36.0, lon: -115.0 });
        assert_eq!(around.hubs.len(), around.distances_km.len());
        assert_eq!(around.hubs.len(), around.bearings.len());
        assert_eq!(around.hubs.first(), Some(&"LAS"));
    }

    #[test]
    fn an_island_has_no_hub_around() {
        let around = nearest_hubs(Airport { lat: 21.3, lon: -157.9 });
        assert_eq!(around, NearestHubs { hubs: vec![], distances_km: vec![], bearings: vec![] });
    }

    #[test]
    fn no_place_has_no_hub_around() {
        assert!(nearest_hubs(Airport { lat: f64::NAN, lon: 0.0 }).hubs.is_empty());
    }
}

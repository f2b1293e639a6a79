//! Replace this by what your features are about.

use eadem::prelude::*;

/// What the function reads: one row. `Option` where a value may be missing.
#[derive(Input)]
pub struct Reading {
    /// When it was read.
    pub read_at: Timestamp,
    /// What was read; null where the sensor was silent.
    #[field(unit = "°C")]
    pub temperature: Option<f64>,
}

/// What the function computes: each field is a feature.
#[derive(Output, Debug, PartialEq)]
pub struct Features {
    /// Hour of the reading, UTC.
    #[field(min = 0, max = 23)]
    pub hour: i64,
    /// Below the freezing point of water.
    pub freezing: bool,
    /// Temperature in kelvin; null where the sensor was silent.
    #[field(min = 0.0, unit = "K")]
    pub kelvin: Option<f64>,
}

/// Replace this by what the transform is for; it becomes its description.
///
/// Return `Option<Features>` to be able to drop a row, `Result<Features, String>` to be able to fail one.
#[transform(owner = "my-team")]
pub fn {{name}}(reading: Reading) -> Features {
    Features {
        hour: reading.read_at.hour(),
        freezing: reading.temperature.is_some_and(|celsius| celsius < 0.0),
        kelvin: reading.temperature.map(|celsius| celsius + 273.15).filter(|kelvin| *kelvin >= 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_six(temperature: Option<f64>) -> Features {
        {{name}}(Reading { read_at: Timestamp::from_civil(2024, 1, 1, 6, 30, 0), temperature })
    }

    #[test]
    fn a_frosty_morning() {
        let features = at_six(Some(-3.15));
        assert_eq!(features, Features { hour: 6, freezing: true, kelvin: Some(270.0) });
    }

    #[test]
    fn a_silent_sensor() {
        assert_eq!(at_six(None), Features { hour: 6, freezing: false, kelvin: None });
    }
}

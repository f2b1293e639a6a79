//! Keeps, drops or fails rows by their value: multiples of five fail, other multiples of three are dropped.

use eadem::prelude::*;

/// One number.
#[derive(Input)]
pub struct Number<'a> {
    /// What decides.
    pub x: Option<i64>,
    /// Goes along.
    pub label: &'a str,
}

/// A number that was kept.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct Kept<'a> {
    /// Twice the number, wrapping; null for null.
    pub doubled: Option<i64>,
    /// As it came.
    pub label: &'a str,
}

/// Multiples of five fail, other multiples of three are dropped, the rest is doubled; a null stays.
#[transform(owner = "eadem")]
pub fn partial_filter<'a>(number: Number<'a>) -> Result<Option<Kept<'a>>, String> {
    let Some(x) = number.x else { return Ok(Some(Kept { doubled: None, label: number.label })) };
    if x % 5 == 0 {
        return Err([&x.to_string(), " is a multiple of five"].concat());
    }
    if x % 3 == 0 {
        return Ok(None);
    }
    Ok(Some(Kept { doubled: Some(x.wrapping_mul(2)), label: number.label }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(x: Option<i64>) -> Result<Option<Option<i64>>, String> {
        partial_filter(Number { x, label: "a" }).map(|kept| kept.map(|kept| kept.doubled))
    }

    #[test]
    fn each_fate() {
        assert_eq!(filter(Some(1)), Ok(Some(Some(2))));
        assert_eq!(filter(Some(3)), Ok(None));
        assert_eq!(filter(Some(15)), Err("15 is a multiple of five".to_owned()));
        assert_eq!(filter(Some(-9)), Ok(None));
        assert_eq!(filter(None), Ok(Some(None)));
        assert_eq!(filter(Some(i64::MAX)), Ok(Some(Some(-2))));
    }
}

use eadem::prelude::*;

#[derive(Output)]
struct UnknownSetting {
    #[field(minimum = 0)]
    delay: i64,
}

#[derive(Output)]
struct MinOfText {
    #[field(min = 0)]
    carrier: String,
}

#[derive(Output)]
struct FractionOfInteger {
    #[field(max = 0.5)]
    delay: i64,
}

#[derive(Output)]
struct TextOfNumber {
    #[field(allowed = ["a"])]
    delay: f64,
}

#[derive(Output)]
struct LengthOfNumber {
    #[field(length = 1..=3)]
    delay: f64,
}

#[derive(Output)]
struct HalfOpenLength {
    #[field(length = 1..3)]
    carrier: String,
}

#[derive(Output)]
struct NeverNullAnyway {
    #[field(not_null)]
    carrier: String,
}

#[derive(Output)]
struct BadName {
    #[field(rename = "arr delay")]
    delay: i64,
}

#[derive(Output)]
struct SameName {
    #[field(rename = "delay")]
    arr_delay: i64,
    delay: i64,
}

fn main() {}

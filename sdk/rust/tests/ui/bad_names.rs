use eadem::prelude::*;

#[derive(Input)]
struct Leg {
    delay: i64,
}

#[derive(Output)]
struct Late {
    late: bool,
}

#[derive(Input)]
struct UpperCase {
    arrDelay: i64,
}

#[derive(Input)]
struct OfTheStore {
    _delay: i64,
}

#[derive(Output)]
struct Reserved {
    event_time: Timestamp,
}

#[derive(Output)]
struct ReservedEnding {
    #[field(rename = "delay__status")]
    delay: i64,
}

#[derive(Output)]
struct TooLong {
    a_name_that_goes_on_and_on_until_no_table_of_the_store_would_take_it: i64,
}

#[transform(owner = "ops")]
fn Weather(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

#[transform(owner = "ops", name = "a_name_that_goes_on_and_on_until_no_table_of_the_store_would_take_it")]
fn too_long(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

fn main() {}

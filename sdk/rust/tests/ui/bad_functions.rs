use eadem::prelude::*;

#[derive(Input)]
struct Leg {
    delay: i64,
}

#[derive(Output)]
struct Late {
    late: bool,
}

#[transform]
fn without_owner(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

#[transform(owner = "ops", nme = "late")]
fn misspelled(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

#[transform(owner = "ops", name = "Late Flights")]
fn bad_name(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

#[transform(owner = "ops")]
fn two_parameters(leg: Leg, limit: i64) -> Late {
    Late { late: leg.delay > limit }
}

#[transform(owner = "ops")]
fn no_parameter() -> Late {
    Late { late: true }
}

#[transform(owner = "ops")]
fn by_reference(leg: &Leg) -> Late {
    Late { late: leg.delay > 15 }
}

#[transform(owner = "ops")]
fn returns_nothing(leg: Leg) {
    drop(leg);
}

#[transform(owner = "ops")]
fn inside_out(leg: Leg) -> Option<Result<Late, String>> {
    Some(Ok(Late { late: leg.delay > 15 }))
}

#[transform(owner = "ops")]
fn without_error_type(leg: Leg) -> std::io::Result<Late> {
    Ok(Late { late: leg.delay > 15 })
}

#[transform(owner = "ops")]
async fn waits(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

fn main() {}

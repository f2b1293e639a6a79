use eadem::prelude::*;

struct Leg {
    delay: i64,
}

#[derive(Output)]
struct Late {
    late: bool,
}

#[transform(owner = "ops")]
fn late(leg: Leg) -> Late {
    Late { late: leg.delay > 15 }
}

fn main() {}

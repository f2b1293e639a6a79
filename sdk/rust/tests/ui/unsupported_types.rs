use eadem::prelude::*;

#[derive(Input)]
struct Leg {
    distance: i32,
}

#[derive(Input)]
struct Plane {
    model: char,
}

#[derive(Input)]
struct Landing {
    at: std::time::SystemTime,
}

#[derive(Output)]
struct Shape {
    place: [f64; 3],
}

#[derive(Output)]
struct Lists {
    delays: Vec<Option<i64>>,
}

#[derive(Output)]
struct Lists32 {
    delays: Vec<f32>,
}

#[derive(Output)]
struct Maps {
    delays: HashMap<String, i64>,
}

#[derive(Output)]
struct Twice {
    delay: Option<Option<i64>>,
}

#[derive(Output)]
struct Pair {
    place: (f64, f64),
}

fn main() {}

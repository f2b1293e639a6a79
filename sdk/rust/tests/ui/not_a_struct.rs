use eadem::prelude::*;

#[derive(Input)]
enum Leg {
    Short,
    Long,
}

#[derive(Output)]
struct Delay(i64);

#[derive(Output)]
struct Nothing {}

#[derive(Input)]
struct Generic<T> {
    value: T,
}

#[derive(Input)]
struct TwoLifetimes<'a, 'b> {
    origin: &'a str,
    dest: &'b str,
}

fn main() {}

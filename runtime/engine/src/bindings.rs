//! The contract as Rust types, generated from `wit/`. Inputs borrow, so that Arrow's slices are copied once: into the
//! guest.

#![allow(missing_docs, unreachable_pub, clippy::all)]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "feature-transform",
    ownership: Borrowing { duplicate_if_necessary: true },
});

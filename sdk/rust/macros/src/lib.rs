//! The derive and attribute macros of the eadem SDK; `eadem` re-exports and documents them.

mod fields;
mod names;
mod transform;
mod types;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemFn, parse_macro_input};

/// Makes a struct with named fields the inputs of a transform, in the order of the fields.
///
/// A field's type says its type in the store, `Option<…>` that it may be null, its doc comment what it means.
/// `#[field(min = …, max = …, allowed = […], length = a..=b, unit = "…", rename = "…", not_null)]` adds constraints.
#[proc_macro_derive(Input, attributes(field))]
pub fn derive_input(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as DeriveInput);
    fields::input(&item).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct with named fields the outputs of a transform: its features. Attributes as for [`Input`].
#[proc_macro_derive(Output, attributes(field))]
pub fn derive_output(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as DeriveInput);
    fields::output(&item).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a function the transform of its crate: `#[transform(owner = "team")]`, with `name = "…"` where the function's
/// name is not the transform's.
///
/// The function takes one `Input` and returns an `Output` (a result for every row), `Option<Output>` (may drop a row),
/// `Result<Output, String>` (may fail one) or `Result<Option<Output>, String>`. Its doc comment becomes the description.
/// It stays an ordinary function. Beside it stands a type of the same name that implements `eadem::Transform`.
#[proc_macro_attribute]
pub fn transform(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    transform::expand(arguments.into(), &function).unwrap_or_else(|error| with_function(error, &function)).into()
}

/// The error, and the function as written, so that nothing that calls it complains too.
fn with_function(error: syn::Error, function: &ItemFn) -> proc_macro2::TokenStream {
    let error = error.into_compile_error();
    quote::quote!(#error #function)
}

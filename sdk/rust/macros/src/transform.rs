//! `#[transform]`.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{Error, FnArg, GenericParam, Ident, ItemFn, LitStr, Result, ReturnType, Type};

use crate::fields::doc_of;
use crate::names::fault_of_name;
use crate::types::{arguments_of, name_of, option_of};

/// What the function can do with a row, from its return type.
struct Returns<'a> {
    output: &'a Type,
    may_drop: bool,
    may_fail: bool,
}

pub(crate) fn expand(arguments: TokenStream, function: &ItemFn) -> Result<TokenStream> {
    let settings = Settings::read(arguments, function)?;
    check_signature(function)?;
    let input = input_type(function)?;
    let returns = returns(function)?;

    let Settings { name, owner } = settings;
    let ident = &function.sig.ident;
    let visibility = &function.vis;
    let doc = doc_of(&function.attrs);
    let total = !returns.may_drop && !returns.may_fail;
    let input = without_lifetimes(quote!(#input));
    let output = returns.output;
    let output = without_lifetimes(quote!(#output));
    let [rows, inputs, row] = ["rows", "inputs", "row"].map(local);
    let outcome = outcome(&returns, ident, &row);
    let about =
        format!("The transform `{name}`, as the store sees it: the function `{ident}`, row by row over columns.");

    Ok(quote! {
        #function

        #[doc = #about]
        #[allow(non_camel_case_types, clippy::empty_enums, clippy::empty_enum, unreachable_pub)]
        #visibility enum #ident {}

        #[automatically_derived]
        impl ::eadem::Transform for #ident {
            fn describe() -> ::eadem::contract::Description {
                ::eadem::contract::Description {
                    name: ::std::string::String::from(#name),
                    doc: ::std::string::String::from(#doc),
                    owner: ::std::string::String::from(#owner),
                    total: #total,
                    inputs: <#input as ::eadem::Input<'_>>::fields(),
                    outputs: <#output as ::eadem::Output>::fields(),
                }
            }

            fn apply(
                #rows: u32,
                #inputs: &[::eadem::contract::Column],
            ) -> ::core::result::Result<::eadem::contract::Output, ::std::string::String> {
                ::eadem::apply(#rows, #inputs, #[inline(always)] |#row| #outcome)
            }
        }

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            impl ::eadem::bindings::exports::eadem::transform::transform::Guest for #ident {
                fn describe() -> ::eadem::contract::Description {
                    ::eadem::__private::report_panics();
                    <Self as ::eadem::Transform>::describe()
                }

                fn apply(
                    rows: u32,
                    inputs: ::std::vec::Vec<::eadem::contract::Column>,
                ) -> ::core::result::Result<::eadem::contract::Output, ::std::string::String> {
                    ::eadem::__private::report_panics();
                    <Self as ::eadem::Transform>::apply(rows, &inputs)
                }
            }
            ::eadem::bindings::export_transform!(#ident with_types_in ::eadem::bindings);
        };
    })
}

/// A variable of the macro's own: it never hides a function of the author's that is called the same.
fn local(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// An expression of type `Outcome` for the row that stands in the variable `row`.
fn outcome(returns: &Returns<'_>, function: &Ident, row: &Ident) -> TokenStream {
    let [result, message] = ["result", "message"].map(local);
    let kept = quote!(::eadem::Outcome::Row);
    let drop = quote!(::eadem::Outcome::Drop);
    let fail = quote!(::eadem::Outcome::Fail(::core::convert::Into::<::std::string::String>::into(#message)));
    match (returns.may_fail, returns.may_drop) {
        (false, false) => quote!(#kept(#function(#row))),
        (false, true) => quote! {
            match #function(#row) {
                ::core::option::Option::Some(#result) => #kept(#result),
                ::core::option::Option::None => #drop,
            }
        },
        (true, false) => quote! {
            match #function(#row) {
                ::core::result::Result::Ok(#result) => #kept(#result),
                ::core::result::Result::Err(#message) => #fail,
            }
        },
        (true, true) => quote! {
            match #function(#row) {
                ::core::result::Result::Ok(::core::option::Option::Some(#result)) => #kept(#result),
                ::core::result::Result::Ok(::core::option::Option::None) => #drop,
                ::core::result::Result::Err(#message) => #fail,
            }
        },
    }
}

/// What stands in the attribute's brackets.
struct Settings {
    name: String,
    owner: String,
}

impl Settings {
    fn read(arguments: TokenStream, function: &ItemFn) -> Result<Self> {
        let mut name: Option<LitStr> = None;
        let mut owner: Option<LitStr> = None;
        let parser = syn::meta::parser(|entry| {
            if entry.path.is_ident("name") {
                name = Some(entry.value()?.parse()?);
                return Ok(());
            }
            if entry.path.is_ident("owner") {
                owner = Some(entry.value()?.parse()?);
                return Ok(());
            }
            Err(entry.error("#[transform] takes owner = \"…\" and name = \"…\""))
        });
        parser.parse2(arguments)?;

        let missing_owner = "who answers for this transform? Write #[transform(owner = \"your-team\")]";
        let owner = owner.ok_or_else(|| Error::new(function.sig.ident.span(), missing_owner))?;
        if owner.value().trim().is_empty() {
            return Err(Error::new(owner.span(), missing_owner));
        }
        let (name, place, way_out) = match name {
            Some(name) => (name.value(), name.span(), ""),
            None => {
                let ident = &function.sig.ident;
                (ident.unraw().to_string(), ident.span(), "; name = \"…\" gives it another one than its function's")
            }
        };
        if let Some(fault) = fault_of_name(&name) {
            return Err(Error::new(place, format!("the name of a transform {fault}{way_out}")));
        }
        Ok(Self { name, owner: owner.value() })
    }
}

fn check_signature(function: &ItemFn) -> Result<()> {
    let signature = &function.sig;
    if let Some(keyword) = &signature.asyncness {
        return Err(Error::new(
            keyword.span(),
            "a transform cannot wait: there is nothing to wait for inside a component",
        ));
    }
    if let Some(keyword) = &signature.unsafety {
        return Err(Error::new(keyword.span(), "a transform is safe to call with any row"));
    }
    for parameter in &signature.generics.params {
        if !matches!(parameter, GenericParam::Lifetime(_)) {
            return Err(Error::new(
                parameter.span(),
                "a transform works on one type of row: no type or const parameters",
            ));
        }
    }
    Ok(())
}

fn input_type(function: &ItemFn) -> Result<&Type> {
    let one_parameter = "a transform takes one parameter: a struct with #[derive(Input)] that holds all its inputs";
    let parameters: Vec<&FnArg> = function.sig.inputs.iter().collect();
    match parameters.as_slice() {
        [FnArg::Typed(parameter)] => match &*parameter.ty {
            Type::Reference(reference) => {
                Err(Error::new(reference.span(), "take the input by value: each row is the function's own"))
            }
            input => Ok(input),
        },
        [FnArg::Receiver(receiver)] => Err(Error::new(receiver.span(), one_parameter)),
        [] => Err(Error::new(function.sig.ident.span(), one_parameter)),
        [_, second, ..] => Err(Error::new(second.span(), one_parameter)),
    }
}

fn returns(function: &ItemFn) -> Result<Returns<'_>> {
    let ReturnType::Type(_, returned) = &function.sig.output else {
        let message = "a transform returns a struct with #[derive(Output)], or Option or Result of one";
        return Err(Error::new(function.sig.ident.span(), message));
    };
    if name_of(returned).as_deref() == Some("Result") {
        let [output, _error] = arguments_of(returned)[..] else {
            return Err(Error::new(
                returned.span(),
                "spell the error out: Result<T, String>; its text becomes the row's error",
            ));
        };
        return Ok(match option_of(output) {
            Some(output) => Returns { output, may_drop: true, may_fail: true },
            None => Returns { output, may_drop: false, may_fail: true },
        });
    }
    if let Some(inner) = option_of(returned) {
        if name_of(inner).as_deref() == Some("Result") {
            return Err(Error::new(
                returned.span(),
                "write Result<Option<T>, String>: a row fails, or is dropped, or has a result",
            ));
        }
        return Ok(Returns { output: inner, may_drop: true, may_fail: false });
    }
    Ok(Returns { output: returned, may_drop: false, may_fail: false })
}

/// The type with every named lifetime left to the compiler.
fn without_lifetimes(spelled: TokenStream) -> TokenStream {
    let mut after_apostrophe = false;
    let replaced = spelled.into_iter().map(|token| {
        let names_lifetime = std::mem::replace(
            &mut after_apostrophe,
            matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '\''),
        );
        match token {
            TokenTree::Ident(name) if names_lifetime && name != "static" => {
                TokenTree::Ident(format_ident!("_", span = name.span()))
            }
            TokenTree::Group(group) => {
                TokenTree::Group(Group::new(group.delimiter(), without_lifetimes(group.stream())))
            }
            other => other,
        }
    });
    replaced.collect()
}

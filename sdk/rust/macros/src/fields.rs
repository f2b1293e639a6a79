//! `#[derive(Input)]` and `#[derive(Output)]`.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprLit, ExprUnary, Fields, GenericParam, Ident, Lifetime, Lit, LitStr,
    RangeLimits, Result, Type, UnOp,
};

use crate::names::{fault_of_name, is_reserved_for_columns};
use crate::types::{Kind, kind_of};

/// A field of the author's struct.
struct Member {
    ident: Ident,
    field_type: Type,
    /// Its name in the store.
    name: String,
    doc: String,
    constraints: Vec<TokenStream>,
}

pub(crate) fn input(item: &DeriveInput) -> Result<TokenStream> {
    let members = members(item, "Input")?;
    let own_lifetime = lifetime_of(item, "Input")?;
    let lifetime = own_lifetime.clone().unwrap_or_else(|| Lifetime::new("'eadem", Span::call_site()));
    let struct_name = &item.ident;
    let struct_arguments = own_lifetime.map(|lifetime| quote!(<#lifetime>));

    let types: Vec<&Type> = members.iter().map(|member| &member.field_type).collect();
    let idents: Vec<&Ident> = members.iter().map(|member| &member.ident).collect();
    let names: Vec<&String> = members.iter().map(|member| &member.name).collect();
    let locals = locals(members.len());
    let descriptions = descriptions(&members, |field_type| quote!(<#field_type as ::eadem::InputValue<'_>>));
    let count = members.len();

    Ok(quote! {
        #[automatically_derived]
        impl<#lifetime> ::eadem::Input<#lifetime> for #struct_name #struct_arguments {
            type Views = (#(<#types as ::eadem::InputValue<#lifetime>>::View,)*);

            fn fields() -> ::std::vec::Vec<::eadem::contract::Field> {
                ::std::vec![#(#descriptions),*]
            }

            fn views(
                columns: &#lifetime [::eadem::contract::Column],
                rows: usize,
            ) -> ::core::result::Result<Self::Views, ::std::string::String> {
                let [#(#locals),*] = columns else {
                    return ::core::result::Result::Err(::eadem::__private::wrong_columns(#count, columns.len()));
                };
                ::core::result::Result::Ok((#(
                    match <#types as ::eadem::InputValue<#lifetime>>::view(#locals, rows) {
                        ::core::option::Option::Some(view) => view,
                        ::core::option::Option::None => {
                            return ::core::result::Result::Err(::eadem::__private::wrong_type(#names));
                        }
                    },
                )*))
            }

            #[inline(always)]
            fn read((#(#locals,)*): &Self::Views, row: usize) -> Self {
                Self { #(#idents: <#types as ::eadem::InputValue<#lifetime>>::get(#locals, row)),* }
            }
        }
    })
}

pub(crate) fn output(item: &DeriveInput) -> Result<TokenStream> {
    let members = members(item, "Output")?;
    let own_lifetime = lifetime_of(item, "Output")?;
    let struct_name = &item.ident;
    let arguments = own_lifetime.map(|lifetime| quote!(<#lifetime>));

    let types: Vec<&Type> = members.iter().map(|member| &member.field_type).collect();
    let idents: Vec<&Ident> = members.iter().map(|member| &member.ident).collect();
    let locals = locals(members.len());
    let descriptions = descriptions(&members, |field_type| quote!(<#field_type as ::eadem::OutputValue>));

    Ok(quote! {
        #[automatically_derived]
        impl #arguments ::eadem::Output for #struct_name #arguments {
            type Builders = (#(<#types as ::eadem::OutputValue>::Builder,)*);

            fn fields() -> ::std::vec::Vec<::eadem::contract::Field> {
                ::std::vec![#(#descriptions),*]
            }

            fn builders(rows: usize) -> Self::Builders {
                (#(<#types as ::eadem::OutputValue>::builder(rows),)*)
            }

            #[inline(always)]
            fn put(self, (#(#locals,)*): &mut Self::Builders, row: usize) {
                #(<#types as ::eadem::OutputValue>::put(self.#idents, #locals, row);)*
            }

            #[inline(always)]
            fn skip((#(#locals,)*): &mut Self::Builders, row: usize) {
                #(<#types as ::eadem::OutputValue>::skip(#locals, row);)*
            }

            fn finish((#(#locals,)*): Self::Builders) -> ::std::vec::Vec<::eadem::contract::Column> {
                ::std::vec![#(<#types as ::eadem::OutputValue>::finish(#locals)),*]
            }
        }
    })
}

/// A variable for each column. Their names are the macro's own, whatever else the author's module has.
fn locals(count: usize) -> Vec<Ident> {
    (0..count).map(|place| format_ident!("column_{place}", span = Span::mixed_site())).collect()
}

/// One `Field` expression for each member.
fn descriptions(members: &[Member], as_value: impl Fn(&Type) -> TokenStream) -> Vec<TokenStream> {
    let describe = |member: &Member| {
        let Member { name, doc, constraints, field_type, .. } = member;
        let value = as_value(field_type);
        quote! {
            ::eadem::__private::field(#name, #value::data_type(), #value::NULLABLE, #doc, ::std::vec![#(#constraints),*])
        }
    };
    members.iter().map(describe).collect()
}

fn members(item: &DeriveInput, derived: &str) -> Result<Vec<Member>> {
    let needs_struct = || {
        let message =
            format!("#[derive({derived})] needs a struct with named fields, each an input or output of its own");
        Error::new(item.ident.span(), message)
    };
    let Data::Struct(data) = &item.data else { return Err(needs_struct()) };
    let Fields::Named(fields) = &data.fields else { return Err(needs_struct()) };
    if fields.named.is_empty() {
        return Err(Error::new(item.ident.span(), format!("#[derive({derived})] needs at least one field")));
    }
    let mut members: Vec<Member> = Vec::new();
    for field in &fields.named {
        let Some(ident) = field.ident.clone() else { return Err(needs_struct()) };
        let kind = kind_of(&field.ty)?;
        let settings = Settings::read(&field.attrs, kind, &field.ty)?;
        let name = match &settings.rename {
            Some(rename) => checked_name(rename.value(), rename.span(), "")?,
            None => checked_name(ident.unraw().to_string(), ident.span(), RENAME_FIELD)?,
        };
        if members.iter().any(|other| other.name == name) {
            return Err(Error::new(ident.span(), format!("two fields are named `{name}`")));
        }
        let doc = doc_of(&field.attrs);
        members.push(Member { ident, field_type: field.ty.clone(), name, doc, constraints: settings.constraints });
    }
    Ok(members)
}

const RENAME_FIELD: &str = "; #[field(rename = \"…\")] gives the field another name in the store";

/// The name, if an upload will accept it; `way_out` ends the message otherwise.
fn checked_name(name: String, place: Span, way_out: &str) -> Result<String> {
    if let Some(fault) = fault_of_name(&name) {
        return Err(Error::new(place, format!("the name of a field {fault}{way_out}")));
    }
    if is_reserved_for_columns(&name) {
        return Err(Error::new(place, format!("`{name}` names a column of the store itself{way_out}")));
    }
    Ok(name)
}

/// The struct's lifetime, if it borrows.
fn lifetime_of(item: &DeriveInput, derived: &str) -> Result<Option<Lifetime>> {
    let mut lifetimes = Vec::new();
    for parameter in &item.generics.params {
        match parameter {
            GenericParam::Lifetime(lifetime) => lifetimes.push(lifetime.lifetime.clone()),
            other => {
                let message = format!("#[derive({derived})] needs plain types: no type or const parameters");
                return Err(Error::new(other.span(), message));
            }
        }
    }
    if let Some(second) = lifetimes.get(1) {
        return Err(Error::new(second.span(), "one lifetime is enough: all fields borrow from the same batch"));
    }
    Ok(lifetimes.into_iter().next())
}

/// Doc comments as Markdown, without the space that follows the slashes.
pub(crate) fn doc_of(attributes: &[Attribute]) -> String {
    let lines =
        attributes.iter().filter(|attribute| attribute.path().is_ident("doc")).filter_map(|attribute| match &attribute
            .meta
            .require_name_value()
            .ok()?
            .value
        {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value()),
            _ => None,
        });
    let lines: Vec<String> = lines.map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n").trim().to_owned()
}

/// What `#[field(…)]` says.
#[derive(Default)]
struct Settings {
    rename: Option<LitStr>,
    constraints: Vec<TokenStream>,
}

impl Settings {
    fn read(attributes: &[Attribute], kind: Kind, field_type: &Type) -> Result<Self> {
        let mut settings = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("field")) {
            attribute.parse_nested_meta(|entry| settings.read_entry(&entry, kind, field_type))?;
        }
        Ok(settings)
    }

    fn read_entry(&mut self, entry: &ParseNestedMeta<'_>, kind: Kind, field_type: &Type) -> Result<()> {
        let name = entry.path.get_ident().map(Ident::to_string).unwrap_or_default();
        let constraint = match name.as_str() {
            "rename" => {
                self.rename = Some(entry.value()?.parse()?);
                return Ok(());
            }
            "unit" => {
                let unit: LitStr = entry.value()?.parse()?;
                quote!(unit(#unit))
            }
            "min" | "max" => {
                let bound: Expr = entry.value()?.parse()?;
                let bound = bound_literal(&bound, kind, &name)?;
                let name = format_ident!("{name}");
                quote!(#name(#bound))
            }
            "allowed" => {
                let values: Expr = entry.value()?.parse()?;
                let Expr::Array(values) = &values else {
                    return Err(Error::new(values.span(), "write the allowed values in brackets: allowed = [1, 2]"));
                };
                let values = values.elems.iter().map(|value| literal(value, kind)).collect::<Result<Vec<_>>>()?;
                quote!(allowed(::std::vec![#(#values),*]))
            }
            "length" => {
                let range: Expr = entry.value()?.parse()?;
                if !matches!(kind, Kind::Text | Kind::Sequence | Kind::Unknown) {
                    return Err(Error::new(range.span(), "`length` is for text, bytes and lists"));
                }
                let (min, max) = length_range(&range)?;
                quote!(length(#min, #max))
            }
            "not_null" => {
                if crate::types::option_of(field_type).is_none() {
                    return Err(entry.error("`not_null` is for Option<…>; this field is never null anyway"));
                }
                quote!(not_null())
            }
            _ => {
                return Err(entry.error(format!(
                    "`{name}` is no setting of a field; there are min, max, allowed, length, unit, rename and not_null"
                )));
            }
        };
        self.constraints.push(quote!(::eadem::__private::constraint::#constraint));
        Ok(())
    }
}

fn bound_literal(bound: &Expr, kind: Kind, setting: &str) -> Result<TokenStream> {
    match kind {
        Kind::Integer | Kind::Float32 | Kind::Float64 | Kind::Unknown => literal(bound, kind),
        _ => Err(Error::new(bound.span(), format!("`{setting}` is for numbers and timestamps"))),
    }
}

/// A constant of the field's type. Names of constants are left to the compiler.
fn literal(value: &Expr, kind: Kind) -> Result<TokenStream> {
    let given = Given::of(value);
    let made = match (kind, &given) {
        (Kind::Boolean, Given::Boolean | Given::Named) => quote!(boolean(#value)),
        (Kind::Integer, Given::Integer | Given::Named) => quote!(int64(#value)),
        (Kind::Float64, Given::Integer) => quote!(float64((#value) as f64)),
        (Kind::Float64, Given::Float | Given::Named) => quote!(float64(#value)),
        // Rounded to f32 first: a bound must be a value that the field can have.
        (Kind::Float32, Given::Integer | Given::Float) => quote!(float64(f64::from((#value) as f32))),
        (Kind::Float32, Given::Named) => quote!(float64(f64::from(#value))),
        (Kind::Text, Given::Text | Given::Named) => quote!(utf8(#value)),
        (Kind::Sequence | Kind::Vector, _) => {
            return Err(Error::new(value.span(), "bytes, lists and vectors have no constants to compare with"));
        }
        (Kind::Unknown, _) => {
            return Err(Error::new(value.span(), "spell the field's type out: constraints do not see through aliases"));
        }
        (kind, _) => {
            let wanted = match kind {
                Kind::Boolean => "true or false",
                Kind::Integer => "a whole number (for a timestamp, microseconds since 1970)",
                Kind::Float32 | Kind::Float64 => "a number",
                _ => "text in quotes",
            };
            return Err(Error::new(value.span(), format!("the constant of this field is {wanted}")));
        }
    };
    Ok(quote!(::eadem::__private::literal::#made))
}

/// How a constant is spelled.
enum Given {
    Boolean,
    Integer,
    Float,
    Text,
    Named,
    Other,
}

impl Given {
    fn of(value: &Expr) -> Self {
        match value {
            Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => match Self::of(expr) {
                number @ (Self::Integer | Self::Float | Self::Named) => number,
                _ => Self::Other,
            },
            Expr::Lit(ExprLit { lit, .. }) => match lit {
                Lit::Bool(_) => Self::Boolean,
                Lit::Int(_) => Self::Integer,
                Lit::Float(_) => Self::Float,
                Lit::Str(_) => Self::Text,
                _ => Self::Other,
            },
            Expr::Path(_) => Self::Named,
            _ => Self::Other,
        }
    }
}

/// `3`, `1..=8`, `1..` or `..=8`, ends included.
fn length_range(range: &Expr) -> Result<(TokenStream, TokenStream)> {
    let usage = || Error::new(range.span(), "write a length as 3, 1..=8, 1.. or ..=8");
    match range {
        Expr::Lit(exact) => Ok((quote!(#exact), quote!(#exact))),
        Expr::Range(range) => {
            let min = range.start.as_ref().map_or_else(|| quote!(0), |start| quote!(#start));
            let max = match (&range.limits, &range.end) {
                (_, None) => quote!(u32::MAX),
                (RangeLimits::Closed(_), Some(end)) => quote!(#end),
                (RangeLimits::HalfOpen(_), Some(_)) => return Err(usage()),
            };
            Ok((min, max))
        }
        _ => Err(usage()),
    }
}

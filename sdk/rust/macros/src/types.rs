//! What a field's type is, as far as its spelling tells. Spellings that cannot work get an answer here that says what to
//! write instead; whatever is left to the compiler meets the messages of the SDK's traits.

use syn::spanned::Spanned;
use syn::{Error, GenericArgument, PathArguments, Result, Type};

/// Groups of types that take the same constraints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean,
    Integer,
    Float32,
    Float64,
    Text,
    /// Bytes and lists: they have a length.
    Sequence,
    Vector,
    /// An alias, or a type the compiler will refuse.
    Unknown,
}

/// The kind of a field's type, nullable or not.
pub(crate) fn kind_of(field_type: &Type) -> Result<Kind> {
    if let Some(inner) = option_of(field_type) {
        if option_of(inner).is_some() {
            return Err(Error::new(inner.span(), "a field is nullable once: write Option<T>"));
        }
        return plain_kind(inner);
    }
    plain_kind(field_type)
}

fn plain_kind(field_type: &Type) -> Result<Kind> {
    match field_type {
        Type::Reference(reference) => borrowed_kind(&reference.elem),
        Type::Array(array) => match name_of(&array.elem).as_deref() {
            Some("f32") => Ok(Kind::Vector),
            _ => Err(refuse(&array.elem, "a vector is an array of f32: write [f32; N]")),
        },
        Type::Path(_) => path_kind(field_type),
        Type::Tuple(_) => Err(refuse(field_type, "a field is one value: give each part of the tuple a field")),
        _ => Ok(Kind::Unknown),
    }
}

fn borrowed_kind(target: &Type) -> Result<Kind> {
    match target {
        Type::Slice(slice) => match name_of(&slice.elem).as_deref() {
            Some("u8" | "i64" | "f64") => Ok(Kind::Sequence),
            _ => Err(refuse(target, "a borrowed list is &[i64] or &[f64]; bytes are &[u8]")),
        },
        Type::Path(_) if name_of(target).as_deref() == Some("str") => Ok(Kind::Text),
        _ => Err(refuse(target, "only &str, &[u8], &[i64] and &[f64] can be borrowed; own this one")),
    }
}

fn path_kind(field_type: &Type) -> Result<Kind> {
    let Some(name) = name_of(field_type) else { return Ok(Kind::Unknown) };
    match name.as_str() {
        "bool" => Ok(Kind::Boolean),
        "i64" | "Timestamp" => Ok(Kind::Integer),
        "f32" => Ok(Kind::Float32),
        "f64" => Ok(Kind::Float64),
        "String" => Ok(Kind::Text),
        "Vec" => list_kind(field_type),
        "i8" | "i16" | "i32" | "i128" | "isize" | "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => {
            Err(refuse(field_type, &format!("`{name}` is not a feature type: integers are i64")))
        }
        "char" | "str" | "OsString" | "PathBuf" => {
            Err(refuse(field_type, &format!("`{name}` is not a feature type: text is String (or &str)")))
        }
        "SystemTime" | "Instant" | "DateTime" | "NaiveDateTime" | "NaiveDate" | "OffsetDateTime" | "Duration" => {
            Err(refuse(
                field_type,
                &format!("`{name}` is not a feature type: an instant is eadem::Timestamp, a span i64 microseconds"),
            ))
        }
        "HashMap" | "BTreeMap" | "HashSet" | "BTreeSet" => Err(refuse(
            field_type,
            &format!("`{name}` is not a feature type: write a sorted Vec, or one field for each key"),
        )),
        _ => Ok(Kind::Unknown),
    }
}

fn list_kind(list: &Type) -> Result<Kind> {
    let Some(element) = only_argument(list) else { return Ok(Kind::Unknown) };
    if let Type::Reference(reference) = element {
        let is_text = name_of(&reference.elem).as_deref() == Some("str");
        return if is_text {
            Ok(Kind::Sequence)
        } else {
            Err(refuse(element, "elements of a list are i64, f64, String or &str"))
        };
    }
    match name_of(element).as_deref() {
        Some("u8" | "i64" | "f64" | "String") => Ok(Kind::Sequence),
        Some("f32") => {
            Err(refuse(list, "a list of f32 of fixed length is a vector, [f32; N]; of any length, Vec<f64>"))
        }
        Some("Option") => {
            Err(refuse(element, "elements of a list are never null: leave them out, or use Option<Vec<…>>"))
        }
        _ => Err(refuse(element, "elements of a list are i64, f64 or String")),
    }
}

fn refuse(spelled: &Type, message: &str) -> Error {
    Error::new(spelled.span(), message)
}

/// The T of `Option<T>`, however the path is spelled.
pub(crate) fn option_of(candidate: &Type) -> Option<&Type> {
    (name_of(candidate)? == "Option").then(|| only_argument(candidate))?
}

/// The last name of a type's path.
pub(crate) fn name_of(candidate: &Type) -> Option<String> {
    match candidate {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        Type::Group(group) => name_of(&group.elem),
        Type::Paren(paren) => name_of(&paren.elem),
        _ => None,
    }
}

/// The type arguments of a path's last segment.
pub(crate) fn arguments_of(candidate: &Type) -> Vec<&Type> {
    let Type::Path(path) = candidate else { return Vec::new() };
    let Some(PathArguments::AngleBracketed(arguments)) = path.path.segments.last().map(|segment| &segment.arguments)
    else {
        return Vec::new();
    };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(argument) => Some(argument),
        _ => None,
    });
    types.collect()
}

fn only_argument(candidate: &Type) -> Option<&Type> {
    match arguments_of(candidate).as_slice() {
        [argument] => Some(argument),
        _ => None,
    }
}

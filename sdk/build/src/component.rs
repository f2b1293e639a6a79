//! From a core module to a component.

use wit_component::{ComponentEncoder, DecodedWasm, StringEncoding};
use wit_parser::{Resolve, WorldKey};

use crate::BuildError;

/// The contract that components written as text are given.
const CONTRACT: &str = include_str!("../../../wit/transform.wit");

/// The contract's package; imports from it are the only ones the engine accepts.
const CONTRACT_PACKAGE: &str = "eadem:transform/";

/// Wraps a core module that carries its component type, as the SDK's macros put it there.
///
/// # Errors
/// [`BuildError::NotATransform`] where the module has no component type, or imports something no component can give.
pub fn componentize(name: &str, core_module: &[u8]) -> Result<Vec<u8>, BuildError> {
    let not_a_transform = |reason: String| BuildError::NotATransform { name: name.to_owned(), reason };
    if !carries_component_type(core_module) {
        return Err(not_a_transform(
            "it exports no transform. Put #[transform(owner = \"your-team\")] before one function".to_owned(),
        ));
    }
    let encoded = ComponentEncoder::default().validate(true).module(core_module).and_then(|encoder| encoder.encode());
    encoded.map_err(|error| not_a_transform(explain(&format!("{error:#}"))))
}

/// Names of imports that the engine will refuse, such as those of WASI.
///
/// # Errors
/// [`BuildError::NotATransform`] where the bytes are no component.
pub fn foreign_imports(name: &str, component: &[u8]) -> Result<Vec<String>, BuildError> {
    let decoded = wit_component::decode(component)
        .map_err(|error| BuildError::NotATransform { name: name.to_owned(), reason: format!("{error:#}") })?;
    let DecodedWasm::Component(resolve, world) = decoded else { return Ok(Vec::new()) };
    let Some(world) = resolve.worlds.get(world) else { return Ok(Vec::new()) };
    let names = world.imports.keys().map(|key| import_name(&resolve, key));
    Ok(names.filter(|name| !name.starts_with(CONTRACT_PACKAGE)).collect())
}

fn import_name(resolve: &Resolve, key: &WorldKey) -> String {
    resolve.name_world_key(key)
}

/// Assembles a core module from its text and gives it the contract's component type. The result is checked by whoever
/// runs it, not here: text is how components are written that no compiler would make.
///
/// # Errors
/// [`BuildError::NotATransform`] where the text does not assemble or does not export the contract.
pub(crate) fn component_from_text(name: &str, text: &str) -> Result<Vec<u8>, BuildError> {
    let not_a_transform = |reason: String| BuildError::NotATransform { name: name.to_owned(), reason };
    let mut module = wat::parse_str(text).map_err(|error| not_a_transform(error.to_string()))?;
    let mut encode = || -> anyhow::Result<Vec<u8>> {
        let mut resolve = Resolve::default();
        let package = resolve.push_str("transform.wit", CONTRACT)?;
        let world = resolve.select_world(&[package], Some("feature-transform"))?;
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)?;
        ComponentEncoder::default().validate(false).module(&module)?.encode()
    };
    encode().map_err(|error| not_a_transform(format!("{error:#}")))
}

fn carries_component_type(core_module: &[u8]) -> bool {
    let marker = b"component-type";
    core_module.windows(marker.len()).any(|window| window == marker)
}

/// Adds to the encoder's message which crate is likely at fault.
fn explain(message: &str) -> String {
    let culprits = [
        ("__wbindgen", "a dependency uses wasm-bindgen, which talks to a browser (often chrono, getrandom or uuid)"),
        ("wasi_snapshot_preview1", "a dependency is built for WASI, which transforms do not have"),
        ("getrandom", "a dependency asks for random numbers (getrandom), which transforms do not have"),
        ("`env`", "a dependency calls a function that its author expected from outside"),
    ];
    let culprit = culprits.iter().find(|(sign, _)| message.contains(sign)).map(|(_, culprit)| *culprit);
    match culprit {
        Some(culprit) => format!("{culprit}. Turn that feature or dependency off.\n{message}"),
        None => message.to_owned(),
    }
}

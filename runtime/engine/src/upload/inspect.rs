//! What can be read off a component without running it.

use eadem_values::Digest;
use serde::{Deserialize, Serialize};
use wasmparser::component_types::ComponentEntityType;
use wasmparser::types::TypesRef;
use wasmparser::{Parser, Payload, Validator};

use super::Refusal;
use crate::call::{CONTRACT_VERSION, TRANSFORM_INTERFACE};
use crate::config::{EngineConfig, WASM_PAGE_BYTES};
use crate::flavour::validator_features;
use crate::state::cut_to;

const PACKAGE: &str = "eadem:transform/";
/// Names are the component's, so messages hold a few of them, and not all of each.
const NAMES_MAX: usize = 20;
const NAME_BYTES_MAX: usize = 200;
const MESSAGE_BYTES_MAX: usize = 1_000;

/// A valid component, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub component_bytes: u64,
    /// Names of its imports.
    pub imports: Vec<String>,
    /// Names of its exports.
    pub exports: Vec<String>,
    /// The version of the contract whose `transform` interface it exports.
    pub contract_version: Option<String>,
    /// Memories it defines.
    pub memories: u32,
    /// Memory it starts with, all memories together.
    pub memory_bytes_min: u64,
    /// Elements of the tables it starts with, all tables together.
    pub table_elements_min: u64,
    /// The imports that carry types and nothing else.
    type_imports: Vec<String>,
}

/// Validates a component and reads its imports, exports and memories. Runs nothing of it.
///
/// # Errors
/// [`Refusal::Malformed`] or [`Refusal::CoreModule`].
pub fn inspect(component: &[u8]) -> Result<Inspection, Refusal> {
    if Parser::is_core_wasm(component) {
        return Err(core_module(component));
    }
    if !Parser::is_component(component) {
        return Err(Refusal::Malformed("it does not begin as a component does".to_owned()));
    }
    let malformed = |error: wasmparser::BinaryReaderError| {
        Refusal::Malformed(cut_to(&error.to_string(), MESSAGE_BYTES_MAX).to_owned())
    };
    let types = Validator::new_with_features(validator_features()).validate_all(component).map_err(malformed)?;
    let mut inspection = Inspection {
        digest: Digest::of(component),
        component_bytes: component.len() as u64,
        imports: Vec::new(),
        exports: Vec::new(),
        contract_version: None,
        memories: 0,
        memory_bytes_min: 0,
        table_elements_min: 0,
        type_imports: Vec::new(),
    };
    inspection.read(component, types.as_ref()).map_err(malformed)?;
    Ok(inspection)
}

impl Inspection {
    fn read(&mut self, component: &[u8], types: TypesRef<'_>) -> Result<(), wasmparser::BinaryReaderError> {
        // How deep the parser is in nested modules and components; imports and exports of the whole are at depth 0.
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        self.memories += 1;
                        let bytes = memory?.initial.saturating_mul(WASM_PAGE_BYTES);
                        self.memory_bytes_min = self.memory_bytes_min.saturating_add(bytes);
                    }
                }
                Payload::TableSection(tables) => {
                    for table in tables {
                        self.table_elements_min = self.table_elements_min.saturating_add(table?.ty.initial);
                    }
                }
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        self.add_import(import?.name.name, types);
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        self.add_export(export?.name.name);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_import(&mut self, name: &str, types: TypesRef<'_>) {
        self.imports.push(name.to_owned());
        let Some(ComponentEntityType::Instance(instance)) = types.component_item_for_import(name).map(|item| item.ty)
        else {
            return;
        };
        let is_type = |ty: &ComponentEntityType| matches!(ty, ComponentEntityType::Type { .. });
        if types[instance].exports.values().all(|item| is_type(&item.ty)) {
            self.type_imports.push(name.to_owned());
        }
    }

    fn add_export(&mut self, name: &str) {
        self.exports.push(name.to_owned());
        if let Some(version) = name.strip_prefix("eadem:transform/transform@") {
            self.contract_version = Some(version.to_owned());
        }
    }

    /// Whether it may be compiled and run here.
    pub(super) fn check(&self, config: &EngineConfig) -> Result<(), Refusal> {
        let foreign = self.imports.iter().find(|import| !self.is_allowed(import));
        if let Some(import) = foreign {
            let culprit = culprit_of(import).map(str::to_owned);
            return Err(Refusal::Import { import: cut_to(import, NAME_BYTES_MAX).to_owned(), culprit });
        }
        self.check_contract()?;
        if self.memories > 1 {
            return Err(Refusal::Memories(self.memories));
        }
        let allowed_bytes = config.memory_bytes_max_in_pages();
        if self.memory_bytes_min > allowed_bytes {
            return Err(Refusal::Memory { asked_bytes: self.memory_bytes_min, allowed_bytes });
        }
        let allowed_elements = u64::from(config.table_elements_max);
        if self.table_elements_min > allowed_elements {
            return Err(Refusal::Table { asked_elements: self.table_elements_min, allowed_elements });
        }
        Ok(())
    }

    fn is_allowed(&self, import: &str) -> bool {
        let Some(interface) = import.strip_prefix(PACKAGE) else {
            return false;
        };
        let carries_only_types = self.type_imports.iter().any(|name| name == import);
        interface.starts_with("diagnostics@") || carries_only_types
    }

    fn check_contract(&self) -> Result<(), Refusal> {
        let Some(version) = &self.contract_version else {
            let exports = if self.exports.is_empty() { "nothing".to_owned() } else { names(&self.exports) };
            return Err(Refusal::Contract {
                what: format!("it does not export {TRANSFORM_INTERFACE}, it exports {exports}"),
            });
        };
        if is_compatible(version) {
            return Ok(());
        }
        Err(Refusal::Contract {
            what: format!(
                "it is built for version {}, this build knows {CONTRACT_VERSION}",
                cut_to(version, NAME_BYTES_MAX)
            ),
        })
    }
}

fn names(all: &[String]) -> String {
    let shown: Vec<&str> = all.iter().take(NAMES_MAX).map(|name| cut_to(name, NAME_BYTES_MAX)).collect();
    let more = if all.len() > NAMES_MAX { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// Every 0.1.x means the same functions and types.
fn is_compatible(version: &str) -> bool {
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    minor(version) == minor(CONTRACT_VERSION)
}

fn core_module(module: &[u8]) -> Refusal {
    let mut imports = Vec::new();
    for payload in Parser::new(0).parse_all(module).map_while(Result::ok) {
        if let Payload::ImportSection(section) = payload {
            let names = section.into_imports().map_while(Result::ok);
            imports.extend(names.map(|import| format!("{}/{}", import.module, import.name)));
        }
    }
    let culprit = imports.iter().find_map(|import| culprit_of(import)).map(str::to_owned);
    imports.truncate(NAMES_MAX);
    imports.iter_mut().for_each(|import| import.truncate(import.floor_char_boundary(NAME_BYTES_MAX)));
    Refusal::CoreModule { imports, culprit }
}

/// Who probably asked for an import, judging by its name.
fn culprit_of(import: &str) -> Option<&'static str> {
    const CULPRITS: &[(&str, &str)] = &[
        ("wasi:random/", "getrandom, which rand, uuid and ahash use; seed from an input instead"),
        ("wasi:clocks/", "std::time, chrono or time; take the time as an input instead"),
        ("wasi:filesystem/", "std::fs"),
        ("wasi:sockets/", "std::net, tokio or mio"),
        ("wasi:http/", "an HTTP client"),
        ("wasi:cli/environment", "std::env"),
        ("wasi:cli/std", "println! or another use of standard input and output"),
        ("wasi:cli/exit", "std::process::exit"),
        ("wasi:cli/terminal", "println! or another use of standard input and output"),
        ("wasi:io/", "std::io"),
        ("wasi:", "std, built for a wasi target; build for wasm32-unknown-unknown"),
        ("wasi_snapshot_preview1", "std, built for wasm32-wasip1; build for wasm32-unknown-unknown"),
        ("__wbindgen", "wasm-bindgen or js-sys; getrandom and chrono pull them in with their features js and wasmbind"),
        ("wbg", "wasm-bindgen or js-sys; getrandom and chrono pull them in with their features js and wasmbind"),
        ("env/", "C code or an `extern` block"),
    ];
    CULPRITS.iter().find(|(prefix, _)| import.starts_with(prefix)).map(|(_, culprit)| *culprit)
}

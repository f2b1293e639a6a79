//! Compiles a crate of feature logic to a WebAssembly component.
//!
//! A transform is an ordinary Rust crate that depends on `eadem-sdk`. [`build_component`] finds a toolchain that can
//! compile for `wasm32-unknown-unknown` (or says exactly how to get one), runs cargo with the settings that the engine
//! wants (small stack, `panic = "abort"`, one codegen unit, no path of this machine inside) and turns the core module
//! into a component. No WASI appears anywhere.
//!
//! ```no_run
//! # fn main() -> Result<(), eadem_build::BuildError> {
//! let options = eadem_build::BuildOptions::default();
//! let built = eadem_build::build_component("transforms/plane_profile".as_ref(), &options)?;
//! println!("{}: {} bytes ({})", built.path.display(), built.bytes.len(), built.what_it_chose);
//! # Ok(())
//! # }
//! ```

mod build;
mod cargo;
mod component;
mod error;
mod template;
mod toolchain;

pub use build::{
    BuildOptions, BuiltComponent, DEFAULT_STACK_BYTES, build_component, build_components, build_from_text,
};
pub use component::{componentize, foreign_imports};
pub use error::BuildError;
pub use template::{SdkLocation, new_crate};
pub use toolchain::{GuestToolchain, StdSource, TARGET};

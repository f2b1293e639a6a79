//! Prints the bindings of the contract in the folder that is named: `eadem-bindings wit`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator};
use wit_bindgen_rust::Opts;

fn main() -> anyhow::Result<()> {
    let wit = std::env::args_os().nth(1).map(PathBuf::from).context("usage: eadem-bindings WIT_FOLDER")?;
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(&wit)?;
    let world = resolve.select_world(&[package], Some("feature-transform"))?;

    let options = Opts {
        format: true,
        generate_all: true,
        pub_export_macro: true,
        export_macro_name: Some("export_transform".to_owned()),
        default_bindings_module: Some("::eadem::bindings".to_owned()),
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;
    let generated: Vec<_> = files.iter().collect();
    ensure!(generated.len() == 1, "one file was expected, not {}", generated.len());
    print!("{}", str::from_utf8(generated[0].1)?);
    Ok(())
}

//! `eadem-build [--out DIR] [--quiet] CRATE…`: builds crates (and `.wat` texts) of feature logic to components.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use eadem_build::{BuildOptions, BuiltComponent, build_components, build_from_text};

const USAGE: &str = "usage: eadem-build [--out DIR] [--stack-bytes N] [--quiet] [--cargo-arg ARG]… CRATE_OR_WAT…

Builds each crate folder to components (its library and its examples of type cdylib), each .wat text to one.
A file whose bytes would not change is left alone.";

/// What the command line asks for.
struct Request {
    options: BuildOptions,
    out_dir: PathBuf,
    crates: Vec<PathBuf>,
    texts: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let request = match parse(std::env::args().skip(1)) {
        Ok(request) => request,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match build(&request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Request, String> {
    let out_dir = PathBuf::from("target/components");
    let options = BuildOptions { show_progress: true, ..BuildOptions::default() };
    let mut request = Request { options, out_dir, crates: Vec::new(), texts: Vec::new() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value\n\n{USAGE}"));
        match arg.as_str() {
            "--out" => request.out_dir = PathBuf::from(value()?),
            "--stack-bytes" => {
                let text = value()?;
                let parsed = text.parse().map_err(|_| format!("--stack-bytes: `{text}` is no number of bytes"));
                request.options.stack_bytes = parsed?;
            }
            "--cargo-arg" => request.options.cargo_args.push(value()?),
            "--quiet" => request.options.show_progress = false,
            "--help" | "-h" => return Err(USAGE.to_owned()),
            unknown if unknown.starts_with('-') => return Err(format!("unknown option {unknown}\n\n{USAGE}")),
            path if path.ends_with(".wat") => request.texts.push(PathBuf::from(path)),
            path => request.crates.push(PathBuf::from(path)),
        }
    }
    if request.crates.is_empty() && request.texts.is_empty() {
        return Err(format!("nothing to build\n\n{USAGE}"));
    }
    request.options.out_dir = Some(request.out_dir.clone());
    Ok(request)
}

fn build(request: &Request) -> Result<(), eadem_build::BuildError> {
    for text in &request.texts {
        report(&build_from_text(text, &request.out_dir)?);
    }
    if request.crates.is_empty() {
        return Ok(());
    }
    let crates: Vec<&Path> = request.crates.iter().map(PathBuf::as_path).collect();
    let built = build_components(&crates, &request.options)?;
    if let Some(first) = built.first() {
        println!("toolchain: {}", first.what_it_chose);
    }
    for component in &built {
        report(component);
    }
    Ok(())
}

fn report(component: &BuiltComponent) {
    let state = if component.unchanged { "unchanged" } else { "built" };
    println!("{state:9} {} ({} bytes)", component.path.display(), component.bytes.len());
    for import in &component.foreign_imports {
        eprintln!("warning: {} imports `{import}`; the engine will refuse it", component.name);
    }
}

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cargo::{self, CoreModule, Job, Metadata, Package};
use crate::component::{component_from_text, componentize, foreign_imports};
use crate::{BuildError, GuestToolchain};

/// The stack of a component: small, because each call gets a fresh instance and pays for the pages it touches.
pub const DEFAULT_STACK_BYTES: u32 = 64 * 1024;

/// How to build. The default is what the engine wants.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The guest's stack in bytes, a multiple of 16. More costs memory in every instance; a function that
    /// overflows it traps.
    pub stack_bytes: u32,
    /// Where cargo keeps intermediate files; default: `eadem-guest` in the workspace's target folder, and in a folder of
    /// its own below that where several workspaces share one target folder.
    pub target_dir: Option<PathBuf>,
    /// Where the component is written; default: `components` in the workspace's target folder.
    pub out_dir: Option<PathBuf>,
    /// Further arguments for cargo, such as `--offline`, `--locked` or `--features=…`.
    pub cargo_args: Vec<String>,
    /// Print cargo's progress and warnings to standard error; otherwise they are kept for the error.
    pub show_progress: bool,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            stack_bytes: DEFAULT_STACK_BYTES,
            target_dir: None,
            out_dir: None,
            cargo_args: Vec::new(),
            show_progress: false,
        }
    }
}

/// A component, written to its file.
#[derive(Debug, Clone)]
pub struct BuiltComponent {
    /// The crate's library (or example) name in snake case; also the file's.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What is in the file.
    pub bytes: Vec<u8>,
    /// Which toolchain was taken, for people.
    pub what_it_chose: String,
    /// True if the file was there with these bytes before.
    pub unchanged: bool,
    /// Imports that the engine will refuse; see [`foreign_imports`].
    pub foreign_imports: Vec<String>,
}

/// Builds the one component of a crate.
///
/// # Errors
/// [`BuildError`]: no toolchain, no crate, compile errors, a module that is no transform, or more than one component.
pub fn build_component(crate_dir: &Path, options: &BuildOptions) -> Result<BuiltComponent, BuildError> {
    let mut built = build_components(&[crate_dir], options)?;
    let crate_dir = || crate_dir.display().to_string();
    match (built.pop(), built.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(BuildError::NoCdylib { package: crate_dir() }),
        (Some(last), false) => {
            let components = built.into_iter().chain([last]).map(|component| component.path).collect();
            Err(BuildError::SeveralComponents { package: crate_dir(), components })
        }
    }
}

/// Builds the components of several crates: of each its library and its examples of type `cdylib`, libraries first.
/// Crates of one workspace are built by one run of cargo.
///
/// # Errors
/// As [`build_component`]; the first failure ends the build.
pub fn build_components(crate_dirs: &[&Path], options: &BuildOptions) -> Result<Vec<BuiltComponent>, BuildError> {
    let toolchain = GuestToolchain::find(options.show_progress)?;
    let mut built = Vec::new();
    for (metadata, members) in by_workspace(&toolchain, crate_dirs, options)? {
        let packages = packages_of(&metadata, &members)?;
        let job = Job {
            toolchain: &toolchain,
            packages: &packages,
            flags: flags(&toolchain, &metadata, options),
            target_dir: options.target_dir.clone().unwrap_or_else(|| metadata.guest_target_dir()),
            extra_args: &options.cargo_args,
            show_progress: options.show_progress,
            metadata: &metadata,
        };
        let out_dir = options.out_dir.clone().unwrap_or_else(|| metadata.target_directory.join("components"));
        for module in in_order(cargo::build(&job)?, &packages) {
            built.push(write_component(&module, &out_dir, &toolchain)?);
        }
    }
    Ok(built)
}

/// Makes a component from the text of a core module (`name.wat`): its exports follow the contract by hand. A file
/// that ends in `.core.wat` stays a core module.
///
/// # Errors
/// [`BuildError::NotATransform`] where the text does not assemble or does not export the contract.
pub fn build_from_text(text_path: &Path, out_dir: &Path) -> Result<BuiltComponent, BuildError> {
    let text = fs::read_to_string(text_path).map_err(BuildError::io(format!("reading {}", text_path.display())))?;
    let file_name = text_path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (name, bytes) = match file_name.strip_suffix(".core.wat") {
        Some(name) => {
            let assembled = wat::parse_str(&text)
                .map_err(|error| BuildError::NotATransform { name: name.to_owned(), reason: error.to_string() })?;
            (name, assembled)
        }
        None => {
            let name = file_name.strip_suffix(".wat").unwrap_or(file_name);
            (name, component_from_text(name, &text)?)
        }
    };
    let (path, unchanged) = write_if_changed(out_dir, name, &bytes)?;
    Ok(BuiltComponent {
        name: name.to_owned(),
        path,
        bytes,
        what_it_chose: "assembled from text".to_owned(),
        unchanged,
        foreign_imports: Vec::new(),
    })
}

/// Crates grouped by the workspace they belong to, in the order given.
fn by_workspace<'a>(
    toolchain: &GuestToolchain,
    crate_dirs: &[&'a Path],
    options: &BuildOptions,
) -> Result<Vec<(Metadata, Vec<&'a Path>)>, BuildError> {
    let mut groups: Vec<(Metadata, Vec<&Path>)> = Vec::new();
    for crate_dir in crate_dirs {
        let known = groups.iter_mut().find(|(metadata, _)| metadata.package_at(crate_dir).is_some());
        match known {
            Some((_, members)) => members.push(crate_dir),
            None => {
                let metadata_args: Vec<String> =
                    options.cargo_args.iter().filter(|arg| !arg.starts_with("--features")).cloned().collect();
                groups.push((cargo::metadata(toolchain, crate_dir, &metadata_args)?, vec![crate_dir]));
            }
        }
    }
    Ok(groups)
}

fn packages_of<'a>(metadata: &'a Metadata, crate_dirs: &[&Path]) -> Result<Vec<&'a Package>, BuildError> {
    let find = |crate_dir: &&Path| {
        let package = metadata.package_at(crate_dir).ok_or_else(|| BuildError::NotACrate {
            path: crate_dir.to_path_buf(),
            reason: "it is a workspace without a package; name one of its members".to_owned(),
        })?;
        if !package.makes_components() {
            return Err(BuildError::NoCdylib { package: package.name.clone() });
        }
        Ok(package)
    };
    crate_dirs.iter().map(find).collect()
}

fn flags(toolchain: &GuestToolchain, metadata: &Metadata, options: &BuildOptions) -> Vec<String> {
    let mut flags = toolchain.flags();
    flags.push(format!("-Clink-arg=-zstack-size={}", options.stack_bytes));
    flags.extend(metadata.path_remaps());
    flags
}

/// The modules of the packages asked for, in the order of the packages; of each the library first, then its examples.
fn in_order(modules: Vec<CoreModule>, packages: &[&Package]) -> Vec<CoreModule> {
    let place: BTreeMap<&Path, usize> =
        packages.iter().enumerate().map(|(place, package)| (package.manifest_path.as_path(), place)).collect();
    let mut wanted: Vec<(usize, CoreModule)> =
        modules.into_iter().filter_map(|module| Some((*place.get(module.manifest_path.as_path())?, module))).collect();
    wanted
        .sort_by(|(a_place, a), (b_place, b)| (a_place, a.is_example, &a.name).cmp(&(b_place, b.is_example, &b.name)));
    wanted.into_iter().map(|(_, module)| module).collect()
}

fn write_component(
    module: &CoreModule,
    out_dir: &Path,
    toolchain: &GuestToolchain,
) -> Result<BuiltComponent, BuildError> {
    let core = fs::read(&module.path).map_err(BuildError::io(format!("reading {}", module.path.display())))?;
    let bytes = componentize(&module.name, &core)?;
    let foreign_imports = foreign_imports(&module.name, &bytes)?;
    let (path, unchanged) = write_if_changed(out_dir, &module.name, &bytes)?;
    Ok(BuiltComponent {
        name: module.name.clone(),
        path,
        bytes,
        what_it_chose: toolchain.to_string(),
        unchanged,
        foreign_imports,
    })
}

/// Leaves a file with the same bytes alone, so that whatever depends on its time stays fresh. A new one appears whole.
fn write_if_changed(out_dir: &Path, name: &str, bytes: &[u8]) -> Result<(PathBuf, bool), BuildError> {
    let path = out_dir.join(format!("{name}.wasm"));
    if fs::read(&path).is_ok_and(|before| before == bytes) {
        return Ok((path, true));
    }
    let doing = format!("writing {}", path.display());
    fs::create_dir_all(out_dir).map_err(BuildError::io(&*doing))?;
    // As any file that a compiler writes: who may read it, the umask says.
    let scratch = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(out_dir)
        .map_err(BuildError::io(&*doing))?;
    fs::write(scratch.path(), bytes).map_err(BuildError::io(&*doing))?;
    let persisted = scratch.persist(&path).map_err(|error| error.error);
    persisted.map_err(BuildError::io(&*doing))?;
    Ok((path, false))
}

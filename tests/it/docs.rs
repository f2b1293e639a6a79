//! What the guides promise about the sources: every problem code has its line, and every link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::root;

/// By code: the HTTP statuses it comes with.
type Codes = BTreeMap<String, BTreeSet<u16>>;

/// Where problems are made.
const PROBLEM_SOURCES: [&str; 2] = ["server/api/src", "server/eadem/src"];
/// `Problem`'s constructors of one status each; their first argument is the code.
const CONSTRUCTORS: [(&str, u16); 7] = [
    ("bad_request", 400),
    ("unauthorized", 401),
    ("not_found", 404),
    ("conflict", 409),
    ("too_large", 413),
    ("refused", 422),
    ("too_many", 429),
];
/// Statuses that are spelled out where the problem is made; the code follows them.
const SPELLED_STATUSES: [(&str, u16); 8] = [
    ("REQUEST_TIMEOUT", 408),
    ("FORBIDDEN", 403),
    ("METHOD_NOT_ALLOWED", 405),
    ("GONE", 410),
    ("URI_TOO_LONG", 414),
    ("MISDIRECTED_REQUEST", 421),
    ("INTERNAL_SERVER_ERROR", 500),
    ("SERVICE_UNAVAILABLE", 503),
];
/// A component that is refused gives its refusal's code with this status.
const UPLOAD_REFUSED: u16 = 422;
const NOT_FOUND: u16 = 404;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files_under(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_under(&path, extension, found);
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
}

/// The text literal that stands first here, if one does.
fn literal_at(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('"')?.split('"').next()
}

/// All text literals of a piece of code that escapes nothing in them.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2)
}

/// The method's body, up to the brace that closes it.
fn method<'a>(source: &'a str, signature: &str) -> &'a str {
    let start = source.find(signature).unwrap_or_else(|| panic!("there is no `{signature}`"));
    let end = source[start..].find("\n    }").unwrap_or_else(|| panic!("`{signature}` does not end"));
    &source[start..start + end]
}

fn note(codes: &mut Codes, code: &str, status: u16) {
    codes.entry(code.to_owned()).or_default().insert(status);
}

fn note_problems(source: &str, codes: &mut Codes) {
    for (constructor, status) in CONSTRUCTORS {
        let call = format!("Problem::{constructor}(");
        for (at, _) in source.match_indices(&call) {
            // A code that is no literal is one of those that are gathered elsewhere.
            if let Some(code) = literal_at(&source[at + call.len()..]) {
                note(codes, code, status);
            }
        }
    }
    for call in ["Problem::new(", "Self::new(StatusCode"] {
        for (at, _) in source.match_indices(call) {
            let arguments = source[at..].split_once('(').map_or("", |(_, arguments)| arguments);
            let Some((status, rest)) = arguments.split_once(',') else { continue };
            let Some(code) = literal_at(rest) else { continue };
            let name = status.rsplit("::").next().unwrap_or_default().trim();
            let known = SPELLED_STATUSES.iter().find(|(known, _)| *known == name);
            let (_, status) = known.unwrap_or_else(|| panic!("`{code}` has the status {name}: add its number above"));
            note(codes, code, *status);
        }
    }
}

/// Every code that the store can answer with.
fn codes_of_the_sources() -> Codes {
    let mut codes = Codes::new();
    for folder in PROBLEM_SOURCES {
        let mut files = Vec::new();
        files_under(&root().join(folder), "rs", &mut files);
        for file in files {
            note_problems(&read(&file), &mut codes);
        }
    }
    let registry = read(&root().join("server/registry/src/error.rs"));
    for kind in literals(method(&registry, "pub fn as_str(")) {
        note(&mut codes, &format!("unknown_{kind}"), NOT_FOUND);
    }
    for file in ["mod.rs", "laws.rs", "check.rs"] {
        let upload = read(&root().join("runtime/engine/src/upload").join(file));
        for code in literals(method(&upload, "pub fn code(")) {
            note(&mut codes, code, UPLOAD_REFUSED);
        }
    }
    codes
}

/// The lines of the tables in `docs/errors.md`: code, statuses.
fn documented_codes() -> Codes {
    let mut codes = Codes::new();
    for line in read(&root().join("docs/errors.md")).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, code, statuses, _, _, _] = cells.as_slice() else { continue };
        let Some(code) = code.strip_prefix('`').and_then(|code| code.strip_suffix('`')) else { continue };
        for status in statuses.split(',') {
            let status = status.trim().parse();
            note(&mut codes, code, status.unwrap_or_else(|_| panic!("`{code}` has no status: {line}")));
        }
    }
    codes
}

#[test]
fn every_problem_code_is_documented_with_its_status() {
    let made = codes_of_the_sources();
    assert!(made.len() > 40, "only {} codes were found", made.len());
    let documented = documented_codes();
    for (code, statuses) in &made {
        let line = documented.get(code).unwrap_or_else(|| panic!("docs/errors.md has no line for `{code}`"));
        assert_eq!(line, statuses, "docs/errors.md has other statuses for `{code}` than the sources");
    }
    for code in documented.keys() {
        assert!(made.contains_key(code), "docs/errors.md describes `{code}`, which nothing answers with");
    }
}

fn guides() -> Vec<PathBuf> {
    let mut guides = vec![root().join("README.md"), root().join("ARCHITECTURE.md"), root().join("CHANGELOG.md")];
    files_under(&root().join("docs"), "md", &mut guides);
    guides
}

/// The lines outside of code blocks.
fn prose(markdown: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    markdown.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

fn links(markdown: &str) -> Vec<&str> {
    let targets = prose(markdown).flat_map(|line| line.split("](").skip(1));
    let targets = targets.filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// Headings as links name them: in lower case, without punctuation, dashes for spaces.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|each| each.is_alphanumeric() || matches!(each, ' ' | '-' | '_'));
        kept.map(|each| if each == ' ' { '-' } else { each }).collect::<String>()
    };
    prose(markdown).filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[test]
fn every_link_between_the_guides_leads_somewhere() {
    let mut checked = 0;
    for guide in guides() {
        let text = read(&guide);
        for target in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let linked = if file.is_empty() { guide.clone() } else { guide.parent().unwrap().join(file) };
            assert!(linked.exists(), "{} links to {target}, which is not there", guide.display());
            if !anchor.is_empty() {
                let has_heading = anchors(&read(&linked)).contains(anchor);
                assert!(has_heading, "{} links to {target}, which has no such heading", guide.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links were found");
}

//! Profiles as the command line of AWS keeps them: `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The variables of the environment that matter here, by name. An empty one counts as not set.
pub(crate) type Variables = BTreeMap<String, String>;

pub(crate) fn variable<'a>(variables: &'a Variables, name: &str) -> Option<&'a str> {
    variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// Where the two files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProfileFiles {
    pub(crate) config: Option<PathBuf>,
    pub(crate) credentials: Option<PathBuf>,
}

impl ProfileFiles {
    pub(crate) fn of(variables: &Variables) -> Self {
        let home = variable(variables, "HOME").or_else(|| variable(variables, "USERPROFILE")).map(PathBuf::from);
        let file = |name: &str, default: &str| match variable(variables, name) {
            Some(path) => Some(match (path.strip_prefix("~/"), &home) {
                (Some(below), Some(home)) => home.join(below),
                _ => PathBuf::from(path),
            }),
            None => home.as_ref().map(|home| home.join(".aws").join(default)),
        };
        Self {
            config: file("AWS_CONFIG_FILE", "config"),
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        }
    }
}

/// What one profile sets.
#[derive(Clone, Default)]
pub(crate) struct Profile {
    pub(crate) name: String,
    /// Whether it was asked for by name.
    pub(crate) is_named: bool,
    values: BTreeMap<String, Found>,
}

#[derive(Clone)]
struct Found {
    value: String,
    file: PathBuf,
}

impl Profile {
    /// The profile that `AWS_PROFILE` names, else `default`.
    ///
    /// # Errors
    /// A file that cannot be read as such, or a name that neither file has. No value is repeated.
    pub(crate) fn load(variables: &Variables) -> Result<Self, String> {
        let named = variable(variables, "AWS_PROFILE").or_else(|| variable(variables, "AWS_DEFAULT_PROFILE"));
        let name = named.unwrap_or("default").to_owned();
        let files = ProfileFiles::of(variables);
        let mut profile = Self { is_named: named.is_some(), name, values: BTreeMap::new() };
        let mut is_known = false;
        if let Some(path) = &files.config {
            let sections = read(path)?;
            let own = match profile.name.as_str() {
                "default" => sections.get("profile default").or_else(|| sections.get("default")),
                name => sections.get(&format!("profile {name}")),
            };
            is_known |= own.is_some();
            let own = own.cloned().unwrap_or_default();
            // The endpoints of services may stand in a section of their own.
            let services = own.get("services").and_then(|name| sections.get(&format!("services {name}")));
            for (key, value) in services.into_iter().flatten() {
                profile.values.insert(key.clone(), Found { value: value.clone(), file: path.clone() });
            }
            for (key, value) in own {
                profile.values.insert(key, Found { value, file: path.clone() });
            }
        }
        if let Some(path) = &files.credentials {
            let sections = read(path)?;
            is_known |= sections.contains_key(&profile.name);
            for (key, value) in sections.get(&profile.name).into_iter().flatten() {
                profile.values.insert(key.clone(), Found { value: value.clone(), file: path.clone() });
            }
        }
        if profile.is_named && !is_known {
            let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
            let files: Vec<String> = [shown(&files.config), shown(&files.credentials)].into_iter().flatten().collect();
            return Err(format!("AWS_PROFILE names `{}`, which is in none of {}", profile.name, files.join(", ")));
        }
        Ok(profile)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|found| found.value.as_str()).filter(|value| !value.is_empty())
    }

    /// Where a value stands, for people.
    pub(crate) fn origin(&self, key: &str) -> String {
        match self.values.get(key) {
            Some(found) => format!("profile `{}` in {}", self.name, found.file.display()),
            None => format!("profile `{}`", self.name),
        }
    }
}

/// Sections by name; keys of nested settings as `s3.addressing_style`.
type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// A file's sections; none if there is no such file.
fn read(path: &Path) -> Result<Sections, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|(line, reason)| format!("{}:{line}: {reason}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Sections::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn parse(text: &str) -> Result<Sections, (usize, &'static str)> {
    let mut sections = Sections::new();
    let mut section: Option<String> = None;
    let mut last_key: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let at = number + 1;
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = trimmed.strip_prefix('[') {
            let end = header.find(']').ok_or((at, "a section's name ends with `]`"))?;
            let name = header[..end].split_whitespace().collect::<Vec<_>>().join(" ");
            let name = name.replace(['"', '\''], "");
            sections.entry(name.clone()).or_default();
            (section, last_key) = (Some(name), None);
            continue;
        }
        let Some(name) = &section else { return Err((at, "stands before any section, such as `[default]`")) };
        let (key, value) = trimmed.split_once('=').ok_or((at, "is no `key = value`"))?;
        let key = key.trim().to_lowercase();
        let is_nested = line.starts_with([' ', '\t']);
        let key = match (&last_key, is_nested) {
            (Some(parent), true) => format!("{parent}.{key}"),
            _ => {
                last_key = Some(key.clone());
                key
            }
        };
        sections.entry(name.clone()).or_default().insert(key, without_comment(value).to_owned());
    }
    Ok(sections)
}

/// A comment after a value is set off by a space: keys and tokens may hold the signs themselves.
fn without_comment(value: &str) -> &str {
    let starts = [" #", " ;", "\t#", "\t;"].into_iter().filter_map(|sign| value.find(sign));
    value[..starts.min().unwrap_or(value.len())].trim()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn home(config: &str, credentials: &str) -> (tempfile::TempDir, Variables) {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        let variables = Variables::from([("HOME".to_owned(), home.path().display().to_string())]);
        (home, variables)
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let config = "# shared\n[default]\nregion = eu-west-1\n\n[profile lake]\nregion=eu-central-1 ; near\n\
                      services = own\ns3 =\n  addressing_style = path\n\n[services own]\ns3 =\n  endpoint_url = http://x:1\n";
        let credentials = "[default]\naws_access_key_id = A\n[ lake ]\naws_access_key_id = B\n\
                           aws_secret_access_key = a#b;c= # old\n";
        let (_home, mut variables) = home(config, credentials);
        let profile = Profile::load(&variables).unwrap();
        assert_eq!((profile.get("region"), profile.get("aws_access_key_id")), (Some("eu-west-1"), Some("A")));

        variables.insert("AWS_PROFILE".to_owned(), "lake".to_owned());
        let profile = Profile::load(&variables).unwrap();
        let value = |key: &str| profile.get(key).unwrap();
        assert_eq!(value("region"), "eu-central-1");
        assert_eq!(value("aws_access_key_id"), "B");
        assert_eq!(value("aws_secret_access_key"), "a#b;c=");
        assert_eq!(value("s3.addressing_style"), "path");
        assert_eq!(value("s3.endpoint_url"), "http://x:1");
        assert!(profile.origin("aws_secret_access_key").starts_with("profile `lake` in "));
        assert!(profile.origin("aws_secret_access_key").ends_with(".aws/credentials"));
    }

    #[test]
    fn no_files_are_an_empty_profile_unless_one_is_named() {
        let mut variables = Variables::from([("HOME".to_owned(), "/nonexistent".to_owned())]);
        assert_eq!(Profile::load(&variables).unwrap().get("region"), None);
        variables.insert("AWS_PROFILE".to_owned(), "lake".to_owned());
        let refused = Profile::load(&variables).err().unwrap();
        assert_eq!(
            refused,
            "AWS_PROFILE names `lake`, which is in none of /nonexistent/.aws/config, /nonexistent/.aws/credentials"
        );
    }

    #[test]
    fn a_file_that_is_none_is_refused_by_its_line_and_not_repeated() {
        for (credentials, reason) in [
            ("aws_secret_access_key = hush", ":1: stands before any section, such as `[default]`"),
            ("[default]\n\naws_secret_access_key hush", ":3: is no `key = value`"),
            ("[default\naws_secret_access_key = hush", ":1: a section's name ends with `]`"),
        ] {
            let (_home, variables) = home("", credentials);
            let refused = Profile::load(&variables).err().unwrap();
            assert!(refused.ends_with(reason) && !refused.contains("hush"), "{refused}");
        }
    }
}

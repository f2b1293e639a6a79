//! Which sources somebody may define who is let in to one project only.

use async_trait::async_trait;
use eadem_registry::model::{Place, Source, SourceColumn};
use eadem_registry::{InspectError, Registry, SourceInspector};

use super::ProjectFiles;

/// Sources of one project: in its folder or an object store, or a database whose address stands in a variable of the project's.
/// What the registry has already, place and query, was written by somebody who may name it, and may stay.
pub(crate) struct OwnSources<'a> {
    pub(crate) inspector: &'a dyn SourceInspector,
    pub(crate) registry: &'a Registry,
    /// Where all projects are known.
    pub(crate) main_registry: &'a Registry,
    pub(crate) files: &'a ProjectFiles,
    pub(crate) project: &'a str,
}

impl OwnSources<'_> {
    async fn check(&self, place: &Place) -> Result<(), String> {
        let url_env = match place {
            Place::Path(path) => return self.files.check(path),
            Place::Database { url_env, .. } => url_env,
        };
        let projects = self.main_registry.projects().await.map_err(|error| error.to_string())?;
        let prefix = |project: &str| format!("{}_", project.to_uppercase());
        // Of `fraud` and `fraud_eu` the variables of both begin with that of the first.
        let owners = projects.iter().filter(|project| url_env.starts_with(&prefix(&project.name)));
        match owners.max_by_key(|project| project.name.len()) {
            Some(owner) if owner.name == self.project => Ok(()),
            _ => Err(format!(
                "`{url_env}` is no variable of the project `{}`, which begin with `{}`",
                self.project,
                prefix(self.project)
            )),
        }
    }

    async fn is_known(&self, source: &Source) -> bool {
        self.registry.source(&source.name).await.is_ok_and(|known| known.origin == source.origin)
    }
}

#[async_trait]
impl SourceInspector for OwnSources<'_> {
    async fn columns(&self, source: &Source) -> Result<Vec<SourceColumn>, InspectError> {
        if let Some(origin) = &source.origin
            && let Err(why) = self.check(&origin.place).await
            && !self.is_known(source).await
        {
            return Err(InspectError {
                statement: origin.format.name().to_owned(),
                message: format!("{why}; a token of one project names no other"),
            });
        }
        self.inspector.columns(source).await
    }
}

//! Which sources somebody may define who is let in to one project only.

use async_trait::async_trait;
use eadem_registry::model::{Place, Source, SourceColumn};
use eadem_registry::{InspectError, Registry, SourceInspector};

use super::ProjectFiles;

/// Sources of one project: in its folder or an object store, or a database whose address stands in a variable of the project's. A
/// place that the registry has already was written by somebody who may name it, and may stay.
pub(crate) struct OwnSources<'a> {
    pub(crate) inspector: &'a dyn SourceInspector,
    pub(crate) registry: &'a Registry,
    pub(crate) files: &'a ProjectFiles,
    pub(crate) project: &'a str,
}

impl OwnSources<'_> {
    fn check(&self, place: &Place) -> Result<(), String> {
        match place {
            Place::Path(path) => self.files.check(path),
            Place::Database { url_env, .. } => {
                let prefix = format!("{}_", self.project.to_uppercase());
                if url_env.starts_with(&prefix) {
                    return Ok(());
                }
                Err(format!(
                    "`{url_env}` is no variable of the project `{}`, which begin with `{prefix}`",
                    self.project
                ))
            }
        }
    }

    async fn is_known(&self, source: &Source) -> bool {
        let known = self.registry.source(&source.name).await;
        let place = |source: &Source| source.origin.as_ref().map(|origin| origin.place.clone());
        known.is_ok_and(|known| place(&known) == place(source))
    }
}

#[async_trait]
impl SourceInspector for OwnSources<'_> {
    async fn columns(&self, source: &Source) -> Result<Vec<SourceColumn>, InspectError> {
        if let Some(origin) = &source.origin
            && let Err(why) = self.check(&origin.place)
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

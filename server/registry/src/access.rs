//! People: what a token may do, and who is acting.

use serde::{Deserialize, Serialize};

/// What somebody may do. A ladder: each role may do what those before it may. One that uploads code and changes what views
/// mean can reach everything that pushing rows and running jobs reach anyway, so separate rights would promise what they
/// cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serve features, read the registry.
    Reader,
    /// Push rows, run jobs.
    Writer,
    /// Upload components, plan and apply.
    Author,
    /// Everything: projects, tokens, the trail.
    Admin,
}

impl Role {
    /// All roles, the lowest first.
    pub const ALL: [Self; 4] = [Self::Reader, Self::Writer, Self::Author, Self::Admin];

    /// As in JSON, on the command line and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Author => "author",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// Who changes the registry, and from where: what an entry of the trail says beside what was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actor {
    /// The token; `None` for whoever has no need of one.
    pub token_id: Option<String>,
    /// The token's name, or what stands in its place.
    pub name: String,
    /// The token's project; `None`: all.
    pub project: Option<String>,
    /// Where the request came from.
    pub address: Option<String>,
    /// What the request is called.
    pub request_id: Option<String>,
}

impl Actor {
    /// The program itself: no request asked for it.
    pub fn system() -> Self {
        Self { name: "system".to_owned(), ..Self::default() }
    }
}

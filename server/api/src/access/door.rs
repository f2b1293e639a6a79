//! Who is let in.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use eadem_registry::Role;

use super::bearer::{Presented, is_secret};
use super::{Access, Credential, Credentials, OwnerOfDirectory, Principal};
use crate::problem::Problem;

/// Why a request is turned away, and whose it is as far as that is known.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) problem: Box<Problem>,
    pub(crate) principal: Principal,
}

impl Refusal {
    pub(crate) fn of_nobody(problem: Problem) -> Self {
        Self { problem: Box::new(problem), principal: Principal::Nobody }
    }
}

/// Who asks, if that may ask for this. Everything that is needed is in memory.
pub(crate) fn who_asks(
    credentials: &dyn Credentials,
    request: &Request,
    access: Access,
    project: &str,
    now_us: i64,
) -> Result<Principal, Refusal> {
    if request.extensions().get::<OwnerOfDirectory>().is_some() {
        return Ok(Principal::Owner);
    }
    let Access::AtLeast(role) = access else { return Ok(Principal::Nobody) };
    if credentials.is_open() {
        return Ok(Principal::Open);
    }
    let credential = known_credential(credentials, request, now_us).map_err(Refusal::of_nobody)?;
    let refused =
        |problem| Err(Refusal { problem: Box::new(problem), principal: Principal::Token(Arc::clone(&credential)) });
    if !credential.acts_in(project) {
        return refused(other_project(&credential, project));
    }
    if credential.role < role {
        return refused(role_too_low(&credential, role));
    }
    credential.used_at(now_us);
    Ok(Principal::Token(credential))
}

/// The credential that the request brings, if it can be believed. What is said of one that cannot tells nobody more than that
/// one knows: an id that does not exist and a secret that is wrong get one answer.
fn known_credential(credentials: &dyn Credentials, request: &Request, now_us: i64) -> Result<Arc<Credential>, Problem> {
    let (id, secret) = match Presented::of(request.headers()) {
        Presented::Token { id, secret } => (id, secret),
        Presented::Nothing => {
            let detail = "this needs a token: send `Authorization: Bearer …`; `eadem token create` makes one";
            return Err(Problem::unauthorized("no_credential", detail));
        }
        Presented::Malformed => {
            let detail = "the Authorization header is not `Bearer eadem_<id>_<secret>`";
            return Err(Problem::unauthorized("malformed_credential", detail));
        }
    };
    if !credentials.is_current() {
        let detail = "the registry has not answered for too long to know which tokens were ended meanwhile; try again";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "credentials_unknown", detail);
        return Err(problem.retry_after(5));
    }
    let found = credentials.find(id).filter(|credential| is_secret(secret, &credential.secret_hash));
    let Some(credential) = found else {
        return Err(Problem::unauthorized("unknown_credential", "no such token, or another secret"));
    };
    if credential.is_valid_at(now_us) {
        return Ok(credential);
    }
    if credential.revoked_at_us.is_some() {
        return Err(Problem::unauthorized("revoked_credential", "this token was revoked; ask for another one"));
    }
    Err(Problem::unauthorized("expired_credential", "this token has expired; ask for another one"))
}

fn other_project(credential: &Credential, project: &str) -> Problem {
    let own = credential.project.as_deref().unwrap_or_default();
    let detail = format!("token `{}` is for the project `{own}`, and this is `{project}`", credential.name);
    Problem::new(StatusCode::FORBIDDEN, "other_project", detail)
}

/// Whose role does not reach.
pub(crate) fn role_too_low(credential: &Credential, needed: Role) -> Problem {
    let (name, role) = (&credential.name, credential.role.name());
    let detail = format!("token `{name}` has the role {role}, and this needs {}", needed.name());
    Problem::new(StatusCode::FORBIDDEN, "role_too_low", detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use async_trait::async_trait;
    use axum::body::Body;
    use axum::http::header;
    use eadem_registry::TokenRecord;

    use super::super::bearer::{NewSecret, new_secret};
    use super::*;

    const NOW_US: i64 = 1_700_000_000_000_000;

    struct Fixed {
        known: HashMap<String, Arc<Credential>>,
        is_open: bool,
        is_current: bool,
    }

    #[async_trait]
    impl Credentials for Fixed {
        fn find(&self, id: &str) -> Option<Arc<Credential>> {
            self.known.get(id).cloned()
        }

        fn is_open(&self) -> bool {
            self.is_open
        }

        fn is_current(&self) -> bool {
            self.is_current
        }

        async fn refresh(&self) -> Result<(), Problem> {
            Ok(())
        }
    }

    fn token(made: &NewSecret, role: Role) -> TokenRecord {
        TokenRecord {
            id: made.id.clone(),
            name: "ci".to_owned(),
            role,
            project: None,
            secret_hash: made.secret_hash,
            created_at_us: 0,
            created_by: "owner".to_owned(),
            expires_at_us: None,
            revoked_at_us: None,
            revoked_by: None,
            last_used_at_us: None,
        }
    }

    fn fixed(tokens: impl IntoIterator<Item = TokenRecord>) -> Fixed {
        let known =
            tokens.into_iter().map(|token| (token.id.clone(), Arc::new(Credential::of(token.clone())))).collect();
        Fixed { known, is_open: false, is_current: true }
    }

    fn request(token: Option<&str>) -> Request {
        let request = Request::builder().uri("/features/x");
        let request = match token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        request.body(Body::empty()).unwrap()
    }

    fn code(credentials: &Fixed, token: Option<&str>, access: Access, now_us: i64) -> (u16, String) {
        match who_asks(credentials, &request(token), access, "default", now_us) {
            Ok(_) => (200, String::new()),
            Err(refusal) => (refusal.problem.status, refusal.problem.code),
        }
    }

    #[test]
    fn a_role_may_do_what_those_below_it_may_and_no_more() {
        for role in Role::ALL {
            let made = new_secret().unwrap();
            let credentials = fixed([token(&made, role)]);
            for needed in Role::ALL {
                let expected = if role >= needed { (200, String::new()) } else { (403, "role_too_low".to_owned()) };
                assert_eq!(code(&credentials, Some(&made.token), Access::AtLeast(needed), NOW_US), expected);
            }
            assert_eq!(code(&credentials, None, Access::Everybody, NOW_US).0, 200);
            assert_eq!(code(&credentials, None, Access::AtLeast(Role::Reader), NOW_US).1, "no_credential");
        }
    }

    #[test]
    fn a_token_ends_at_its_instant_and_not_a_microsecond_later() {
        let made = new_secret().unwrap();
        let credentials = fixed([TokenRecord { expires_at_us: Some(NOW_US), ..token(&made, Role::Admin) }]);
        let at = |now_us| code(&credentials, Some(&made.token), Access::AtLeast(Role::Reader), now_us);
        assert_eq!(at(NOW_US - 1).0, 200);
        assert_eq!(at(NOW_US), (401, "expired_credential".to_owned()));
    }

    #[test]
    fn an_unknown_id_and_a_wrong_secret_get_one_answer() {
        let (made, other) = (new_secret().unwrap(), new_secret().unwrap());
        let ended = TokenRecord { revoked_at_us: Some(1), ..token(&made, Role::Admin) };
        let credentials = fixed([ended]);
        let (_, other_secret) = other.token.rsplit_once('_').unwrap();
        let wrong = format!("eadem_{}_{other_secret}", made.id);
        let answer = |token: &str| {
            let asked = who_asks(&credentials, &request(Some(token)), Access::AtLeast(Role::Reader), "default", NOW_US);
            *asked.unwrap_err().problem
        };
        assert_eq!(answer(&wrong), answer(&other.token));
        assert_eq!(answer(&wrong).code, "unknown_credential");
        // Only who has the secret learns that it was ended.
        assert_eq!(answer(&made.token).code, "revoked_credential");
    }

    #[test]
    fn a_token_of_another_project_is_for_that_one_only() {
        let made = new_secret().unwrap();
        let credentials = fixed([TokenRecord { project: Some("fraud".to_owned()), ..token(&made, Role::Admin) }]);
        let asked = |project: &str| {
            who_asks(&credentials, &request(Some(&made.token)), Access::AtLeast(Role::Reader), project, NOW_US)
        };
        assert_eq!(asked("default").unwrap_err().problem.code, "other_project");
        assert!(asked("fraud").is_ok());
    }

    #[test]
    fn what_is_known_is_not_believed_for_ever() {
        let made = new_secret().unwrap();
        let credentials = Fixed { is_current: false, ..fixed([token(&made, Role::Admin)]) };
        let (status, code) = code(&credentials, Some(&made.token), Access::AtLeast(Role::Reader), NOW_US);
        assert_eq!((status, code.as_str()), (503, "credentials_unknown"));
    }
}

//! One way for every verb to reach the store: the routes. Over HTTP where a server runs on the directory, else through
//! the same router in this process.

use anyhow::{Context, bail};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use eadem_api::{OwnerOfDirectory, PROJECT, Problem, is_loopback_authority};
use futures::{Stream, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tower::ServiceExt;

use crate::tls::{Trust, client_config};

/// Who asks, and where.
#[derive(Clone)]
pub(crate) struct Client {
    way: Way,
    /// The project that is asked about; `None`: the one that the token is for.
    project: Option<HeaderValue>,
    /// From the stores, and not from what is kept of them in memory.
    fresh: bool,
}

/// Where requests go.
#[derive(Clone)]
enum Way {
    /// To a running server.
    Http {
        /// `http://127.0.0.1:7878`
        base: String,
        /// `Bearer …`
        authorization: Option<HeaderValue>,
        /// Keeps connections.
        http: reqwest::Client,
    },
    /// To the router of this process.
    InProcess(Router),
}

/// Text as a segment of a path or a value of a query, whatever is in it.
pub(crate) fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// A reply that is no success.
#[derive(Debug, thiserror::Error)]
#[error("{}", render(.0))]
pub(crate) struct Refused(pub(crate) Problem);

fn render(problem: &Problem) -> String {
    let mut text = format!("{} [{}]", problem.detail, problem.code);
    for error in &problem.errors {
        text.push_str("\n  ");
        text.push_str(error);
    }
    text
}

impl Client {
    /// A client of the server of this project, at the address that it has told. It is on this machine.
    ///
    /// # Errors
    /// A token that cannot stand in a header, or a certificate that cannot be read.
    pub(crate) fn local(address: &str, token: Option<&str>, trust: &Trust) -> anyhow::Result<Self> {
        // A proxy has no business between this machine and itself.
        Self::over(reqwest::Client::builder().no_proxy(), address, token, trust)
    }

    /// A client of a server somewhere.
    ///
    /// # Errors
    /// The same, and a URL by which everybody on the way could read the token.
    pub(crate) fn remote(url: &str, token: Option<&str>, trust: &Trust) -> anyhow::Result<Self> {
        let parsed = reqwest::Url::parse(url).with_context(|| format!("{url} is no URL of a server"))?;
        let is_loopback = parsed.host_str().is_some_and(is_loopback_authority);
        match parsed.scheme() {
            "https" => {}
            "http" if is_loopback || token.is_none() => {}
            "http" => bail!("{url}: a token is sent only over https://, or to this machine"),
            other => bail!("{url}: a server is reached by https:// or http://, not {other}://"),
        }
        Self::over(reqwest::Client::builder(), url, token, trust)
    }

    fn over(
        builder: reqwest::ClientBuilder,
        address: &str,
        token: Option<&str>,
        trust: &Trust,
    ) -> anyhow::Result<Self> {
        let base = match address.contains("://") {
            true => address.trim_end_matches('/').to_owned(),
            false => format!("http://{address}"),
        };
        // Reading certificates takes longer than the request where none is needed.
        let builder = match base.starts_with("https://") {
            true => builder.tls_backend_preconfigured(client_config(trust)?),
            false => builder,
        };
        let authorization = token.map(|token| HeaderValue::try_from(format!("Bearer {token}"))).transpose();
        let mut authorization = authorization.ok().context("the token is none: it has characters that no token has")?;
        if let Some(authorization) = &mut authorization {
            authorization.set_sensitive(true);
        }
        // What is asked with a token is asked there and nowhere else.
        let http = builder.redirect(reqwest::redirect::Policy::none()).build().context("cannot make a client")?;
        Ok(Self { way: Way::Http { base, authorization, http }, project: None, fresh: false })
    }

    /// A client of these routes, in this process.
    pub(crate) fn in_process(router: Router) -> Self {
        Self { way: Way::InProcess(router), project: None, fresh: false }
    }

    /// The same, about this project.
    ///
    /// # Errors
    /// A name that no project has.
    pub(crate) fn in_project(self, name: &str) -> anyhow::Result<Self> {
        let name = HeaderValue::try_from(name).with_context(|| format!("`{name}` is no name of a project"))?;
        Ok(Self { project: Some(name), ..self })
    }

    /// The same, whose answers may come from memory or not.
    pub(crate) fn with_cache(&self, may_use_it: bool) -> Self {
        Self { fresh: !may_use_it, ..self.clone() }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        accept: Option<&'static str>,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, impl Stream<Item = anyhow::Result<Bytes>> + use<>)> {
        let mut headers = HeaderMap::new();
        let given = [
            (PROJECT, self.project.clone()),
            (header::CACHE_CONTROL, self.fresh.then_some(HeaderValue::from_static("no-cache"))),
            (header::CONTENT_TYPE, content_type.map(HeaderValue::from_static)),
            (header::ACCEPT, accept.map(HeaderValue::from_static)),
        ];
        headers.extend(given.into_iter().filter_map(|(name, value)| Some((name, value?))));
        match &self.way {
            Way::Http { base, authorization, http } => {
                if let Some(authorization) = authorization {
                    headers.insert(header::AUTHORIZATION, authorization.clone());
                }
                let request = http.request(method, format!("{base}{path}")).headers(headers);
                let response =
                    request.body(body).send().await.with_context(|| format!("the server at {base} does not answer"))?;
                let status = response.status();
                Ok((status, response.bytes_stream().map(|part| Ok(part?)).boxed()))
            }
            Way::InProcess(router) => {
                headers.insert(header::HOST, HeaderValue::from_static("localhost"));
                let mut request = Request::builder().method(method).uri(path).body(Body::from(body))?;
                *request.headers_mut() = headers;
                request.extensions_mut().insert(OwnerOfDirectory);
                let response = router.clone().oneshot(request).await?;
                let status = response.status();
                Ok((status, response.into_body().into_data_stream().map(|part| Ok(part?)).boxed()))
            }
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let (status, mut parts) = self.send(method, path, content_type, None, body).await?;
        let mut reply = Vec::new();
        while let Some(part) = parts.next().await {
            reply.extend_from_slice(&part?);
        }
        if !status.is_success() {
            return Err(refusal(status, &reply));
        }
        serde_json::from_slice(&reply).with_context(|| format!("{path}: the reply is not what was expected"))
    }

    /// GET a JSON reply.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, None, Bytes::new()).await
    }

    /// POST JSON, get JSON.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Json) -> anyhow::Result<T> {
        self.call(Method::POST, path, Some("application/json"), serde_json::to_vec(body)?.into()).await
    }

    /// POST bytes, get JSON.
    pub(crate) async fn post_bytes<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> anyhow::Result<T> {
        self.call(Method::POST, path, Some("application/wasm"), body.into()).await
    }

    /// DELETE, get JSON.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::DELETE, path, None, Bytes::new()).await
    }

    /// The data of server-sent events, one by one.
    pub(crate) async fn events(&self, path: &str) -> anyhow::Result<impl Stream<Item = anyhow::Result<Json>> + use<>> {
        self.listen(Method::GET, path, None, Bytes::new()).await
    }

    /// POST JSON; the data of the server-sent events that answer it.
    pub(crate) async fn post_events(
        &self,
        path: &str,
        body: &Json,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Json>> + use<>> {
        self.listen(Method::POST, path, Some("application/json"), serde_json::to_vec(body)?.into()).await
    }

    async fn listen(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: Bytes,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Json>> + use<>> {
        let (status, parts) = self.send(method, path, content_type, Some("text/event-stream"), body).await?;
        if !status.is_success() {
            let reply: Vec<anyhow::Result<Bytes>> = parts.collect().await;
            let reply: Vec<u8> = reply.into_iter().flatten().flatten().collect();
            return Err(refusal(status, &reply));
        }
        let parts = Box::pin(parts);
        Ok(futures::stream::try_unfold((parts, Vec::new()), |(mut parts, mut pending)| async move {
            loop {
                if let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                    let event: Vec<u8> = pending.drain(..end + 2).collect();
                    let event = String::from_utf8(event).context("an event is not UTF-8")?;
                    let data: String = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                    if data.is_empty() {
                        continue;
                    }
                    let json = serde_json::from_str(data.trim()).context("an event is not JSON")?;
                    return Ok(Some((json, (parts, pending))));
                }
                match parts.next().await {
                    Some(part) => pending.extend_from_slice(&part?),
                    None => return Ok(None),
                }
            }
        }))
    }
}

fn refusal(status: StatusCode, reply: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Problem>(reply) {
        Ok(problem) => Refused(problem).into(),
        Err(_) => anyhow::anyhow!("status {status}: {}", String::from_utf8_lossy(reply)),
    }
}

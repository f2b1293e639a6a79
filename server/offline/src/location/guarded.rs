//! A bucket's client, as the rest of the program uses it: its errors are short and hold no secrets, a large object is sent
//! in parts, and parts that come to nothing are removed.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, UploadPart,
};
use tokio::runtime::Handle;

use super::secret::Secrets;

/// The largest object that is sent by one request. One that fails is sent again from its beginning.
const PUT_BYTES_MAX: usize = 32 << 20;

/// Bytes of one part of a larger one.
const PART_BYTES: usize = 16 << 20;

/// Parts of one object that are on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// One bucket.
#[derive(Clone)]
pub(crate) struct GuardedS3 {
    client: Arc<AmazonS3>,
    teller: Teller,
}

impl GuardedS3 {
    pub(crate) fn new(client: AmazonS3, bucket: &str, credentials_origin: &str, secrets: Secrets) -> Self {
        let teller = Teller { bucket: Arc::from(bucket), credentials_origin: Arc::from(credentials_origin), secrets };
        Self { client: Arc::new(client), teller }
    }

    async fn put_in_parts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult, Error> {
        let PutOptions { tags, attributes, extensions, .. } = options;
        let mut upload = self.put_multipart_opts(at, PutMultipartOptions { tags, attributes, extensions }).await?;
        let parts: Vec<UploadPart> = parts_of(payload).into_iter().map(|part| upload.put_part(part)).collect();
        let sent = futures::stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<Vec<()>>().await;
        match sent {
            Ok(_) => upload.complete().await,
            Err(error) => {
                // That it could not be sent is what counts, not that its parts could not be removed either.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }
}

fn parts_of(payload: PutPayload) -> Vec<PutPayload> {
    let mut parts = Vec::new();
    let (mut part, mut part_bytes) = (Vec::new(), 0);
    for mut bytes in payload {
        while part_bytes + bytes.len() >= PART_BYTES {
            part.push(bytes.split_to(PART_BYTES - part_bytes));
            parts.push(std::mem::take(&mut part).into_iter().collect());
            part_bytes = 0;
        }
        part_bytes += bytes.len();
        part.push(bytes);
    }
    if part_bytes > 0 {
        parts.push(part.into_iter().collect());
    }
    parts
}

impl fmt::Debug for GuardedS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for GuardedS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.teller.bucket)
    }
}

#[async_trait]
impl ObjectStore for GuardedS3 {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult, Error> {
        // Parts cannot be put on a condition everywhere; what is conditional here is small.
        if options.mode == PutMode::Overwrite && payload.content_length() > PUT_BYTES_MAX {
            return self.put_in_parts(at, payload, options).await;
        }
        self.client.put_opts(at, payload, options).await.map_err(|error| self.teller.tell(error))
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        let upload = self.client.put_multipart_opts(at, options).await.map_err(|error| self.teller.tell(error))?;
        Ok(Box::new(GuardedUpload { upload: Some(upload), teller: self.teller.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult, Error> {
        let mut found = self.client.get_opts(at, options).await.map_err(|error| self.teller.tell(error))?;
        found.payload = match found.payload {
            GetResultPayload::Stream(bytes) => {
                let teller = self.teller.clone();
                GetResultPayload::Stream(bytes.map_err(move |error| teller.tell(error)).boxed())
            }
            file => file,
        };
        Ok(found)
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        self.client.get_ranges(at, ranges).await.map_err(|error| self.teller.tell(error))
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path, Error>>) -> BoxStream<'static, Result<Path, Error>> {
        let teller = self.teller.clone();
        self.client.delete_stream(paths).map_err(move |error| teller.tell(error)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        let teller = self.teller.clone();
        self.client.list(prefix).map_err(move |error| teller.tell(error)).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        let teller = self.teller.clone();
        self.client.list_with_offset(prefix, offset).map_err(move |error| teller.tell(error)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.client.list_with_delimiter(prefix).await.map_err(|error| self.teller.tell(error))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<(), Error> {
        self.client.copy_opts(from, to, options).await.map_err(|error| self.teller.tell(error))
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<(), Error> {
        self.client.rename_opts(from, to, options).await.map_err(|error| self.teller.tell(error))
    }
}

/// An object that is sent in parts. It appears when it is complete; whoever drops it before leaves no parts behind.
struct GuardedUpload {
    /// `None` once it was completed or given up.
    upload: Option<Box<dyn MultipartUpload>>,
    teller: Teller,
}

impl GuardedUpload {
    fn over() -> Error {
        Error::Generic { store: "S3", source: "the upload is over".into() }
    }
}

#[async_trait]
impl MultipartUpload for GuardedUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let teller = self.teller.clone();
        match &mut self.upload {
            Some(upload) => upload.put_part(part).map(move |sent| sent.map_err(|error| teller.tell(error))).boxed(),
            None => std::future::ready(Err(Self::over())).boxed(),
        }
    }

    async fn complete(&mut self) -> Result<PutResult, Error> {
        let upload = self.upload.as_mut().ok_or_else(Self::over)?;
        let completed = upload.complete().await.map_err(|error| self.teller.tell(error))?;
        self.upload = None;
        Ok(completed)
    }

    async fn abort(&mut self) -> Result<(), Error> {
        let mut upload = self.upload.take().ok_or_else(Self::over)?;
        upload.abort().await.map_err(|error| self.teller.tell(error))
    }
}

impl fmt::Debug for GuardedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardedUpload")
    }
}

impl Drop for GuardedUpload {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

/// Puts errors of a bucket's client into words.
#[derive(Debug, Clone)]
struct Teller {
    bucket: Arc<str>,
    credentials_origin: Arc<str>,
    secrets: Secrets,
}

const REFUSALS: [&str; 2] = ["status code: 401", "status code: 403"];

/// An error in words, with nothing behind it that could be printed.
#[derive(Debug)]
struct Told(String);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Told {}

type Source = Box<dyn StdError + Send + Sync>;

impl Teller {
    fn tell(&self, error: Error) -> Error {
        let generic = |text: String| Error::Generic { store: "S3", source: Box::new(Told(text)) };
        match error {
            Error::NotFound { path, source } => {
                let text = self.words(&source, false);
                // A bucket that is not there must not pass for a table that is empty.
                if text.contains("NoSuchBucket") {
                    return generic(format!("there is no bucket `{}` ({text})", self.bucket));
                }
                Error::NotFound { path, source: Box::new(Told(text)) }
            }
            Error::AlreadyExists { path, source } => Error::AlreadyExists { path, source: self.told(&source, false) },
            Error::Precondition { path, source } => Error::Precondition { path, source: self.told(&source, false) },
            Error::NotModified { path, source } => Error::NotModified { path, source: self.told(&source, false) },
            Error::NotSupported { source } => Error::NotSupported { source: self.told(&source, false) },
            Error::PermissionDenied { path, source } => {
                Error::PermissionDenied { path, source: self.told(&source, true) }
            }
            Error::Unauthenticated { path, source } => {
                Error::Unauthenticated { path, source: self.told(&source, true) }
            }
            Error::Generic { store, source } => Error::Generic { store, source: self.told(&source, false) },
            // They are about paths and settings, and hold no text of a server.
            other => other,
        }
    }

    fn told(&self, source: &Source, is_about_credentials: bool) -> Source {
        Box::new(Told(self.words(source, is_about_credentials)))
    }

    fn words(&self, source: &Source, is_about_credentials: bool) -> String {
        let mut text = source.to_string();
        let mut cause = source.source();
        while let Some(error) = cause {
            let words = error.to_string();
            if !text.contains(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            cause = error.source();
        }
        let mut text = self.secrets.hide(&without_document(&text));
        // A listing that is refused comes without a kind.
        let is_refused = REFUSALS.iter().any(|refusal| text.contains(refusal));
        if is_about_credentials || is_refused {
            text.push_str(&format!("; the credentials are those of {}", self.credentials_origin));
        }
        text
    }
}

/// A server's error document repeats what was signed, tokens included. Its code and message are what matters.
fn without_document(text: &str) -> String {
    let Some(start) = text.find("<?xml").or_else(|| text.find("<Error>")) else { return text.to_owned() };
    let (before, document) = text.split_at(start);
    let element = |name: &str| {
        let (_, rest) = document.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text.trim())
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{before}{code}: {message}"),
        (Some(code), None) => format!("{before}{code}"),
        _ => format!("{before}(a document without a code)"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::location::secret::Secret;

    fn teller() -> Teller {
        let secrets = Secrets::default();
        secrets.add(&Secret::new("the-secret-key"));
        Teller { bucket: Arc::from("lake"), credentials_origin: Arc::from("AWS_ACCESS_KEY_ID"), secrets }
    }

    #[test]
    fn an_error_of_a_server_is_told_in_one_line_without_what_was_signed() {
        let document = "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error>\
             <Code>SignatureDoesNotMatch</Code><Message>It does not match.</Message>\
             <CanonicalRequest>x-amz-security-token:hush</CanonicalRequest></Error>";
        let told = teller().tell(Error::PermissionDenied { path: "a/b".to_owned(), source: document.into() });
        assert!(matches!(told, Error::PermissionDenied { .. }));
        let text = told.to_string();
        assert!(
            text.ends_with(
                "403 Forbidden: SignatureDoesNotMatch: It does not match.; the credentials are those of AWS_ACCESS_KEY_ID"
            ),
            "{text}"
        );
        assert!(!format!("{told:?}").contains("hush"));
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_comes_up() {
        let source = "cannot send with the-secret-key".into();
        let told = teller().tell(Error::Generic { store: "S3", source });
        assert!(!format!("{told} {told:?}").contains("the-secret-key"));
    }

    #[test]
    fn a_bucket_that_is_not_there_is_no_object_that_is_not_there() {
        let document = "404: <Error><Code>NoSuchBucket</Code><Message>None.</Message></Error>";
        let told = teller().tell(Error::NotFound { path: "a".to_owned(), source: document.into() });
        assert!(matches!(told, Error::Generic { .. }), "{told:?}");
        let document = "404: <Error><Code>NoSuchKey</Code><Message>None.</Message></Error>";
        let told = teller().tell(Error::NotFound { path: "a".to_owned(), source: document.into() });
        assert!(matches!(told, Error::NotFound { .. }), "{told:?}");
    }

    #[test]
    fn a_payload_is_cut_into_parts_of_one_size() {
        for chunks in
            [vec![PUT_BYTES_MAX + 1], vec![PART_BYTES; 3], vec![5, PART_BYTES - 5, 7], vec![PART_BYTES * 2, 9]]
        {
            let mut next = 0_u8;
            let chunk = |bytes: &usize| {
                next = next.wrapping_add(1);
                Bytes::from(vec![next; *bytes])
            };
            let payload: PutPayload = chunks.iter().map(chunk).collect();
            let parts = parts_of(payload.clone());
            let (last, whole) = parts.split_last().unwrap();
            assert!(whole.iter().all(|part| part.content_length() == PART_BYTES));
            assert!(last.content_length() <= PART_BYTES && last.content_length() > 0);
            let together: Vec<u8> = parts.iter().flatten().flatten().copied().collect();
            assert_eq!(Bytes::from(together), Bytes::from(payload));
        }
    }
}

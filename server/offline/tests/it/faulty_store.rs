//! An object store that fails at one request, in the ways in which a network does.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// What happens at the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not carried out.
    Fails,
    /// It is carried out, and the reply is lost.
    NoReply,
    /// It is not carried out, nor is any after it: the process might as well have been killed here.
    Outage,
    /// It is carried out and the reply lost, and then nothing gets through.
    OutageAfter,
}

pub const FAULTS: [Fault; 4] = [Fault::Fails, Fault::NoReply, Fault::Outage, Fault::OutageAfter];

/// Counts requests, and fails at one of them.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    requests: Arc<AtomicUsize>,
    fault: Option<(usize, Fault)>,
    /// How the name of a file ends that cannot be written.
    unwritable: Option<String>,
}

/// What is to be done about one request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Refuse,
    LoseReply,
}

impl FaultyStore {
    /// Counts only.
    pub fn counting(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, requests: Arc::default(), fault: None, unwritable: None }
    }

    /// Fails at request `number`, counted from 1.
    pub fn failing(inner: Arc<dyn ObjectStore>, number: usize, fault: Fault) -> Self {
        Self { fault: Some((number, fault)), ..Self::counting(inner) }
    }

    /// Fails whenever a file is written whose name ends so.
    pub fn refusing(inner: Arc<dyn ObjectStore>, unwritable: String) -> Self {
        Self { unwritable: Some(unwritable), ..Self::counting(inner) }
    }

    fn check_writable(&self, at: &Path) -> Result<()> {
        let is_unwritable = self.unwritable.as_ref().is_some_and(|name| at.as_ref().ends_with(name.as_str()));
        if is_unwritable { Err(broken()) } else { Ok(()) }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn next(&self) -> Verdict {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let Some((at, fault)) = self.fault else { return Verdict::Pass };
        match (number.cmp(&at), fault) {
            (std::cmp::Ordering::Less, _) => Verdict::Pass,
            (std::cmp::Ordering::Equal, Fault::NoReply | Fault::OutageAfter) => Verdict::LoseReply,
            (std::cmp::Ordering::Equal, Fault::Fails | Fault::Outage) => Verdict::Refuse,
            (std::cmp::Ordering::Greater, Fault::Outage | Fault::OutageAfter) => Verdict::Refuse,
            (std::cmp::Ordering::Greater, Fault::Fails | Fault::NoReply) => Verdict::Pass,
        }
    }

    async fn through<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next() {
            Verdict::Pass => request.await,
            Verdict::Refuse => Err(broken()),
            Verdict::LoseReply => {
                let _ = request.await;
                Err(broken())
            }
        }
    }
}

fn broken() -> Error {
    Error::Generic { store: "faulty", source: "connection reset by peer".into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

#[async_trait::async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check_writable(at)?;
        self.through(self.inner.put_opts(at, bytes, options)).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.through(self.inner.put_multipart_opts(at, options)).await?;
        Ok(Box::new(FaultyUpload { inner, store: self.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.through(self.inner.get_opts(at, options)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deleted = paths.then(move |path| {
            let store = store.clone();
            async move {
                let path = path?;
                store.through(store.inner.delete(&path)).await.map(|()| path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next() {
            Verdict::Pass => self.inner.list(prefix),
            Verdict::Refuse => futures::stream::iter([Err(broken())]).boxed(),
            // The connection is lost in the middle: half a listing must not pass for the whole.
            Verdict::LoseReply => self.inner.list(prefix).take(1).chain(futures::stream::iter([Err(broken())])).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check_writable(to)?;
        self.through(self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    store: FaultyStore,
}

#[async_trait::async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (store, sent) = (self.store.clone(), self.inner.put_part(part));
        async move { store.through(sent).await }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let store = self.store.clone();
        store.through(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        let store = self.store.clone();
        store.through(self.inner.abort()).await
    }
}

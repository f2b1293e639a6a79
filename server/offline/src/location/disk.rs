//! The local disk. Parts of files are read into memory that is used again: a job reads some megabytes at a time, one part
//! after the other, and fresh memory has to be cleared by the kernel, and once more by a reader that sets it to zero first.
//! For a training set of 1 M rows from 5 M that took a tenth of the processor time.
//!
//! That memory is mapped, not allocated. Many threads read, each for a moment, and others are through with what they have read:
//! an allocator keeps such memory with the thread that it was allocated by until that thread asks for some again. A backfill
//! of 50 M rows came to hold 1 GiB so.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use memmap2::MmapMut;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// Buffers are of multiples of this; what is smaller is not worth keeping.
const BUFFER_BYTES_STEP: usize = 256 << 10;

/// Bytes of buffers that wait for the next read, in the whole process.
const IDLE_BYTES_MAX: usize = 16 << 20;

/// Buffers that wait.
fn idle() -> MutexGuard<'static, Vec<MmapMut>> {
    static IDLE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes in memory that, when they are not needed any more, waits for the next read.
struct Buffer {
    /// `None` only while it is dropped.
    memory: Option<MmapMut>,
    bytes: usize,
}

impl Buffer {
    /// Of this many bytes; what they are is left from earlier.
    fn of(bytes: usize) -> std::io::Result<Self> {
        let new_bytes = bytes.next_multiple_of(BUFFER_BYTES_STEP).max(BUFFER_BYTES_STEP);
        // Whoever keeps a part of what is read keeps all of its memory: a much larger buffer would be wasted on it.
        let lengths = bytes..=2 * new_bytes;
        let known = {
            let mut idle = idle();
            let fitting = idle.iter().enumerate().filter(|(_, memory)| lengths.contains(&memory.len()));
            let smallest = fitting.min_by_key(|(_, memory)| memory.len()).map(|(place, _)| place);
            smallest.map(|place| idle.swap_remove(place))
        };
        let memory = known.map_or_else(|| MmapMut::map_anon(new_bytes), Ok)?;
        Ok(Self { memory: Some(memory), bytes })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory[..self.bytes])
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory[..self.bytes])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut idle = idle();
        let idle_bytes: usize = idle.iter().map(|memory| memory.len()).sum();
        if idle_bytes + memory.len() <= IDLE_BYTES_MAX {
            idle.push(memory);
        }
    }
}

/// The file system of this machine.
#[derive(Debug, Default)]
pub(super) struct Disk {
    files: LocalFileSystem,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.files, f)
    }
}

/// These parts of a file.
fn read_parts(path: &std::path::Path, ranges: &[Range<u64>]) -> std::io::Result<Vec<Bytes>> {
    let mut file = File::open(path)?;
    let read = |range: &Range<u64>| {
        let bytes = usize::try_from(range.end.saturating_sub(range.start)).map_err(std::io::Error::other)?;
        file.seek(SeekFrom::Start(range.start))?;
        if bytes < BUFFER_BYTES_STEP {
            let mut part = Vec::with_capacity(bytes);
            let read = (&file).take(bytes as u64).read_to_end(&mut part)?;
            return if read < bytes { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(Bytes::from(part)) };
        }
        let mut buffer = Buffer::of(bytes)?;
        file.read_exact(buffer.bytes_mut())?;
        Ok(Bytes::from_owner(buffer))
    };
    ranges.iter().map(read).collect()
}

#[async_trait]
impl ObjectStore for Disk {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.files.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.files.path_to_filesystem(at)?;
        let parts = ranges.to_vec();
        let read = tokio::task::spawn_blocking(move || read_parts(&path, &parts)).await;
        match read {
            Ok(Ok(parts)) => Ok(parts),
            // It says best what is wrong with a file.
            _ => self.files.get_ranges(at, ranges).await,
        }
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE_BYTES: usize = 5 << 20;

    type Tested = std::result::Result<(), Box<dyn std::error::Error>>;

    /// A file in which every byte says where it stands, and what is in it. It goes with the folder.
    fn file() -> std::io::Result<(tempfile::TempDir, std::path::PathBuf, Vec<u8>)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..FILE_BYTES).map(|at| (at % 251) as u8 ^ (at >> 16) as u8).collect();
        std::fs::write(&path, &bytes)?;
        Ok((folder, path, bytes))
    }

    #[test]
    fn parts_are_those_of_the_file_whatever_their_memory_held_before() -> Tested {
        let (_folder, path, bytes) = file()?;
        let lengths = [FILE_BYTES, 1, BUFFER_BYTES_STEP - 1, BUFFER_BYTES_STEP, 2 * BUFFER_BYTES_STEP + 7, 0];
        let all_but_the_ends = 5..(FILE_BYTES as u64 - 5);
        for start in [0, 3, 70_000] {
            // Held while others come and go.
            let held = read_parts(&path, std::slice::from_ref(&all_but_the_ends))?;
            let ranges: Vec<Range<u64>> =
                lengths.iter().map(|length| start..(start + *length as u64).min(FILE_BYTES as u64)).collect();
            let parts = read_parts(&path, &ranges)?;
            for (range, part) in ranges.into_iter().zip(parts) {
                assert!(part == bytes[range.start as usize..range.end as usize], "{range:?}");
            }
            assert!(held[0] == bytes[5..FILE_BYTES - 5]);
        }
        Ok(())
    }

    #[tokio::test]
    async fn memory_that_waits_is_bounded() -> Tested {
        let (_folder, path, _) = file()?;
        let path = Path::from_absolute_path(path)?;
        let whole = vec![0..FILE_BYTES as u64; 2 * IDLE_BYTES_MAX / FILE_BYTES];
        drop(Disk::default().get_ranges(&path, &whole).await?);
        let idle_bytes: usize = idle().iter().map(|memory| memory.len()).sum();
        assert!((1..=IDLE_BYTES_MAX).contains(&idle_bytes), "{idle_bytes} bytes");
        Ok(())
    }

    #[test]
    fn a_small_part_does_not_keep_much_memory() -> Tested {
        drop(Buffer::of(IDLE_BYTES_MAX)?);
        let small = Buffer::of(BUFFER_BYTES_STEP + 1)?;
        let bytes = small.memory.as_ref().map_or(0, |memory| memory.len());
        assert!((BUFFER_BYTES_STEP + 1..=4 * BUFFER_BYTES_STEP).contains(&bytes), "{bytes} bytes");
        Ok(())
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_as_the_file_system_tells_it() -> Tested {
        let (folder, path, _) = file()?;
        let (disk, path) = (Disk::default(), Path::from_absolute_path(path)?);
        let behind_the_end = (FILE_BYTES as u64 + 1)..(2 * FILE_BYTES as u64);
        let ranges = std::slice::from_ref(&behind_the_end);
        let told = disk.get_ranges(&path, ranges).await.map_err(|error| error.to_string());
        assert_eq!(told, LocalFileSystem::new().get_ranges(&path, ranges).await.map_err(|error| error.to_string()));
        assert!(told.is_err());
        let missing = Path::from_absolute_path(folder.path().join("missing"))?;
        let told = disk.get_ranges(&missing, ranges).await;
        assert!(matches!(told, Err(object_store::Error::NotFound { .. })), "{told:?}");
        Ok(())
    }
}

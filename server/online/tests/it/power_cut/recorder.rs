//! What a store does to its disk, in order: every call of the operating system that changes a file or a name in one folder.
//!
//! The functions below stand in front of the C library's of the same names, for this whole test binary: what is defined in an
//! executable goes before what a library has. So the store is watched as it is, without a layer of its own for tests. They
//! hand everything on. While a folder is recorded, they also note what happened in it; a sync there is only noted, since it
//! is the model of the disk that decides what it is good for.
//!
//! A call that changes files and is not among them would be missed. [`super::Disk`] shows it: what was recorded, done again
//! from the start, has to end in the bytes that are there.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::fs::{File, Metadata};
use std::io::Seek;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A file, whatever its name; never given twice.
pub(super) type FileId = usize;

/// One thing that was done. Names are relative to the folder that is recorded.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Create {
        name: PathBuf,
        file: FileId,
    },
    Remove {
        name: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    CreateFolder {
        name: PathBuf,
    },
    Write {
        file: FileId,
        at: usize,
        bytes: Vec<u8>,
    },
    SetLength {
        file: FileId,
        length: usize,
    },
    SyncFile {
        file: FileId,
    },
    SyncFolder {
        name: PathBuf,
    },
    /// Everything up to here was acknowledged to the writer.
    Acknowledged {
        call: i64,
    },
}

/// Spares everybody else the lock.
static IS_RECORDING: AtomicBool = AtomicBool::new(false);
static RECORDING: Mutex<Option<State>> = Mutex::new(None);

struct State {
    folder: PathBuf,
    /// By device and inode number, which only a file that is there has.
    files: HashMap<(u64, u64), FileId>,
    files_ever: usize,
    events: Vec<Event>,
}

/// The only recording at a time; ends with [`Recording::end`].
pub(super) struct Recording(());

impl Recording {
    /// Begins with the folder as it is. Gives the files in it with the ids that events will have for them.
    pub(super) fn begin(folder: &Path) -> (Self, Vec<(PathBuf, FileId)>) {
        let mut state =
            State { folder: folder.canonicalize().unwrap(), files: HashMap::new(), files_ever: 0, events: Vec::new() };
        let mut known = Vec::new();
        for (name, is_folder) in super::names_in(folder) {
            if !is_folder {
                let found = std::fs::metadata(folder.join(&name)).unwrap();
                known.push((name, state.new_file(&found)));
            }
        }
        let mut recording = lock();
        assert!(recording.is_none(), "one recording at a time");
        *recording = Some(state);
        IS_RECORDING.store(true, Ordering::SeqCst);
        (Self(()), known)
    }

    /// Notes that the writer was told so.
    pub(super) fn acknowledged(&self, call: i64) {
        if let Some(state) = lock().as_mut() {
            state.events.push(Event::Acknowledged { call });
        }
    }

    pub(super) fn end(self) -> Vec<Event> {
        IS_RECORDING.store(false, Ordering::SeqCst);
        lock().take().unwrap().events
    }
}

fn lock() -> MutexGuard<'static, Option<State>> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn new_file(&mut self, found: &Metadata) -> FileId {
        let file = self.files_ever;
        self.files_ever += 1;
        self.files.insert((found.dev(), found.ino()), file);
        file
    }

    /// The name of what a call means, if it is in the folder.
    fn name(&self, at: c_int, path: *const c_char) -> Option<PathBuf> {
        // SAFETY: callers pass on what the C library requires to be a string that ends with zero.
        #[allow(unsafe_code)]
        let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        let path = if path.is_absolute() { path.to_owned() } else { folder_of(at)?.join(path) };
        path.strip_prefix(&self.folder).ok().map(Path::to_owned)
    }

    /// The file that a descriptor is open on, if it is in the folder.
    fn file(&self, descriptor: c_int) -> Option<FileId> {
        // A folder may have the number of a file that has gone.
        let found = borrowed(descriptor).metadata().ok().filter(Metadata::is_file)?;
        self.files.get(&(found.dev(), found.ino())).copied()
    }
}

fn borrowed(descriptor: c_int) -> ManuallyDrop<File> {
    // SAFETY: it is never closed here, and only looked at while its owner is in a call with it.
    #[allow(unsafe_code)]
    ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) })
}

fn folder_of(descriptor: c_int) -> Option<PathBuf> {
    if descriptor < 0 {
        return std::env::current_dir().ok();
    }
    std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()
}

/// Makes a call, and lets `note` write down what it did; nothing comes in between.
fn noted<T: PartialOrd + Default>(call: impl FnOnce() -> T, note: impl FnOnce(&mut State, &T)) -> T {
    if !IS_RECORDING.load(Ordering::SeqCst) {
        return call();
    }
    let mut recording = lock();
    let done = call();
    if let Some(state) = recording.as_mut()
        && done >= T::default()
    {
        note(state, &done);
    }
    done
}

/// The C library's function behind one of ours.
macro_rules! next {
    ($name:literal as $type:ty) => {{
        static NEXT: OnceLock<usize> = OnceLock::new();
        let address = *NEXT.get_or_init(|| {
            // SAFETY: the name is a string that ends with zero; `RTLD_NEXT` is a pseudo-handle of the library's.
            unsafe { dlsym(RTLD_NEXT as *mut c_void, concat!($name, "\0").as_ptr().cast()) as usize }
        });
        assert_ne!(address, 0, "the C library has no {}", $name);
        // SAFETY: the address is of the function of this name, whose type is that of the manual.
        unsafe { std::mem::transmute::<*const c_void, $type>(address as *const c_void) }
    }};
}

const RTLD_NEXT: isize = -1;
const O_CREAT: c_int = 0o100;
const O_TRUNC: c_int = 0o1000;
const AT_FDCWD: c_int = -100;

#[allow(unsafe_code)]
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

// SAFETY of all that follow: each has the arguments of the C library's function of its name, and hands them on.

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let open = next!("open64" as unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int);
    if !IS_RECORDING.load(Ordering::SeqCst) || flags & (O_CREAT | O_TRUNC) == 0 {
        return unsafe { open(path, flags, mode) };
    }
    let mut recording = lock();
    let name = recording.as_ref().and_then(|state| state.name(AT_FDCWD, path));
    let was_there = recording.as_ref().zip(name.as_ref()).is_some_and(|(state, name)| state.folder.join(name).exists());
    let descriptor = unsafe { open(path, flags, mode) };
    let (Some(state), Some(name)) = (recording.as_mut(), name) else { return descriptor };
    if descriptor < 0 {
        return descriptor;
    }
    if was_there && flags & O_TRUNC != 0 {
        if let Some(file) = state.file(descriptor) {
            state.events.push(Event::SetLength { file, length: 0 });
        }
    } else if !was_there && let Ok(found) = borrowed(descriptor).metadata() {
        let file = state.new_file(&found);
        state.events.push(Event::Create { name, file });
    }
    descriptor
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn write(descriptor: c_int, bytes: *const c_void, count: usize) -> isize {
    let write = next!("write" as unsafe extern "C" fn(c_int, *const c_void, usize) -> isize);
    let call = || unsafe { write(descriptor, bytes, count) };
    noted(call, |state, written| {
        let Some(file) = state.file(descriptor) else { return };
        let Ok(end) = borrowed(descriptor).stream_position() else { return };
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), *written as usize) }.to_vec();
        state.events.push(Event::Write { file, at: end as usize - bytes.len(), bytes });
    })
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(descriptor: c_int, bytes: *const c_void, count: usize, at: i64) -> isize {
    let write = next!("pwrite64" as unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize);
    let call = || unsafe { write(descriptor, bytes, count, at) };
    noted(call, |state, written| {
        let Some(file) = state.file(descriptor) else { return };
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), *written as usize) }.to_vec();
        state.events.push(Event::Write { file, at: at as usize, bytes });
    })
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(descriptor: c_int, length: i64) -> c_int {
    let truncate = next!("ftruncate64" as unsafe extern "C" fn(c_int, i64) -> c_int);
    let call = || unsafe { truncate(descriptor, length) };
    noted(call, |state, _| {
        let Some(file) = state.file(descriptor) else { return };
        state.events.push(Event::SetLength { file, length: length as usize });
    })
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    let sync = next!("fsync" as unsafe extern "C" fn(c_int) -> c_int);
    synced(descriptor, || unsafe { sync(descriptor) })
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    let sync = next!("fdatasync" as unsafe extern "C" fn(c_int) -> c_int);
    synced(descriptor, || unsafe { sync(descriptor) })
}

fn synced(descriptor: c_int, call: impl FnOnce() -> c_int) -> c_int {
    if !IS_RECORDING.load(Ordering::SeqCst) {
        return call();
    }
    let mut recording = lock();
    let Some(state) = recording.as_mut() else { return call() };
    if let Some(file) = state.file(descriptor) {
        state.events.push(Event::SyncFile { file });
        return 0;
    }
    let folder = folder_of(descriptor).filter(|path| path.is_dir());
    if let Some(name) = folder.and_then(|path| path.strip_prefix(&state.folder).ok().map(Path::to_owned)) {
        state.events.push(Event::SyncFolder { name });
        return 0;
    }
    drop(recording);
    call()
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let rename = next!("rename" as unsafe extern "C" fn(*const c_char, *const c_char) -> c_int);
    noted(
        || unsafe { rename(from, to) },
        |state, _| {
            if let (Some(from), Some(to)) = (state.name(AT_FDCWD, from), state.name(AT_FDCWD, to)) {
                state.events.push(Event::Rename { from, to });
            }
        },
    )
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    let unlink = next!("unlink" as unsafe extern "C" fn(*const c_char) -> c_int);
    noted(|| unsafe { unlink(path) }, |state, _| removed(state, AT_FDCWD, path))
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    let unlink = next!("unlinkat" as unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int);
    noted(|| unsafe { unlink(folder, path, flags) }, |state, _| removed(state, folder, path))
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    let rmdir = next!("rmdir" as unsafe extern "C" fn(*const c_char) -> c_int);
    noted(|| unsafe { rmdir(path) }, |state, _| removed(state, AT_FDCWD, path))
}

fn removed(state: &mut State, folder: c_int, path: *const c_char) {
    if let Some(name) = state.name(folder, path) {
        state.events.push(Event::Remove { name });
    }
}

#[allow(unsafe_code)]
#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    let mkdir = next!("mkdir" as unsafe extern "C" fn(*const c_char, c_uint) -> c_int);
    noted(
        || unsafe { mkdir(path, mode) },
        |state, _| {
            if let Some(name) = state.name(AT_FDCWD, path) {
                state.events.push(Event::CreateFolder { name });
            }
        },
    )
}

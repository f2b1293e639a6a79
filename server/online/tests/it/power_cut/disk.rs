//! A disk that has a cache, and what is left of it when the power goes.
//!
//! What was synced stays. Of what was not, anything may be left: each sector holds one of the contents that it had since, a
//! file has one of its lengths, and of the changes of names in a folder any may be there without those before it. That is
//! more than most file systems do to a store, and no more than they are allowed to.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::recorder::{Event, FileId};
use crate::support::Dice;

/// What is written whole or not at all.
const SECTOR_BYTES: usize = 512;

/// The files and folders of a directory, by name.
pub(super) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// A directory with what is safe of it and what is not yet.
pub(super) struct Disk {
    files: HashMap<FileId, CachedFile>,
    names: BTreeMap<PathBuf, Entry>,
    /// Changes of names, each until its folder is synced.
    unsynced_names: Vec<Rename>,
}

/// `None`: a folder.
type Entry = Option<FileId>;

/// A name that goes, a name that comes, or both at once.
#[derive(Clone)]
struct Rename {
    gone: Option<PathBuf>,
    come: Option<(PathBuf, Entry)>,
}

#[derive(Default, Clone)]
struct CachedFile {
    safe: Vec<u8>,
    /// Writes and lengths since the last sync.
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLength(usize),
}

impl Disk {
    /// A directory that is safe as a whole.
    pub(super) fn of(image: &Image, files: &[(PathBuf, FileId)]) -> Self {
        let mut names: BTreeMap<PathBuf, Entry> = image.keys().map(|name| (name.clone(), None)).collect();
        let mut contents = HashMap::new();
        for (name, file) in files {
            let safe = image[name].clone().unwrap();
            contents.insert(*file, CachedFile { safe, unsynced: Vec::new() });
            names.insert(name.clone(), Some(*file));
        }
        Self { files: contents, names, unsynced_names: Vec::new() }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { file, at, bytes } => self.change(*file, Change::Write { at: *at, bytes: bytes.clone() }),
            Event::SetLength { file, length } => self.change(*file, Change::SetLength(*length)),
            Event::SyncFile { file } => {
                let file = self.files.entry(*file).or_default();
                let unsynced = std::mem::take(&mut file.unsynced);
                unsynced.iter().for_each(|change| change.apply(&mut file.safe));
            }
            Event::SyncFolder { name } => {
                let all = std::mem::take(&mut self.unsynced_names);
                let (synced, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|change| change.folder() == name);
                self.unsynced_names = others;
                synced.iter().for_each(|change| change.apply(&mut self.names));
            }
            Event::Create { name, file } => self.rename(None, Some((name.clone(), Some(*file)))),
            Event::CreateFolder { name } => self.rename(None, Some((name.clone(), None))),
            Event::Remove { name } => self.rename(Some(name.clone()), None),
            Event::Rename { from, to } => {
                let mut names = self.names.clone();
                self.unsynced_names.iter().for_each(|change| change.apply(&mut names));
                self.rename(Some(from.clone()), Some((to.clone(), names[from])));
            }
            Event::Acknowledged { .. } => {}
        }
    }

    fn rename(&mut self, gone: Option<PathBuf>, come: Option<(PathBuf, Entry)>) {
        self.unsynced_names.push(Rename { gone, come });
    }

    fn change(&mut self, file: FileId, change: Change) {
        self.files.entry(file).or_default().unsynced.push(change);
    }

    /// The directory as those see it whose computer goes on.
    pub(super) fn seen(&self) -> Image {
        self.image(
            || true,
            |file| {
                let mut bytes = file.safe.clone();
                file.unsynced.iter().for_each(|change| change.apply(&mut bytes));
                bytes
            },
        )
    }

    /// What is left after the power has gone.
    pub(super) fn left(&self, dice: &mut Dice) -> Image {
        let mut luck = Luck::draw(dice);
        let survivors: Vec<bool> = self.unsynced_names.iter().map(|_| luck.holds(dice)).collect();
        let mut survivors = survivors.into_iter();
        self.image(
            || survivors.next().unwrap(),
            |file| {
                luck = Luck::draw(dice);
                file.left(luck, dice)
            },
        )
    }

    fn image(&self, mut survives: impl FnMut() -> bool, mut content: impl FnMut(&CachedFile) -> Vec<u8>) -> Image {
        let mut names = self.names.clone();
        for change in &self.unsynced_names {
            if survives() {
                change.apply(&mut names);
            }
        }
        let is_folder = |name: &Path| name.as_os_str().is_empty() || names.get(name) == Some(&None);
        let reachable = names.iter().filter(|(name, _)| is_folder(name.parent().unwrap()));
        let nothing = CachedFile::default();
        let mut content_of = |file: &FileId| content(self.files.get(file).unwrap_or(&nothing));
        reachable.map(|(name, entry)| (name.clone(), entry.as_ref().map(&mut content_of))).collect()
    }
}

/// How much of what was not synced is left: all, nothing, or some of it.
#[derive(Clone, Copy)]
enum Luck {
    All,
    Nothing,
    Some,
}

impl Luck {
    fn draw(dice: &mut Dice) -> Self {
        [Self::All, Self::Nothing, Self::Some, Self::Some][dice.below(4)]
    }

    fn holds(self, dice: &mut Dice) -> bool {
        self.count(1, dice) == 1
    }

    /// So many of `all` that came one after the other.
    fn count(self, all: usize, dice: &mut Dice) -> usize {
        match self {
            Self::All => all,
            Self::Nothing => 0,
            Self::Some => dice.below(all + 1),
        }
    }
}

impl CachedFile {
    fn left(&self, luck: Luck, dice: &mut Dice) -> Vec<u8> {
        let mut lengths = vec![self.safe.len()];
        let mut contents_of: BTreeMap<usize, usize> = BTreeMap::new();
        for change in &self.unsynced {
            let length = lengths[lengths.len() - 1];
            lengths.push(change.length_after(length));
            change.sectors(length).for_each(|sector| *contents_of.entry(sector).or_default() += 1);
        }
        let left = lengths[luck.count(lengths.len() - 1, dice)];
        contents_of.values_mut().for_each(|contents| *contents = luck.count(*contents, dice));

        let mut bytes = self.safe.clone();
        let mut length = bytes.len();
        for change in &self.unsynced {
            for sector in change.sectors(length) {
                let contents = contents_of.get_mut(&sector).unwrap();
                if *contents > 0 {
                    *contents -= 1;
                    change.apply_to_sector(sector, &mut bytes);
                }
            }
            length = change.length_after(length);
        }
        bytes.resize(left, 0);
        bytes
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::SetLength(length) => content.resize(*length, 0),
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*at..end].copy_from_slice(bytes);
            }
        }
    }

    fn length_after(&self, length: usize) -> usize {
        match self {
            Self::SetLength(length) => *length,
            Self::Write { at, bytes } => length.max(at + bytes.len()),
        }
    }

    /// The sectors that it gives another content, in a file of this length. What is cut off is zero when it comes back.
    fn sectors(&self, length: usize) -> std::ops::Range<usize> {
        let (from, to) = match self {
            Self::SetLength(shorter) => (*shorter, length.max(*shorter)),
            Self::Write { at, bytes } => (*at, at + bytes.len()),
        };
        from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES).max(from / SECTOR_BYTES)
    }

    fn apply_to_sector(&self, sector: usize, content: &mut Vec<u8>) {
        let (first, end) = (sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
        content.resize(content.len().max(end), 0);
        match self {
            Self::SetLength(length) => content[first.max(*length)..end].fill(0),
            Self::Write { at, bytes } => {
                let (from, to) = (first.max(*at), end.min(at + bytes.len()));
                content[from..to].copy_from_slice(&bytes[from - at..to - at]);
            }
        }
    }
}

impl Rename {
    /// The folder that it is synced with. No file is ever given another folder.
    fn folder(&self) -> &Path {
        let name = self.come.as_ref().map(|(name, _)| name).or(self.gone.as_ref());
        name.unwrap().parent().unwrap()
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        names.extend(self.come.clone());
    }
}

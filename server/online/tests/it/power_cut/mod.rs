//! A machine that loses its power at any instant loses no acknowledged write and shows no half of one.
//!
//! What a store does to its directory is recorded while it is written to, from its opening to its closing. Then the power is
//! cut at random places of the record: what was synced by then is there, what was not is there in part, and the store that
//! is opened on what is left has to hold every call that was acknowledged. The next record goes on from such a rest.

mod disk;
mod recorder;

use std::path::{Path, PathBuf};

use eadem_online::{EmbeddedOptions, EmbeddedStore};

use crate::kill::{begin, is_sound, write_call};
use crate::support::{Dice, is_soak, seed};
use disk::{Disk, Image};
use recorder::{Event, FileId, Recording};

const CALLS_MAX: usize = 30;
const CUTS_PER_RECORD: usize = 12;
/// Rows of a load go through a file of their own beyond this.
const LOAD_MEMORY_BYTES: usize = 16 * 1024;

/// Names in a folder and the folders in it, each with whether it is a folder; folders come before what is in them.
fn names_in(folder: &Path) -> Vec<(PathBuf, bool)> {
    let mut names = Vec::new();
    let mut unread = vec![PathBuf::new()];
    while let Some(inner) = unread.pop() {
        for entry in std::fs::read_dir(folder.join(&inner)).unwrap() {
            let entry = entry.unwrap();
            let name = inner.join(entry.file_name());
            let is_folder = entry.file_type().unwrap().is_dir();
            unread.extend(is_folder.then(|| name.clone()));
            names.push((name, is_folder));
        }
    }
    names
}

fn read_image(folder: &Path) -> Image {
    let content = |name: &Path, is_folder: bool| (!is_folder).then(|| std::fs::read(folder.join(name)).unwrap());
    names_in(folder).into_iter().map(|(name, is_folder)| (name.clone(), content(&name, is_folder))).collect()
}

/// A directory with these files.
fn folder_of(image: &Image) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in image {
        match content {
            Some(bytes) => std::fs::write(folder.path().join(name), bytes).unwrap(),
            None => std::fs::create_dir(folder.path().join(name)).unwrap(),
        }
    }
    folder
}

/// What was on the disk when a store was opened on it, and all that the store did.
struct Record {
    before: Image,
    files: Vec<(PathBuf, FileId)>,
    events: Vec<Event>,
    /// The call that was acknowledged before.
    acknowledged: i64,
}

impl Record {
    /// Lets a store make calls, from the one after those acknowledged.
    async fn of_calls(before: Image, acknowledged: i64, calls: i64) -> Self {
        let folder = folder_of(&before);
        let (recording, files) = Recording::begin(folder.path());
        let options = EmbeddedOptions { load_memory_bytes: LOAD_MEMORY_BYTES, ..EmbeddedOptions::default() };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        begin(&store).await;
        for call in acknowledged + 1..=acknowledged + calls {
            write_call(&store, call).await;
            recording.acknowledged(call);
        }
        drop(store);
        let record = Self { before, files, events: recording.end(), acknowledged };
        let mut disk = record.disk();
        record.events.iter().for_each(|event| disk.apply(event));
        assert!(disk.seen() == read_image(folder.path()), "something was done to the disk that was not recorded");
        record
    }

    fn disk(&self) -> Disk {
        Disk::of(&self.before, &self.files)
    }

    /// Numbers of events after which the power goes.
    fn cuts(&self, dice: &mut Dice) -> Vec<usize> {
        let mut cuts: Vec<usize> = (0..CUTS_PER_RECORD).map(|_| self.cut(dice)).collect();
        if self.before.is_empty() {
            // A first start does once what never comes again, so it is cut everywhere.
            cuts.extend(0..self.acknowledgements()[0]);
        }
        cuts
    }

    /// Any, or what an acknowledgement is the last of, or what a sync would be the next of.
    fn cut(&self, dice: &mut Dice) -> usize {
        let acknowledgements = self.acknowledgements();
        let syncs = self.places(|event| matches!(event, Event::SyncFile { .. } | Event::SyncFolder { .. }));
        match dice.below(3) {
            0 => dice.below(self.events.len() + 1),
            1 => acknowledgements[dice.below(acknowledgements.len())] + 1,
            _ => syncs[dice.below(syncs.len())],
        }
    }

    fn acknowledgements(&self) -> Vec<usize> {
        self.places(|event| matches!(event, Event::Acknowledged { .. }))
    }

    fn places(&self, is_wanted: impl Fn(&Event) -> bool) -> Vec<usize> {
        (0..self.events.len()).filter(|at| is_wanted(&self.events[*at])).collect()
    }

    /// What is left after so many events, and the call that was acknowledged by then.
    fn left(&self, cut: usize, dice: &mut Dice) -> (Image, i64) {
        let mut disk = self.disk();
        let mut acknowledged = self.acknowledged;
        for event in &self.events[..cut] {
            disk.apply(event);
            if let Event::Acknowledged { call } = event {
                acknowledged = *call;
            }
        }
        (disk.left(dice), acknowledged)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_power_cut_nothing_acknowledged_is_lost() {
    let seed = seed();
    let records = if is_soak() { 40 } else { 3 };
    println!("seed {seed}, {records} records");
    let mut dice = Dice(seed);
    let (mut cuts, mut faults) = (0, 0);
    let (mut image, mut acknowledged) = (Image::new(), 0);
    for record_number in 0..records {
        // Now and then from an empty directory, so that first starts are cut as well.
        if record_number % 4 == 0 {
            (image, acknowledged) = (Image::new(), 0);
        }
        let calls = 1 + dice.below(CALLS_MAX) as i64;
        let record = Record::of_calls(image.clone(), acknowledged, calls).await;
        for cut in record.cuts(&mut dice) {
            let (left, acknowledged_by_then) = record.left(cut, &mut dice);
            let events = record.events.len();
            let context = format!("seed {seed}, record {record_number}, cut {cuts} after {cut} of {events} events");
            let folder = folder_of(&left);
            cuts += 1;
            if is_sound(folder.path(), acknowledged_by_then, &context).await {
                (image, acknowledged) = (left, acknowledged_by_then);
            } else {
                faults += 1;
            }
        }
    }
    println!("S8: kills={cuts} faults={faults}");
    assert_eq!(faults, 0, "seed {seed}");
}

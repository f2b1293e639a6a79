//! Full-text search over names, tags, owners and documentation: an inverted index in plain tables, the same on both
//! databases. An object is found by words that all occur in it, or that begin words which do.
//!
//! The rarest word leads: its postings are read in order, names first, and what stands there is looked up for the other
//! words. So a search reads little whatever the registry holds, unless all of its words are common; then it stops at
//! [`CANDIDATES_MAX`] and says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use eadem_values::{Description, Digest};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Row};

use super::{
    LifecycleState, ROWS_PER_STATEMENT, Registry, Session, Snapshot, read_digest, read_name, rows_of_parameters,
};
use crate::error::RegistryError;
use crate::model::About;

/// Characters of a word that are indexed.
const TERM_CHARACTERS_MAX: usize = 64;
/// Words of one object that are indexed.
const TERMS_MAX: usize = 400;
/// Words that a search may have.
const QUERY_WORDS_MAX: usize = 16;
/// Indexed words that a word of a search may be the beginning of.
const EXPANSIONS_MAX: i64 = 32;
/// Objects that are looked up for other words at once.
const CANDIDATES_STEP: usize = 1_000;
/// Objects that one search looks up at most.
const CANDIDATES_MAX: usize = 20_000;
/// Objects that one search may ask for.
pub const SEARCH_LIMIT_MAX: usize = 1_000;

/// What a search may find, in the order in which equally good hits stand.
pub const SEARCH_KINDS: [&str; 6] = ["service", "view", "feature", "transform", "source", "entity"];

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search<'a> {
    /// Words; `owner:` and `tag:` before one say where it must stand.
    pub text: &'a str,
    /// Only objects of these kinds (see [`SEARCH_KINDS`]); empty: of all.
    pub kinds: &'a [String],
    /// Objects at most.
    pub limit: usize,
}

/// An object that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchHit {
    /// `entity`, `source`, `transform`, `view`, `feature` or `service`.
    pub kind: String,
    /// Its name; a feature's is `view:feature`.
    pub name: String,
    /// The first line of its documentation.
    pub summary: String,
    /// Who looks after it.
    pub owner: String,
    /// How far what the name stands for is on its way out.
    pub state: SearchHitState,
}

/// Whether what was found is still in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchHitState {
    /// It is; what has no versions always is.
    Live,
    /// It works, and whoever uses it should turn to something else.
    Deprecated,
    /// It is not served and cannot be named.
    Retired,
}

impl From<LifecycleState> for SearchHitState {
    fn from(state: LifecycleState) -> Self {
        match state {
            LifecycleState::Deprecated => Self::Deprecated,
            LifecycleState::Retired => Self::Retired,
        }
    }
}

impl SearchHit {
    /// The name of what has versions: a feature's view.
    fn marked_name(&self) -> &str {
        self.name.split(':').next().unwrap_or(&self.name)
    }
}

/// What was found, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchResult {
    /// Names before tags, tags before owners, owners before documentation; whole words before beginnings.
    pub hits: Vec<SearchHit>,
    /// Whether there may be more.
    pub is_cut: bool,
}

/// Where in an object a word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Name = 0,
    Tag = 1,
    Owner = 2,
    Documentation = 3,
}

impl Place {
    fn number(self) -> i64 {
        self as i64
    }

    /// The place and the kind of the object in one number: places first, and within one the kinds in their order.
    fn spot(self, kind: &str) -> i64 {
        self.number() * KINDS_OF_A_PLACE + kind_number(kind)
    }
}

/// Numbers that a place has for kinds.
const KINDS_OF_A_PLACE: i64 = 8;

fn kind_number(kind: &str) -> i64 {
    (0..).zip(SEARCH_KINDS).find(|(_, known)| *known == kind).map_or(KINDS_OF_A_PLACE - 1, |(number, _)| number)
}

/// An object as it is indexed.
pub(crate) struct Indexed<'a> {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) doc: &'a str,
    pub(crate) owner: &'a str,
    pub(crate) tags: Vec<&'a str>,
}

impl<'a> Indexed<'a> {
    pub(crate) fn new(kind: &'static str, name: &str, about: &'a About) -> Self {
        let tags = about.tags.iter().map(String::as_str).collect();
        Self { kind, name: name.to_owned(), doc: &about.doc, owner: &about.owner, tags }
    }

    /// Each word with the places that it stands in.
    fn terms(&self) -> BTreeMap<String, BTreeSet<Place>> {
        let mut terms: BTreeMap<String, BTreeSet<Place>> = BTreeMap::new();
        let texts = [(Place::Name, self.name.as_str()), (Place::Owner, self.owner), (Place::Documentation, self.doc)];
        let tags = self.tags.iter().map(|tag| (Place::Tag, *tag));
        for (place, text) in tags.chain(texts) {
            for word in words(text) {
                if terms.len() >= TERMS_MAX && !terms.contains_key(&word) {
                    break;
                }
                terms.entry(word).or_default().insert(place);
            }
        }
        terms
    }

    fn summary(&self) -> &str {
        self.doc.trim().lines().next().unwrap_or_default()
    }

    fn digest(&self, terms: &BTreeMap<String, BTreeSet<Place>>) -> Digest {
        let mut text = format!("{}\n{}\n", self.summary(), self.owner);
        for (term, place) in placed(terms) {
            text.push_str(&format!("{term} {}\n", place.number()));
        }
        Digest::of(text.as_bytes())
    }
}

/// Each word with each place that it stands in.
fn placed(terms: &BTreeMap<String, BTreeSet<Place>>) -> impl Iterator<Item = (&String, Place)> {
    terms.iter().flat_map(|(term, places)| places.iter().map(move |place| (term, *place)))
}

/// Letters and digits in lower case; whatever else there is separates.
fn words(text: &str) -> impl Iterator<Item = String> {
    let parts = text.split(|character: char| !character.is_alphanumeric()).filter(|part| !part.is_empty());
    parts.map(|part| part.to_lowercase().chars().take(TERM_CHARACTERS_MAX).collect())
}

/// Collects what a change makes of objects, and writes it in few statements, however many they are.
#[derive(Default)]
pub(crate) struct Indexer {
    objects: BTreeMap<(&'static str, String), Entry>,
    /// Beginnings of names of features that are gone unless they are among the objects.
    views: Vec<String>,
}

/// An object as it will be indexed.
struct Entry {
    summary: String,
    owner: String,
    terms: BTreeMap<String, BTreeSet<Place>>,
    digest: Digest,
}

impl Indexer {
    /// The index shall say of this object what it is now.
    pub(crate) fn add(&mut self, object: &Indexed<'_>) {
        let terms = object.terms();
        let digest = object.digest(&terms);
        let entry = Entry { summary: object.summary().to_owned(), owner: object.owner.to_owned(), terms, digest };
        self.objects.insert((object.kind, object.name.clone()), entry);
    }

    /// The same of a view and its features, and of those that it no longer has. A feature is also found by its view's tags
    /// and owner.
    pub(crate) fn add_view(&mut self, name: &str, about: &About, description: &Description) {
        let mut view = Indexed::new("view", name, about);
        if view.doc.is_empty() {
            view.doc = &description.doc;
        }
        self.add(&view);
        for output in &description.outputs {
            let feature = format!("{name}:{}", output.name);
            self.add(&Indexed { doc: &output.doc, ..Indexed::new("feature", &feature, about) });
        }
        self.views.push(format!("{name}:"));
    }

    /// A transform; of several of one name the last.
    pub(crate) fn add_transform(&mut self, description: &Description) {
        let (name, doc, owner) = (description.name.clone(), &description.doc, &description.owner);
        self.add(&Indexed { kind: "transform", name, doc, owner, tags: Vec::new() });
    }

    /// Writes what has changed.
    pub(crate) async fn write(mut self, change: &mut Session) -> Result<(), RegistryError> {
        self.forget_features(change).await?;
        let objects: Vec<((&str, String), Entry)> = self.objects.into_iter().collect();
        for objects in objects.chunks(ROWS_PER_STATEMENT) {
            write_objects(change, objects).await?;
        }
        Ok(())
    }

    async fn forget_features(&mut self, change: &mut Session) -> Result<(), RegistryError> {
        let mut gone = Vec::new();
        for beginnings in self.views.chunks(ROWS_PER_STATEMENT) {
            let mut query = sqlx::query_as(AssertSqlSafe(format!(
                "SELECT object_id, name FROM (VALUES {}) AS beginning
                     JOIN search_object ON kind = 'feature' AND name >= beginning.column1 AND name < beginning.column2",
                rows_of_parameters(beginnings.len(), 2)
            )))
            .persistent(false);
            for beginning in beginnings {
                query = query.bind(beginning).bind(format!("{beginning}{}", char::MAX));
            }
            let rows: Vec<(i64, String)> = query.fetch_all(change.sql()).await?;
            let is_gone = |name: &String| !self.objects.contains_key(&("feature", name.clone()));
            gone.extend(rows.into_iter().filter(|(_, name)| is_gone(name)).map(|(object, _)| object));
        }
        forget_postings(change, &gone).await?;
        for gone in gone.chunks(ROWS_PER_STATEMENT) {
            run(change, format!("DELETE FROM search_object WHERE object_id IN ({})", list(gone.iter().copied())))
                .await?;
        }
        Ok(())
    }
}

/// Writes those of the objects that are not indexed so already.
async fn write_objects(change: &mut Session, objects: &[((&str, String), Entry)]) -> Result<(), RegistryError> {
    let known = indexed_objects(change, objects).await?;
    let stands = |kind: &str, name: &str| known.get(&(kind.to_owned(), name.to_owned()));
    let changed: Vec<&((&str, String), Entry)> = objects
        .iter()
        .filter(|((kind, name), entry)| stands(kind, name).is_none_or(|(_, digest)| *digest != entry.digest))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let stale = changed.iter().filter_map(|((kind, name), _)| stands(kind, name)).map(|(object, _)| *object);
    forget_postings(change, &stale.collect::<Vec<i64>>()).await?;
    let mut query = sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO search_object (kind, name, summary, owner, words) VALUES {}
         ON CONFLICT (kind, name) DO UPDATE SET
             summary = excluded.summary, owner = excluded.owner, words = excluded.words
         RETURNING object_id, kind, name",
        rows_of_parameters(changed.len(), 5)
    )))
    .persistent(false);
    for ((kind, name), entry) in &changed {
        query = query
            .bind(*kind)
            .bind(name)
            .bind(&entry.summary)
            .bind(&entry.owner)
            .bind(entry.digest.as_bytes().as_slice());
    }
    let mut ids: HashMap<(String, String), i64> = HashMap::new();
    for row in query.fetch_all(change.sql()).await? {
        ids.insert((row.try_get("kind")?, row.try_get("name")?), row.try_get("object_id")?);
    }
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    changed.iter().flat_map(|(_, entry)| entry.terms.keys()).for_each(|term| *counts.entry(term).or_default() += 1);
    let terms = count_terms(change, &counts).await?;
    let mut postings = Vec::new();
    for ((kind, name), entry) in &changed {
        let vanished = || RegistryError::damaged(format!("{kind} {name} vanished from the index"));
        let object = ids.get(&((*kind).to_owned(), name.clone())).copied().ok_or_else(vanished)?;
        let of_object =
            placed(&entry.terms).filter_map(|(term, place)| Some((*terms.get(term)?, place.spot(kind), object)));
        postings.extend(of_object);
    }
    for postings in postings.chunks(ROWS_PER_STATEMENT) {
        let rows: Vec<String> =
            postings.iter().map(|(term, spot, object)| format!("({term}, {spot}, {object})")).collect();
        let values = rows.join(", ");
        run(change, format!("INSERT INTO search_posting (term_id, spot, object_id) VALUES {values}")).await?;
    }
    Ok(())
}

/// Row and digest of those of the objects that are indexed, by kind and name.
async fn indexed_objects(
    change: &mut Session,
    objects: &[((&str, String), Entry)],
) -> Result<HashMap<(String, String), (i64, Digest)>, RegistryError> {
    let mut known = HashMap::new();
    // One kind at a time: neither database looks pairs up by the index.
    for objects in objects.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
        let Some(((kind, _), _)) = objects.first() else { continue };
        let mut query = sqlx::query(AssertSqlSafe(format!(
            "SELECT object_id, name, words FROM search_object WHERE name IN {} AND kind = ${}",
            rows_of_parameters(1, objects.len()),
            objects.len() + 1
        )))
        .persistent(false);
        for ((_, name), _) in objects {
            query = query.bind(name);
        }
        for row in query.bind(*kind).fetch_all(change.sql()).await? {
            let digest = read_digest(row.try_get("words")?)?;
            known.insert(((*kind).to_owned(), row.try_get("name")?), (row.try_get("object_id")?, digest));
        }
    }
    Ok(known)
}

/// The rows of these words, each of which so many more objects have.
async fn count_terms(
    change: &mut Session,
    counts: &BTreeMap<&str, i64>,
) -> Result<HashMap<String, i64>, RegistryError> {
    let mut ids = HashMap::with_capacity(counts.len());
    let counts: Vec<(&str, i64)> = counts.iter().map(|(term, count)| (*term, *count)).collect();
    for counts in counts.chunks(ROWS_PER_STATEMENT) {
        let mut query = sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO search_term (term, objects) VALUES {}
             ON CONFLICT (term) DO UPDATE SET objects = search_term.objects + excluded.objects RETURNING term_id, term",
            rows_of_parameters(counts.len(), 2)
        )))
        .persistent(false);
        for (term, count) in counts {
            query = query.bind(*term).bind(*count);
        }
        for row in query.fetch_all(change.sql()).await? {
            ids.insert(row.try_get("term")?, row.try_get("term_id")?);
        }
    }
    Ok(ids)
}

async fn forget_postings(change: &mut Session, objects: &[i64]) -> Result<(), RegistryError> {
    for objects in objects.chunks(ROWS_PER_STATEMENT) {
        let objects = list(objects.iter().copied());
        run(
            change,
            format!(
                "UPDATE search_term SET objects = search_term.objects - gone.objects
                 FROM (SELECT term_id, count(DISTINCT object_id) AS objects FROM search_posting
                       WHERE object_id IN ({objects}) GROUP BY term_id) AS gone
                 WHERE search_term.term_id = gone.term_id"
            ),
        )
        .await?;
        run(change, format!("DELETE FROM search_posting WHERE object_id IN ({objects})")).await?;
    }
    Ok(())
}

/// Runs a statement of which only numbers vary.
async fn run(change: &mut Session, statement: String) -> Result<(), RegistryError> {
    // Kept for the next time it would push out what does come again.
    sqlx::query(AssertSqlSafe(statement)).persistent(false).execute(change.sql()).await?;
    Ok(())
}

/// A word of a search: the indexed words that it stands for, itself first, and the places where they count.
struct Wanted {
    /// Row, objects that have it, and whether it is the whole word.
    terms: Vec<(i64, i64, bool)>,
    places: std::ops::RangeInclusive<i64>,
}

impl Wanted {
    fn objects(&self) -> i64 {
        self.terms.iter().map(|(_, objects, _)| objects).sum()
    }

    /// How good it is that this term stands there; less is better.
    fn rank(&self, term_id: i64, spot: i64) -> Option<i64> {
        let place = spot / KINDS_OF_A_PLACE;
        let (_, _, is_whole) = self.terms.iter().find(|(known, _, _)| *known == term_id)?;
        self.places.contains(&place).then_some(place * 2 + i64::from(!is_whole))
    }

    fn term_list(&self) -> String {
        list(self.terms.iter().map(|(term_id, _, _)| *term_id))
    }
}

/// Numbers as SQL lists them.
fn list(numbers: impl Iterator<Item = i64>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}

impl Registry {
    /// The objects that have all the words.
    ///
    /// # Errors
    /// No word, too many, a kind that there is not, or a limit beyond [`SEARCH_LIMIT_MAX`].
    pub async fn search(&self, search: &Search<'_>) -> Result<SearchResult, RegistryError> {
        if let Some(unknown) = search.kinds.iter().find(|kind| !SEARCH_KINDS.contains(&kind.as_str())) {
            let known = SEARCH_KINDS.join(", ");
            return Err(RegistryError::Invalid(format!(
                "nothing of the kind `{unknown}` is indexed; kinds are {known}"
            )));
        }
        if !(1..=SEARCH_LIMIT_MAX).contains(&search.limit) {
            return Err(RegistryError::Invalid(format!("a search gives 1 to {SEARCH_LIMIT_MAX} objects")));
        }
        let mut snapshot = self.snapshot().await?;
        let Some(mut wanted) = expand(&mut snapshot, query_words(search.text)?).await? else {
            return Ok(SearchResult::default());
        };
        wanted.sort_by_key(Wanted::objects);
        let found = candidates(&mut snapshot, &wanted, search).await?;
        hits(&mut snapshot, found, search).await
    }

    /// Indexes everything where nothing is indexed: a registry from before there was a search.
    pub(super) async fn index_if_empty(&self) -> Result<(), RegistryError> {
        let mut snapshot = self.snapshot().await?;
        let is_unindexed: Option<i64> = sqlx::query_scalar(
            "SELECT CAST(1 AS BIGINT) WHERE NOT EXISTS (SELECT 1 FROM search_object)
                 AND (EXISTS (SELECT 1 FROM transform) OR EXISTS (SELECT 1 FROM entity))",
        )
        .fetch_optional(snapshot.sql())
        .await?;
        drop(snapshot);
        if is_unindexed.is_none() {
            return Ok(());
        }
        // From here on nobody else applies anything that what is read now would overwrite.
        let mut change = self.change().await?;
        let (entities, sources) = (self.entities().await?, self.sources().await?);
        let (transforms, views, services) = (self.transforms(None).await?, self.views().await?, self.services().await?);
        let mut indexer = Indexer::default();
        entities.iter().for_each(|entity| indexer.add(&Indexed::new("entity", &entity.name, &entity.about)));
        sources.iter().for_each(|source| indexer.add(&Indexed::new("source", &source.name, &source.about)));
        // Newest last.
        transforms.iter().rev().for_each(|transform| indexer.add_transform(&transform.description));
        for view in &views {
            indexer.add_view(&view.newest.id.name, &view.newest.about, &view.newest.description);
        }
        services.iter().for_each(|service| indexer.add(&Indexed::new("service", &service.name, &service.about)));
        indexer.write(&mut change).await?;
        change.commit_quietly().await
    }
}

/// The words of a search, each with the places where it counts.
fn query_words(text: &str) -> Result<Vec<(String, std::ops::RangeInclusive<i64>)>, RegistryError> {
    let mut found = Vec::new();
    for part in text.split_whitespace() {
        let only = |place: Place| place.number()..=place.number();
        let (places, rest) = match part.split_once(':') {
            Some(("owner", rest)) => (only(Place::Owner), rest),
            Some(("tag", rest)) => (only(Place::Tag), rest),
            _ => (Place::Name.number()..=Place::Documentation.number(), part),
        };
        found.extend(words(rest).map(|word| (word, places.clone())));
    }
    if found.is_empty() {
        return Err(RegistryError::Invalid("a search needs a word of letters or digits".into()));
    }
    if found.len() > QUERY_WORDS_MAX {
        return Err(RegistryError::Invalid(format!("a search takes {QUERY_WORDS_MAX} words, not {}", found.len())));
    }
    Ok(found)
}

/// The indexed words that begin with each of these; `None` if one of them begins none.
async fn expand(
    snapshot: &mut Snapshot,
    words: Vec<(String, std::ops::RangeInclusive<i64>)>,
) -> Result<Option<Vec<Wanted>>, RegistryError> {
    // One statement for all words: each is a walk of its own through the index, and ends by itself.
    let beginnings: Vec<String> = (0..words.len()).map(expansion).collect();
    let mut query = sqlx::query_as(AssertSqlSafe(beginnings.join(" UNION ALL "))).bind(EXPANSIONS_MAX);
    for (word, _) in &words {
        query = query.bind(word).bind(format!("{word}{}", char::MAX));
    }
    let rows: Vec<(i64, i64, String, i64)> = query.fetch_all(snapshot.sql()).await?;
    let mut wanted: Vec<Wanted> = Vec::with_capacity(words.len());
    for (number, (word, places)) in (0_i64..).zip(words) {
        let of_word = rows.iter().filter(|(of, ..)| *of == number);
        let terms: Vec<(i64, i64, bool)> =
            of_word.map(|(_, term_id, term, objects)| (*term_id, *objects, *term == word)).collect();
        if terms.is_empty() {
            return Ok(None);
        }
        wanted.push(Wanted { terms, places });
    }
    Ok(Some(wanted))
}

/// The statement for the word of this number, with the words' bounds as parameters after the limit.
fn expansion(word: usize) -> String {
    let (from, to) = (2 * word + 2, 2 * word + 3);
    format!(
        "SELECT * FROM (SELECT CAST({word} AS BIGINT) AS word, term_id, term, objects FROM search_term
                        WHERE term >= ${from} AND term < ${to} AND objects > 0 ORDER BY term LIMIT $1) AS of_{word}"
    )
}

/// What a search has looked at.
struct Candidates {
    /// Object and how good it is; less is better.
    ranked: BTreeMap<i64, i64>,
    is_cut: bool,
}

/// Walks the postings of the rarest word, the best places first, and keeps the objects that have the others too.
async fn candidates(
    snapshot: &mut Snapshot,
    wanted: &[Wanted],
    search: &Search<'_>,
) -> Result<Candidates, RegistryError> {
    let mut found = Candidates { ranked: BTreeMap::new(), is_cut: false };
    let Some((leading, others)) = wanted.split_first() else { return Ok(found) };
    // Where there are no other words, all that is read is found.
    let step_rows = if others.is_empty() { search.limit + 1 } else { CANDIDATES_STEP };
    let mut looked_at = 0;
    for spots in leading.places.clone().flat_map(|place| spots_of(place, search.kinds)) {
        for (term_id, _, _) in &leading.terms {
            let mut after = (*spots.start(), i64::MIN);
            loop {
                let postings = postings(snapshot, *term_id, after, *spots.end(), step_rows).await?;
                looked_at += postings.len();
                after = postings.last().copied().unwrap_or(after);
                let ranked =
                    postings.iter().filter_map(|(spot, object)| Some((*object, leading.rank(*term_id, *spot)?)));
                for (object, rank) in with_others(snapshot, ranked.collect(), others).await? {
                    let best = found.ranked.entry(object).or_insert(rank);
                    *best = rank.min(*best);
                }
                found.is_cut = found.ranked.len() > search.limit || looked_at >= CANDIDATES_MAX;
                if found.is_cut {
                    return Ok(found);
                }
                if postings.len() < step_rows {
                    break;
                }
            }
        }
    }
    Ok(found)
}

/// The spots of a place where objects of these kinds stand; of all kinds if none is named.
fn spots_of(place: i64, kinds: &[String]) -> Vec<std::ops::RangeInclusive<i64>> {
    let first = place * KINDS_OF_A_PLACE;
    if kinds.is_empty() {
        return vec![first..=first + KINDS_OF_A_PLACE - 1];
    }
    let mut numbers: Vec<i64> = kinds.iter().map(|kind| kind_number(kind)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|kind| first + kind..=first + kind).collect()
}

/// The next postings of a term up to a spot, as (spot, object), in order.
async fn postings(
    snapshot: &mut Snapshot,
    term_id: i64,
    (spot, object): (i64, i64),
    last_spot: i64,
    rows_max: usize,
) -> Result<Vec<(i64, i64)>, RegistryError> {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let rows = sqlx::query_as(
        "SELECT spot, object_id FROM search_posting
         WHERE term_id = $1 AND (spot, object_id) > ($2, $3) AND spot <= $4
         ORDER BY spot, object_id LIMIT $5",
    )
    .bind(term_id)
    .bind(spot)
    .bind(object)
    .bind(last_spot)
    .bind(rows_max)
    .fetch_all(snapshot.sql())
    .await?;
    Ok(rows)
}

/// Those of the objects that have every other word too, with all ranks added.
async fn with_others(
    snapshot: &mut Snapshot,
    ranked: Vec<(i64, i64)>,
    others: &[Wanted],
) -> Result<Vec<(i64, i64)>, RegistryError> {
    let mut ranked: BTreeMap<i64, i64> = ranked.into_iter().collect();
    for word in others {
        if ranked.is_empty() {
            break;
        }
        let (terms, objects) = (word.term_list(), list(ranked.keys().copied()));
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT object_id, term_id, spot FROM search_posting WHERE object_id IN ({objects}) AND term_id IN ({terms})"
        )))
        .persistent(false)
        .fetch_all(snapshot.sql())
        .await?;
        let mut best: BTreeMap<i64, i64> = BTreeMap::new();
        for (object, term_id, spot) in rows {
            let Some(rank) = word.rank(term_id, spot) else { continue };
            let known = best.entry(object).or_insert(rank);
            *known = rank.min(*known);
        }
        ranked = best.into_iter().filter_map(|(object, rank)| Some((object, ranked.get(&object)? + rank))).collect();
    }
    Ok(ranked.into_iter().collect())
}

async fn hits(snapshot: &mut Snapshot, found: Candidates, search: &Search<'_>) -> Result<SearchResult, RegistryError> {
    if found.ranked.is_empty() {
        return Ok(SearchResult { hits: Vec::new(), is_cut: found.is_cut });
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT object_id, kind, name, summary, owner FROM search_object WHERE object_id IN ({})",
        list(found.ranked.keys().copied())
    )))
    .persistent(false)
    .fetch_all(snapshot.sql())
    .await?;
    let mut hits = Vec::with_capacity(rows.len());
    for row in rows {
        let object: i64 = row.try_get("object_id")?;
        let hit = SearchHit {
            kind: row.try_get("kind")?,
            name: row.try_get("name")?,
            summary: row.try_get("summary")?,
            owner: row.try_get("owner")?,
            state: SearchHitState::Live,
        };
        hits.push((found.ranked.get(&object).copied().unwrap_or(i64::MAX), hit));
    }
    hits.sort_by(|(a_rank, a), (b_rank, b)| {
        (a_rank, kind_number(&a.kind), &a.name).cmp(&(b_rank, kind_number(&b.kind), &b.name))
    });
    hits.truncate(search.limit);
    let mut hits: Vec<SearchHit> = hits.into_iter().map(|(_, hit)| hit).collect();
    note_states(snapshot, &mut hits).await?;
    Ok(SearchResult { hits, is_cut: found.is_cut })
}

/// Notes of each hit whether what its name stands for is on its way out; a feature is what its view is.
async fn note_states(snapshot: &mut Snapshot, hits: &mut [SearchHit]) -> Result<(), RegistryError> {
    for (kinds, marks) in [
        (
            &["view", "feature"][..],
            "SELECT name, state FROM view JOIN view_mark ON view_version_id = head_version_id WHERE name IN",
        ),
        (
            &["service"][..],
            "SELECT name, state FROM service JOIN service_mark ON service_version_id = head_version_id WHERE name IN",
        ),
        (
            &["transform"][..],
            "SELECT name, state FROM transform JOIN transform_mark USING (transform_id)
             WHERE NOT EXISTS (SELECT 1 FROM transform AS later WHERE later.name = transform.name
                                   AND later.transform_id > transform.transform_id) AND name IN",
        ),
    ] {
        let is_of_kind = |hit: &&mut SearchHit| kinds.contains(&hit.kind.as_str());
        let mut of_kind: Vec<&mut SearchHit> = hits.iter_mut().filter(is_of_kind).collect();
        let names: BTreeSet<String> = of_kind.iter().map(|hit| hit.marked_name().to_owned()).collect();
        if names.is_empty() {
            continue;
        }
        let statement = AssertSqlSafe(format!("{marks} {}", rows_of_parameters(1, names.len())));
        let mut query = sqlx::query_as(statement).persistent(false);
        for name in &names {
            query = query.bind(name);
        }
        let marks: Vec<(String, String)> = query.fetch_all(snapshot.sql()).await?;
        let marks: HashMap<String, String> = marks.into_iter().collect();
        for hit in &mut of_kind {
            if let Some(state) = marks.get(hit.marked_name()) {
                hit.state = read_name(state, LifecycleState::from_name)?.into();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_are_letters_and_digits_in_lower_case() {
        let found: Vec<String> = words("avg_Delay-7d of Ärzte, (per 'x')").collect();
        assert_eq!(found, ["avg", "delay", "7d", "of", "ärzte", "per", "x"]);
    }
}

//! Generated rows: a fixed corpus, the same for every upload, and rows of a random seed.
//!
//! Values lie within the declared constraints, because that is all a transform will ever see; inside them the edges are
//! frequent: both zeros, both infinities, NaNs of both signs and several payloads, subnormals, the extremes of int64,
//! empty and long and non-ASCII texts, nulls.

use arrow_array::ArrayRef;
use eadem_values::{
    Constraint, DataType, ElementType, Field, Literal, TIME_MAX_US, TIME_MIN_US, Value, array_from_values,
};

use super::description::bytes_of_shortest;
use crate::flavour::as_usize;

/// Changes with every change to the rows that a seed stands for.
pub const CORPUS_VERSION: u32 = 1;

/// Seed of the fixed corpus.
const FIXED_SEED: u64 = 0x0ead_e000_0000_0001;
const FIXED_ROWS: u32 = 256;
/// As many as the longest list of edges, and some more where columns are out of step.
const EDGE_ROWS: usize = 24;
/// Wide rows are fewer, so that no description makes an upload slow.
pub(crate) const CORPUS_BYTES_MAX: usize = 32 << 20;

/// Generates `rows` rows for these fields, one column each. The same seed gives the same rows on every machine. NaNs are
/// not canonical; whatever consumes the rows has to make them so.
pub fn generate_rows(fields: &[Field], rows: u32, seed: u64) -> Vec<ArrayRef> {
    rows_after(0, fields, rows, seed)
}

/// As [`generate_rows`]; the first `edge_rows` rows go through the edges of each type in turn, so that all occur.
fn rows_after(edge_rows: usize, fields: &[Field], rows: u32, seed: u64) -> Vec<ArrayRef> {
    let columns = fields.iter().enumerate().map(|(at, field)| {
        // Each field has a stream of its own, so that adding one leaves the others as they are.
        let mut random = Random::new(seed ^ (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let generator = Generator::new(field);
        let mut values: Vec<Value> = Vec::with_capacity(rows as usize);
        for row in 0..rows as usize {
            // A row that repeats an earlier one shows what depends on its neighbours.
            let repeated = (row > 0 && random.one_in(8)).then(|| random.below(row as u64) as usize);
            let edge = (row < edge_rows).then(|| generator.edge(row + 5 * at)).flatten();
            let value = match (edge, repeated) {
                (Some(edge), _) => edge,
                (None, Some(earlier)) => values[earlier].clone(),
                (None, None) => generator.value(&mut random),
            };
            values.push(value);
        }
        array_from_values(field.data_type, &values)
            .unwrap_or_else(|_| eadem_values::null_array(field.data_type, rows as usize))
    });
    columns.collect()
}

/// The rows of one upload: the fixed ones first.
pub(super) struct Rows {
    pub(super) columns: Vec<ArrayRef>,
    pub(super) seed: u64,
    count: u32,
}

impl Rows {
    pub(super) fn new(fields: &[Field], seed: u64, random_rows: u32) -> Self {
        let row_bytes: usize = fields.iter().map(typical_bytes).sum();
        let rows_max = u32::try_from(CORPUS_BYTES_MAX / row_bytes.max(1)).unwrap_or(u32::MAX).max(8);
        let fixed_rows = FIXED_ROWS.min(rows_max / 2);
        let random_rows = random_rows.min(rows_max / 2);
        let fixed = rows_after(EDGE_ROWS, fields, fixed_rows, FIXED_SEED);
        let random = generate_rows(fields, random_rows, seed);
        let both = fixed.iter().zip(&random).map(|(fixed, random)| {
            let parts = [fixed.as_ref(), random.as_ref()];
            arrow_select::concat::concat(&parts).unwrap_or_else(|_| ArrayRef::clone(fixed))
        });
        Self { columns: both.collect(), seed, count: fixed_rows + random_rows }
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

fn typical_bytes(field: &Field) -> usize {
    let allowed = field.constraints.iter().filter_map(|constraint| match constraint {
        Constraint::Allowed(literals) => literals.iter().map(literal_bytes).max(),
        _ => None,
    });
    let least = as_usize(bytes_of_shortest(field));
    least.max(allowed.max().unwrap_or(0)).max(64)
}

fn literal_bytes(literal: &Literal) -> usize {
    match literal {
        Literal::Utf8(text) => text.len(),
        _ => 8,
    }
}

/// SplitMix64: small, fast, and the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, nearly uniform; 0 if there is none.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub(super) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// From 0 up to 1, in steps of 2⁻⁵³.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

const INT64_EDGES: &[i64] = &[
    0,
    1,
    -1,
    2,
    10,
    60,
    100,
    255,
    2359,
    i64::MAX,
    i64::MIN,
    i64::MAX - 1,
    i64::MIN + 1,
    1 << 53,
    (1 << 53) + 1,
    -(1 << 53) - 1,
    i32::MAX as i64,
    i32::MIN as i64,
];

/// Bits, because a NaN has no other name.
const FLOAT64_EDGES: &[u64] = &[
    0x0000_0000_0000_0000, // 0
    0x8000_0000_0000_0000, // -0
    0x7ff0_0000_0000_0000, // infinity
    0xfff0_0000_0000_0000, // -infinity
    0x7ff8_0000_0000_0000, // the canonical NaN
    0xfff8_0000_0000_0000, // the same, negative
    0x7ff8_0000_dead_beef, // a payload
    0xfff8_0000_0000_0001, // a payload, negative
    0x0000_0000_0000_0001, // the smallest subnormal
    0x800f_ffff_ffff_ffff, // the largest subnormal, negative
    0x0010_0000_0000_0000, // the smallest normal
    0x7fef_ffff_ffff_ffff, // the largest
    0xffef_ffff_ffff_ffff, // the lowest
    0x3ff0_0000_0000_0001, // next to 1
    0x4340_0000_0000_0000, // 2^53
];

const FLOAT32_EDGES: &[u32] = &[
    0x0000_0000,
    0x8000_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7fc0_beef,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x3f80_0001,
];

/// One field's values.
struct Generator<'a> {
    data_type: DataType,
    accepts_null: bool,
    allowed: Option<Vec<Value>>,
    min: Option<Value>,
    max: Option<Value>,
    length_min: usize,
    length_max: usize,
    field: &'a Field,
}

/// Longest generated text or list where the field allows more.
const LENGTH_MAX: usize = 2_048;

impl<'a> Generator<'a> {
    fn new(field: &'a Field) -> Self {
        let mut generator = Self {
            data_type: field.data_type,
            accepts_null: field.accepts_null(),
            allowed: None,
            min: None,
            max: None,
            length_min: 0,
            length_max: usize::MAX,
            field,
        };
        for constraint in &field.constraints {
            generator.narrow(constraint);
        }
        generator
    }

    fn narrow(&mut self, constraint: &Constraint) {
        match constraint {
            Constraint::Min(literal) => self.min = literal.to_value(self.data_type),
            Constraint::Max(literal) => self.max = literal.to_value(self.data_type),
            Constraint::Allowed(literals) => {
                self.allowed = Some(literals.iter().filter_map(|literal| literal.to_value(self.data_type)).collect());
            }
            Constraint::Length { min, max } => {
                self.length_min = self.length_min.max(*min as usize);
                self.length_max = self.length_max.min(*max as usize);
            }
            Constraint::NotNull | Constraint::Unit(_) => {}
        }
    }

    /// The edges of the type in turn; `None` where the type or its constraints leave none to choose.
    fn edge(&self, turn: usize) -> Option<Value> {
        let is_free = self.allowed.is_none() && self.min.is_none() && self.max.is_none();
        match self.data_type {
            DataType::Int64 if is_free => Some(Value::Int64(INT64_EDGES[turn % INT64_EDGES.len()])),
            DataType::Float64 if is_free => {
                Some(Value::Float64(f64::from_bits(FLOAT64_EDGES[turn % FLOAT64_EDGES.len()])))
            }
            DataType::Float32 if is_free => {
                Some(Value::Float32(f32::from_bits(FLOAT32_EDGES[turn % FLOAT32_EDGES.len()])))
            }
            _ => None,
        }
    }

    fn value(&self, random: &mut Random) -> Value {
        if self.accepts_null && random.one_in(8) {
            return Value::Null;
        }
        if let Some(allowed) = self.allowed.as_ref().filter(|allowed| !allowed.is_empty()) {
            return random.pick(allowed).clone();
        }
        match self.data_type {
            DataType::Boolean => Value::Boolean(random.one_in(2)),
            DataType::Int64 => Value::Int64(self.int64(random)),
            DataType::Float32 => Value::Float32(self.float32(random)),
            DataType::Float64 => Value::Float64(self.float64(random)),
            DataType::Utf8 => Value::Utf8(self.text(random)),
            DataType::Binary => {
                let length = self.length(random);
                Value::Binary((0..length).map(|_| random.next() as u8).collect())
            }
            DataType::Timestamp => Value::Timestamp(self.timestamp(random)),
            DataType::Vector(dimensions) => Value::Vector((0..dimensions).map(|_| any_float32(random)).collect()),
            DataType::List(element) => self.list(element, random),
        }
    }

    fn int64(&self, random: &mut Random) -> i64 {
        let min = int64_of(self.min.as_ref()).unwrap_or(i64::MIN);
        let max = int64_of(self.max.as_ref()).unwrap_or(i64::MAX);
        any_int64(random, min, max)
    }

    fn timestamp(&self, random: &mut Random) -> i64 {
        let min = int64_of(self.min.as_ref()).unwrap_or(TIME_MIN_US);
        let max = int64_of(self.max.as_ref()).unwrap_or(TIME_MAX_US);
        const DAY_US: i64 = 86_400_000_000;
        // 1970, the seam of signs; 2013 and now, when most data is from; the turn of a day and of a leap year.
        const EDGES: &[i64] = &[0, -1, 1, 1_357_016_400_000_000, 951_782_400_000_000, DAY_US - 1, DAY_US];
        let inside = |us: i64| us.clamp(min, max.max(min));
        match random.below(8) {
            0 => min,
            1 => max.max(min),
            2 => inside(*random.pick(EDGES)),
            3..6 => inside(1_356_998_400_000_000 + random.below(365 * DAY_US as u64) as i64),
            _ => uniform_int64(random, min, max),
        }
    }

    fn float64(&self, random: &mut Random) -> f64 {
        let value = any_float64(random);
        let min = float64_of(self.min.as_ref());
        let max = float64_of(self.max.as_ref());
        if min.is_none() && max.is_none() {
            return value;
        }
        let (low, high) = (min.unwrap_or(f64::MIN), max.unwrap_or(f64::MAX));
        match random.below(6) {
            0 => low,
            1 => high,
            2 if value.is_finite() => value.clamp(low, high.max(low)),
            _ => (low + (high - low) * random.unit()).clamp(low, high.max(low)),
        }
    }

    fn float32(&self, random: &mut Random) -> f32 {
        let is_bounded = self.min.is_some() || self.max.is_some();
        if !is_bounded {
            return any_float32(random);
        }
        let low = float64_of(self.min.as_ref()).unwrap_or(f64::from(f32::MIN)) as f32;
        let high = float64_of(self.max.as_ref()).unwrap_or(f64::from(f32::MAX)) as f32;
        let between = f64::from(low) + (f64::from(high) - f64::from(low)) * random.unit();
        (between as f32).clamp(low, high.max(low))
    }

    fn length(&self, random: &mut Random) -> usize {
        let shortest = self.length_min.min(LENGTH_MAX.max(self.length_min));
        let longest = self.length_max.min(LENGTH_MAX).max(shortest);
        let usual = longest.min(shortest + 24);
        match random.below(16) {
            0 => shortest,
            1 => longest,
            _ => shortest + random.below((usual - shortest + 1) as u64) as usize,
        }
    }

    fn text(&self, random: &mut Random) -> String {
        const WORDS: &[&str] = &["N14228", "JFK", "La Guardia", "2013-01-01", "-1.5e3", "a,b;c", "TRUE", "null", "NaN"];
        // Letters whose lower case is longer, needs context, or lies outside the first plane; marks; a NUL.
        const STRANGE: &[&str] =
            &["ß", "İ", "Σας", "ﬁ", "é", "e\u{301}", "✈", "👩‍✈️", "中文", "\u{0}", "\u{feff}", "\n\t "];
        let fits = |text: &str| (self.length_min..=self.length_max).contains(&text.len());
        if random.one_in(6) {
            let word = *random.pick(WORDS);
            if fits(word) {
                return word.to_owned();
            }
        }
        let length = self.length(random);
        let mut text = String::with_capacity(length);
        let is_strange = random.one_in(4);
        while text.len() < length {
            let letter = b'A' + random.below(26) as u8 + 32 * (random.below(2) as u8);
            let strange = random.pick(STRANGE);
            if is_strange && random.one_in(2) && text.len() + strange.len() <= length {
                text.push_str(strange);
            } else {
                text.push(char::from(letter));
            }
        }
        text
    }

    fn list(&self, element: ElementType, random: &mut Random) -> Value {
        let length =
            if random.one_in(16) { self.length(random) } else { self.length(random).min(self.length_min.max(8)) };
        match element {
            ElementType::Int64 => {
                Value::ListInt64((0..length).map(|_| any_int64(random, i64::MIN, i64::MAX)).collect())
            }
            ElementType::Float64 => Value::ListFloat64((0..length).map(|_| any_float64(random)).collect()),
            ElementType::Utf8 => {
                // The field's length counts elements, so its texts are those of an unconstrained field.
                let plain = Field::new(&self.field.name, DataType::Utf8, false);
                let texts = Generator { length_max: 32, ..Generator::new(&plain) };
                Value::ListUtf8((0..length).map(|_| texts.text(random)).collect())
            }
        }
    }
}

fn int64_of(value: Option<&Value>) -> Option<i64> {
    match value? {
        Value::Int64(value) | Value::Timestamp(value) => Some(*value),
        _ => None,
    }
}

fn float64_of(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Float64(value) => Some(*value),
        Value::Float32(value) => Some(f64::from(*value)),
        _ => None,
    }
}

fn uniform_int64(random: &mut Random, min: i64, max: i64) -> i64 {
    if min >= max {
        return min;
    }
    let span = (i128::from(max) - i128::from(min) + 1).min(i128::from(u64::MAX)) as u64;
    min.wrapping_add(random.below(span) as i64)
}

fn any_int64(random: &mut Random, min: i64, max: i64) -> i64 {
    let inside = |value: i64| value.clamp(min, max.max(min));
    match random.below(4) {
        0 => inside(*random.pick(INT64_EDGES)),
        1 => uniform_int64(random, min, max),
        _ => inside(uniform_int64(random, -1_000, 1_000)),
    }
}

fn any_float64(random: &mut Random) -> f64 {
    match random.below(4) {
        0 => f64::from_bits(*random.pick(FLOAT64_EDGES)),
        1 => (random.below(2_001) as f64 - 1_000.0) / 4.0,
        2 => (random.unit() - 0.5) * 200.0,
        // Any magnitude: a random exponent from 2⁻³² to 2³².
        _ => (random.unit() - 0.5) * f64::from_bits((1023 - 32 + random.below(65)) << 52),
    }
}

fn any_float32(random: &mut Random) -> f32 {
    match random.below(3) {
        0 => f32::from_bits(*random.pick(FLOAT32_EDGES)),
        1 => (random.below(2_001) as f32 - 1_000.0) / 4.0,
        _ => ((random.unit() - 0.5) * 200.0) as f32,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use eadem_values::value_at;

    use super::*;

    fn all_types() -> Vec<Field> {
        let types = [
            DataType::Boolean,
            DataType::Int64,
            DataType::Float32,
            DataType::Float64,
            DataType::Utf8,
            DataType::Binary,
            DataType::Timestamp,
            DataType::Vector(3),
            DataType::List(ElementType::Int64),
            DataType::List(ElementType::Float64),
            DataType::List(ElementType::Utf8),
        ];
        types.into_iter().enumerate().map(|(at, data_type)| Field::new(format!("f{at}"), data_type, true)).collect()
    }

    #[test]
    fn a_seed_stands_for_the_same_rows() {
        let fields = all_types();
        let rows = generate_rows(&fields, 300, 7);
        let again = generate_rows(&fields, 300, 7);
        let other = generate_rows(&fields, 300, 8);
        for ((column, again), other) in rows.iter().zip(&again).zip(&other) {
            let same = |other: &ArrayRef| {
                (0..300).all(|row| value_at(column, row).unwrap().bits_eq(&value_at(other, row).unwrap()))
            };
            assert!(same(again));
            assert!(!same(other));
        }
    }

    #[test]
    fn the_edges_occur() {
        let rows = Rows::new(&all_types(), 1, 256);
        let has = |column: usize, wanted: &dyn Fn(&Value) -> bool| {
            (0..rows.count() as usize).any(|row| wanted(&value_at(&rows.columns[column], row).unwrap()))
        };
        assert!(has(1, &|value| matches!(value, Value::Int64(i64::MIN))));
        assert!(has(1, &|value| matches!(value, Value::Int64(i64::MAX))));
        assert!(has(3, &|value| matches!(value, Value::Float64(v) if v.to_bits() == (-0.0f64).to_bits())));
        assert!(has(3, &|value| matches!(value, Value::Float64(v) if v.is_nan() && v.is_sign_negative())));
        assert!(has(3, &|value| matches!(value, Value::Float64(v) if v.is_subnormal())));
        assert!(has(3, &|value| matches!(value, Value::Float64(v) if v.is_infinite())));
        assert!(has(4, &|value| matches!(value, Value::Utf8(v) if v.is_empty())));
        assert!(has(4, &|value| matches!(value, Value::Utf8(v) if v.len() > 1_000)));
        assert!(has(4, &|value| matches!(value, Value::Utf8(v) if !v.is_ascii())));
        for column in 0..rows.columns.len() {
            assert!(has(column, &Value::is_null));
        }
    }

    #[test]
    fn wide_rows_are_few() {
        let mut text = Field::new("text", DataType::Utf8, false);
        text.constraints = vec![Constraint::Length { min: 1 << 20, max: u32::MAX }];
        let mut code = Field::new("code", DataType::Utf8, false);
        code.constraints = vec![Constraint::Allowed(vec![Literal::Utf8("x".repeat(1 << 20))])];
        for field in [text, code, Field::new("point", DataType::Vector(1 << 18), false)] {
            assert_eq!(Rows::new(&[field], 1, 256).count(), 32, "32 MiB of 1 MiB each");
        }
    }

    #[test]
    fn constraints_hold() {
        let mut hour = Field::new("hour", DataType::Int64, true);
        hour.constraints =
            vec![Constraint::Min(Literal::Int64(0)), Constraint::Max(Literal::Int64(23)), Constraint::NotNull];
        let mut code = Field::new("code", DataType::Utf8, false);
        code.constraints = vec![Constraint::Length { min: 3, max: 5 }];
        let mut share = Field::new("share", DataType::Float64, false);
        share.constraints = vec![Constraint::Min(Literal::Float64(0.0)), Constraint::Max(Literal::Float64(1.0))];
        let columns = generate_rows(&[hour, code, share], 500, 3);
        for row in 0..500 {
            assert!(matches!(value_at(&columns[0], row).unwrap(), Value::Int64(0..=23)));
            assert!(matches!(value_at(&columns[1], row).unwrap(), Value::Utf8(text) if (3..=5).contains(&text.len())));
            assert!(
                matches!(value_at(&columns[2], row).unwrap(), Value::Float64(share) if (0.0..=1.0).contains(&share))
            );
        }
    }
}

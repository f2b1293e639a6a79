//! What the misbehaving components share. They speak the contract directly, because the SDK would not let them do
//! most of this.

use std::hint::black_box;
use std::sync::atomic::{AtomicI64, Ordering};

use eadem::contract::{
    Column, DataType, Description, ElementType, Elements, Field, ListValues, Output, RowError, Values, VariableBytes,
};

pub use eadem::bindings;
pub use eadem::bindings::exports::eadem::transform::transform::Guest;

/// Makes a type that implements [`Guest`] the component.
#[macro_export]
macro_rules! component {
    ($component:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::export_transform!($component with_types_in $crate::bindings);
    };
}

/// One input and one output, both int64 and never null: `y` is said to be `x`.
pub fn description(name: &str) -> Description {
    Description {
        name: name.to_owned(),
        doc: "Misbehaves on purpose.".to_owned(),
        owner: "eadem".to_owned(),
        total: true,
        inputs: vec![field("x", DataType::Int64, false)],
        outputs: vec![field("y", DataType::Int64, false)],
    }
}

/// As [`description`], with nullable outputs of every shape beside `y`: `label` (utf8), `steps` (list(int64)), `flag`
/// (boolean), `point` (vector(2)), `blob` (binary), `words` (list(utf8)) and `shares` (list(float64)).
pub fn full_description(name: &str) -> Description {
    let mut description = description(name);
    let outputs = [
        ("label", DataType::Utf8),
        ("steps", DataType::List(ElementType::Int64)),
        ("flag", DataType::Boolean),
        ("point", DataType::Vector(2)),
        ("blob", DataType::Binary),
        ("words", DataType::List(ElementType::Utf8)),
        ("shares", DataType::List(ElementType::Float64)),
    ];
    description.outputs.extend(outputs.map(|(name, data_type)| field(name, data_type, true)));
    description
}

pub fn field(name: &str, data_type: DataType, nullable: bool) -> Field {
    Field { name: name.to_owned(), data_type, nullable, doc: String::new(), constraints: Vec::new() }
}

/// The numbers of `x`.
pub fn numbers(inputs: &[Column]) -> &[i64] {
    match inputs.first().map(|column| &column.values) {
        Some(Values::Int64(numbers)) => numbers,
        _ => &[],
    }
}

/// An answer that keeps the contract of [`description`].
pub fn answer(y: Vec<i64>) -> Output {
    Output { columns: vec![column(Values::Int64(y))], dropped: Vec::new(), errors: Vec::new() }
}

/// The honest answer.
pub fn echo(inputs: &[Column]) -> Output {
    answer(numbers(inputs).to_vec())
}

/// The honest answer under [`full_description`]: `label` and `blob` are always `ok`, `words` one `ok`, `steps` and
/// `shares` empty, `flag` false and `point` the origin.
pub fn full_echo(inputs: &[Column]) -> Output {
    let rows = numbers(inputs).len();
    let one_each: Vec<u32> = (0..=rows as u32).collect();
    let none = |elements| ListValues { offsets: vec![0; rows + 1], elements };
    let mut output = echo(inputs);
    output.columns.extend([
        column(Values::Utf8(labels(rows))),
        column(Values::List(none(Elements::Int64(Vec::new())))),
        column(Values::Boolean(vec![0; rows.div_ceil(8)])),
        column(Values::Vector(vec![0.0; 2 * rows])),
        column(Values::Binary(labels(rows))),
        column(Values::List(ListValues { offsets: one_each, elements: Elements::Utf8(labels(rows)) })),
        column(Values::List(none(Elements::Float64(Vec::new())))),
    ]);
    output
}

pub fn column(values: Values) -> Column {
    Column { validity: Vec::new(), values }
}

fn labels(rows: usize) -> VariableBytes {
    VariableBytes { offsets: (0..=rows as u32).map(|row| 2 * row).collect(), bytes: b"ok".repeat(rows) }
}

/// How often this instance was called before.
pub fn calls_so_far() -> i64 {
    static CALLS: AtomicI64 = AtomicI64::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed)
}

/// Sends the messages of panics to the host, as the SDK does.
pub fn report_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| {
        bindings::eadem::transform::diagnostics::panicked(&panic.to_string());
    }));
}

/// Does not return.
pub fn loop_forever() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns).wrapping_add(1);
    }
}

/// Does not return where memory is limited.
pub fn take_all_memory() -> ! {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        taken.push(black_box(vec![1; 1 << 20]));
    }
}

/// Does not return where the stack is limited.
pub fn recurse() -> ! {
    #[inline(never)]
    fn deeper(depth: u64) -> u64 {
        let frame = black_box([depth; 32]);
        if depth == u64::MAX { 0 } else { deeper(depth + 1).wrapping_add(frame[7]) }
    }
    black_box(deeper(1));
    trap()
}

/// Ends the call at once, without a word.
pub fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

/// 100,000 messages of 1 KiB.
pub fn flood_diagnostics() {
    #[cfg(target_arch = "wasm32")]
    {
        let message = "x".repeat(1024);
        for _ in 0..100_000 {
            bindings::eadem::transform::diagnostics::panicked(&message);
        }
    }
}

/// What `poison_row` does where a row holds the number. No generator of test rows is likely to hit one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poison {
    Trap = 6_660_001,
    Panic = 6_660_002,
    Loop = 6_660_003,
    Memory = 6_660_004,
    Recursion = 6_660_005,
    Decline = 6_660_006,
}

impl Poison {
    pub const ALL: [Self; 6] = [Self::Trap, Self::Panic, Self::Loop, Self::Memory, Self::Recursion, Self::Decline];

    pub fn of(x: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|poison| *poison as i64 == x)
    }

    pub fn act(self) -> Result<Output, String> {
        report_panics();
        match self {
            Self::Trap => trap(),
            Self::Panic => panic!("poisoned by {}", self as i64),
            Self::Loop => loop_forever(),
            Self::Memory => take_all_memory(),
            Self::Recursion => recurse(),
            Self::Decline => Err("poisoned: no answer for this batch".to_owned()),
        }
    }
}

/// What is wrong with the answer of `contract_breaches` where a row holds the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    TooFewColumns = 7_770_001,
    TooManyColumns = 7_770_002,
    WrongType = 7_770_003,
    TooFewValues = 7_770_004,
    TooManyValues = 7_770_005,
    ShortBitmap = 7_770_006,
    TooFewOffsets = 7_770_007,
    OffsetsStartLate = 7_770_008,
    /// In a call of one row nothing can fall: there it is [`Self::OffsetBeyondTheEnd`].
    OffsetsFall = 7_770_009,
    OffsetBeyondTheEnd = 7_770_010,
    NotUtf8 = 7_770_011,
    /// Both halves of a character lie in different rows; in a call of one row, half of it is left out.
    OffsetInsideCharacter = 7_770_012,
    NullWhereNever = 7_770_013,
    GiantString = 7_770_014,
    GiantList = 7_770_015,
    DroppedRowOutOfRange = 7_770_016,
    DroppedTwice = 7_770_017,
    FailedRowOutOfRange = 7_770_018,
    DroppedAndFailed = 7_770_019,
    DropsThoughTotal = 7_770_020,
    FailsThoughTotal = 7_770_021,
    GiantMessage = 7_770_022,
    GiantOutput = 7_770_023,
    TooFewBooleans = 7_770_024,
    TooFewVectorElements = 7_770_025,
    BlobBeyondTheEnd = 7_770_026,
    WordBeyondTheEnd = 7_770_027,
    WordNotUtf8 = 7_770_028,
    ListBeyondItsElements = 7_770_029,
    ListOfAnotherType = 7_770_030,
    /// The row that is dropped has a label that is no text, which means nothing.
    DropsWithGarbage = 7_770_031,
}

impl Breach {
    pub const ALL: [Self; 31] = [
        Self::TooFewColumns,
        Self::TooManyColumns,
        Self::WrongType,
        Self::TooFewValues,
        Self::TooManyValues,
        Self::ShortBitmap,
        Self::TooFewOffsets,
        Self::OffsetsStartLate,
        Self::OffsetsFall,
        Self::OffsetBeyondTheEnd,
        Self::NotUtf8,
        Self::OffsetInsideCharacter,
        Self::NullWhereNever,
        Self::GiantString,
        Self::GiantList,
        Self::DroppedRowOutOfRange,
        Self::DroppedTwice,
        Self::FailedRowOutOfRange,
        Self::DroppedAndFailed,
        Self::DropsThoughTotal,
        Self::FailsThoughTotal,
        Self::GiantMessage,
        Self::GiantOutput,
        Self::TooFewBooleans,
        Self::TooFewVectorElements,
        Self::BlobBeyondTheEnd,
        Self::WordBeyondTheEnd,
        Self::WordNotUtf8,
        Self::ListBeyondItsElements,
        Self::ListOfAnotherType,
        Self::DropsWithGarbage,
    ];

    pub fn of(x: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|breach| *breach as i64 == x)
    }

    /// The honest answer under [`full_description`], with this flaw.
    pub fn output(self, rows: u32, inputs: &[Column]) -> Output {
        let mut output = full_echo(inputs);
        let row_count = rows as usize;
        let failed = |row: u32, message: String| RowError { row, message };
        match self {
            Self::TooFewColumns => output.columns.truncate(2),
            Self::TooManyColumns => output.columns.push(column(Values::Int64(vec![0; row_count]))),
            Self::WrongType => set_values(&mut output, Y, Values::Float64(vec![0.5; row_count])),
            Self::TooFewValues => set_values(&mut output, Y, Values::Int64(vec![0; row_count.saturating_sub(1)])),
            Self::TooManyValues => set_values(&mut output, Y, Values::Int64(vec![0; row_count + 1])),
            Self::ShortBitmap => set_validity(&mut output, LABEL, vec![0; row_count.div_ceil(8) + 1]),
            Self::TooFewOffsets => edit_labels(&mut output, |labels| labels.offsets.truncate(row_count)),
            Self::OffsetsStartLate => edit_labels(&mut output, |labels| set_first(&mut labels.offsets, 1)),
            Self::OffsetsFall if rows > 1 => edit_labels(&mut output, |labels| labels.offsets.swap(1, 2)),
            Self::OffsetsFall | Self::OffsetBeyondTheEnd => {
                edit_labels(&mut output, |labels| labels.bytes.truncate(labels.bytes.len() - 1));
            }
            Self::NotUtf8 => edit_labels(&mut output, |labels| labels.bytes.fill(0xff)),
            Self::OffsetInsideCharacter => edit_labels(&mut output, split_characters),
            Self::NullWhereNever => set_validity(&mut output, Y, vec![0; row_count.div_ceil(8)]),
            Self::GiantString => edit_labels(&mut output, |labels| lengthen_last(labels, 2 << 20)),
            Self::GiantList => set_values(&mut output, STEPS, Values::List(one_long_list(row_count, 70_000))),
            Self::DroppedRowOutOfRange => output.dropped.push(rows),
            Self::DroppedTwice => output.dropped.extend([0, 0]),
            Self::FailedRowOutOfRange => output.errors.push(failed(rows, "no such row".to_owned())),
            Self::DroppedAndFailed => {
                output.dropped.push(0);
                output.errors.push(failed(0, "dropped too".to_owned()));
            }
            Self::DropsThoughTotal => output.dropped.push(0),
            Self::FailsThoughTotal => output.errors.push(failed(0, "a row that is said not to fail".to_owned())),
            Self::GiantMessage => output.errors.push(failed(0, "long ".repeat(400_000))),
            Self::GiantOutput => set_values(&mut output, STEPS, Values::List(one_long_list(row_count, 9 << 20))),
            Self::TooFewBooleans => set_values(&mut output, FLAG, Values::Boolean(vec![0; row_count.div_ceil(8) - 1])),
            Self::TooFewVectorElements => set_values(&mut output, POINT, Values::Vector(vec![0.0; 2 * row_count - 1])),
            Self::BlobBeyondTheEnd => set_values(&mut output, BLOB, Values::Binary(cut_labels(row_count))),
            Self::WordBeyondTheEnd => edit_words(&mut output, |words| *words = cut_labels(row_count)),
            Self::WordNotUtf8 => edit_words(&mut output, |words| words.bytes.fill(0xff)),
            Self::ListBeyondItsElements => {
                let lists =
                    ListValues { offsets: one_long_offset(row_count, 1), elements: Elements::Float64(Vec::new()) };
                set_values(&mut output, SHARES, Values::List(lists));
            }
            Self::ListOfAnotherType => set_values(&mut output, SHARES, Values::List(one_long_list(row_count, 0))),
            Self::DropsWithGarbage => {
                output.dropped.push(0);
                edit_labels(&mut output, |labels| labels.bytes[..2].fill(0xff));
            }
        }
        output
    }
}

const Y: usize = 0;
const LABEL: usize = 1;
const STEPS: usize = 2;
const FLAG: usize = 3;
const POINT: usize = 4;
const BLOB: usize = 5;
const WORDS: usize = 6;
const SHARES: usize = 7;

fn set_values(output: &mut Output, place: usize, values: Values) {
    if let Some(column) = output.columns.get_mut(place) {
        column.values = values;
    }
}

fn set_validity(output: &mut Output, place: usize, validity: Vec<u8>) {
    if let Some(column) = output.columns.get_mut(place) {
        column.validity = validity;
    }
}

fn edit_labels(output: &mut Output, edit: impl FnOnce(&mut VariableBytes)) {
    if let Some(Column { values: Values::Utf8(labels), .. }) = output.columns.get_mut(LABEL) {
        edit(labels);
    }
}

fn edit_words(output: &mut Output, edit: impl FnOnce(&mut VariableBytes)) {
    if let Some(Column { values: Values::List(ListValues { elements: Elements::Utf8(words), .. }), .. }) =
        output.columns.get_mut(WORDS)
    {
        edit(words);
    }
}

/// Labels whose last byte is missing.
fn cut_labels(rows: usize) -> VariableBytes {
    let mut labels = labels(rows);
    labels.bytes.pop();
    labels
}

fn set_first(offsets: &mut [u32], value: u32) {
    if let Some(first) = offsets.first_mut() {
        *first = value;
    }
}

/// Two bytes a row are a two-byte character each; shifted by one byte, every row begins inside one.
fn split_characters(labels: &mut VariableBytes) {
    labels.bytes = "é".repeat(labels.bytes.len() / 2).into_bytes();
    let inner = labels.offsets.len().saturating_sub(1);
    for offset in labels.offsets.iter_mut().take(inner).skip(1) {
        *offset -= 1;
    }
    if inner == 1 {
        labels.bytes.truncate(1);
        labels.offsets = vec![0, 1];
    }
}

fn lengthen_last(labels: &mut VariableBytes, bytes: u32) {
    labels.bytes.extend(std::iter::repeat_n(b'x', bytes as usize));
    if let Some(last) = labels.offsets.last_mut() {
        *last += bytes;
    }
}

/// All elements belong to the last row.
fn one_long_list(rows: usize, elements: usize) -> ListValues {
    ListValues { offsets: one_long_offset(rows, elements), elements: Elements::Int64(vec![7; elements]) }
}

fn one_long_offset(rows: usize, elements: usize) -> Vec<u32> {
    let mut offsets = vec![0; rows];
    offsets.push(elements as u32);
    offsets
}

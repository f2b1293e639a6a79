use eadem::Transform;
use eadem::contract::{Column, Elements, ListValues, Output, Values, VariableBytes};
use eadem::prelude::*;

/// Every type that owns its value; `identity_all_types` of the example transforms has those that borrow.
#[derive(Input)]
struct Owned {
    flag: bool,
    count: Option<i64>,
    small: Option<f32>,
    wide: f64,
    text: Option<String>,
    raw: Vec<u8>,
    at: Timestamp,
    place: Option<[f32; 2]>,
    counts: Vec<i64>,
    numbers: Option<Vec<f64>>,
    words: Option<Vec<String>>,
}

#[derive(Output)]
struct Copied {
    flag: bool,
    count: Option<i64>,
    small: Option<f32>,
    wide: f64,
    text: Option<String>,
    raw: Vec<u8>,
    at: Timestamp,
    place: Option<[f32; 2]>,
    counts: Vec<i64>,
    numbers: Option<Vec<f64>>,
    words: Option<Vec<String>>,
}

#[transform(owner = "tests")]
fn copy(row: Owned) -> Copied {
    Copied {
        flag: row.flag,
        count: row.count,
        small: row.small,
        wide: row.wide,
        text: row.text,
        raw: row.raw,
        at: row.at,
        place: row.place,
        counts: row.counts,
        numbers: row.numbers,
        words: row.words,
    }
}

fn column(validity: &[u8], values: Values) -> Column {
    Column { validity: validity.to_vec(), values }
}

fn bytes(values: &[&[u8]]) -> VariableBytes {
    VariableBytes { offsets: offsets(values.iter().map(|value| value.len())), bytes: values.concat() }
}

fn offsets(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut end = 0;
    let ends = lengths.map(|length| {
        end += length as u32;
        end
    });
    std::iter::once(0).chain(ends.collect::<Vec<_>>()).collect()
}

/// Three rows; row 1 is null wherever it may be.
fn three_rows() -> Vec<Column> {
    let nulls = &[0b101];
    vec![
        column(&[], Values::Boolean(vec![0b101])),
        column(nulls, Values::Int64(vec![i64::MIN, 0, i64::MAX])),
        column(nulls, Values::Float32(vec![-0.0, 0.0, f32::MIN_POSITIVE])),
        column(&[], Values::Float64(vec![-0.0, f64::from_bits(0x7ff8_0000_0000_0000), f64::INFINITY])),
        column(nulls, Values::Utf8(bytes(&[b"", b"", "é".as_bytes()]))),
        column(&[], Values::Binary(bytes(&[&[0, 255], &[], &[7]]))),
        column(&[], Values::Timestamp(vec![-1, 0, 1])),
        column(nulls, Values::Vector(vec![1.0, -0.0, 0.0, 0.0, 3.0, 4.0])),
        column(
            &[],
            Values::List(ListValues { offsets: vec![0, 2, 2, 3], elements: Elements::Int64(vec![1, -1, i64::MIN]) }),
        ),
        column(nulls, Values::List(ListValues { offsets: vec![0, 1, 1, 1], elements: Elements::Float64(vec![-0.0]) })),
        column(
            nulls,
            Values::List(ListValues {
                offsets: vec![0, 2, 2, 3],
                elements: Elements::Utf8(bytes(&[b"a", b"", "ß".as_bytes()])),
            }),
        ),
    ]
}

/// Debug output tells every bit apart that matters here: −0.0, infinities, NaN, lengths.
fn shown(columns: &[Column]) -> Vec<String> {
    columns.iter().map(|column| format!("{column:?}")).collect()
}

#[test]
fn every_type_passes_through_with_the_same_bits() {
    let inputs = three_rows();
    let output = copy::apply(3, &inputs).unwrap();
    assert_eq!(shown(&output.columns), shown(&inputs));
    assert!(output.dropped.is_empty() && output.errors.is_empty());
}

/// The same columns without any row.
fn no_rows() -> Vec<Column> {
    let no_bytes = || VariableBytes { offsets: vec![0], bytes: vec![] };
    let no_list = |elements| Values::List(ListValues { offsets: vec![0], elements });
    let columns = [
        Values::Boolean(vec![]),
        Values::Int64(vec![]),
        Values::Float32(vec![]),
        Values::Float64(vec![]),
        Values::Utf8(no_bytes()),
        Values::Binary(no_bytes()),
        Values::Timestamp(vec![]),
        Values::Vector(vec![]),
        no_list(Elements::Int64(vec![])),
        no_list(Elements::Float64(vec![])),
        no_list(Elements::Utf8(no_bytes())),
    ];
    columns.map(|values| column(&[], values)).into()
}

#[test]
fn no_rows_give_empty_columns() {
    let inputs = no_rows();
    let output = copy::apply(0, &inputs).unwrap();
    assert_eq!(shown(&output.columns), shown(&inputs));
}

const INPUTS: [&str; 11] =
    ["flag", "count", "small", "wide", "text", "raw", "at", "place", "counts", "numbers", "words"];

#[test]
fn columns_that_are_not_the_declared_ones_are_refused_by_name() {
    let mut inputs = three_rows();
    inputs.swap(2, 3);
    let message = copy::apply(3, &inputs).err().unwrap();
    assert!(message.contains("`small`"), "{message}");

    inputs.pop();
    let message = copy::apply(3, &inputs).err().unwrap();
    assert!(message.contains("11 inputs") && message.contains("10"), "{message}");
}

#[test]
fn a_column_with_another_number_of_rows_is_refused_by_name() {
    for (place, name) in INPUTS.iter().enumerate() {
        let mut short = three_rows();
        short[place] = no_rows().swap_remove(place);
        let message = copy::apply(3, &short).err().unwrap_or_else(|| panic!("`{name}` without rows was read"));
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
}

#[test]
fn a_validity_of_another_number_of_rows_is_refused_by_name() {
    let nullable = ["count", "small", "text", "place", "numbers", "words"];
    for (place, name) in INPUTS.iter().enumerate().filter(|(_, name)| nullable.contains(name)) {
        let mut long = three_rows();
        long[place].validity = vec![0xff, 0xff];
        let message = copy::apply(3, &long).err().unwrap_or_else(|| panic!("`{name}` was read"));
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
}

#[derive(Input)]
struct Number {
    x: i64,
}

#[derive(Output)]
struct Kept {
    x: Option<i64>,
    label: String,
    words: Vec<String>,
    even: bool,
}

/// Multiples of 4 are dropped, of 3 fail, of 5 are null.
#[transform(owner = "tests")]
fn sift(number: Number) -> Result<Option<Kept>, String> {
    let x = number.x;
    if x % 4 == 0 {
        return Ok(None);
    }
    if x % 3 == 0 {
        return Err(format!("{x} is a multiple of three"));
    }
    let words = vec![x.to_string(); 2];
    Ok(Some(Kept { x: (x % 5 != 0).then_some(x), label: x.to_string(), words, even: x % 2 == 0 }))
}

#[test]
fn dropped_and_failed_rows_are_listed_and_leave_zeros() {
    let inputs = [column(&[], Values::Int64((0..10).collect()))];
    let output = sift::apply(10, &inputs).unwrap();
    assert_eq!(output.dropped, [0, 4, 8]);
    let errors: Vec<(u32, &str)> = output.errors.iter().map(|error| (error.row, error.message.as_str())).collect();
    assert_eq!(
        errors,
        [(3, "3 is a multiple of three"), (6, "6 is a multiple of three"), (9, "9 is a multiple of three")]
    );
    let expected = [
        column(&[0b1101_1111, 0b11], Values::Int64(vec![0, 1, 2, 0, 0, 0, 0, 7, 0, 0])),
        column(&[], Values::Utf8(bytes(&[b"", b"1", b"2", b"", b"", b"5", b"", b"7", b"", b""]))),
        column(
            &[],
            Values::List(ListValues {
                offsets: vec![0, 0, 2, 4, 4, 4, 6, 6, 8, 8, 8],
                elements: Elements::Utf8(bytes(&[b"1", b"1", b"2", b"2", b"5", b"5", b"7", b"7"])),
            }),
        ),
        column(&[], Values::Boolean(vec![0b0000_0100, 0])),
    ];
    assert_eq!(shown(&output.columns), shown(&expected));
}

fn is_set(bits: &[u8], row: usize) -> bool {
    bits.get(row / 8).is_none_or(|byte| byte >> (row % 8) & 1 == 1)
}

fn text_at(texts: &VariableBytes, place: usize) -> &str {
    let bytes = &texts.bytes[texts.offsets[place] as usize..texts.offsets[place + 1] as usize];
    std::str::from_utf8(bytes).unwrap()
}

/// What `sift` gave, row by row, read as the contract says and not by the SDK.
fn sifted(output: &Output) -> Vec<String> {
    let [x, label, words, even] = output.columns.as_slice() else { panic!("{} columns", output.columns.len()) };
    let (Values::Int64(numbers), Values::Utf8(labels), Values::List(lists), Values::Boolean(evens)) =
        (&x.values, &label.values, &words.values, &even.values)
    else {
        panic!("columns of other types");
    };
    let Elements::Utf8(elements) = &lists.elements else { panic!("a list of other elements") };
    let in_row = |row: usize| {
        let x = is_set(&x.validity, row).then_some(numbers[row]);
        let words = lists.offsets[row] as usize..lists.offsets[row + 1] as usize;
        let words: Vec<&str> = words.map(|place| text_at(elements, place)).collect();
        format!("{x:?} {:?} {words:?} {}", text_at(labels, row), is_set(evens, row))
    };
    (0..numbers.len()).map(in_row).collect()
}

#[test]
fn a_batch_is_its_rows_one_by_one_at_every_split() {
    let run = |numbers: &[i64]| {
        let inputs = [column(&[], Values::Int64(numbers.to_vec()))];
        sift::apply(numbers.len() as u32, &inputs).unwrap()
    };
    let errors = |output: &Output, first_row: u32| -> Vec<(u32, String)> {
        output.errors.iter().map(|error| (first_row + error.row, error.message.clone())).collect()
    };
    let dropped =
        |output: &Output, first_row: u32| -> Vec<u32> { output.dropped.iter().map(|row| first_row + row).collect() };

    let numbers: Vec<i64> = (0..19).collect();
    let whole = run(&numbers);
    for split in 0..=numbers.len() {
        let (left, right) = numbers.split_at(split);
        let (left, right, first_right) = (run(left), run(right), split as u32);
        assert_eq!([sifted(&left), sifted(&right)].concat(), sifted(&whole), "split at {split}");
        assert_eq!([dropped(&left, 0), dropped(&right, first_right)].concat(), whole.dropped, "split at {split}");
        assert_eq!([errors(&left, 0), errors(&right, first_right)].concat(), errors(&whole, 0), "split at {split}");
    }
}

/// Functions called like variables of the macro's own code.
mod names_of_the_macro {
    use eadem::prelude::*;

    use super::Number;

    #[derive(Output)]
    pub(super) struct Same {
        x: i64,
    }

    #[transform(owner = "tests")]
    pub(super) fn row(number: Number) -> Same {
        Same { x: number.x }
    }

    #[transform(owner = "tests")]
    pub(super) fn rows(number: Number) -> Option<Same> {
        Some(Same { x: number.x })
    }

    #[transform(owner = "tests")]
    pub(super) fn inputs(number: Number) -> Result<Same, String> {
        Ok(Same { x: number.x })
    }

    #[transform(owner = "tests")]
    pub(super) fn result(number: Number) -> Result<Option<Same>, String> {
        Ok(Some(Same { x: number.x }))
    }
}

#[test]
fn a_function_may_be_called_like_anything_in_the_macros_code() {
    use names_of_the_macro::{inputs, result, row, rows};

    let numbers = || [column(&[], Values::Int64(vec![7, 8]))];
    let outputs = [
        row::apply(2, &numbers()),
        rows::apply(2, &numbers()),
        inputs::apply(2, &numbers()),
        result::apply(2, &numbers()),
    ];
    for output in outputs {
        assert_eq!(shown(&output.unwrap().columns), shown(&numbers()));
    }
}

#[test]
fn the_function_stays_a_function() {
    assert!(sift(Number { x: 4 }).unwrap().is_none());
    assert_eq!(sift(Number { x: 7 }).unwrap().unwrap().label, "7");
}

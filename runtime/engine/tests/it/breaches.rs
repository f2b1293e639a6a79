//! Answers with one flaw each: the exact breach, and the good rows untouched.

use arrow_array::Array;
use eadem_engine::{CallClass, FailureKind, LimitKind};

use crate::support::{apply_int64s, assert_engine_is_well, shared, smuggled, x_to_all_shapes, y_of};

/// The number that makes `contract_breaches` answer with this flaw, and what is said of it in a call of one row.
const FLAWS: &[(i64, &str)] = &[
    (7_770_001, "2 output columns, 8 are described"),
    (7_770_002, "9 output columns, 8 are described"),
    (7_770_003, "output y is float64, int64 is described"),
    (7_770_004, "output y has 0 values for 1 rows"),
    (7_770_005, "output y has 2 values for 1 rows"),
    (7_770_006, "the validity bitmap of output label has 2 bytes instead of 1 or 0"),
    (7_770_007, "output label has 1 offsets instead of 2"),
    (7_770_008, "the offsets of output label start at 1 instead of 0"),
    (7_770_009, "the offsets of output label end at 2, its values at 1"),
    (7_770_010, "the offsets of output label end at 2, its values at 1"),
    (7_770_011, "output label is not UTF-8 in row 0"),
    (7_770_012, "output label is not UTF-8 in row 0"),
    (7_770_013, "output y is null in row 0, it is described as not nullable"),
    (7_770_014, "output label has length 2097154 in row 0, the limit is 1048576"),
    (7_770_015, "output steps has length 70000 in row 0, the limit is 65536"),
    (7_770_016, "`dropped` names row 1 of 1 rows"),
    (7_770_017, "`dropped` is not strictly ascending at row 0"),
    (7_770_018, "`errors` names row 1 of 1 rows"),
    (7_770_019, "row 0 is both dropped and failed"),
    (7_770_020, "a total transform dropped row 0"),
    (7_770_021, "a total transform failed row 0: a row that is said not to fail"),
    (7_770_024, "output flag has 0 values for 1 rows"),
    (7_770_025, "output point has 1 values for 1 rows"),
    (7_770_026, "the offsets of output blob end at 2, its values at 1"),
    (7_770_027, "the offsets of output words end at 2, its values at 1"),
    (7_770_028, "output words is not UTF-8 in row 0"),
    (7_770_029, "the offsets of output shares end at 1, its values at 0"),
    (7_770_030, "output shares is list(int64), list(float64) is described"),
];

#[test]
fn each_flaw_is_named_and_fails_only_its_row() {
    let transform = smuggled(shared(), "contract_breaches", x_to_all_shapes("contract_breaches"));
    for (flaw, message) in FLAWS {
        let rows = [1, 2, 3, *flaw, 5];
        let applied = apply_int64s(&transform, &rows, CallClass::Batch);
        assert_eq!(applied.rows.failed.len(), 1, "{flaw}");
        let failed = &applied.rows.failed[0];
        assert_eq!((failed.row, failed.kind), (3, FailureKind::Breach), "{flaw}");
        assert_eq!(failed.message, format!("the component breaks the contract: {message}"), "{flaw}");
        assert_eq!(y_of(&applied), [Some(1), Some(2), Some(3), None, Some(5)]);
        for column in &applied.columns {
            column.to_data().validate_full().unwrap();
        }
    }
    assert_engine_is_well(shared());
}

#[test]
fn flaws_that_only_a_batch_can_have_are_seen_in_a_batch() {
    // In a batch, one offset falls below another, or cuts a character in two. Each row alone is told from the others.
    let transform = smuggled(shared(), "contract_breaches", x_to_all_shapes("contract_breaches"));
    for flaw in [7_770_009, 7_770_012] {
        let applied = apply_int64s(&transform, &[1, flaw], CallClass::Batch);
        assert_eq!(y_of(&applied), [Some(1), None], "{flaw}");
    }
}

#[test]
fn a_giant_output_is_a_limit_and_a_giant_message_is_cut() {
    let mut description = x_to_all_shapes("contract_breaches");
    let transform = smuggled(shared(), "contract_breaches", description.clone());
    let applied = apply_int64s(&transform, &[1, 7_770_023], CallClass::Batch);
    assert_eq!(applied.rows.failed[0].kind, FailureKind::Limit(LimitKind::Output));
    assert_eq!(applied.rows.failed[0].message, "the output is larger than 67108864 bytes (output_bytes_max)");

    description.total = false;
    let partial = smuggled(shared(), "contract_breaches", description);
    let applied = apply_int64s(&partial, &[7_770_022, 2], CallClass::Batch);
    assert_eq!(applied.rows.failed[0].kind, FailureKind::RowError);
    assert_eq!(applied.rows.failed[0].message.len(), 1_024);
    assert_eq!(y_of(&applied), [None, Some(2)]);
}

#[test]
fn a_partial_transform_drops_and_fails_rows() {
    let mut description = x_to_all_shapes("contract_breaches");
    description.total = false;
    let partial = smuggled(shared(), "contract_breaches", description);
    // The component drops, or fails, row 0 of the call that holds the number.
    let applied = apply_int64s(&partial, &[7_770_020, 2, 3], CallClass::Batch);
    assert_eq!(applied.rows.dropped, [0]);
    assert_eq!(y_of(&applied), [None, Some(2), Some(3)]);
    // What stands at a dropped row means nothing, not even where it is no text.
    let applied = apply_int64s(&partial, &[7_770_031, 2, 3], CallClass::Batch);
    assert_eq!((applied.rows.dropped.as_slice(), applied.rows.failed.len()), ([0].as_slice(), 0));
    assert!(applied.columns[1].is_null(0) && applied.columns[1].is_valid(1));
    let applied = apply_int64s(&partial, &[7_770_021, 2, 3], CallClass::Batch);
    assert_eq!(applied.rows.failed[0].message, "a row that is said not to fail");
    assert_eq!(applied.rows.failed[0].kind.as_str(), "row_error");
    assert_eq!(y_of(&applied), [None, Some(2), Some(3)]);
}

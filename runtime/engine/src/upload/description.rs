//! What a component says of itself: converted, compared, checked.

use std::collections::HashSet;
use std::fmt;

use eadem_values::{Constraint, DataType, Description, ElementType, Field, Literal, Value};

use crate::bindings::exports::eadem::transform::types as contract;
use crate::config::EngineConfig;

/// Columns that every offline table has.
const RESERVED_NAMES: &[&str] = &["event_time", "known_at", "event_date"];
/// A dataset has a column of this name beside each feature.
const RESERVED_SUFFIX: &str = "__status";

pub(super) fn from_contract(described: contract::Description) -> Description {
    Description {
        name: described.name,
        doc: described.doc,
        owner: described.owner,
        total: described.total,
        inputs: described.inputs.into_iter().map(field).collect(),
        outputs: described.outputs.into_iter().map(field).collect(),
    }
}

fn field(field: contract::Field) -> Field {
    Field {
        name: field.name,
        data_type: data_type(field.data_type),
        nullable: field.nullable,
        doc: field.doc,
        constraints: field.constraints.into_iter().map(constraint).collect(),
    }
}

fn data_type(data_type: contract::DataType) -> DataType {
    match data_type {
        contract::DataType::Boolean => DataType::Boolean,
        contract::DataType::Int64 => DataType::Int64,
        contract::DataType::Float32 => DataType::Float32,
        contract::DataType::Float64 => DataType::Float64,
        contract::DataType::Utf8 => DataType::Utf8,
        contract::DataType::Binary => DataType::Binary,
        contract::DataType::Timestamp => DataType::Timestamp,
        contract::DataType::Vector(dimensions) => DataType::Vector(dimensions),
        contract::DataType::List(element) => DataType::List(match element {
            contract::ElementType::Int64 => ElementType::Int64,
            contract::ElementType::Float64 => ElementType::Float64,
            contract::ElementType::Utf8 => ElementType::Utf8,
        }),
    }
}

fn constraint(constraint: contract::Constraint) -> Constraint {
    match constraint {
        contract::Constraint::Min(least) => Constraint::Min(literal(least)),
        contract::Constraint::Max(most) => Constraint::Max(literal(most)),
        contract::Constraint::Allowed(values) => Constraint::Allowed(values.into_iter().map(literal).collect()),
        contract::Constraint::NotNull => Constraint::NotNull,
        contract::Constraint::Length(range) => Constraint::Length { min: range.min, max: range.max },
        contract::Constraint::Unit(unit) => Constraint::Unit(unit),
    }
}

fn literal(literal: contract::Literal) -> Literal {
    match literal {
        contract::Literal::Boolean(value) => Literal::Boolean(value),
        contract::Literal::Int64(value) => Literal::Int64(value),
        contract::Literal::Float64(value) => Literal::Float64(value),
        contract::Literal::Utf8(value) => Literal::Utf8(value),
    }
}

/// Where two descriptions differ.
pub(super) fn difference(first: &Description, other: &Description) -> Option<String> {
    let texts = [("the name", &first.name, &other.name), ("the owner", &first.owner, &other.owner)];
    for (what, before, after) in texts {
        if before != after {
            return Some(format!("{what} from `{}` to `{}`", shortened(before), shortened(after)));
        }
    }
    if first.doc != other.doc {
        return Some("the documentation".to_owned());
    }
    if first.total != other.total {
        return Some("`total`".to_owned());
    }
    let lists = [("input", &first.inputs, &other.inputs), ("output", &first.outputs, &other.outputs)];
    for (what, before, after) in lists {
        if before.len() != after.len() {
            return Some(format!("the number of {what}s from {} to {}", before.len(), after.len()));
        }
        // Compared as text, so that a NaN in a constraint equals itself.
        let changed = before.iter().zip(after).find(|(before, after)| format!("{before:?}") != format!("{after:?}"));
        if let Some((before, _)) = changed {
            return Some(format!("{what} `{}`", shortened(&before.name)));
        }
    }
    None
}

/// What is wrong with a description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptionProblem {
    /// The input or output that it is about, if it is about one.
    pub field: Option<String>,
    /// In words, the field included.
    pub what: String,
}

impl fmt::Display for DescriptionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Checks a description against everything that the store will want of it.
///
/// # Errors
/// All problems.
pub(super) fn check(description: &Description, config: &EngineConfig) -> Result<(), Vec<DescriptionProblem>> {
    let mut check = Check { config, field: None, problems: Vec::new() };
    check.name("the transform", &description.name);
    check.text("the documentation", &description.doc);
    check.text("the owner", &description.owner);
    check.fields("input", &description.inputs);
    check.fields("output", &description.outputs);
    if description.outputs.is_empty() {
        check.problem("there are no outputs".to_owned());
    }
    if check.problems.is_empty() { Ok(()) } else { Err(check.problems) }
}

struct Check<'a> {
    config: &'a EngineConfig,
    /// The field that is being looked at.
    field: Option<String>,
    problems: Vec<DescriptionProblem>,
}

impl Check<'_> {
    /// A hostile description may have millions of problems.
    fn problem(&mut self, what: String) {
        const PROBLEMS_MAX: usize = 20;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(DescriptionProblem { field: self.field.clone(), what });
        }
    }

    fn fields(&mut self, what: &str, fields: &[Field]) {
        let allowed = self.config.fields_max as usize;
        if fields.len() > allowed {
            self.problem(format!("{} {what}s, {allowed} are allowed (fields_max)", fields.len()));
            return;
        }
        self.row_bytes(what, fields);
        let mut seen = HashSet::new();
        for field in fields {
            let called = format!("{what} `{}`", shortened(&field.name));
            self.field = Some(shortened(&field.name).to_owned());
            self.name(&called, &field.name);
            if RESERVED_NAMES.contains(&field.name.as_str()) || field.name.ends_with(RESERVED_SUFFIX) {
                self.problem(format!("{called}: the name is reserved for the store's own columns"));
            }
            if !seen.insert(&field.name) {
                self.problem(format!("{called}: there are two of this name"));
            }
            self.text(&called, &field.doc);
            self.data_type(&called, field.data_type);
            self.constraints(&called, field);
        }
        self.field = None;
    }

    /// Whatever a row holds, the host has to make room for this much: for generated rows, and for the nulls of failed
    /// ones.
    fn row_bytes(&mut self, what: &str, fields: &[Field]) {
        let bytes = fields.iter().fold(0_u64, |bytes, field| bytes.saturating_add(bytes_of_shortest(field)));
        let allowed = self.config.row_bytes_max;
        if bytes > allowed {
            self.problem(format!(
                "the {what}s of one row take {bytes} bytes at least, {allowed} are allowed (row_bytes_max)"
            ));
        }
    }

    fn name(&mut self, called: &str, name: &str) {
        let allowed = self.config.name_bytes_max as usize;
        if name.len() > allowed {
            self.problem(format!(
                "{called}: the name has {} bytes, {allowed} are allowed (name_bytes_max)",
                name.len()
            ));
            return;
        }
        let is_letter = |character: char| character.is_ascii_lowercase();
        let goes_on = |character: char| is_letter(character) || character.is_ascii_digit() || character == '_';
        // Names that begin with `_` are the store's own.
        let is_valid = name.starts_with(is_letter) && name.chars().all(goes_on);
        if !is_valid {
            self.problem(format!(
                "{called}: a name begins with a lower-case letter and goes on with lower-case letters, digits and `_`"
            ));
        }
    }

    fn text(&mut self, called: &str, text: &str) {
        let allowed = self.config.doc_bytes_max as usize;
        if text.len() > allowed {
            self.problem(format!("{called}: a text of {} bytes, {allowed} are allowed (doc_bytes_max)", text.len()));
        }
    }

    fn data_type(&mut self, called: &str, data_type: DataType) {
        let DataType::Vector(dimensions) = data_type else {
            return;
        };
        let allowed = self.config.vector_dimensions_max;
        if dimensions == 0 || dimensions > allowed {
            self.problem(format!(
                "{called}: a vector of {dimensions} dimensions; 1 to {allowed} are allowed (vector_dimensions_max)"
            ));
        }
    }

    fn constraints(&mut self, called: &str, field: &Field) {
        let allowed = self.config.constraints_max as usize;
        if field.constraints.len() > allowed {
            self.problem(format!(
                "{called}: {} constraints, {allowed} are allowed (constraints_max)",
                field.constraints.len()
            ));
            return;
        }
        for constraint in &field.constraints {
            self.constraint(called, field.data_type, constraint);
        }
        self.order(called, field);
    }

    fn constraint(&mut self, called: &str, data_type: DataType, constraint: &Constraint) {
        let is_ordered =
            matches!(data_type, DataType::Int64 | DataType::Float32 | DataType::Float64 | DataType::Timestamp);
        match constraint {
            Constraint::Min(bound) | Constraint::Max(bound) => {
                if !is_ordered {
                    self.problem(format!("{called}: {data_type} has no order, so no min or max"));
                }
                self.literal(called, data_type, bound);
            }
            Constraint::Allowed(values) => {
                let allowed = self.config.constraints_max as usize;
                if values.is_empty() || values.len() > allowed {
                    self.problem(format!(
                        "{called}: `allowed` has {} values; 1 to {allowed} are allowed (constraints_max)",
                        values.len()
                    ));
                    return;
                }
                for value in values {
                    self.literal(called, data_type, value);
                }
            }
            Constraint::Length { min, max } => {
                let has_length = matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::List(_));
                if !has_length {
                    self.problem(format!("{called}: {data_type} has no length"));
                }
                if min > max {
                    self.problem(format!("{called}: no length is at least {min} and at most {max}"));
                }
                let (allowed, limit) = match data_type {
                    DataType::List(_) => (self.config.list_elements_max, "list_elements_max"),
                    _ => (self.config.value_bytes_max, "value_bytes_max"),
                };
                if has_length && *min > allowed {
                    self.problem(format!("{called}: a length of {min} at least, {allowed} is allowed ({limit})"));
                }
            }
            Constraint::Unit(unit) => self.text(called, unit),
            Constraint::NotNull => {}
        }
    }

    fn literal(&mut self, called: &str, data_type: DataType, literal: &Literal) {
        if let Literal::Utf8(text) = literal {
            self.text(called, text);
        }
        if matches!(literal, Literal::Float64(value) if value.is_nan()) {
            self.problem(format!("{called}: nothing compares with NaN"));
        } else if literal.to_value(data_type).is_none() {
            self.problem(format!("{called}: a constraint of another type than {data_type}"));
        }
    }

    fn order(&mut self, called: &str, field: &Field) {
        let bound = |literal: &Literal| literal.to_value(field.data_type);
        let mins = field.constraints.iter().filter_map(|constraint| match constraint {
            Constraint::Min(literal) => bound(literal),
            _ => None,
        });
        let maxs: Vec<Value> = field
            .constraints
            .iter()
            .filter_map(|constraint| match constraint {
                Constraint::Max(literal) => bound(literal),
                _ => None,
            })
            .collect();
        for min in mins {
            if maxs.iter().any(|max| min.is_greater_than(max)) {
                self.problem(format!("{called}: its min is greater than its max"));
            }
        }
    }
}

/// What the value of one row takes at least, null or not; 0 where it is only a few bytes.
pub(super) fn bytes_of_shortest(field: &Field) -> u64 {
    let length_min = field.constraints.iter().map(|constraint| match constraint {
        Constraint::Length { min, .. } => u64::from(*min),
        _ => 0,
    });
    let length_min = length_min.max().unwrap_or(0);
    match field.data_type {
        DataType::Vector(dimensions) => 4 * u64::from(dimensions),
        DataType::Utf8 | DataType::Binary => length_min,
        DataType::List(_) => 8 * length_min,
        _ => 0,
    }
}

fn shortened(name: &str) -> &str {
    crate::state::cut_to(name, 80)
}

//! Components of generated schemas: each is assembled here as a core module, with its description in its memory, and
//! computes its outputs from its inputs in one of a few ways that [`Made::of_row`] computes again, natively.

use std::collections::BTreeMap;
use std::fmt::Write;

use eadem_registry::model::{OutlierBound, ValidationPolicy};
use eadem_values::{DataType, ElementType, Field, Value};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::identity::Chance;

const TYPES: [DataType; 13] = [
    DataType::Boolean,
    DataType::Int64,
    DataType::Float32,
    DataType::Float64,
    DataType::Utf8,
    DataType::Binary,
    DataType::Timestamp,
    DataType::Vector(1),
    DataType::Vector(3),
    DataType::Vector(17),
    DataType::List(ElementType::Int64),
    DataType::List(ElementType::Float64),
    DataType::List(ElementType::Utf8),
];
const INPUTS_MAX: usize = 8;
const OUTPUTS_MAX: usize = 10;
/// What failed rows say.
const MESSAGE: &str = "the flag is up";
const FACTOR: i64 = 6_364_136_223_846_793_005;

/// A schema, and how each output comes from the inputs. Inputs are named by their place.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) name: String,
    inputs: Vec<Field>,
    outputs: Vec<Output>,
    /// Rows are dropped where this input is null.
    dropped_without: Option<usize>,
    /// Rows fail where this boolean input is true, unless they are dropped.
    failed_by: Option<usize>,
    /// By output, with a policy of their own each.
    pub(crate) bounds: BTreeMap<String, OutlierBound>,
}

#[derive(Debug)]
struct Output {
    from: usize,
    /// Numbers are computed with; everything else, and some numbers, come out as they went in.
    computed: bool,
    /// Null also where this input is null.
    only_with: Option<usize>,
}

/// What a row becomes.
#[derive(Debug)]
pub(crate) enum Became {
    Values(Vec<Value>),
    Dropped,
    Failed,
}

impl Made {
    pub(crate) fn by_chance(number: usize, chance: &mut Chance) -> Self {
        let inputs: Vec<Field> = (0..1 + chance.below(INPUTS_MAX))
            .map(|at| Field::new(format!("in_{at}"), TYPES[chance.below(TYPES.len())], chance.below(3) > 0))
            .collect();
        let outputs = (0..1 + chance.below(OUTPUTS_MAX))
            .map(|_| {
                let from = chance.below(inputs.len());
                let only_with = (chance.below(3) == 0).then(|| chance.below(inputs.len()));
                Output { from, computed: chance.below(2) == 0, only_with }
            })
            .collect();
        let name = format!("generated_{number}");
        let bounds = BTreeMap::new();
        let mut made = Self { name, inputs, outputs, dropped_without: None, failed_by: None, bounds };
        // Every third refuses rows where its inputs allow it, the others are total.
        if number.is_multiple_of(3) {
            made.dropped_without = made.inputs.iter().position(Field::accepts_null);
            made.failed_by = made.inputs.iter().position(|input| input.data_type == DataType::Boolean);
        }
        for at in 0..made.outputs.len() {
            let field = made.output_field(at);
            if let Some(bound) = bound_by_chance(field.data_type, made.is_total(), chance) {
                made.bounds.insert(field.name, bound);
            }
        }
        made
    }

    pub(crate) fn is_total(&self) -> bool {
        self.dropped_without.is_none() && self.failed_by.is_none()
    }

    /// The same without the engine.
    pub(crate) fn of_row(&self, inputs: &[Value]) -> Became {
        if self.dropped_without.is_some_and(|at| inputs[at].is_null()) {
            return Became::Dropped;
        }
        if self.failed_by.is_some_and(|at| inputs[at] == Value::Boolean(true)) {
            return Became::Failed;
        }
        let value = |output: &Output| {
            if output.only_with.is_some_and(|at| inputs[at].is_null()) {
                return Value::Null;
            }
            let value = inputs[output.from].clone();
            let value = if output.computed { computed(value) } else { value };
            value.canonical()
        };
        let mut values = Vec::new();
        for (at, output) in self.outputs.iter().enumerate() {
            let field = self.output_field(at);
            let value = value(output);
            let kept = match self.bounds.get(&field.name) {
                Some(bound) => within(value, bound, field.nullable),
                None => Some(value),
            };
            let Some(value) = kept else { return Became::Failed };
            values.push(value);
        }
        Became::Values(values)
    }

    /// The component's bytes.
    pub(crate) fn component(&self) -> Vec<u8> {
        let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/transform.wit");
        let mut module = wat::parse_str(self.module()).unwrap();
        let mut resolve = Resolve::default();
        let package = resolve.push_str("transform.wit", &std::fs::read_to_string(wit).unwrap()).unwrap();
        let world = resolve.select_world(&[package], Some("feature-transform")).unwrap();
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
        ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
    }

    fn output_field(&self, at: usize) -> Field {
        let Output { from, only_with, .. } = self.outputs[at];
        let accepts_null = |at: usize| self.inputs[at].accepts_null();
        let nullable = accepts_null(from) || only_with.is_some_and(accepts_null);
        Field::new(format!("out_{at}"), self.inputs[from].data_type, nullable)
    }

    /// The module's text. Offsets are those of the canonical ABI: a column takes 40 bytes, of which the validity bitmap
    /// stands at 0 (address) and 4 (length), the values' list at 12 and 16.
    fn module(&self) -> String {
        let mut memory = Memory::default();
        let message = memory.text(MESSAGE);
        let name = memory.text(&self.name);
        let none = memory.text("");
        let inputs = memory.fields(&self.inputs);
        let outputs: Vec<Field> = (0..self.outputs.len()).map(|at| self.output_field(at)).collect();
        let outputs = memory.fields(&outputs);
        let description = [name, none.clone(), none].concat();
        let description = [description, vec![u32::from(self.is_total())], inputs, outputs].concat();
        let description = memory.words(&description);
        let heap = memory.end().next_multiple_of(8);

        let mut apply = String::new();
        for (at, output) in self.outputs.iter().enumerate() {
            let record = format!("(i32.add (local.get $out) (i32.const {}))", 40 * at);
            let input = |at: usize| format!("(i32.add (local.get $in) (i32.const {}))", 40 * at);
            let copied = input(output.from);
            writeln!(apply, "(memory.copy {record} {copied} (i32.const 40))").unwrap();
            if let Some(function) = computing(self.inputs[output.from].data_type).filter(|_| output.computed) {
                writeln!(apply, "(call ${function} {record})").unwrap();
            }
            if let Some(other) = output.only_with {
                writeln!(apply, "(call $mask {record} {} (local.get $rows))", input(other)).unwrap();
            }
        }
        // A column that is not there is one without nulls, or without ones: its record is all zero.
        let dropper = self
            .dropped_without
            .map_or("(local.get $zeros)".to_owned(), |at| format!("(i32.add (local.get $in) (i32.const {}))", 40 * at));
        let failer = self
            .failed_by
            .map_or("(local.get $zeros)".to_owned(), |at| format!("(i32.add (local.get $in) (i32.const {}))", 40 * at));
        let fails = i32::from(self.failed_by.is_some());
        let helpers = HELPERS.replace("FACTOR", &FACTOR.to_string());
        let columns = self.outputs.len();
        let [message_at, message_bytes] = message[..] else { unreachable!("a text is address and length") };
        let data = memory.literal();
        format!(
            r#"(module
  (memory (export "memory") 2)
  (data (i32.const {base}) "{data}")
  (global $heap (mut i32) (i32.const {heap}))
  {helpers}
  (func (export "cabi_realloc") (param $old i32) (param $old_bytes i32) (param $align i32) (param $bytes i32) (result i32)
    (call $alloc (local.get $bytes) (local.get $align)))
  (func (export "eadem:transform/transform@0.1.0#describe") (result i32) (i32.const {description}))
  (func (export "eadem:transform/transform@0.1.0#apply")
    (param $rows i32) (param $in i32) (param $in_columns i32) (result i32)
    (local $out i32) (local $answer i32) (local $zeros i32) (local $dropped i32) (local $errors i32)
    (local $dropped_rows i32) (local $failed_rows i32) (local $row i32) (local $record i32)
    (local.set $out (call $alloc (i32.const {out_bytes}) (i32.const 8)))
    (local.set $zeros (call $alloc (i32.const 40) (i32.const 8)))
    {apply}
    (local.set $dropped (call $alloc (i32.mul (local.get $rows) (i32.const 4)) (i32.const 4)))
    (local.set $errors (call $alloc (i32.mul (local.get $rows) (i32.const 12)) (i32.const 4)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (if (i32.eqz (call $is_valid {dropper} (local.get $row)))
        (then
          (i32.store (i32.add (local.get $dropped) (i32.mul (local.get $dropped_rows) (i32.const 4))) (local.get $row))
          (local.set $dropped_rows (i32.add (local.get $dropped_rows) (i32.const 1))))
        (else (if (i32.and (i32.const {fails})
                    (i32.and (call $is_valid {failer} (local.get $row)) (call $is_true {failer} (local.get $row))))
          (then
            (local.set $record (i32.add (local.get $errors) (i32.mul (local.get $failed_rows) (i32.const 12))))
            (i32.store (local.get $record) (local.get $row))
            (i32.store offset=4 (local.get $record) (i32.const {message_at}))
            (i32.store offset=8 (local.get $record) (i32.const {message_bytes}))
            (local.set $failed_rows (i32.add (local.get $failed_rows) (i32.const 1)))))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next)))
    (local.set $answer (call $alloc (i32.const 28) (i32.const 4)))
    (i32.store offset=4 (local.get $answer) (local.get $out))
    (i32.store offset=8 (local.get $answer) (i32.const {columns}))
    (i32.store offset=12 (local.get $answer) (local.get $dropped))
    (i32.store offset=16 (local.get $answer) (local.get $dropped_rows))
    (i32.store offset=20 (local.get $answer) (local.get $errors))
    (i32.store offset=24 (local.get $answer) (local.get $failed_rows))
    (local.get $answer)))"#,
            base = Memory::BASE,
            out_bytes = 40 * columns,
        )
    }
}

/// Bounds of most outputs that can have some. A total component may run on read, where nothing is refused.
fn bound_by_chance(data_type: DataType, is_total: bool, chance: &mut Chance) -> Option<OutlierBound> {
    const INTEGERS: [i64; 6] = [i64::MIN, i64::MIN + 1, -1, 0, 1 << 53, i64::MAX - 1];
    const FLOATS: [f64; 6] = [f64::MIN, -1.0, -0.0, 5e-324, 1.0, 1e30];
    let limit = |at: usize| match data_type {
        DataType::Int64 => Some(Value::Int64(INTEGERS[at])),
        DataType::Timestamp => Some(Value::Timestamp(INTEGERS[at])),
        DataType::Float32 => Some(Value::Float32((FLOATS[at] as f32).clamp(f32::MIN, f32::MAX))),
        DataType::Float64 => Some(Value::Float64(FLOATS[at])),
        _ => None,
    };
    limit(0)?;
    if chance.below(4) == 0 {
        return None;
    }
    let lower = chance.below(FLOATS.len());
    let upper = lower + chance.below(FLOATS.len() - lower);
    let policies = [ValidationPolicy::Clamp, ValidationPolicy::NullValue, ValidationPolicy::RefuseRow];
    Some(OutlierBound {
        min: limit(lower).filter(|_| chance.below(3) > 0),
        max: limit(upper).filter(|_| chance.below(3) > 0),
        allow_nan: chance.below(3) == 0,
        allow_infinite: chance.below(3) == 0,
        validation: Some(policies[chance.below(if is_total { 2 } else { 3 })]),
    })
}

/// The value under its bounds; `None` if its row is refused or fails.
fn within(value: Value, bound: &OutlierBound, nullable: bool) -> Option<Value> {
    let number = |value: &Value| match value {
        Value::Int64(value) | Value::Timestamp(value) => Some(Number::Whole(*value)),
        Value::Float32(value) => Some(Number::Real(f64::from(*value))),
        Value::Float64(value) => Some(Number::Real(*value)),
        _ => None,
    };
    let Some(found) = number(&value) else { return Some(value) };
    let below = bound.min.as_ref().filter(|min| number(min).is_some_and(|min| found.is_less(min)));
    let above = bound.max.as_ref().filter(|max| number(max).is_some_and(|max| max.is_less(found)));
    let is_odd = match found {
        Number::Real(found) if found.is_nan() => !bound.allow_nan,
        Number::Real(found) if found.is_infinite() => !bound.allow_infinite,
        _ => false,
    };
    if below.is_none() && above.is_none() && !is_odd {
        return Some(value);
    }
    let nearest = below.or(above).cloned();
    match bound.validation {
        Some(ValidationPolicy::Clamp) if nearest.is_some() => nearest,
        Some(ValidationPolicy::Clamp | ValidationPolicy::NullValue) => nullable.then_some(Value::Null),
        _ => None,
    }
}

#[derive(Clone, Copy)]
enum Number {
    Whole(i64),
    Real(f64),
}

impl Number {
    fn is_less(self, than: Self) -> bool {
        match (self, than) {
            (Self::Whole(left), Self::Whole(right)) => left < right,
            (Self::Real(left), Self::Real(right)) => left < right,
            _ => unreachable!("limits have the type of the values"),
        }
    }
}

/// The helper that computes with a column of this type, where one does.
fn computing(data_type: DataType) -> Option<&'static str> {
    match data_type {
        DataType::Int64 => Some("int64s"),
        DataType::Float32 | DataType::Vector(_) => Some("float32s"),
        DataType::Float64 => Some("float64s"),
        _ => None,
    }
}

/// What the helpers below do to one value. The negated root of a negative number is a NaN of whatever sign and payload
/// the machine likes.
fn computed(value: Value) -> Value {
    match value {
        Value::Int64(value) => Value::Int64(value.wrapping_mul(FACTOR).wrapping_add(1)),
        Value::Float32(value) => Value::Float32(-value.sqrt()),
        Value::Float64(value) => Value::Float64(-value.sqrt()),
        Value::Vector(values) => Value::Vector(values.into_iter().map(|value| -value.sqrt()).collect()),
        other => other,
    }
}

/// Memory is fresh at every call, so what `$alloc` gives is zero.
const HELPERS: &str = r#"
  (func $alloc (param $bytes i32) (param $align i32) (result i32)
    (local $at i32) (local $missing i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
                            (i32.sub (i32.const 0) (local.get $align))))
    (global.set $heap (i32.add (local.get $at) (local.get $bytes)))
    (local.set $missing (i32.sub (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
    (if (i32.gt_s (local.get $missing) (i32.const 0))
      (then (if (i32.lt_s (memory.grow (i32.shr_u (i32.add (local.get $missing) (i32.const 65535)) (i32.const 16)))
                          (i32.const 0))
        (then unreachable))))
    (local.get $at))
  (func $bit (param $bits i32) (param $row i32) (result i32)
    (i32.and (i32.const 1)
      (i32.shr_u (i32.load8_u (i32.add (local.get $bits) (i32.shr_u (local.get $row) (i32.const 3))))
                 (i32.and (local.get $row) (i32.const 7)))))
  (func $is_valid (param $record i32) (param $row i32) (result i32)
    (if (result i32) (i32.eqz (i32.load offset=4 (local.get $record)))
      (then (i32.const 1))
      (else (call $bit (i32.load (local.get $record)) (local.get $row)))))
  (func $is_true (param $record i32) (param $row i32) (result i32)
    (call $bit (i32.load offset=12 (local.get $record)) (local.get $row)))
  (func $mask (param $record i32) (param $by i32) (param $rows i32)
    (local $bits i32) (local $bytes i32) (local $row i32) (local $byte i32)
    (local.set $bytes (i32.shr_u (i32.add (local.get $rows) (i32.const 7)) (i32.const 3)))
    (local.set $bits (call $alloc (local.get $bytes) (i32.const 1)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
      (local.set $byte (i32.add (local.get $bits) (i32.shr_u (local.get $row) (i32.const 3))))
      (i32.store8 (local.get $byte) (i32.or (i32.load8_u (local.get $byte))
        (i32.shl (i32.and (call $is_valid (local.get $record) (local.get $row))
                          (call $is_valid (local.get $by) (local.get $row)))
                 (i32.and (local.get $row) (i32.const 7)))))
      (local.set $row (i32.add (local.get $row) (i32.const 1)))
      (br $next)))
    (i32.store (local.get $record) (local.get $bits))
    (i32.store offset=4 (local.get $record) (local.get $bytes)))
  ;; In new memory, because another output may show the same input.
  (func $moved (param $record i32) (param $bytes i32) (result i32)
    (local $to i32)
    (local.set $to (call $alloc (local.get $bytes) (i32.const 8)))
    (memory.copy (local.get $to) (i32.load offset=12 (local.get $record)) (local.get $bytes))
    (i32.store offset=12 (local.get $record) (local.get $to))
    (local.get $to))
  (func $int64s (param $record i32)
    (local $at i32) (local $end i32)
    (local.set $at (call $moved (local.get $record) (i32.shl (i32.load offset=16 (local.get $record)) (i32.const 3))))
    (local.set $end (i32.add (local.get $at) (i32.shl (i32.load offset=16 (local.get $record)) (i32.const 3))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (i64.store (local.get $at)
        (i64.add (i64.mul (i64.load (local.get $at)) (i64.const FACTOR)) (i64.const 1)))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $next))))
  (func $float64s (param $record i32)
    (local $at i32) (local $end i32)
    (local.set $at (call $moved (local.get $record) (i32.shl (i32.load offset=16 (local.get $record)) (i32.const 3))))
    (local.set $end (i32.add (local.get $at) (i32.shl (i32.load offset=16 (local.get $record)) (i32.const 3))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (f64.store (local.get $at) (f64.neg (f64.sqrt (f64.load (local.get $at)))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $next))))
  (func $float32s (param $record i32)
    (local $at i32) (local $end i32)
    (local.set $at (call $moved (local.get $record) (i32.shl (i32.load offset=16 (local.get $record)) (i32.const 2))))
    (local.set $end (i32.add (local.get $at) (i32.shl (i32.load offset=16 (local.get $record)) (i32.const 2))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (f32.store (local.get $at) (f32.neg (f32.sqrt (f32.load (local.get $at)))))
      (local.set $at (i32.add (local.get $at) (i32.const 4)))
      (br $next))))
"#;

/// What the module's memory holds from the start.
#[derive(Debug, Default)]
struct Memory(Vec<u8>);

impl Memory {
    const BASE: u32 = 1_024;

    fn end(&self) -> u32 {
        Self::BASE + self.0.len() as u32
    }

    /// Address and length.
    fn text(&mut self, text: &str) -> Vec<u32> {
        let at = self.end();
        self.0.extend(text.as_bytes());
        vec![at, text.len() as u32]
    }

    /// The address of the first.
    fn words(&mut self, words: &[u32]) -> u32 {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let at = self.end();
        self.0.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        at
    }

    /// Address and length of a list of the contract's `field`.
    fn fields(&mut self, fields: &[Field]) -> Vec<u32> {
        let records: Vec<u32> = fields.iter().flat_map(|field| self.field(field)).collect();
        vec![self.words(&records), fields.len() as u32]
    }

    /// Name, type and its parameter, nullable, documentation, constraints. Small numbers stand in the lowest byte of
    /// their word.
    fn field(&mut self, field: &Field) -> Vec<u32> {
        let (data_type, parameter) = match field.data_type {
            DataType::Boolean => (0, 0),
            DataType::Int64 => (1, 0),
            DataType::Float32 => (2, 0),
            DataType::Float64 => (3, 0),
            DataType::Utf8 => (4, 0),
            DataType::Binary => (5, 0),
            DataType::Timestamp => (6, 0),
            DataType::Vector(dimensions) => (7, dimensions),
            DataType::List(ElementType::Int64) => (8, 0),
            DataType::List(ElementType::Float64) => (8, 1),
            DataType::List(ElementType::Utf8) => (8, 2),
        };
        let mut record = self.text(&field.name);
        record.extend([data_type, parameter, u32::from(field.nullable), Self::BASE, 0, Self::BASE, 0]);
        record
    }

    /// As WebAssembly's text writes bytes.
    fn literal(&self) -> String {
        self.0.iter().map(|byte| format!("\\{byte:02x}")).collect()
    }
}

//! Expressions in `columns` and `where`: what may stand in them, and running them.
//!
//! They rename, cast, convert time zones and choose rows. They compute no features: what is allowed gives the same bits on
//! every machine, and floating-point mathematics would not, because it comes from the host's library.

use std::sync::{Arc, LazyLock};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType as ArrowType, Schema};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};

/// The functions that expressions may call.
pub const EXPRESSION_FUNCTIONS: &[&str] = &[
    // choice
    "coalesce",
    "nullif",
    "nvl",
    "nvl2",
    "greatest",
    "least",
    // types
    "arrow_cast",
    "arrow_try_cast",
    // text
    "ascii",
    "bit_length",
    "btrim",
    "character_length",
    "chr",
    "concat",
    "concat_ws",
    "contains",
    "ends_with",
    "initcap",
    "left",
    "lower",
    "lpad",
    "ltrim",
    "octet_length",
    "overlay",
    "repeat",
    "replace",
    "reverse",
    "right",
    "rpad",
    "rtrim",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "substr_index",
    "to_hex",
    "translate",
    "trim",
    "upper",
    // time
    "date_bin",
    "date_part",
    "date_trunc",
    "from_unixtime",
    "make_date",
    "make_time",
    "to_char",
    "to_date",
    "to_local_time",
    "to_time",
    "to_timestamp",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "to_unixtime",
    // lists
    "make_array",
    "array_element",
    "array_length",
    "cardinality",
];

/// An expression, ready to run over batches of one schema.
#[derive(Debug, Clone)]
pub(crate) struct Expression {
    physical: Arc<dyn PhysicalExpr>,
    /// The type of its result.
    pub(crate) data_type: ArrowType,
    /// Columns that it reads.
    pub(crate) columns: Vec<String>,
    /// Whether it turns an instant into the reading of a local clock, which is no instant any more.
    pub(crate) tells_local_time: bool,
}

/// Plans expressions. Names are taken as written, functions in lower case.
pub(crate) struct Planner {
    context: SessionContext,
}

impl Planner {
    pub(crate) fn new() -> Self {
        // Hundreds of functions and rules are registered with a context: there is one, and its clones are handles.
        static CONTEXT: LazyLock<SessionContext> = LazyLock::new(|| {
            let mut config = SessionConfig::new();
            // Column names of files are case-sensitive, and so are names in a definition.
            config.options_mut().sql_parser.enable_ident_normalization = false;
            SessionContext::new_with_config(config)
        });
        Self { context: CONTEXT.clone() }
    }

    /// Parses, checks and plans `text` over `schema`. The error is a sentence for the definition's author.
    pub(crate) fn plan(&self, text: &str, schema: &Schema) -> Result<Expression, String> {
        let df_schema = DFSchema::try_from(schema.clone()).map_err(|error| sentence(&error))?;
        let expression = self.context.parse_sql_expr(text, &df_schema).map_err(|error| explain(&error, schema))?;
        check_allowed(&expression)?;
        let mut columns: Vec<String> = expression.column_refs().into_iter().map(|column| column.name.clone()).collect();
        columns.sort();
        let tells_local_time = calls(&expression, "to_local_time");
        let expression = simplify(expression, &df_schema).map_err(|error| explain(&error, schema))?;
        let physical =
            self.context.create_physical_expr(expression, &df_schema).map_err(|error| explain(&error, schema))?;
        let data_type = physical.data_type(schema).map_err(|error| sentence(&error))?;
        // What cannot be evaluated at all should fail here, with its place, and not in a job.
        let no_rows = RecordBatch::new_empty(Arc::new(schema.clone()));
        physical.evaluate(&no_rows).map_err(|error| sentence(&error))?;
        Ok(Expression { physical, data_type, columns, tells_local_time })
    }
}

impl Expression {
    /// The value for every row of the batch.
    pub(crate) fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, String> {
        let value = self.physical.evaluate(batch).map_err(|error| sentence(&error))?;
        value.into_array(batch.num_rows()).map_err(|error| sentence(&error))
    }
}

/// Some functions (`coalesce`, `arrow_cast`, `nvl`) exist only until the planner has rewritten them.
fn simplify(expression: Expr, schema: &DFSchema) -> Result<Expr, DataFusionError> {
    let context = SimplifyContext::builder().with_schema(Arc::new(schema.clone())).build();
    let simplifier = ExprSimplifier::new(context);
    let expression = simplifier.coerce(expression, schema)?;
    simplifier.simplify(expression)
}

fn calls(expression: &Expr, function: &str) -> bool {
    let is_call = |node: &Expr| Ok(matches!(node, Expr::ScalarFunction(call) if call.func.name() == function));
    expression.exists(is_call).unwrap_or_default()
}

fn check_allowed(expression: &Expr) -> Result<(), String> {
    let mut refusal = None;
    // The walk itself cannot fail: the closure never returns an error.
    let _ = expression.apply(|node| {
        refusal = refuse(node);
        Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    refusal.map_or(Ok(()), Err)
}

fn refuse(node: &Expr) -> Option<String> {
    match node {
        Expr::Alias(_)
        | Expr::Column(_)
        | Expr::Literal(..)
        | Expr::BinaryExpr(_)
        | Expr::Like(_)
        | Expr::Not(_)
        | Expr::IsNotNull(_)
        | Expr::IsNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Negative(_)
        | Expr::Between(_)
        | Expr::Case(_)
        | Expr::Cast(_)
        | Expr::TryCast(_)
        | Expr::InList(_) => None,
        Expr::ScalarFunction(call) if EXPRESSION_FUNCTIONS.contains(&call.func.name()) => None,
        Expr::ScalarFunction(call) => Some(not_allowed(call.func.name())),
        other => Some(format!("`{other}` cannot stand in a source's expression; put it into a transform")),
    }
}

fn not_allowed(function: &str) -> String {
    format!(
        "function `{function}` is not allowed in a source's expression (casts, comparison, + - * /, and, or, not, case, \
         string and time functions are); put it into a transform"
    )
}

fn explain(error: &DataFusionError, schema: &Schema) -> String {
    let text = sentence(error);
    if let Some(function) = text.split("Invalid function '").nth(1).and_then(|rest| rest.split('\'').next()) {
        return not_allowed(function);
    }
    if text.contains("No field named") {
        let asked = text.split("No field named ").nth(1).and_then(|rest| rest.split([',', ' ']).next());
        let asked = asked.unwrap_or("of that name").trim_end_matches('.').trim_matches('"');
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        return format!("there is no column `{asked}`; the columns are {}", names.join(", "));
    }
    text
}

/// The first line of an error of the query engine, without its kind and backtrace.
pub(crate) fn sentence(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    let first = text.lines().next().unwrap_or_default();
    [
        "Error during planning: ",
        "Schema error: ",
        "SQL error: ",
        "Execution error: ",
        "This feature is not implemented: ",
    ]
    .iter()
    .fold(first, |text, prefix| text.strip_prefix(prefix).unwrap_or(text))
    .to_owned()
}

//! What is done when a node fails or is slow.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::execution_profile::ExecutionProfile;
use scylla::errors::{DbError, RequestAttemptError};
use scylla::policies::load_balancing::{DefaultPolicy, LoadBalancingPolicy};
use scylla::policies::retry::{RequestInfo, RetryDecision, RetryPolicy, RetrySession};
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::{Consistency, SerialConsistency};

use super::config::{ReadConsistency, ScyllaConfig};

/// How often a request is sent again after it has failed.
const RETRIES_MAX: u32 = 3;

/// How many further nodes a slow read is sent to.
const SPECULATIVE_MAX: usize = 1;

/// Sends a request that may be repeated to the next node, whatever went wrong with the first, as long as another node may
/// do better; never with less consistency. What must not be repeated is only sent again where it certainly was not executed.
#[derive(Debug)]
pub(super) struct TryNextNode;

struct Attempts {
    failed: u32,
}

impl RetryPolicy for TryNextNode {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(Attempts { failed: 0 })
    }
}

impl RetrySession for Attempts {
    fn decide_should_retry(&mut self, request: RequestInfo<'_>) -> RetryDecision {
        self.failed += 1;
        let may_repeat =
            is_surely_unexecuted(request.error) || (request.is_idempotent && may_be_the_node(request.error));
        if self.failed > RETRIES_MAX || !may_repeat {
            return RetryDecision::DontRetry;
        }
        RetryDecision::RetryNextTarget(None)
    }

    fn reset(&mut self) {
        self.failed = 0;
    }
}

fn is_surely_unexecuted(error: &RequestAttemptError) -> bool {
    match error {
        RequestAttemptError::UnableToAllocStreamId => true,
        RequestAttemptError::DbError(error, _) => {
            matches!(error, DbError::Unavailable { .. } | DbError::IsBootstrapping)
        }
        _ => false,
    }
}

fn may_be_the_node(error: &RequestAttemptError) -> bool {
    match error {
        RequestAttemptError::BrokenConnectionError(_) => true,
        RequestAttemptError::DbError(error, _) => matches!(
            error,
            DbError::Overloaded
                | DbError::ServerError
                | DbError::ReadTimeout { .. }
                | DbError::ReadFailure { .. }
                | DbError::WriteTimeout { .. }
                | DbError::WriteFailure { .. }
        ),
        _ => false,
    }
}

fn nodes_by_token(datacenter: Option<&str>) -> Arc<dyn LoadBalancingPolicy> {
    let builder = DefaultPolicy::builder().token_aware(true);
    match datacenter {
        Some(datacenter) => builder.prefer_datacenter(datacenter.to_owned()).permit_dc_failover(false).build(),
        None => builder.build(),
    }
}

/// For writes and transactions: a majority, and no speculation, since a database that is slow with writes
/// is not helped by more of them.
pub(super) fn write_profile(config: &ScyllaConfig) -> ExecutionProfile {
    ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(config.timeout))
        .retry_policy(Arc::new(TryNextNode))
        .load_balancing_policy(nodes_by_token(config.datacenter.as_deref()))
        .build()
}

/// For reads: of rows with the consistency of the URL.
pub(super) fn read_profile(config: &ScyllaConfig) -> ExecutionProfile {
    let consistency = match config.consistency {
        ReadConsistency::LocalQuorum => Consistency::LocalQuorum,
        ReadConsistency::LocalOne => Consistency::LocalOne,
    };
    let speculation = |retry_interval: Duration| {
        Arc::new(SimpleSpeculativeExecutionPolicy { max_retry_count: SPECULATIVE_MAX, retry_interval }) as _
    };
    write_profile(config)
        .to_builder()
        .consistency(consistency)
        .speculative_execution_policy(config.speculative_after.map(speculation))
        .build()
}

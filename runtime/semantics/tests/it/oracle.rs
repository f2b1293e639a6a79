//! The rules of time once more, written from their text and sharing no code with the crate: own types, plain loops, wide
//! integers. Slow on purpose; whoever reads it should see at once that it is right.

/// event time, known-at, tie digest as a number.
pub(crate) type Fact = (i128, i128, u128);

/// "Candidates have event time ≤ T and known-at ≤ K."
pub(crate) fn may_see(fact: Fact, t: i128, k: i128) -> bool {
    let (event, known, _) = fact;
    if event > t {
        return false;
    }
    if known > k {
        return false;
    }
    true
}

/// "The winner has the greatest event time, then the greatest known-at, then the greatest tie digest."
pub(crate) fn winner_at(facts: &[Fact], t: i128, k: i128) -> Option<Fact> {
    let mut best: Option<Fact> = None;
    for fact in facts {
        if !may_see(*fact, t, k) {
            continue;
        }
        let Some(so_far) = best else {
            best = Some(*fact);
            continue;
        };
        let better = if fact.0 != so_far.0 {
            fact.0 > so_far.0
        } else if fact.1 != so_far.1 {
            fact.1 > so_far.1
        } else {
            fact.2 > so_far.2
        };
        if better {
            best = Some(*fact);
        }
    }
    best
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Present,
    Null,
    Missing,
    Expired,
    Error,
}

/// "Expired when TTL ≤ T − event time < TTL + horizon (default = TTL), missing from then on; no TTL means never."
pub(crate) fn verdict_at(
    winner: Option<Fact>,
    failed: bool,
    null: bool,
    ttl: Option<i128>,
    horizon: Option<i128>,
    t: i128,
) -> Verdict {
    let Some((event, _, _)) = winner else { return Verdict::Missing };
    if let Some(ttl) = ttl {
        let horizon = match horizon {
            Some(horizon) => horizon,
            None => ttl,
        };
        let age = t - event;
        if age >= ttl + horizon {
            return Verdict::Missing;
        }
        if age >= ttl {
            return Verdict::Expired;
        }
    }
    if failed {
        Verdict::Error
    } else if null {
        Verdict::Null
    } else {
        Verdict::Present
    }
}

/// The facts that an erasure up to and with `up_to` leaves.
pub(crate) fn left_by_erasure(facts: &[Fact], up_to: Option<i128>) -> Vec<Fact> {
    let mut left = Vec::new();
    for fact in facts {
        let is_removed = match up_to {
            None => false,
            Some(up_to) => fact.0 <= up_to,
        };
        if !is_removed {
            left.push(*fact);
        }
    }
    left
}

//! The parts of an American registration (`N14228`). What is none fails its row with the reason.

use eadem::prelude::*;

/// One aircraft.
#[derive(Input)]
pub struct Aircraft<'a> {
    /// Its registration.
    pub tailnum: &'a str,
}

/// What the registration says.
#[derive(Output, Debug, Clone, PartialEq)]
pub struct TailNumber<'a> {
    /// The number.
    #[field(min = 1, max = 99999)]
    pub number: i64,
    /// The letters after the number, none to two: airlines give their fleets the same.
    #[field(length = ..=2)]
    pub suffix: &'a str,
}

/// The parts of an American registration: N, one to five digits not starting with zero, none to two letters.
#[transform(owner = "fleet")]
pub fn tail_number<'a>(aircraft: Aircraft<'a>) -> Result<TailNumber<'a>, String> {
    let tailnum = aircraft.tailnum;
    let refuse = |reason: &str| [tailnum, ": ", reason].concat();
    let after_n = tailnum.strip_prefix('N').ok_or_else(|| refuse("an American registration starts with N"))?;
    let digits = after_n.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = after_n.split_at(digits);
    if number.starts_with('0') || number.is_empty() {
        return Err(refuse("after the N comes a digit from 1 to 9"));
    }
    if suffix.len() > 2 || !suffix.bytes().all(|letter| letter.is_ascii_uppercase()) {
        return Err(refuse("after the digits come at most two letters"));
    }
    if after_n.len() > 5 {
        return Err(refuse("there are at most five characters after the N"));
    }
    let number = number.parse().map_err(|_| refuse("the number does not fit"))?;
    Ok(TailNumber { number, suffix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(tailnum: &str) -> Result<(i64, &str), String> {
        tail_number(Aircraft { tailnum }).map(|parts| (parts.number, parts.suffix))
    }

    #[test]
    fn registrations_of_the_first_of_january() {
        assert_eq!(parts("N14228"), Ok((14228, "")));
        assert_eq!(parts("N619AA"), Ok((619, "AA")));
        assert_eq!(parts("N1"), Ok((1, "")));
    }

    #[test]
    fn others_fail_with_the_reason() {
        for (tailnum, reason) in [
            ("D942DN", "starts with N"),
            ("", "starts with N"),
            ("N", "digit from 1 to 9"),
            ("N0123", "digit from 1 to 9"),
            ("N12ABC", "at most two letters"),
            ("N12é", "at most two letters"),
            ("N123456", "at most five characters"),
            ("N12345A", "at most five characters"),
        ] {
            let message = parts(tailnum).err().unwrap_or_default();
            assert!(message.contains(reason) && message.starts_with(tailnum), "{tailnum}: {message}");
        }
    }
}

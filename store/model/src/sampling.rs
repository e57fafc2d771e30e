//! Consistent probability sampling: randomness R, threshold T, and how they travel in `tracestate`.
//!
//! A trace is kept by a probabilistic stage iff R >= T. Both are 56-bit numbers. The probability of T is
//! `(2^56 - T) / 2^56` and the adjusted count of a kept span its inverse. Source: OpenTelemetry specification 1.60,
//! `trace/tracestate-probability-sampling.md` and `trace/tracestate-handling.md`.

/// 2^56: one more than the largest randomness.
const RANGE: u64 = 1 << 56;

/// How many hexadecimal digits 56 bits have.
const DIGITS: usize = 14;

/// OpenTelemetry allows this many characters for the value of the `ot` entry.
const OT_VALUE_BYTES_MAX: usize = 256;

/// W3C Trace Context allows this many list members in a `tracestate`.
const MEMBERS_MAX: usize = 32;

/// The 56 bits that every probabilistic decision about a trace compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Randomness(u64);

impl Randomness {
    /// Takes the low 56 bits.
    #[must_use]
    pub fn from_low_bits(bits: u64) -> Self {
        Self(bits & (RANGE - 1))
    }

    /// A number below 2^56.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The rejection threshold of a probabilistic stage, 0 (keep all) to 2^56 (keep none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Threshold(u64);

impl Threshold {
    /// Keep everything: adjusted count 1.
    pub const ALWAYS: Self = Self(0);
    /// Keep nothing.
    pub const NEVER: Self = Self(RANGE);

    /// The threshold that keeps the share `probability` (clamped to 0..=1), cut to four significant hexadecimal
    /// digits of precision after the leading `f`s, as the specification advises (1 % is `fd70a`).
    #[must_use]
    pub fn from_probability(probability: f64) -> Self {
        if probability >= 1.0 {
            return Self::ALWAYS;
        }
        if probability.is_nan() || probability <= 0.0 {
            return Self::NEVER;
        }
        // Two powers of two and a probability in (0, 1): exact enough in f64, and below 2^56 by construction.
        #[expect(clippy::cast_possible_truncation, reason = "the value lies in 0..2^56")]
        #[expect(clippy::cast_sign_loss, reason = "the value lies in 0..2^56")]
        #[expect(clippy::cast_precision_loss, reason = "2^56 is exact in f64")]
        let exact = ((1.0 - probability) * RANGE as f64).round() as u64;
        let exact = exact.min(RANGE - 1);
        let leading_f = (0..DIGITS).take_while(|digit| (exact >> (52 - 4 * digit)) & 0xF == 0xF).count();
        let digits_kept = (leading_f + 4).min(DIGITS);
        let unit = 1u64 << (4 * (DIGITS - digits_kept));
        let rounded = exact.saturating_add(unit / 2) / unit * unit;
        Self(rounded.min(RANGE - unit))
    }

    /// From the 56-bit number itself; anything at or above 2^56 keeps nothing.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits.min(RANGE))
    }

    /// The 56-bit number, or 2^56 for [`Self::NEVER`].
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether a trace of this randomness passes.
    #[must_use]
    pub fn keeps(self, randomness: Randomness) -> bool {
        randomness.0 >= self.0
    }

    /// The share of traces that passes, 0 to 1.
    #[must_use]
    pub fn probability(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no 53rd bit")]
        let share = (RANGE - self.0) as f64 / RANGE as f64;
        share
    }

    /// How many spans a kept span stands for; infinite for [`Self::NEVER`].
    #[must_use]
    pub fn adjusted_count(self) -> f64 {
        1.0 / self.probability()
    }

    /// The stricter of two stages in a row (the "equalizing" composition).
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    /// The `th` sub-key's value: up to 14 hexadecimal digits without trailing zeros; `None` for [`Self::NEVER`],
    /// which no kept span can carry.
    #[must_use]
    pub fn to_th(self) -> Option<String> {
        if self.0 >= RANGE {
            return None;
        }
        let digits = format!("{:0width$x}", self.0, width = DIGITS);
        let trimmed = digits.trim_end_matches('0');
        Some(if trimmed.is_empty() { "0".to_owned() } else { trimmed.to_owned() })
    }
}

/// What the `ot` entry of a `tracestate` says about sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OtState {
    /// `th`: the threshold that earlier stages applied.
    pub threshold: Option<Threshold>,
    /// `rv`: randomness to use in place of the trace id's.
    pub randomness: Option<Randomness>,
}

fn parse_hex_56(text: &str) -> Option<u64> {
    let legal = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.is_empty() || text.len() > DIGITS || !legal {
        return None;
    }
    let bits = u64::from_str_radix(text, 16).ok()?;
    Some(bits << (4 * (DIGITS - text.len())))
}

fn ot_members(trace_state: &str) -> impl Iterator<Item = (&str, &str)> {
    trace_state.split(',').filter_map(|member| member.trim_matches([' ', '\t']).split_once('='))
}

impl OtState {
    /// Reads `th` and `rv`; anything malformed counts as absent, as the specification asks.
    #[must_use]
    pub fn parse(trace_state: &str) -> Self {
        let mut state = Self::default();
        let Some((_, value)) = ot_members(trace_state).find(|(key, _)| *key == "ot") else {
            return state;
        };
        if value.len() > OT_VALUE_BYTES_MAX {
            return state;
        }
        for field in value.split(';') {
            match field.split_once(':') {
                Some(("th", digits)) => state.threshold = parse_hex_56(digits).map(Threshold),
                Some(("rv", digits)) if digits.len() == DIGITS => {
                    state.randomness = parse_hex_56(digits).map(Randomness);
                }
                _ => {}
            }
        }
        state
    }
}

/// Writes what is left of a span after a stage of `threshold`: stages only ever raise T, so `th` becomes the larger of
/// `threshold` and what earlier stages wrote. `th` stands first, `rv` and foreign sub-keys verbatim, `ot` moved
/// to the front as W3C asks of a changed member, other vendors' members in their order.
#[must_use]
pub fn with_threshold(trace_state: &str, threshold: Threshold) -> String {
    let earlier = OtState::parse(trace_state).threshold.unwrap_or(Threshold::ALWAYS);
    let threshold = threshold.and(earlier);
    let members: Vec<&str> = trace_state
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|m| !m.is_empty())
        .collect();
    let ours = members.iter().find_map(|member| member.strip_prefix("ot="));
    let mut fields: Vec<String> =
        threshold.to_th().map(|digits| format!("th:{digits}")).into_iter().collect();
    let foreign = ours.unwrap_or("").split(';').filter(|f| !f.is_empty() && !f.starts_with("th:"));
    let mut length: usize = fields.iter().map(|field| field.len() + 1).sum();
    for field in foreign {
        length += field.len() + 1;
        if length <= OT_VALUE_BYTES_MAX {
            fields.push(field.to_owned());
        }
    }
    let mut out = Vec::with_capacity(members.len() + 1);
    if !fields.is_empty() {
        out.push(format!("ot={}", fields.join(";")));
    }
    out.extend(members.iter().filter(|member| !member.starts_with("ot=")).map(|&member| member.to_owned()));
    out.truncate(MEMBERS_MAX);
    out.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_percent_is_written_as_the_specification_writes_it() {
        let one_percent = Threshold::from_probability(0.01);
        assert_eq!(one_percent.to_th().as_deref(), Some("fd70a"));
        assert!((one_percent.adjusted_count() - 100.0).abs() < 0.01);
        assert_eq!(Threshold::ALWAYS.to_th().as_deref(), Some("0"));
        assert_eq!(Threshold::from_probability(0.5).to_th().as_deref(), Some("8"));
        assert_eq!(Threshold::from_probability(0.25).to_th().as_deref(), Some("c"));
        assert_eq!(Threshold::NEVER.to_th(), None);
        assert!(!Threshold::NEVER.keeps(Randomness::from_low_bits(u64::MAX)));
    }

    #[test]
    fn ot_entries_are_read_wherever_they_stand() {
        let state = OtState::parse("vendor=1 , ot=foo:1;th:c;rv:00000000000abc");
        assert_eq!(state.threshold, Some(Threshold::from_probability(0.25)));
        assert_eq!(state.randomness, Some(Randomness::from_low_bits(0xabc)));
        for bad in ["", "ot", "ot=th:", "ot=th:xyz", "ot=rv:12", "ot=th:000000000000000", "xot=th:c"] {
            assert_eq!(OtState::parse(bad), OtState::default(), "{bad:?}");
        }
    }

    #[test]
    fn writing_a_threshold_keeps_what_others_wrote() {
        let t = Threshold::from_probability(0.01);
        assert_eq!(with_threshold("", t), "ot=th:fd70a");
        assert_eq!(with_threshold("a=1,b=2", t), "ot=th:fd70a,a=1,b=2");
        assert_eq!(
            with_threshold("a=1, ot=th:c;rv:00000000000abc;x:y", t),
            "ot=th:fd70a;rv:00000000000abc;x:y,a=1"
        );
    }

    proptest! {
        #[test]
        fn thresholds_come_back_from_their_text(bits in 0u64..(1 << 56)) {
            let text = with_threshold("z=9", Threshold::from_bits(bits));
            prop_assert_eq!(OtState::parse(&text).threshold, Some(Threshold::from_bits(bits)));
        }

        #[test]
        fn any_tracestate_is_read_without_panic(text in ".{0,300}", bits in 0u64..(1 << 56)) {
            let _state = OtState::parse(&text);
            let written = with_threshold(&text, Threshold::from_bits(bits));
            let earlier = OtState::parse(&text).threshold.unwrap_or(Threshold::ALWAYS);
            prop_assert_eq!(OtState::parse(&written).threshold, Some(Threshold::from_bits(bits).and(earlier)));
        }

        #[test]
        fn probabilities_survive_to_four_digits(p in 0.000_001f64..1.0) {
            let back = Threshold::from_probability(p).probability();
            prop_assert!((back / p - 1.0).abs() < 0.001, "{} became {}", p, back);
        }
    }
}

//! The ASCII form of a label of an international name (RFC 3492), for suggestions only. Names that
//! need more normalisation than lower case get no suggestion.

const BASE: u32 = 36;
const T_MIN: u32 = 1;
const T_MAX: u32 = 26;
const SKEW: u32 = 38;
const DAMP: u32 = 700;
const INITIAL_BIAS: u32 = 72;
const INITIAL_N: u32 = 128;

/// The `xn--` form of a label, in lower case.
pub(super) fn a_label(label: &str) -> Option<String> {
    let lower: Vec<char> = label.chars().flat_map(char::to_lowercase).collect();
    // A letter with a combining mark would have to be composed first (NFC).
    let is_normal = lower.iter().all(|c| c.is_alphanumeric() || *c == '-');
    let encoded = encode(&lower).filter(|_| is_normal)?;
    Some(format!("xn--{encoded}"))
}

/// RFC 3492 §6.3.
fn encode(label: &[char]) -> Option<String> {
    let mut encoded: String = label.iter().filter(|c| c.is_ascii()).collect();
    let basic = u32::try_from(encoded.len()).ok()?;
    if basic > 0 {
        encoded.push('-');
    }
    let (mut n, mut delta, mut bias, mut handled) = (INITIAL_N, 0_u32, INITIAL_BIAS, basic);
    while (handled as usize) < label.len() {
        let next = label.iter().map(|c| *c as u32).filter(|c| *c >= n).min()?;
        delta = delta.checked_add((next - n).checked_mul(handled + 1)?)?;
        n = next;
        for c in label.iter().map(|c| *c as u32) {
            if c < n {
                delta = delta.checked_add(1)?;
            }
            if c == n {
                write_number(delta, bias, &mut encoded);
                bias = adapt(delta, handled + 1, handled == basic);
                delta = 0;
                handled += 1;
            }
        }
        delta = delta.checked_add(1)?;
        n += 1;
    }
    Some(encoded)
}

/// A number in digits of a variable base (RFC 3492 §3.3).
fn write_number(mut number: u32, bias: u32, encoded: &mut String) {
    let mut k = BASE;
    loop {
        let t = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
        if number < t {
            encoded.push(digit(number));
            return;
        }
        encoded.push(digit(t + (number - t) % (BASE - t)));
        number = (number - t) / (BASE - t);
        k += BASE;
    }
}

fn digit(value: u32) -> char {
    char::from_digit((value + 10) % BASE, BASE).unwrap_or_default()
}

/// RFC 3492 §6.1.
fn adapt(delta: u32, points: u32, is_first: bool) -> u32 {
    let mut delta = if is_first { delta / DAMP } else { delta / 2 };
    delta += delta / points;
    let mut k = 0;
    while delta > (BASE - T_MIN) * T_MAX / 2 {
        delta /= BASE - T_MIN;
        k += BASE;
    }
    k + (BASE - T_MIN + 1) * delta / (delta + SKEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_the_ascii_form_that_registries_know() {
        for (label, expected) in [
            ("b\u{fc}cher", Some("xn--bcher-kva")),
            ("M\u{dc}NCHEN", Some("xn--mnchen-3ya")),
            ("\u{3b1}\u{3b2}\u{3b3}", Some("xn--mxacd")),
            (
                "\u{4ed6}\u{4eec}\u{4e3a}\u{4ec0}\u{4e48}\u{4e0d}\u{8bf4}\u{4e2d}\u{6587}",
                Some("xn--ihqwcrb4cv8a8dqg056pqjye"),
            ),
            ("\u{43f}\u{440}\u{438}\u{43c}\u{435}\u{440}", Some("xn--e1afmkfd")),
            ("bu\u{308}cher", None),
            ("\u{1f30a}", None),
        ] {
            assert_eq!(a_label(label).as_deref(), expected, "{label}");
        }
    }
}

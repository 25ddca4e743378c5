//! Kubernetes quantities: exact decimal amounts with a unit suffix, such as `100m`, `1.5Gi` or `1e9`.
//!
//! A quantity remembers which family of suffixes it was written with and prints itself in canonical form in that
//! family: no fraction, the largest suffix that loses nothing. Amounts finer than a nano are rounded away from zero.
//! The number is `mantissa * 10^scale`; what needs more than 36 digits is capped at 2^63-1, as Kubernetes does.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

/// The family of suffixes a quantity was written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `1e3`
    DecimalExponent,
    /// `1k`
    DecimalSi,
    /// `1Ki`
    BinarySi,
}

/// An exact amount.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
}

/// The text is not a quantity. Kubernetes' own words, which clients show to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

const NANO: i32 = -9;
/// Most digits a mantissa may have so that sums of two aligned amounts still fit.
const DIGITS_MAX: u32 = 36;
const CAP: i128 = i64::MAX as i128;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

// === impl Quantity ===

impl Quantity {
    /// A whole number of units, printed with decimal suffixes.
    pub fn from_units(units: i64) -> Quantity {
        Quantity { mantissa: units.into(), scale: 0, format: Format::DecimalSi }
    }

    /// A number of thousandths, printed with decimal suffixes.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity { mantissa: milli.into(), scale: -3, format: Format::DecimalSi }
    }

    /// A number of billionths, printed with decimal suffixes.
    pub fn from_nano(nano: i64) -> Quantity {
        Quantity { mantissa: nano.into(), scale: NANO, format: Format::DecimalSi }
    }

    /// A number of bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Quantity {
        Quantity { mantissa: bytes.into(), scale: 0, format: Format::BinarySi }
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.mantissa < 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Whole units, rounded away from zero and capped at what an `i64` holds.
    pub fn units(&self) -> i64 {
        self.at_scale(0)
    }

    /// Thousandths, rounded away from zero and capped at what an `i64` holds.
    pub fn milli(&self) -> i64 {
        self.at_scale(-3)
    }

    /// The nearest amount for pure arithmetic where exactness does not matter, such as a score.
    pub fn as_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// The same amount with nothing finer than `10^scale`, rounded away from zero.
    pub fn round_up(&self, scale: i32) -> Quantity {
        if self.scale >= scale {
            return *self;
        }
        Quantity { mantissa: divide_up(self.mantissa, (scale - self.scale) as u32), scale, format: self.format }
    }

    fn at_scale(&self, scale: i32) -> i64 {
        let amount = if self.scale < scale {
            divide_up(self.mantissa, (scale - self.scale) as u32)
        } else {
            let factor = 10i128.checked_pow((self.scale - scale) as u32);
            let cap = if self.mantissa < 0 { i128::MIN } else { i128::MAX };
            if self.mantissa == 0 { 0 } else { factor.and_then(|f| self.mantissa.checked_mul(f)).unwrap_or(cap) }
        };
        amount.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// Both mantissas at the finer of the two scales, if they fit.
    fn aligned(&self, other: &Quantity) -> Option<(i128, i128, i32)> {
        let scale = self.scale.min(other.scale);
        let up = |q: &Quantity| {
            if q.mantissa == 0 {
                return Some(0);
            }
            q.mantissa.checked_mul(10i128.checked_pow((q.scale - scale) as u32)?)
        };
        Some((up(self)?, up(other)?, scale))
    }

    fn write_decimal(&self, f: &mut fmt::Formatter<'_>, format: Format) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.mantissa, self.scale);
        while mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        while exponent.rem_euclid(3) != 0 {
            mantissa *= 10;
            exponent -= 1;
        }
        match DECIMAL.iter().find(|(_, e)| *e == exponent) {
            Some((suffix, _)) if format == Format::DecimalSi => write!(f, "{mantissa}{suffix}"),
            _ if exponent == 0 => write!(f, "{mantissa}"),
            _ => write!(f, "{mantissa}e{exponent}"),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        if self.format != Format::BinarySi {
            return self.write_decimal(f, self.format);
        }
        // Small and fractional amounts have no binary form that says the same.
        let whole = if self.scale >= 0 { 10i128.checked_pow(self.scale as u32) } else { None };
        let exact = match whole.and_then(|w| self.mantissa.checked_mul(w)) {
            Some(units) => Some(units),
            None if self.scale < 0 => {
                let unit = 10i128.pow((-self.scale) as u32);
                (self.mantissa % unit == 0).then(|| self.mantissa / unit)
            }
            None => None,
        };
        match exact {
            Some(mut units) if units.abs() >= 1024 => {
                let mut step = 0;
                while units % 1024 == 0 && step < BINARY.len() - 1 {
                    units /= 1024;
                    step += 1;
                }
                write!(f, "{units}{}", BINARY[step])
            }
            _ => self.write_decimal(f, Format::DecimalSi),
        }
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Quantity, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(ParseError),
        };
        let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, rest) = rest.split_at(end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len())),
            None => ("", rest),
        };
        let (format, exponent, binary) = unit(suffix)?;
        let (mut mantissa, mut digits, mut exact) = (0i128, 0, true);
        let mut scale = exponent.saturating_sub(fraction.len() as i32);
        for digit in whole.bytes().chain(fraction.bytes()) {
            if digits < DIGITS_MAX && mantissa < 10i128.pow(DIGITS_MAX - 1) {
                mantissa = mantissa * 10 + i128::from(digit - b'0');
                digits += u32::from(mantissa != 0);
            } else {
                exact &= digit == b'0';
                scale = scale.saturating_add(1);
            }
        }
        mantissa += i128::from(!exact);
        let mut quantity = Quantity { mantissa, scale, format };
        if let Some(factor) = binary {
            quantity.mantissa = mantissa.checked_mul(factor).unwrap_or(i128::MAX / 10);
            if quantity.mantissa != 0 && quantity < Quantity::from_units(1) {
                quantity.format = Format::DecimalSi;
            }
        }
        quantity = quantity.round_up(NANO);
        // Plain short numbers keep any exponent; only what needs big arithmetic is capped.
        let long = whole.len() + fraction.len() > 18 || binary.is_some();
        if long && quantity > Quantity::from_units(i64::MAX) {
            quantity = Quantity { mantissa: CAP, scale: 0, format };
        }
        if negative {
            quantity.mantissa = -quantity.mantissa;
        }
        Ok(quantity)
    }
}

/// Format, decimal exponent and binary factor of a suffix.
fn unit(suffix: &str) -> Result<(Format, i32, Option<i128>), ParseError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, *exponent, None));
    }
    if let Some(step) = BINARY.iter().skip(1).position(|s| *s == suffix) {
        return Ok((Format::BinarySi, 0, Some(1i128 << (10 * (step + 1)))));
    }
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let number = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError);
    }
    let exponent: i32 = number.parse().map_err(|_| ParseError)?;
    let exponent = exponent.min(1_000_000);
    Ok((Format::DecimalExponent, if digits.starts_with('-') { -exponent } else { exponent }, None))
}

/// `value / 10^places`, away from zero where it does not come out even.
fn divide_up(value: i128, places: u32) -> i128 {
    let Some(divisor) = 10i128.checked_pow(places) else { return value.signum() };
    let quotient = value / divisor;
    if value % divisor == 0 { quotient } else { quotient + value.signum() }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        let by_sign = self.mantissa.signum().cmp(&other.mantissa.signum());
        if by_sign != Ordering::Equal || self.mantissa == 0 {
            return by_sign;
        }
        match self.aligned(other) {
            Some((a, b, _)) => a.cmp(&b),
            // Too far apart to align: the one with the larger scale is the larger number.
            None if self.mantissa > 0 => self.scale.cmp(&other.scale),
            None => other.scale.cmp(&self.scale),
        }
    }
}

impl Add for Quantity {
    type Output = Quantity;

    /// The exact sum, in the format of the left side (of the right one when the left is zero).
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.mantissa == 0 { other.format } else { self.format };
        match self.aligned(&other).and_then(|(a, b, scale)| Some((a.checked_add(b)?, scale))) {
            Some((mantissa, scale)) => Quantity { mantissa, scale, format },
            None if self.scale > other.scale => self,
            None => other,
        }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Quantity;

    fn neg(self) -> Quantity {
        Quantity { mantissa: -self.mantissa, ..self }
    }
}

/// The canonical form of this text; `None` when it has that form already.
pub fn canonical(text: &str) -> Result<Option<String>, ParseError> {
    let quantity: Quantity = text.trim().parse()?;
    let printed = quantity.to_string();
    Ok((printed != text).then_some(printed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canon(text: &str) -> String {
        text.parse::<Quantity>().unwrap_or_else(|e| panic!("{text}: {e}")).to_string()
    }

    #[test]
    fn prints_canonically() {
        let cases = [
            ("1e9", "1e9"),
            ("1E3", "1e3"),
            ("12e2", "1200"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000m", "1"),
            ("0", "0"),
            ("0Ki", "0"),
            ("100Ki", "100Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1000000", "1M"),
            (".5", "500m"),
            ("5.", "5"),
            ("+5", "5"),
            ("-1.5", "-1500m"),
            ("100u", "100u"),
            ("0.1n", "1n"),
            ("1Ei", "1Ei"),
            ("10E", "10E"),
            ("1e30", "1e30"),
            ("0.0001Ki", "102400u"),
            ("1.1Ki", "1126400m"),
            ("1025", "1025"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
            ("k", "0"),
        ];
        for (text, want) in cases {
            assert_eq!(canon(text), want, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", "1x", "1..2", "1.2.3", "--1", "1gi", "1e", "1e+", "1,5", "1 Gi", "Gi1", "m5", "1mm", "0x10"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn counts_in_units_rounding_up() {
        let q = |t: &str| t.parse::<Quantity>().unwrap();
        assert_eq!((q("1100m").units(), q("-1100m").units(), q("1Gi").units()), (2, -2, 1 << 30));
        assert_eq!((q("1").milli(), q("100u").milli(), q("1e30").milli()), (1000, 1, i64::MAX));
        assert_eq!(q("100u").round_up(-3).to_string(), "1m");
        assert_eq!(q("324602152393968.75Ki").to_string(), "332392604051424000");
        assert_eq!(q("332392604051424000").to_string(), "332392604051424k");
        assert_eq!((q("1Gi") + q("1Mi")).to_string(), "1025Mi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
        assert!(q("1Ki") > q("1k") && q("1e3") == q("1k") && q("-1") < q("0"));
    }

    proptest! {
        #[test]
        fn canonical_form_is_stable_and_equal(whole in 0u64..1 << 50, cents in 0u32..1000, suffix in 0usize..20) {
            let suffixes = ["", "m", "k", "M", "G", "u", "n", "Ki", "Mi", "Gi", "e3", "e-3", "E6", "T", "P", "", "m", "Ki", "e9", "Ti"];
            let text = format!("{whole}.{cents:03}{}", suffixes[suffix]);
            let first: Quantity = text.parse().unwrap();
            let again: Quantity = first.to_string().parse().unwrap();
            prop_assert_eq!(first, again);
            // Bytes that no binary suffix divides are a plain number, and read again that is a decimal one.
            let plain = first.format == Format::BinarySi && first.to_string().bytes().all(|b| b.is_ascii_digit());
            if !plain {
                prop_assert_eq!(first.to_string(), again.to_string());
            }
            prop_assert_eq!(again.to_string().parse::<Quantity>().unwrap().to_string(), again.to_string());
        }

        #[test]
        fn addition_and_order_agree(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
            let (x, y) = (Quantity::from_milli(a), Quantity::from_milli(b));
            prop_assert_eq!((x + y).milli(), a + b);
            prop_assert_eq!((x - y).milli(), a - b);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text in "[-+0-9.eEinumkKMGTP]{0,60}") {
            if let Ok(q) = text.parse::<Quantity>() {
                let _ = (q.to_string(), q.units(), q + q, q.cmp(&Quantity::from_units(1)));
            }
        }
    }
}

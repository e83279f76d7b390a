//! Attribute lists and values of tags (RFC 8216 §4.2), as origins write them.

use std::time::Duration;

/// Longest segment.
const SEGMENT_DURATION_CAP: Duration = Duration::from_secs(3_600);

/// Returns the value of an attribute, without quotes.
pub(super) fn attribute_value(list: &str, name: &str) -> Option<String> {
    let mut rest = list;
    loop {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let (value, next) = quoted.split_once('"')?;
                (value, next)
            }
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim_matches(|c: char| c == ',' || c.is_whitespace()) == name {
            return Some(value.trim().to_owned());
        }
        rest = next;
    }
}

/// Parses a duration. Longer ones than an hour are taken for an hour.
pub(super) fn parse_and_cap_duration(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(SEGMENT_DURATION_CAP.as_secs_f64())))
}

/// Parses the duration of a segment. Lists of channels have attributes between it and the comma.
pub(super) fn parse_segment_duration(extinf: &str) -> Option<Duration> {
    let mut words = extinf.split(|c: char| c == ',' || c.is_whitespace());
    parse_and_cap_duration(words.next().unwrap_or_default())
}

/// Parses `length[@begin]`.
pub(super) fn parse_byte_range(text: &str) -> Option<(u64, Option<u64>)> {
    match text.trim().split_once('@') {
        Some((length, begin)) => Some((length.trim().parse().ok()?, Some(begin.trim().parse().ok()?))),
        None => Some((text.trim().parse().ok()?, None)),
    }
}

/// Parses an initialization vector. Some packagers leave out the prefix of hexadecimal numbers.
pub(super) fn parse_iv(text: &str) -> Option<[u8; 16]> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    Some(u128::from_str_radix(digits.unwrap_or(text), 16).ok()?.to_be_bytes())
}

/// Parses a bitrate, of which some packagers state fractions.
pub(super) fn parse_bandwidth(text: &str) -> Option<u64> {
    text.split('.').next()?.trim().parse().ok()
}

/// Parses the height of `1280x720`.
pub(super) fn parse_height(resolution: &str) -> Option<u32> {
    resolution.split_once(['x', 'X'])?.1.trim().parse().ok()
}

/// Parses a date and time of ISO 8601 in milliseconds since 1970, such as `2026-02-03T04:05:06.789Z`; without an offset it
/// is that of UTC.
pub(super) fn parse_date_time(text: &str) -> Option<i64> {
    let (date, time) = text.trim().split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let zone_at = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at_checked(zone_at)?;
    let mut time = time.splitn(3, ':');
    let (hour, minute): (i64, i64) = (time.next()?.parse().ok()?, time.next()?.parse().ok()?);
    let second: f64 = time.next()?.parse().ok()?;
    let is_date = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0.0..61.0).contains(&second) {
        return None;
    }
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - parse_zone_minutes(zone)?;
    let milliseconds = i64::try_from(Duration::from_secs_f64(second).as_millis()).ok()?;
    Some(minutes * 60_000 + milliseconds)
}

/// Parses `Z`, `+01:00`, `+0100` or `+01`.
fn parse_zone_minutes(zone: &str) -> Option<i64> {
    let sign = match zone.chars().next() {
        None | Some('Z' | 'z') => return Some(0),
        Some('-') => -1,
        Some(_) => 1,
    };
    let digits: String = zone.chars().filter(char::is_ascii_digit).take(4).collect();
    let (hours, minutes) = digits.split_at_checked(2)?;
    let minutes: i64 = if minutes.is_empty() { 0 } else { minutes.parse().ok()? };
    Some(sign * (hours.parse::<i64>().ok()? * 60 + minutes))
}

/// Days of the Gregorian calendar, counted in years that begin in March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_whatever_the_spaces_around_them() {
        for list in [
            "A=1,URI=\"a,b\",C=\"c,d=e\",D=2",
            "A=1, URI=\"a,b\" ,C= \"c,d=e\", D=2",
            "A=1,\tURI =\"a,b\",\tC =\t\"c,d=e\",D= 2",
        ] {
            let found = ["A", "URI", "C", "D"].map(|name| attribute_value(list, name).unwrap_or_default());
            assert_eq!(found, ["1", "a,b", "c,d=e", "2"], "{list}");
            assert_eq!(attribute_value(list, "d"), None);
        }
    }

    #[test]
    fn dates_are_read_in_the_forms_of_iso_8601() {
        // date -u -d 2026-03-01T12:34:56Z +%s
        for (text, expected) in [
            ("2026-03-01T12:34:56Z", Some(1_772_368_496_000)),
            ("2026-03-01T12:34:56.25Z", Some(1_772_368_496_250)),
            ("2026-03-01T13:34:56.250+01:00", Some(1_772_368_496_250)),
            ("2026-03-01T11:04:56-0130", Some(1_772_368_496_000)),
            ("2026-03-01 12:34:56", Some(1_772_368_496_000)),
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000)),
            ("2026-13-01T12:34:56Z", None),
            ("2026-03-01T12:34Z", None),
            ("2026-03-01T12:34:NaNZ", None),
            ("é", None),
            ("", None),
        ] {
            assert_eq!(parse_date_time(text), expected, "{text}");
        }
    }
}

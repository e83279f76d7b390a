//! Dates of cookies (RFC 6265 §5.1.1), which servers write in many ways.

use std::time::SystemTime;

use time::{Date, Month, Time};

/// Parses a date, in the order of its fields or in another one. `None` if it lacks one, or if there is no such date.
pub(super) fn parse_cookie_date(text: &str) -> Option<SystemTime> {
    let (mut time, mut day, mut month, mut year) = (None, None, None, None);
    for token in text.split(is_date_delimiter).filter(|token| !token.is_empty()) {
        // Each field is the first token that looks like it.
        if time.is_none() && parse_time_of_day(token).is_some() {
            time = parse_time_of_day(token);
        } else if day.is_none() && parse_leading_number(token, 1, 2).is_some() {
            day = parse_leading_number(token, 1, 2);
        } else if month.is_none() && parse_month_name(token).is_some() {
            month = parse_month_name(token);
        } else if year.is_none() && parse_leading_number(token, 2, 4).is_some() {
            year = parse_leading_number(token, 2, 4);
        }
    }
    let year = match year? {
        year @ 70..=99 => year + 1_900,
        year @ 0..=69 => year + 2_000,
        year => year,
    };
    if year < 1_601 {
        return None;
    }
    let date = Date::from_calendar_date(i32::try_from(year).ok()?, month?, u8::try_from(day?).ok()?).ok()?;
    Some(date.with_time(time?).assume_utc().into())
}

fn is_date_delimiter(c: char) -> bool {
    matches!(c, '\t' | ' '..='/' | ';'..='@' | '['..='`' | '{'..='~')
}

/// The number at the start of a token, if it has this many digits.
fn parse_leading_number(token: &str, least: usize, most: usize) -> Option<u32> {
    let digits = token.bytes().take_while(u8::is_ascii_digit).count();
    let number = token.get(..digits).filter(|_| (least..=most).contains(&digits))?;
    number.parse().ok()
}

/// Parses `hh:mm:ss`.
fn parse_time_of_day(token: &str) -> Option<Time> {
    let mut fields = token.splitn(3, ':');
    let mut field = || u8::try_from(parse_leading_number(fields.next()?, 1, 2)?).ok();
    Time::from_hms(field()?, field()?, field()?).ok()
}

fn parse_month_name(token: &str) -> Option<Month> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let start = token.get(..3)?.to_ascii_lowercase();
    let (number, _) = (1..).zip(MONTHS).find(|(_, name)| *name == start)?;
    Month::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<i64> {
        let date = parse_cookie_date(text)?;
        Some(match date.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).expect("short"),
            Err(before) => -i64::try_from(before.duration().as_secs()).expect("short"),
        })
    }

    #[test]
    fn dates_are_read_in_all_their_spellings() {
        for (text, wanted) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
            ("Sun Nov  6 08:49:37 1994", 784_111_777),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Thu, 01-Jan-1970 00:00:10 GMT", 10),
            ("Wed, 29 Feb 2040 23:59:59 GMT", 2_214_172_799),
            ("1 march 2100 0:0:0", 4_107_542_400),
            ("Fri, 31 Dec 1969 23:59:59 GMT", -1),
            ("Mon, 01-Jan-1601 00:00:00 GMT", -11_644_473_600),
        ] {
            assert_eq!(seconds(text), Some(wanted), "{text}");
        }
        for text in [
            "",
            "tomorrow",
            "06 Nov 1994",
            "40 Nov 1994 08:49:37",
            "06 Nov 1994 24:00:00",
            "06 Nov 1000 08:00:00",
            "31 Feb 2030 08:00:00",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}

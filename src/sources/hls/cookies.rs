//! Cookies of origins (RFC 6265): some hand one out with the first playlist, and refuse whatever comes without it.

use std::time::{Duration, Instant, SystemTime};

use url::Url;

use super::cookie_date;

/// Cookies of one source.
#[derive(Debug, Default)]
pub(super) struct CookieJar {
    cookies: Vec<Cookie>,
}

struct Cookie {
    name: String,
    value: String,
    /// The host that set it, or a domain whose hosts get it.
    domain: String,
    is_host_only: bool,
    path: String,
    is_secure: bool,
    expires: Option<Instant>,
}

impl std::fmt::Debug for Cookie {
    /// Omits the value, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cookie({} of {})", self.name, self.domain)
    }
}

/// The current time: `Instant` for what was kept, `SystemTime` for the dates of servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct MonotonicAndSystemTime {
    pub(super) instant: Instant,
    pub(super) date: SystemTime,
}

/// Maximum number of cookies, and maximum length of one in bytes (§6.1).
const MAX_COOKIES: usize = 64;
const MAX_COOKIE_BYTES: usize = 4_096;

impl CookieJar {
    /// Keeps a cookie of a `Set-Cookie` header; a malformed one is ignored.
    pub(super) fn store(&mut self, now: MonotonicAndSystemTime, from: &Url, header: &str) {
        let Some(cookie) = Cookie::parse(now, from, header) else {
            return;
        };
        let is_same =
            |known: &Cookie| (&known.name, &known.domain, &known.path) == (&cookie.name, &cookie.domain, &cookie.path);
        self.cookies.retain(|known| !is_same(known));
        if cookie.expires.is_some_and(|expires| expires <= now.instant) {
            return;
        }
        if self.cookies.len() >= MAX_COOKIES {
            self.cookies.remove(0);
        }
        self.cookies.push(cookie);
    }

    /// Returns the `Cookie` header of a request.
    pub(super) fn cookie_header(&self, now: Instant, to: &Url) -> Option<String> {
        let mut sent: Vec<&Cookie> = self
            .cookies
            .iter()
            .filter(|cookie| cookie.applies_to_url(now, to))
            .collect();
        // §5.4: longer paths come first.
        sent.sort_by_key(|cookie| std::cmp::Reverse(cookie.path.len()));
        let pairs: Vec<String> = sent
            .iter()
            .map(|cookie| format!("{}={}", cookie.name, cookie.value))
            .collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }
}

impl Cookie {
    fn parse(now: MonotonicAndSystemTime, from: &Url, header: &str) -> Option<Self> {
        if header.len() > MAX_COOKIE_BYTES || header.chars().any(char::is_control) {
            return None;
        }
        let mut fields = header.split(';');
        let (name, value) = fields.next()?.split_once('=')?;
        let host = from.host_str()?.to_ascii_lowercase();
        let default_path = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut cookie = Self {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
            domain: host.clone(),
            is_host_only: true,
            path: if default_path.is_empty() { "/" } else { default_path }.to_owned(),
            is_secure: false,
            expires: None,
        };
        let (mut max_age, mut date) = (None, None);
        for field in fields {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            let value = value.trim();
            match key.trim().to_ascii_lowercase().as_str() {
                "domain" => {
                    let domain = value.trim_start_matches('.').to_ascii_lowercase();
                    // A top-level domain would get it everywhere.
                    if !domain.is_empty() && domain != host {
                        (domain.contains('.') && is_host_in_domain(&host, &domain)).then_some(())?;
                        (cookie.domain, cookie.is_host_only) = (domain, false);
                    } else if domain == host {
                        cookie.is_host_only = from.domain().is_none();
                    }
                }
                "path" if value.starts_with('/') => value.clone_into(&mut cookie.path),
                "secure" => cookie.is_secure = true,
                "max-age" => max_age = parse_max_age(value).or(max_age),
                // One that cannot be read is ignored (§5.2.1).
                "expires" => date = cookie_date::parse_cookie_date(value).or(date),
                _ => {}
            }
        }
        // §5.3: `Max-Age` counts, and else `Expires`.
        let until_date = |date: SystemTime| date.duration_since(now.date).unwrap_or_default();
        let age = max_age.or_else(|| date.map(until_date));
        cookie.expires = age.and_then(|age| now.instant.checked_add(age.min(MAX_COOKIE_AGE)));
        (!cookie.name.is_empty()).then_some(cookie)
    }

    fn applies_to_url(&self, now: Instant, to: &Url) -> bool {
        let host = to.host_str().unwrap_or_default().to_ascii_lowercase();
        let is_host = host == self.domain || !self.is_host_only && is_host_in_domain(&host, &self.domain);
        let is_path = to
            .path()
            .strip_prefix(self.path.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.path.ends_with('/'));
        let is_fresh = self.expires.is_none_or(|expires| expires > now);
        is_host && is_path && is_fresh && (!self.is_secure || to.scheme() == "https")
    }
}

/// Cookies of a source are kept for at most a year.
const MAX_COOKIE_AGE: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Whether a host belongs to a domain.
fn is_host_in_domain(host: &str, domain: &str) -> bool {
    let is_name = host.parse::<std::net::IpAddr>().is_err();
    is_name
        && host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// One that is no number is ignored, and not the cookie (§5.2.2).
fn parse_max_age(value: &str) -> Option<Duration> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = if value.starts_with('-') {
        0
    } else {
        // All digits: it can only be too long.
        digits.parse().unwrap_or(u64::MAX)
    };
    is_number.then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn parse_url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    /// 29 November 2026, 12:00:00 UTC.
    fn now_at_fixed_date() -> MonotonicAndSystemTime {
        MonotonicAndSystemTime {
            instant: Instant::now(),
            date: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_953_600),
        }
    }

    fn cookie_header_after(from: &str, header: &str, to: &str) -> Option<String> {
        let (mut cookies, now) = (CookieJar::default(), now_at_fixed_date());
        cookies.store(now, &parse_url(from), header);
        cookies.cookie_header(now.instant, &parse_url(to))
    }

    #[test]
    fn cookies_go_back_to_their_host_path_and_scheme_only() {
        let from = "http://a.example.com/live/index.m3u8";
        let some = Some("id=1".to_owned());
        for (header, to, expected) in [
            ("id=1; Path=/; HttpOnly", "http://a.example.com/x", true),
            ("id=1", "http://a.example.com/live/x.ts", true),
            ("id=1", "http://a.example.com/lively/x.ts", false),
            ("id=1; Path=/", "http://b.example.com/", false),
            ("id=1; Path=/; Domain=example.com", "http://b.example.com/", true),
            ("id=1; Path=/; Domain=.example.com", "http://b.example.com/", true),
            ("id=1; Path=/; Domain=example.com", "http://badexample.com/", false),
            ("id=1; Path=/; Domain=com", "http://a.example.com/", false),
            ("id=1; Path=/; Domain=other.com", "http://a.example.com/", false),
            ("id=1; Path=/; Secure", "http://a.example.com/", false),
            ("id=1; Path=/; Secure", "https://a.example.com/", true),
            ("id=1; Path=/; Max-Age=0", "http://a.example.com/", false),
            ("id=1; Path=/; Max-Age=-5", "http://a.example.com/", false),
            (
                "id=1; Path=/; Max-Age=99999999999999999999",
                "http://a.example.com/",
                true,
            ),
            ("id=1; Path=/; Max-Age=soon", "http://a.example.com/", true),
            ("id=1; Path=/; Max-Age=; Max-Age=3600.5", "http://a.example.com/", true),
            ("id=1; Path=/; Max-Age=0; Max-Age=soon", "http://a.example.com/", false),
            ("=1; Path=/", "http://a.example.com/", false),
            (
                "id=1; Path=/; Expires=Sun, 29 Nov 2026 12:00:01 GMT",
                "http://a.example.com/",
                true,
            ),
            (
                "id=1; Path=/; expires=Thu, 01-Jan-1970 00:00:01 GMT",
                "http://a.example.com/",
                false,
            ),
            (
                "id=1; Path=/; Expires=Thu, 01 Jan 1970 00:00:01 GMT; Max-Age=9",
                "http://a.example.com/",
                true,
            ),
            (
                "id=1; Path=/; Max-Age=0; Expires=Sun, 29 Nov 2026 12:00:01 GMT",
                "http://a.example.com/",
                false,
            ),
            ("id=1; Path=/; Expires=soon", "http://a.example.com/", true),
        ] {
            let found = cookie_header_after(from, header, to);
            assert_eq!(found, some.clone().filter(|_| expected), "{header} to {to}");
        }
        assert_eq!(
            cookie_header_after("http://127.0.0.1/", "id=1; Domain=0.0.1", "http://127.0.0.1/"),
            None
        );
    }

    #[test]
    fn a_cookie_replaces_its_older_one_and_their_number_is_bounded() {
        let (mut cookies, now) = (CookieJar::default(), now_at_fixed_date());
        let from = parse_url("http://a.example.com/");
        cookies.store(now, &from, "id=1");
        cookies.store(now, &from, "id=2; Max-Age=5");
        let at =
            |cookies: &CookieJar, seconds| cookies.cookie_header(now.instant + Duration::from_secs(seconds), &from);
        assert_eq!(at(&cookies, 0), Some("id=2".to_owned()));
        assert_eq!(at(&cookies, 6), None);
        cookies.store(now, &from, "id=3; Expires=Sun, 29 Nov 2026 12:00:05 GMT");
        assert_eq!((at(&cookies, 4), at(&cookies, 6)), (Some("id=3".to_owned()), None));
        // A date in the past deletes it.
        cookies.store(now, &from, "id=3; Expires=Sun, 29 Nov 2026 11:59:59 GMT");
        assert_eq!(at(&cookies, 0), None);
        (0..1_000).for_each(|index| cookies.store(now, &from, &format!("c{index}=1")));
        assert_eq!(cookies.cookies.len(), MAX_COOKIES);
    }
}

//! Cookies of origins (RFC 6265): some hand one out with the first playlist, and refuse whatever comes without it.

use std::time::{Duration, Instant};

use url::Url;

/// Cookies of one source.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    kept: Vec<Cookie>,
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

/// Maximum number of cookies, and maximum length of one in bytes (§6.1).
const MAX_COOKIES: usize = 64;
const MAX_LENGTH: usize = 4_096;

impl Cookies {
    /// Keeps a cookie of a `Set-Cookie` header; a malformed one is ignored.
    pub(super) fn store(&mut self, now: Instant, from: &Url, header: &str) {
        let Some(cookie) = Cookie::parse(now, from, header) else {
            return;
        };
        let is_same =
            |known: &Cookie| (&known.name, &known.domain, &known.path) == (&cookie.name, &cookie.domain, &cookie.path);
        self.kept.retain(|known| !is_same(known));
        if cookie.expires.is_some_and(|expires| expires <= now) {
            return;
        }
        if self.kept.len() >= MAX_COOKIES {
            self.kept.remove(0);
        }
        self.kept.push(cookie);
    }

    /// Returns the `Cookie` header of a request.
    pub(super) fn header(&self, now: Instant, to: &Url) -> Option<String> {
        let mut sent: Vec<&Cookie> = self.kept.iter().filter(|cookie| cookie.is_for(now, to)).collect();
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
    fn parse(now: Instant, from: &Url, header: &str) -> Option<Self> {
        if header.len() > MAX_LENGTH || header.chars().any(char::is_control) {
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
        for field in fields {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            let value = value.trim();
            match key.trim().to_ascii_lowercase().as_str() {
                "domain" => {
                    let domain = value.trim_start_matches('.').to_ascii_lowercase();
                    // A top-level domain would get it everywhere.
                    if !domain.is_empty() && domain != host {
                        (domain.contains('.') && is_within(&host, &domain)).then_some(())?;
                        (cookie.domain, cookie.is_host_only) = (domain, false);
                    } else if domain == host {
                        cookie.is_host_only = from.domain().is_none();
                    }
                }
                "path" if value.starts_with('/') => value.clone_into(&mut cookie.path),
                "secure" => cookie.is_secure = true,
                "max-age" => {
                    let seconds = value.parse::<i64>().ok()?;
                    let age = Duration::from_secs(u64::try_from(seconds).unwrap_or_default().min(MAX_AGE));
                    cookie.expires = now.checked_add(age);
                }
                _ => {}
            }
        }
        (!cookie.name.is_empty()).then_some(cookie)
    }

    fn is_for(&self, now: Instant, to: &Url) -> bool {
        let host = to.host_str().unwrap_or_default().to_ascii_lowercase();
        let is_host = host == self.domain || !self.is_host_only && is_within(&host, &self.domain);
        let is_path = to
            .path()
            .strip_prefix(self.path.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.path.ends_with('/'));
        let is_fresh = self.expires.is_none_or(|expires| expires > now);
        is_host && is_path && is_fresh && (!self.is_secure || to.scheme() == "https")
    }
}

/// Cookies of a source are kept for at most a year.
const MAX_AGE: u64 = 365 * 24 * 3_600;

/// Whether a host belongs to a domain.
fn is_within(host: &str, domain: &str) -> bool {
    let is_name = host.parse::<std::net::IpAddr>().is_err();
    is_name
        && host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    fn sent(from: &str, header: &str, to: &str) -> Option<String> {
        let (mut cookies, now) = (Cookies::default(), Instant::now());
        cookies.store(now, &url(from), header);
        cookies.header(now, &url(to))
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
            ("=1; Path=/", "http://a.example.com/", false),
        ] {
            let found = sent(from, header, to);
            assert_eq!(found, some.clone().filter(|_| expected), "{header} to {to}");
        }
        assert_eq!(
            sent("http://127.0.0.1/", "id=1; Domain=0.0.1", "http://127.0.0.1/"),
            None
        );
    }

    #[test]
    fn a_cookie_replaces_its_older_one_and_their_number_is_bounded() {
        let (mut cookies, now) = (Cookies::default(), Instant::now());
        let from = url("http://a.example.com/");
        cookies.store(now, &from, "id=1");
        cookies.store(now, &from, "id=2; Max-Age=5");
        assert_eq!(cookies.header(now, &from), Some("id=2".to_owned()));
        assert_eq!(cookies.header(now + Duration::from_secs(6), &from), None);
        (0..1_000).for_each(|index| cookies.store(now, &from, &format!("c{index}=1")));
        assert_eq!(cookies.kept.len(), MAX_COOKIES);
    }
}

//! What the answer to a check says. Whoever is on the way may have written it.

use httparse::{EMPTY_HEADER, Response, Status, parse_chunk_size};
use policy::PortalCheck;

const MAX_HEADERS: usize = 64;
/// Bytes of a page's address.
const MAX_URL: usize = 512;
/// How those that are made for this answer when nobody is in the way: NetworkManager's, Firefox', Fedora's.
const KNOWN: [&[u8]; 3] = [b"NetworkManager is online", b"success", b"OK"];
/// Bytes; whoever says more says something else.
const MAX_KNOWN: usize = 64;
/// RFC 6585 section 6.
const NETWORK_AUTHENTICATION_REQUIRED: u16 = 511;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nobody is in the way.
    Open,
    /// The page to open in a browser: http or https, at most 512 printable ASCII characters.
    Portal(String),
    /// Nobody has said either. Why.
    Unclear(String),
}

/// Reads an answer as far as it has come; `None`: more of it is needed. `is_all`: there is no more.
pub fn read(answer: &[u8], is_all: bool, check: &PortalCheck) -> Option<Finding> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let begin = match response.parse(answer) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if !is_all => return None,
        Ok(Status::Partial) => return Some(Finding::Unclear("the answer broke off".to_owned())),
        Err(error) => return Some(Finding::Unclear(format!("the answer is not HTTP: {error}"))),
    };
    let portal = |location| Some(Finding::Portal(page(location, check)));
    match response.code? {
        204 => Some(Finding::Open),
        200..=299 if header(&response, "X-NetworkManager-Status") == Some(b"online") => Some(Finding::Open),
        200..=299 => {
            let body = body(&response, answer.get(begin..).unwrap_or_default(), is_all)?.trim_ascii();
            // As Android does: some answer 200 without anything in place of 204.
            if body.is_empty() || KNOWN.contains(&body) { Some(Finding::Open) } else { portal(None) }
        }
        300..=399 | NETWORK_AUTHENTICATION_REQUIRED => portal(header(&response, "Location")),
        code => Some(Finding::Unclear(format!("the answer has status {code}"))),
    }
}

fn header<'a>(response: &Response<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// As much of it as tells; `None`: more is to come.
fn body<'a>(response: &Response<'_, '_>, rest: &'a [u8], is_all: bool) -> Option<&'a [u8]> {
    let is_chunked =
        header(response, "Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case(b"chunked"));
    let (rest, length) = match parse_chunk_size(rest) {
        Ok(Status::Complete((begin, size))) if is_chunked => (rest.get(begin..)?, usize::try_from(size).ok()),
        _ if is_chunked => (rest, None),
        _ => (
            rest,
            header(response, "Content-Length")
                .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()),
        ),
    };
    match length {
        Some(length) if length <= rest.len() => rest.get(..length),
        _ => (is_all || rest.len() > MAX_KNOWN).then_some(rest),
    }
}

/// Where the portal sends browsers to, if that can be told to people as it is; else the check's own address, from which a browser is sent
/// there too.
fn page(location: Option<&[u8]>, check: &PortalCheck) -> String {
    let told = location.and_then(|location| std::str::from_utf8(location).ok()).and_then(|location| {
        let absolute = match location.strip_prefix('/') {
            Some(rest) if rest.starts_with('/') => format!("http:{location}"),
            Some(_) => format!("http://{}{location}", check.host),
            None => location.to_owned(),
        };
        is_fit(&absolute).then_some(absolute)
    });
    told.unwrap_or_else(|| check.url.clone())
}

/// A web address that shows where it leads to: no characters that a terminal or a shell takes for more, and no name before the host.
fn is_fit(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'`<>\\^{|}$;".contains(&byte);
    url.len() <= MAX_URL
        && url.bytes().all(is_plain)
        && ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && !host.is_empty()
        && !host.contains('@')
}

#[cfg(test)]
mod tests {
    use policy::Endpoint;
    use proptest::prelude::*;

    use super::*;

    const CHECK: &str = "http://check.example/x";

    fn check() -> PortalCheck {
        let endpoint = Endpoint::Name { host: "check.example".to_owned(), port: 80 };
        let [host, path] = ["check.example", "/x"].map(str::to_owned);
        PortalCheck { url: CHECK.to_owned(), endpoint, host, path }
    }

    fn read_all(answer: &str) -> Finding {
        read(answer.as_bytes(), true, &check()).unwrap()
    }

    #[test]
    fn who_answers_as_expected_is_not_a_portal() {
        for answer in [
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nNetworkManager is online\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: keep-alive\r\n\r\nsuccess\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsuccess\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx-networkmanager-status: online\r\n\r\nwhatever",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nOK",
        ] {
            assert_eq!(read_all(answer), Finding::Open, "{answer}");
        }
    }

    #[test]
    fn who_redirects_or_says_something_else_is_one() {
        let page = format!("HTTP/1.1 200 OK\r\n\r\n<html>{}", "x".repeat(100));
        for (answer, url) in [
            (
                "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1:8888/login?from=a%20b\r\n\r\n",
                "http://10.0.0.1:8888/login?from=a%20b",
            ),
            ("HTTP/1.1 307 X\r\nlocation: HTTPS://portal.example\r\n\r\n", "HTTPS://portal.example"),
            ("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "http://check.example/login"),
            ("HTTP/1.1 302 Found\r\nLocation: //portal.example/login\r\n\r\n", "http://portal.example/login"),
            ("HTTP/1.1 302 Found\r\n\r\n", CHECK),
            ("HTTP/1.1 511 Network Authentication Required\r\n\r\n", CHECK),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlogin\r\n0\r\n\r\n", CHECK),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nlogin", CHECK),
            (page.as_str(), CHECK),
        ] {
            assert_eq!(read_all(answer), Finding::Portal(url.to_owned()), "{answer}");
        }
    }

    #[test]
    fn what_could_mislead_whoever_reads_it_is_not_told() {
        let long = format!("http://portal.example/{}", "x".repeat(MAX_URL));
        for location in [
            "javascript:alert(1)",
            "file:///etc/passwd",
            "ftp://portal.example/",
            "http://",
            "http:///x",
            "http://bank.example@portal.example/",
            "http://portal.example/\x1b[2J",
            "http://portal.example/a b",
            "http://portal.example/\u{202e}gpj",
            "http://portal.example/$(reboot)",
            "http://portal.example/\";x",
            "login.html",
            long.as_str(),
        ] {
            assert_eq!(page(Some(location.as_bytes()), &check()), CHECK, "{location}");
        }
        assert_eq!(page(Some(b"http://portal.example/\xff"), &check()), CHECK);
    }

    #[test]
    fn errors_and_what_is_not_http_say_nothing() {
        for answer in
            ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 503 X\r\n\r\n", "SSH-2.0-x\r\n", "HTTP/1.1 2", ""]
        {
            assert!(matches!(read_all(answer), Finding::Unclear(_)), "{answer}");
        }
    }

    #[test]
    fn an_answer_may_come_in_pieces() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\nNetworkManager is online",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n18\r\nNetworkManager is online",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ] {
            for length in 0..answer.len() {
                assert_eq!(read(&answer.as_bytes()[..length], false, &check()), None, "{length} of {answer}");
            }
            assert_eq!(read(answer.as_bytes(), false, &check()), Some(Finding::Open));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_told_as_a_web_address_at_most(
            bytes: Vec<u8>,
            status in "(HTTP/1.1 (200|302|511) x\r\n)?",
            location in "(Location: [ -~\t\u{1b}é]{0,40}\r\n)?(Transfer-Encoding: chunked\r\n)?\r\n[0-9a-f]{0,17}\r\n",
        ) {
            let answer = [status.as_bytes(), location.as_bytes(), &bytes].concat();
            for is_all in [false, true] {
                let finding = read(&answer, is_all, &check());
                prop_assert!(finding.is_some() || !is_all);
                if let Some(Finding::Portal(url)) = finding {
                    prop_assert!(is_fit(&url), "{}", url);
                }
            }
        }
    }
}

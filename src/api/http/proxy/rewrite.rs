//! Links in what comes back: those that lead to the backend itself are made to lead through the proxy again.
//!
//! As `k8s.io/apimachinery/pkg/util/proxy`: only `Location` headers and pages of type `text/html`, only absolute paths, and
//! nothing that leads elsewhere.

use std::io::{Read, Write};

use bytes::Bytes;

/// Attributes that hold a link, by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["formaction", "src", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is no markup.
const RAW: &[&str] = &["script", "style", "textarea", "title", "xmp", "noembed", "noframes", "noscript", "iframe"];

/// Which links are the backend's own, and what comes before them.
#[derive(Clone, Debug)]
pub(super) struct Links {
    /// The path up to and with `/proxy`.
    pub prefix: String,
    /// Hosts under which the backend may call itself: its address, and the host that the client asked.
    pub hosts: Vec<String>,
}

// === impl Links ===

impl Links {
    /// The link, through the proxy if it leads to the backend.
    pub(super) fn link(&self, link: &str) -> String {
        let (host, rest) = split_host(link);
        let elsewhere = !host.is_empty() && !self.hosts.iter().any(|h| h == host);
        if elsewhere || !rest.starts_with('/') || rest.starts_with(&self.prefix) {
            return link.to_owned();
        }
        format!("{}{rest}", self.prefix)
    }

    /// The page with its links through the proxy; everything else stays as it is. `None` if it becomes longer than a limit: each
    /// link does by the length of the prefix.
    pub(super) fn page(&self, page: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(page.len() + page.len() / 8);
        let mut at = 0;
        while let Some(begin) = find(page, at, b"<") {
            if out.len() > bytes_max {
                return None;
            }
            out.extend_from_slice(&page[at..begin]);
            at = if page[begin..].starts_with(b"<!--") {
                let end = find(page, begin + 4, b"-->").map_or(page.len(), |e| e + 3);
                out.extend_from_slice(&page[begin..end]);
                end
            } else if page.get(begin + 1).is_some_and(u8::is_ascii_alphabetic) {
                self.element(page, begin, &mut out, bytes_max)
            } else {
                out.push(b'<');
                begin + 1
            };
        }
        out.extend_from_slice(&page[at..]);
        (out.len() <= bytes_max).then_some(out)
    }

    /// Copies a start tag, and the content where that is no markup; answers where to go on.
    fn element(&self, page: &[u8], begin: usize, out: &mut Vec<u8>, bytes_max: usize) -> usize {
        let name_end = page[begin + 1..].iter().position(|b| is_space(*b) || matches!(b, b'>' | b'/'));
        let name_end = name_end.map_or(page.len(), |n| begin + 1 + n);
        let name = String::from_utf8_lossy(&page[begin + 1..name_end]).to_ascii_lowercase();
        let wanted = LINKS.iter().find(|(element, _)| *element == name).map_or(&[][..], |(_, attributes)| attributes);
        out.extend_from_slice(&page[begin..name_end]);
        let mut at = name_end;
        while let Some(byte) = page.get(at).filter(|_| out.len() <= bytes_max) {
            match byte {
                b'>' => {
                    out.push(b'>');
                    at += 1;
                    break;
                }
                b if is_space(*b) || *b == b'/' => {
                    out.push(*b);
                    at += 1;
                }
                _ => at = self.attribute(page, at, wanted, out),
            }
        }
        if !RAW.contains(&name.as_str()) {
            return at;
        }
        let close = format!("</{name}");
        // Where it stands: a copy of the rest for each element would cost the square of the page.
        let mut rest = page[at..].windows(close.len());
        let end = rest.position(|w| w.eq_ignore_ascii_case(close.as_bytes())).map_or(page.len(), |e| at + e);
        out.extend_from_slice(&page[at..end]);
        end
    }

    fn attribute(&self, page: &[u8], begin: usize, wanted: &[&str], out: &mut Vec<u8>) -> usize {
        let until = |from: usize, stop: &dyn Fn(u8) -> bool| {
            page[from..].iter().position(|b| stop(*b)).map_or(page.len(), |n| from + n)
        };
        // A name may begin with `=`, which then is a part of it.
        let name_end = until(begin + 1, &|b| is_space(b) || matches!(b, b'>' | b'/' | b'='));
        let mut at = until(name_end, &|b| !is_space(b));
        let name = String::from_utf8_lossy(&page[begin..name_end]).to_ascii_lowercase();
        if page.get(at) != Some(&b'=') {
            out.extend_from_slice(&page[begin..name_end]);
            return name_end;
        }
        at = until(at + 1, &|b| !is_space(b));
        let (value, end) = match page.get(at) {
            Some(quote @ (b'"' | b'\'')) => {
                let end = until(at + 1, &|b| b == *quote);
                at += 1;
                (at..end, end)
            }
            _ => {
                let end = until(at, &|b| is_space(b) || b == b'>');
                (at..end, end)
            }
        };
        out.extend_from_slice(&page[begin..value.start]);
        match std::str::from_utf8(&page[value.clone()]) {
            Ok(link) if wanted.contains(&name.as_str()) => out.extend_from_slice(self.link(link).as_bytes()),
            _ => out.extend_from_slice(&page[value]),
        }
        // A closing quote.
        let after = if end < page.len() && matches!(page[end], b'"' | b'\'') { end + 1 } else { end };
        out.extend_from_slice(&page[end..after]);
        after
    }

    /// A whole page in its encoding; `None` where that is unknown or broken, or where the page is too long as a text.
    pub(super) fn encoded_page(&self, page: &Bytes, encoding: &str, bytes_max: usize) -> Option<Vec<u8>> {
        match encoding {
            "" | "identity" => self.page(page, bytes_max.max(2 * page.len())),
            "gzip" => {
                let mut plain = Vec::new();
                let limit = bytes_max as u64 + 1;
                flate2::read::MultiGzDecoder::new(&page[..]).take(limit).read_to_end(&mut plain).ok()?;
                if plain.len() > bytes_max {
                    return None;
                }
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(&self.page(&plain, bytes_max.max(2 * plain.len()))?).ok()?;
                out.finish().ok()
            }
            _ => None,
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c')
}

fn find(page: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    page.get(from..)?.windows(what.len()).position(|w| w == what).map(|n| from + n)
}

/// Host (with its port) and what follows it; the host is empty where there is none.
fn split_host(link: &str) -> (&str, &str) {
    let scheme_end = link.find(':').filter(|end| !link[..*end].contains(['/', '?', '#']));
    let after = scheme_end.map_or(link, |end| &link[end + 1..]);
    let Some(authority) = after.strip_prefix("//") else {
        // `mailto:` and the like have no path of the backend's.
        return if scheme_end.is_some() { ("", "") } else { ("", link) };
    };
    let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
    let host = authority[..end].rsplit('@').next().unwrap_or_default();
    (host, &authority[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links { prefix: "/api/v1/nodes/n/proxy".into(), hosts: vec!["10.0.0.1:80".into(), "localhost:8001".into()] }
    }

    #[test]
    fn only_the_backends_own_links_lead_through_the_proxy() {
        for (link, expected) in [
            ("/logs/", "/api/v1/nodes/n/proxy/logs/"),
            ("/a?b=/c#d", "/api/v1/nodes/n/proxy/a?b=/c#d"),
            ("http://10.0.0.1:80/x", "/api/v1/nodes/n/proxy/x"),
            ("//localhost:8001/x", "/api/v1/nodes/n/proxy/x"),
            ("https://example.org/x", "https://example.org/x"),
            ("relative/x", "relative/x"),
            ("?q", "?q"),
            ("mailto:/a@b", "mailto:/a@b"),
            ("/api/v1/nodes/n/proxy/y", "/api/v1/nodes/n/proxy/y"),
            ("", ""),
        ] {
            assert_eq!(links().link(link), expected, "{link}");
        }
    }

    #[test]
    fn pages_keep_everything_but_their_links() {
        let page = concat!(
            "<!DOCTYPE html><!-- <a href=\"/no\"> --><html><head><script src='/s.js'>if (a<b) x('<a href=\"/no\">')</script>",
            "<A HREF=\"/x?a=1&amp;b=2\" title=/no>x</A><img src=/i.png alt=\"a > b\"><a href='rel'>< 3</a><p href=/no></p>",
            "<form action = '/f' disabled><br/><a href=\"http://example.org/\"></a><b"
        );
        let expected = concat!(
            "<!DOCTYPE html><!-- <a href=\"/no\"> --><html><head><script src='/P/s.js'>if (a<b) x('<a href=\"/no\">')</script>",
            "<A HREF=\"/P/x?a=1&amp;b=2\" title=/no>x</A><img src=/P/i.png alt=\"a > b\"><a href='rel'>< 3</a><p href=/no></p>",
            "<form action = '/P/f' disabled><br/><a href=\"http://example.org/\"></a><b"
        );
        let links = Links { prefix: "/P".into(), hosts: Vec::new() };
        let loud = "<SCRIPT>'<a href=/no>'</Script><a href=/y>";
        let mended = |page: &[u8]| links.page(page, 4 << 20).unwrap();
        assert_eq!(mended(loud.as_bytes()), loud.replace("/y", "/P/y").as_bytes());
        // Ends soon, however many elements there are whose end is looked for.
        let many = "<title></title>".repeat(100_000);
        assert_eq!(mended(many.as_bytes()), many.as_bytes());
        assert_eq!(String::from_utf8(mended(page.as_bytes())).unwrap(), expected);
        // Whatever the page is cut off at, nothing is lost and nothing fails.
        for end in 0..page.len() {
            assert!(mended(&page.as_bytes()[..end]).len() >= end);
        }
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(page.as_bytes()).unwrap();
        let zipped = Bytes::from(zipped.finish().unwrap());
        let again = links.encoded_page(&zipped, "gzip", 1 << 20).unwrap();
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&again[..]).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, expected);
        assert!(links.encoded_page(&zipped, "gzip", 10).is_none(), "too much once it is unpacked");
        assert!(links.encoded_page(&zipped, "br", 1 << 20).is_none());
    }

    #[test]
    fn a_page_does_not_become_much_longer() {
        let links = Links { prefix: format!("/api/v1/{}/proxy", "n".repeat(200)), hosts: Vec::new() };
        for page in ["<a href=/>".repeat(10_000), format!("<a {}>", "href=/ ".repeat(10_000))] {
            assert!(links.page(page.as_bytes(), 2 * page.len()).is_none());
            assert!(links.page(page.as_bytes(), 40 * page.len()).is_some());
        }
    }
}

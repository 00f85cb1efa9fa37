//! Secrets that are told by the name before them, and what tells whose host it is in URLs, addresses of people, names of
//! hosts and paths.
//!
//! Names are looked at loosely: what holds `pass`, `secret`, `token`, `credential` or a whole word `key` has a secret value.
//! In doubt a value goes.

use super::{HOST, PATH, SECRET, USER};

/// One find: where it begins, how long it is, what it is.
type Find = (usize, usize, &'static str);

/// Every secret of a line, in order; no two overlap.
pub(super) fn finds(text: &str) -> Vec<Find> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        let Some(skip) = rest.find(|c: char| !is_gap(c)) else { break };
        at += skip;
        let word = text.get(at..).unwrap_or_default();
        let len = word.find(is_gap).unwrap_or(word.len());
        let (start, rest) = (at, word);
        let step = named(rest, len)
            .or_else(|| url(rest, len))
            .or_else(|| person(rest, len))
            .or_else(|| path(rest, len))
            .or_else(|| host(rest, len));
        match step {
            Some(finds) => {
                for (skip, len, kind) in &finds {
                    found.push((start + skip, *len, *kind));
                }
                let end = finds.iter().map(|(skip, len, _)| skip + len).max().unwrap_or(0);
                at = start + end.max(1);
                while !text.is_char_boundary(at) {
                    at += 1;
                }
            }
            None => at += len.max(1),
        }
    }
    found
}

/// What words of logs, command lines and tables stand between.
fn is_gap(c: char) -> bool {
    c.is_whitespace() || "\"'<>(),;{}|".contains(c)
}

/// Does a value behind this name have to be kept?
pub(super) fn is_secret_name(name: &str) -> bool {
    const PARTS: [&str; 8] =
        ["pass", "secret", "token", "credential", "passphrase", "apikey", "privkey", "private_key"];
    const WORDS: [&str; 9] =
        ["key", "keys", "psk", "pwd", "pw", "auth", "authorization", "bearer", "otp"];
    // Names of this project and of the kernel that are no secrets.
    const HARMLESS: [&str; 6] =
        ["passthrough", "passthru", "bypass", "compass", "passed", "passive"];
    let name = name.to_ascii_lowercase();
    let mut looked = name.clone();
    for harmless in HARMLESS {
        looked = looked.replace(harmless, "");
    }
    PARTS.iter().any(|part| looked.contains(part))
        || looked.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| WORDS.contains(&word))
}

/// `NAME=VALUE`, `NAME: VALUE`, `NAME = VALUE`, `--NAME VALUE`; also `systemd.set_credential=NAME:VALUE` and
/// `opts=NAME=VALUE`, where another name comes first.
fn named(rest: &str, len: usize) -> Option<Vec<Find>> {
    let word = rest.get(..len)?;
    let mut name_at = 0;
    for (separator, _) in word.match_indices(['=', ':']) {
        // A URL has rules of its own.
        if word.get(separator..)?.starts_with("://") {
            return None;
        }
        if is_secret_name(word.get(name_at..separator)?) {
            return secret(rest, separator + 1);
        }
        name_at = separator + 1;
    }
    // A separator or a value of its own.
    if name_at > 0 || !is_secret_name(word) {
        return None;
    }
    let behind = rest.get(len..)?;
    let blanks = behind.len() - behind.trim_start_matches([' ', '\t']).len();
    let next = behind.get(blanks..)?.chars().next()?;
    match next {
        '=' | ':' => secret(rest, len + blanks + 1),
        '\n' | '\r' => None,
        _ if word.starts_with("--") && blanks > 0 => secret(rest, len + blanks),
        _ => None,
    }
}

/// The value that begins at `from`, after blanks. It ends with its line, and, unless it is quoted, at the next blank.
fn secret(rest: &str, from: usize) -> Option<Vec<Find>> {
    let line = rest.get(from..)?;
    let line = line.get(..line.find(['\n', '\r']).unwrap_or(line.len()))?;
    let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
    let value = line.get(blanks..)?;
    let quote = value.chars().next().filter(|first| "\"'".contains(*first));
    let (skip, len) = match quote {
        // A quote that nobody closes goes to the end of the line.
        Some(quote) => (1, value.get(1..)?.find(quote).unwrap_or(value.len() - 1)),
        None => {
            let end = value.find(|c: char| c.is_whitespace() || "\"'<>|".contains(c));
            let end = end.unwrap_or(value.len());
            // What stands behind a colon may be `Basic abc` or `Bearer abc`.
            let scheme = value.get(..end)?.to_ascii_lowercase();
            let is_scheme = ["basic", "bearer", "digest"].contains(&scheme.as_str());
            (0, if is_scheme { value.len() } else { end })
        }
    };
    // What was replaced before stays.
    let is_replaced = value.get(skip..)?.starts_with(&format!("[{SECRET} "));
    (len > 0 && !is_replaced).then(|| vec![(from + blanks + skip, len, SECRET)])
}

/// User, password and query of a URL, and its host.
fn url(rest: &str, len: usize) -> Option<Vec<Find>> {
    let word = rest.get(..len)?;
    let scheme = word.find("://")?;
    let authority = scheme + 3;
    let behind = word.get(authority..)?;
    let end = behind.find(['/', '?', '#']).unwrap_or(behind.len());
    let mut found = Vec::new();
    let mut host_at = 0;
    if let Some(at) = behind.get(..end)?.rfind('@') {
        found.push((authority, at, SECRET));
        host_at = at + 1;
    }
    let host = behind.get(host_at..end)?;
    let host_len = host.find(':').unwrap_or(host.len());
    if host.get(..host_len)?.contains(|c: char| c.is_ascii_alphabetic()) && !host.starts_with('[') {
        found.push((authority + host_at, host_len, HOST));
    }
    if let Some(query) = behind.find(['?', '#']) {
        let query_len = behind.len() - query - 1;
        if query_len > 0 {
            found.push((authority + query + 1, query_len, SECRET));
        }
    }
    found.retain(|(_, len, _)| *len > 0);
    (!found.is_empty()).then_some(found)
}

/// `user@host`, also behind `NAME=`.
fn person(rest: &str, len: usize) -> Option<Vec<Find>> {
    let word = rest.get(..len)?;
    let at = word.find('@')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let before = word.get(..at)?;
    let start = before.rfind(|c: char| !is_name(c)).map_or(0, |at| at + 1);
    let after = word.get(at + 1..)?;
    let host_len = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
    // `getty@tty1.service`, `user@1000.service` and `serial@3` are not people's.
    let host = after.get(..host_len)?.trim_end_matches('.');
    let is_unit = [".service", ".socket", ".slice", ".scope", ".timer", ".mount"]
        .iter()
        .any(|unit| host.ends_with(unit));
    let has_letter = host.contains(|c: char| c.is_ascii_alphabetic());
    if start == at || host.is_empty() || is_unit || !has_letter {
        return None;
    }
    Some(vec![(start, at - start, USER), (at + 1, host.len(), HOST)])
}

/// Directories under which people and customers have theirs.
const PLACES: [&str; 9] =
    ["/srv/", "/mnt/", "/media/", "/opt/", "/data/", "/storage/", "/vol/", "/export/", "/net/"];

/// `/srv/CUSTOMER/vm/disk`: the names between such a place and the file's own.
fn path(rest: &str, len: usize) -> Option<Vec<Find>> {
    let word = rest.get(..len)?;
    let (at, place) = PLACES.iter().filter_map(|place| Some((word.find(place)?, place))).min()?;
    // In the middle of another path it is somebody else's directory.
    let before = word.get(..at)?.chars().next_back();
    if before.is_some_and(|c| c.is_ascii_alphanumeric()) {
        return None;
    }
    let start = at + place.len();
    let behind = word.get(start..)?;
    let end = behind.rfind('/')?;
    let names = behind.get(..end)?;
    (!names.is_empty() && !names.starts_with('[')).then(|| vec![(start, end, PATH)])
}

/// `filer07.corp.example.com`, also behind `NAME=` and before `:/export`.
fn host(rest: &str, len: usize) -> Option<Vec<Find>> {
    let word = rest.get(..len)?;
    let part = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let mut at = 0;
    while at < word.len() {
        let tail = word.get(at..)?;
        let skip = tail.find(|c: char| c.is_ascii_alphanumeric())?;
        let tail = tail.get(skip..)?;
        let run = tail.find(|c: char| !part(c)).unwrap_or(tail.len());
        let name = tail.get(..run)?.trim_end_matches(['.', '-']);
        let before = word.get(..at + skip)?.chars().next_back();
        if is_host(name) && before.is_none_or(|c| "=:/@,[".contains(c)) {
            return Some(vec![(at + skip, name.len(), HOST)]);
        }
        at += skip + run.max(1);
        while !word.is_char_boundary(at) {
            at += 1;
        }
    }
    None
}

/// Labels of letters and digits with a domain of letters at the end, which is no ending of a file or a name of the kernel.
fn is_host(name: &str) -> bool {
    const DOMAINS: [&str; 32] = [
        "com",
        "org",
        "net",
        "edu",
        "gov",
        "mil",
        "int",
        "info",
        "biz",
        "io",
        "dev",
        "cloud",
        "app",
        "local",
        "lan",
        "internal",
        "intranet",
        "corp",
        "home",
        "localdomain",
        "test",
        "example",
        "de",
        "at",
        "ch",
        "uk",
        "fr",
        "eu",
        "us",
        "nl",
        "jp",
        "cn",
    ];
    let labels: Vec<&str> = name.split('.').collect();
    let [first, .., last] = labels.as_slice() else { return false };
    let is_label = |label: &&str| !label.is_empty() && label.len() <= 63;
    let last = last.to_ascii_lowercase();
    labels.iter().all(is_label)
        && first.contains(|c: char| c.is_ascii_alphabetic())
        && DOMAINS.contains(&last.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(&str, &'static str)> {
        finds(text).into_iter().map(|(at, len, kind)| (&text[at..at + len], kind)).collect()
    }

    #[test]
    fn value_behind_the_name_of_a_secret_is_found_in_every_form() {
        for (text, secret) in [
            ("quiet rd.iscsi.password=hunter2 ro", "hunter2"),
            ("pass=hunter2", "hunter2"),
            ("PGPASSWORD='hun ter2' x", "hun ter2"),
            ("api_key=\"abc def\"", "abc def"),
            ("systemd.set_credential=db:hunter2", "db:hunter2"),
            ("wpa-psk=hunter2", "hunter2"),
            ("rd.luks.key=/root/key.bin:UUID=1", "/root/key.bin:UUID=1"),
            ("Authorization: Bearer abc.def", "Bearer abc.def"),
            ("client-secret: s3cr3t", "s3cr3t"),
            ("mount.opts=user=a,token=abc", "abc"),
            ("opts=token=abc", "abc"),
            ("password = \"hunter2\"", "hunter2"),
            ("--password hunter2 ro", "hunter2"),
            ("password=[hunter2", "[hunter2"),
            ("password=\"hun ter2\nquiet", "hun ter2"),
        ] {
            let found = kinds(text);
            assert!(found.contains(&(secret, SECRET)), "{text}: {found:?}");
        }
    }

    #[test]
    fn line_of_separators_alone_is_walked_without_a_stack() {
        assert_eq!(kinds(&"=".repeat(1 << 20)), []);
        assert_eq!(kinds(&"a:".repeat(1 << 19)), []);
    }

    #[test]
    fn urls_people_hosts_and_paths_are_found() {
        for (text, expected) in [
            (
                "ks=https://bob:pw@web.corp.example.com/ks.cfg?token=abc&x=1",
                vec![("bob:pw", SECRET), ("web.corp.example.com", HOST), ("token=abc&x=1", SECRET)],
            ),
            ("nfsroot=filer07.corp.example.com:/x", vec![("filer07.corp.example.com", HOST)]),
            ("by zoe.zimt@example.org.", vec![("zoe.zimt", USER), ("example.org", HOST)]),
            ("--kernel /srv/acme-bank/vm7/vmlinuz", vec![("acme-bank/vm7", PATH)]),
            ("path=/mnt/customers/acme/disk.img", vec![("customers/acme", PATH)]),
        ] {
            assert_eq!(kinds(text), expected, "{text}");
        }
    }

    #[test]
    fn what_a_report_is_for_is_no_secret() {
        for text in [
            "intel_iommu=on iommu=pt pci=noats keyboard=us vfio-pci.ids=10de:1e07",
            "GPU passthrough=on bypass: none, 3 passed",
            "getty@tty1.service user@1000.service",
            "/usr/share/misc/pci.ids /boot/vmlinuz-6.1.0 kvm.ko vfio_pci.c libc.so.6",
            "0000:3b:00.0 e1000e.0 nvme0n1 std::io::Error 1.2.3 console=ttyS0,115200n8",
            "[secret 1] password=[secret 1]",
            "the password was wrong",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }
}

//! Names of others on their way to a terminal: processes, mount points, files, devices and lines of the kernel log may
//! hold control characters, and a terminal does what those say.

use std::borrow::Cow;

/// With every control character written as a person reads it: `\u{1b}`. Line ends too, so that no name makes a line.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_odd(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Control characters (C0, DEL, C1), and those that turn the direction of text or are seen by nobody.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The same for a whole text of strait's, in which lines and colours (`ESC [ ... m`) are its own.
pub(crate) fn laid_out(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(len) = colour(rest) {
            out.push_str(rest.get(..len).unwrap_or_default());
            rest = rest.get(len..).unwrap_or_default();
            continue;
        }
        match c {
            '\n' | '\t' => out.push(c),
            c if is_odd(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    out
}

/// Length of the colour sequence that begins here (ECMA-48, SGR).
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    parameters.get(end..)?.starts_with('m').then_some("\u{1b}[m".len() + end)
}

/// A JSON text, in which control characters are inside strings: serde_json escapes those below space alone.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            c if is_odd(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Title, clipboard, another screen, C1's CSI, a forged line, a turned direction.
    const HOSTILE: &str =
        "a\u{1b}]0;x\u{7}\u{1b}]52;c;eA==\u{7}\u{1b}[?1049h\u{9b}2J\r\nerror: b\u{202e}c\u{7f}";

    #[test]
    fn name_keeps_nothing_that_a_terminal_obeys() {
        let clean = plain(HOSTILE);
        assert!(!clean.contains(|c: char| c.is_control() || c == '\u{202e}'), "{clean:?}");
        assert!(clean.starts_with("a\\u{1b}]0;x\\u{7}") && clean.contains("\\r\\nerror: b"));
        assert_eq!(plain("Gerät №1 – ok"), "Gerät №1 – ok");
    }

    #[test]
    fn text_keeps_its_own_lines_and_colours_alone() {
        let text = format!("\u{1b}[1m\u{1b}[38;5;9mwarning\u{1b}[0m: {HOSTILE}\n");
        let clean = laid_out(&text);
        let own = "\u{1b}[1m\u{1b}[38;5;9mwarning\u{1b}[0m: a\\u{1b}]0;x";
        assert!(clean.starts_with(own), "{clean:?}");
        let rest = clean.strip_prefix("\u{1b}[1m\u{1b}[38;5;9mwarning\u{1b}[0m").unwrap();
        assert!(!rest.contains(|c: char| c.is_control() && c != '\n'), "{rest:?}");
    }

    #[test]
    fn json_stays_json_and_says_the_same() {
        let value = serde_json::json!({ "name": HOSTILE });
        let text = json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}

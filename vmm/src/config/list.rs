//! `word,key=value,...`: what a flag with parts looks like. A comma inside a value is written twice.

use strait_resources::{codes, failure::Failure, nearest::nearest};

use super::bad_value;

/// The parts of one flag's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    /// The first part, when it is no `key=value`.
    pub(super) word: Option<String>,
    /// The others, in order. Every key is known, and none comes twice.
    pub(super) pairs: Vec<(&'static str, String)>,
}

impl List {
    /// Takes `text` apart. `flag` is for messages; a key that is not in `keys` is an error that names the nearest.
    pub(super) fn parse(flag: &str, text: &str, keys: &[&'static str]) -> Result<Self, Failure> {
        let mut list = Self { word: None, pairs: Vec::new() };
        for (position, part) in split(text).into_iter().enumerate() {
            match part.split_once('=') {
                // A path may hold a '='; no key holds a '/'.
                Some((key, value)) if !key.contains('/') => {
                    let Some(key) = keys.iter().find(|known| **known == key) else {
                        return Err(unknown_key(flag, key, keys));
                    };
                    if list.pairs.iter().any(|(seen, _)| seen == key) {
                        let cause = format!("{flag} {text}: {key}= comes twice");
                        return Err(bad_value(cause, format!("keep one {key}=")));
                    }
                    if value.is_empty() {
                        let cause = format!("{flag} {text}: {key}= has no value");
                        return Err(bad_value(
                            cause,
                            format!("give {key}= a value or leave it out"),
                        ));
                    }
                    list.pairs.push((key, value.to_owned()));
                }
                _ if position == 0 && !part.is_empty() => list.word = Some(part),
                _ => {
                    let cause = format!("{flag} {text}: '{part}' is no key=value");
                    let keys = keys.iter().map(|key| format!("{key}=")).collect::<Vec<_>>();
                    let fix = format!(
                        "the keys are {}; a comma inside a value is written twice",
                        keys.join(" ")
                    );
                    return Err(bad_value(cause, fix));
                }
            }
        }
        Ok(list)
    }
}

fn unknown_key(flag: &str, key: &str, keys: &[&'static str]) -> Failure {
    let fix = match nearest(key, keys.iter().copied()) {
        Some(near) => format!("did you mean {near}=?"),
        None => format!("the keys are {}", keys.join(", ")),
    };
    Failure::new(&codes::E2002, format!("{flag} has no key '{key}'"), fix)
}

/// At single commas; two in a row stand for one that belongs to the part.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match (character, parts.last_mut()) {
            (',', _) if rest.peek() != Some(&',') => parts.push(String::new()),
            (',', Some(part)) => {
                rest.next();
                part.push(',');
            }
            (other, Some(part)) => part.push(other),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_doubled_commas_stay_in_the_value() {
        assert_eq!(split("a,b=c"), ["a", "b=c"]);
        assert_eq!(split("rom=/a,,b,id=x"), ["rom=/a,b", "id=x"]);
        assert_eq!(split("a,,,b"), ["a,", "b"]);
        assert_eq!(split("a,"), ["a", ""]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn parse_word_and_pairs() {
        let list = List::parse("--x", "w,id=a,rom=b=c", &["rom", "id"]).unwrap();
        assert_eq!(list.word.as_deref(), Some("w"));
        assert_eq!(list.pairs, [("id", "a".to_owned()), ("rom", "b=c".to_owned())]);
        assert_eq!(List::parse("--x", "id=a", &["id"]).unwrap().word, None);
        assert_eq!(List::parse("--x", "/a=b/c", &["id"]).unwrap().word.as_deref(), Some("/a=b/c"));
    }

    #[test]
    fn parse_refusals_name_the_part() {
        let keys = ["rom", "id", "guest-address"];
        for (text, code, says) in [
            ("w,roms=x", "E2002", "did you mean rom=?"),
            ("w,frobnicate=x", "E2002", "the keys are rom, id, guest-address"),
            ("w,id=a,id=b", "E2003", "id= comes twice"),
            ("w,id=", "E2003", "id= has no value"),
            ("w,x", "E2003", "'x' is no key=value"),
            ("w,", "E2003", "'' is no key=value"),
            ("", "E2003", "'' is no key=value"),
        ] {
            let failure = List::parse("--x", text, &keys).unwrap_err();
            assert_eq!(failure.code.id, code, "{text}");
            let told = format!("{} {}", failure.cause, failure.fix);
            assert!(told.contains(says), "{text}: {told}");
        }
    }
}

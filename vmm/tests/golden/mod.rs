//! Answers against what was written down: whole pages, and the fields of docs/json.md.

use std::{collections::BTreeSet, env, fs, path::Path};

use serde_json::Value;

/// The text is the page of this name.
pub(crate) fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("STRAIT_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(text == expected, "{name} differs; STRAIT_BLESS=1 writes it anew. Now:\n{text}");
}

/// Every field of the answer is in the table of this section, and every field of the table in the answer.
pub(crate) fn assert_schema(section: &str, answer: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let document = fs::read_to_string(path).unwrap();
    // Words behind the command tell two answers of one command apart.
    let heading = match section.split_once(", ") {
        Some((command, words)) => format!("## `{command}`, {words}\n"),
        None => format!("## `{section}`\n"),
    };
    let (_, rest) = document.split_once(&heading).expect("no such section in docs/json.md");
    let table = rest.split("\n## ").next().unwrap_or_default();
    let documented: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    let mut answered = BTreeSet::new();
    collect("", answer, &mut answered);
    let only =
        |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    let (undocumented, unanswered) = (only(&answered, &documented), only(&documented, &answered));
    assert!(
        undocumented.is_empty() && unanswered.is_empty(),
        "{section}: not in docs/json.md: {undocumented:#?}; not in the answer: {unanswered:#?}"
    );
}

/// `devices[].bars[].size`, for each place in the answer.
fn collect(at: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                found.insert(path.clone());
                collect(&path, value, found);
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| collect(&format!("{at}[]"), item, found));
        }
        _ => {}
    }
}

//! Words of the command line, of files and of the host's own tables.

use strait_resources::{bdf::Bdf, selector::Selector};

/// A word that names a device: read, written and read again it is the same.
pub(crate) fn words(bytes: &[u8]) {
    let Ok(word) = std::str::from_utf8(bytes) else { return };
    if let Ok(bdf) = word.parse::<Bdf>() {
        let again = bdf.to_string().parse::<Bdf>();
        assert_eq!(again.ok(), Some(bdf), "{word:?} reads as {bdf}");
    }
    if let Ok(selector) = word.parse::<Selector>() {
        let written = selector.to_string();
        let again = written.parse::<Selector>();
        assert_eq!(again.ok().as_ref(), Some(&selector), "{word:?} reads as {written}");
    }
}

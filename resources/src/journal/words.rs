//! What a journal may hold in its fields: each has a type that no text of an attacker fits through.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};

/// Why a text of a journal is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no {wanted}", text.escape_debug())]
pub struct WordError {
    text: String,
    wanted: &'static str,
}

impl WordError {
    pub(super) fn new(text: &str, wanted: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), wanted }
    }
}

/// The name of one entry of a directory in sysfs: a driver, a device, a console.
///
/// Letters, digits and `._-+!()`, with single spaces between them: some drivers in the kernel have spaces in their names
/// ("budget dvb"). Never `.`, `..` or anything with a slash, so that a path with such a name in it stays where it is;
/// never a line end, so that a value is one line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

impl Word {
    /// Bytes. Names in sysfs are shorter than NAME_MAX, 255 bytes; those of drivers and consoles much shorter.
    const MAX: usize = 128;

    /// Refuses what is no such name.
    pub fn new(text: &str) -> Result<Self, WordError> {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-+!()".contains(c);
        let part = |part: &str| !part.is_empty() && part.chars().all(known);
        let is_name = text.len() <= Self::MAX && text != "." && text != "..";
        match is_name && text.split(' ').all(part) {
            true => Ok(Self(text.to_owned())),
            false => Err(WordError::new(text, "name of a driver, a device or a console")),
        }
    }
}

impl Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Word {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        Self::new(&text)
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

/// What the kernel calls one boot: /proc/sys/kernel/random/boot_id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(Word);

impl BootId {
    /// Refuses what is no such name.
    pub fn new(text: &str) -> Result<Self, WordError> {
        Word::new(text).map(Self)
    }
}

/// Enums whose variants are words of the kernel's.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident, $what:literal: $($(#[$variant_doc:meta])* $variant:ident = $word:literal)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every word there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Refuses another word.
            pub fn new(text: &str) -> Result<Self, WordError> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(WordError::new(text, $what)),
                }
            }

            /// As the kernel has it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

choices! {
    /// `power/control`: Documentation/ABI/testing/sysfs-devices-power.
    PowerControl, "power control":
    /// The device may be suspended while it is not used.
    Auto = "auto"
    /// It stays awake.
    On = "on"
}

choices! {
    /// `d3cold_allowed`: Documentation/ABI/testing/sysfs-bus-pci.
    D3cold, "leave to enter D3cold":
    /// The device keeps its power.
    Forbidden = "0"
    /// It may lose it.
    Allowed = "1"
}

choices! {
    /// One word of `reset_method`: `pci_reset_fn_methods` in drivers/pci/pci.c.
    ResetMethod, "way to reset a function":
    /// A reset that the kernel has for this model.
    DeviceSpecific = "device_specific"
    /// The firmware's `_RST`.
    Acpi = "acpi"
    /// Function Level Reset of PCI Express.
    Flr = "flr"
    /// Function Level Reset of Advanced Features.
    AfFlr = "af_flr"
    /// From D3hot to D0.
    Pm = "pm"
    /// Of the bus.
    Bus = "bus"
    /// Of the bus of a CXL device.
    CxlBus = "cxl_bus"
}

/// A whole `reset_method`: the words in the order in which the kernel tries them; empty: no reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResetList(Vec<ResetMethod>);

impl ResetList {
    /// From words with spaces between them. Refuses one that no kernel has yet.
    pub fn new(text: &str) -> Result<Self, WordError> {
        text.split_whitespace().map(ResetMethod::new).collect::<Result<_, _>>().map(Self)
    }

    /// What is written for it. An empty list is an empty line: a write of nothing does not reach the kernel.
    pub fn value(&self) -> String {
        match self.0.is_empty() {
            true => "\n".to_owned(),
            false => self.to_string(),
        }
    }
}

impl fmt::Display for ResetList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(|method| method.word()).collect();
        f.write_str(&words.join(" "))
    }
}

impl TryFrom<String> for ResetList {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        Self::new(&text)
    }
}

impl From<ResetList> for String {
    fn from(list: ResetList) -> Self {
        list.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_one_name_in_one_directory() {
        for text in ["nouveau", "vtcon1", "efi-framebuffer.0", "3w-9xxx", "budget dvb", "mlx5_core"]
        {
            assert_eq!(&*Word::new(text).unwrap(), text);
        }
        let long = "x".repeat(129);
        for text in [
            "", ".", "..", "a/b", "../x", "/etc", "a\nb", "a\0b", " a", "a ", "a  b", "ü", "a;b",
            "$x", &long,
        ] {
            assert!(Word::new(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn reset_list_is_the_kernels_words_and_prints_as_it_was() {
        for text in ["flr pm", "device_specific", ""] {
            assert_eq!(ResetList::new(text).unwrap().to_string(), text);
        }
        assert_eq!(ResetList::default().value(), "\n");
        for text in ["default", "flr\nroot::0:0", "flr,pm", "FLR"] {
            // White space of every kind parts words; what is between must be known.
            assert!(ResetList::new(text).is_err(), "{text:?} was taken");
        }
    }
}

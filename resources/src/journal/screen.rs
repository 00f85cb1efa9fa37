//! The host's framebuffer on a function, as a journal has it.

use serde::{Deserialize, Serialize};

use super::{
    Write,
    attribute::Attribute,
    words::{Word, WordError},
};
use crate::host::framebuffer::{Driver, Framebuffer};

/// The drivers that draw on what the firmware left, by their names on the platform bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Platform {
    /// UEFI's picture: efifb, efidrm.
    #[serde(rename = "efi-framebuffer")]
    Efi,
    /// A VESA mode: vesafb, vesadrm.
    #[serde(rename = "vesa-framebuffer")]
    Vesa,
    /// Whatever the firmware said: simplefb, simpledrm.
    #[serde(rename = "simple-framebuffer")]
    Simple,
}

impl Platform {
    /// Refuses another driver.
    pub fn new(text: &str) -> Result<Self, WordError> {
        let known = [Self::Efi, Self::Vesa, Self::Simple].into_iter();
        let mut found = known.filter(|driver| driver.word() == text);
        found.next().ok_or_else(|| WordError::new(text, "driver of the firmware's framebuffer"))
    }

    /// Its name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Efi => "efi-framebuffer",
            Self::Vesa => "vesa-framebuffer",
            Self::Simple => "simple-framebuffer",
        }
    }
}

/// One framebuffer, as it is journalled before it is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text")]
pub struct Screen {
    /// As /proc/iomem calls it: `vesafb`.
    pub name: Word,
    driver: Platform,
    device: Word,
    /// Text consoles that draw there and nowhere else.
    pub consoles: Vec<Word>,
}

/// Its fields before they were compared with each other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    name: Word,
    driver: Platform,
    device: Word,
    consoles: Vec<Word>,
}

impl TryFrom<Text> for Screen {
    type Error = WordError;

    fn try_from(text: Text) -> Result<Self, WordError> {
        let Text { name, driver, device, consoles } = text;
        let number = device.strip_prefix(driver.word()).and_then(|rest| rest.strip_prefix('.'));
        match number.is_some_and(|number| !number.is_empty()) {
            true => Ok(Self { name, driver, device, consoles }),
            false => Err(WordError::new(&device, "device of that framebuffer driver")),
        }
    }
}

impl Screen {
    /// `Ok(None)` without a driver that could be told; the checks refuse that one. An error when sysfs has names that a
    /// journal cannot hold.
    pub fn of(found: &Framebuffer) -> Result<Option<Self>, WordError> {
        let Some(Driver { name: driver, device }) = &found.driver else { return Ok(None) };
        let consoles = found.consoles.iter().map(|console| Word::new(console));
        let text = Text {
            name: Word::new(&found.name)?,
            driver: Platform::new(driver)?,
            device: Word::new(device)?,
            consoles: consoles.collect::<Result<_, _>>()?,
        };
        Self::try_from(text).map(Some)
    }

    /// Its platform device: `vesa-framebuffer.0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The same with its driver.
    pub fn platform(&self) -> Driver {
        Driver { name: self.driver.word().to_owned(), device: self.device.to_string() }
    }

    /// What is written to make it let go. Consoles first: older kernels keep a framebuffer that one draws on.
    pub fn release(&self) -> Vec<Write> {
        let unbind = Write::new(Attribute::ScreenUnbind(self.driver), &*self.device);
        self.switch("0").chain([unbind]).collect()
    }

    /// What is written to make it draw again.
    pub fn bind(&self) -> Write {
        Write::new(Attribute::ScreenBind(self.driver), &*self.device)
    }

    /// What is written for its consoles: `1`, draw, or `0`.
    pub fn switch<'a>(&'a self, value: &'a str) -> impl Iterator<Item = Write> + 'a {
        let attribute = |console: &Word| Attribute::Console(console.clone());
        self.consoles.iter().map(move |console| Write::new(attribute(console), value))
    }
}

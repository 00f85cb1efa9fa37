//! Pictures that QEMU takes of a display.

use std::{collections::BTreeMap, fs::File, io::BufWriter, path::Path};

use anyhow::{Context, Result, ensure};

use crate::files;

/// A picture, 24 bits a pixel.
#[derive(Debug)]
pub(crate) struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    /// Reads a binary PPM.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(&files::read(path)?).with_context(|| format!("{} is no PPM", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let mut word = || -> Result<String> {
            let start = rest.iter().position(|b| !b.is_ascii_whitespace()).context("ends early")?;
            let length = rest[start..].iter().position(u8::is_ascii_whitespace);
            let length = length.context("ends early")?;
            let word = String::from_utf8_lossy(&rest[start..start + length]).into_owned();
            rest = &rest[start + length + 1..];
            Ok(word)
        };
        ensure!(word()? == "P6", "not a binary PPM");
        let (width, height) = (word()?.parse()?, word()?.parse()?);
        ensure!(word()? == "255", "not 8 bits per colour");
        ensure!(rest.len() as u64 == u64::from(width) * u64::from(height) * 3, "wrong length");
        Ok(Self { width, height, pixels: rest.to_vec() })
    }

    /// Writes it as PNG.
    pub(crate) fn write_png(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.pixels)?;
        Ok(())
    }

    /// Does it show a page of text with a colour bar, as the agent draws it? Says what it shows.
    pub(crate) fn shows_text(&self) -> Result<String, String> {
        let mut colours: BTreeMap<&[u8], usize> = BTreeMap::new();
        for pixel in self.pixels.chunks_exact(3) {
            *colours.entry(pixel).or_default() += 1;
        }
        let lit: usize =
            colours.iter().filter(|(colour, _)| **colour != [0, 0, 0]).map(|(_, n)| n).sum();
        let shown =
            format!("{}x{}, {} colours, {lit} pixels lit", self.width, self.height, colours.len());
        // Grey text, bright text, a green title and seven bars on black; a page of text lights thousands of pixels
        // but not most of them.
        let most = self.pixels.len() / 3 / 2;
        if colours.len() >= 8 && lit > 5000 && lit < most {
            Ok(shown)
        } else {
            Err(format!("the picture is not a page of text: {shown}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ppm_with_blank_screen_shows_no_text() {
        let mut bytes = b"P6\n4 2\n255\n".to_vec();
        bytes.resize(bytes.len() + 24, 0);
        let picture = Picture::parse(&bytes).expect("a PPM");
        assert_eq!((picture.width, picture.height), (4, 2));
        assert!(picture.shows_text().is_err());
    }

    #[test]
    fn ppm_of_wrong_length_is_refused() {
        assert!(Picture::parse(b"P6\n4 2\n255\n123").is_err());
    }
}

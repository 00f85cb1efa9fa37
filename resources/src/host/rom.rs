//! PCI expansion ROM images (PCI Firmware 3.3, chapter 5; PCI Local Bus 3.0, 6.3).
//!
//! A ROM is a chain of images. Each opens with 55 AA and points to a data structure, PCIR, with the IDs of the
//! device, the code's kind and the image's length. A file that a user gives for a card is looked at before a
//! guest is started with it: a wrong one costs hours inside the guest. `rom/read.rs` gets the device's own.

mod read;

use super::pci::Class;

pub use read::{Dump, dump, peek};

/// No ROM holds more images than this; a chain that does is damaged.
const MAX_IMAGES: usize = 64;
/// Image lengths count in these.
const UNIT: usize = 512;
/// Bit 7 of the indicator: the last image.
const LAST: u8 = 0x80;

/// What an image's code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeType {
    /// PC-AT BIOS.
    Legacy,
    /// UEFI driver.
    Efi,
    /// Open Firmware, HP PA-RISC, or a vendor's own (NVIDIA uses 0xe0).
    Other(u8),
}

/// One image of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where it begins in the file, bytes.
    pub offset: usize,
    /// How long it says it is, bytes.
    pub len: usize,
    /// What its code is for.
    pub code: CodeType,
    /// Vendor ID.
    pub vendor: u16,
    /// The device IDs it says it serves: the main one first.
    pub devices: Vec<u16>,
    /// The class of device that its code is for.
    pub class: Class,
    /// The machine that UEFI code is for (PE/COFF: 0x8664 is x86-64); `None` for other code.
    pub machine: Option<u16>,
    /// Do all bytes of a legacy image add up to zero? `None` for the others, which have no checksum.
    pub checksum_ok: Option<bool>,
}

impl Image {
    /// Can the UEFI firmware of an x86-64 machine start it?
    pub fn is_uefi(&self) -> bool {
        const X86_64: u16 = 0x8664;
        self.code == CodeType::Efi && self.machine == Some(X86_64)
    }

    /// Is it meant for this device?
    pub fn serves(&self, vendor: u16, device: u16) -> bool {
        self.vendor == vendor && self.devices.contains(&device)
    }

    /// Is it meant for whatever device of this vendor it is put on? A device ID of all ones says so in images that were
    /// made by hand, as from a driver that was cut out of a firmware.
    pub fn serves_any(&self, vendor: u16) -> bool {
        const ANY: u16 = 0xffff;
        (self.vendor == vendor || self.vendor == ANY) && self.devices.contains(&ANY)
    }
}

/// Why a file is no ROM, or none for this device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RomError {
    /// No 55 AA at the beginning.
    #[error("it does not begin with 55 aa")]
    NoSignature,
    /// The same, but 55 AA comes later: what nvflash saves has a header of its own.
    #[error(
        "it does not begin with 55 aa, but has that at offset {at:#x}: cut off the {at} bytes before it"
    )]
    Header {
        /// Offset of the first image.
        at: usize,
    },
    /// The file ends inside an image.
    #[error("the image at offset {offset:#x} is {len} bytes long, but the file ends before that")]
    Truncated {
        /// Where the image begins.
        offset: usize,
        /// How long it says it is.
        len: usize,
    },
    /// No PCIR where the image points.
    #[error("the image at offset {offset:#x} has no PCIR structure")]
    NoPcir {
        /// Where the image begins.
        offset: usize,
    },
    /// An image without length would never end.
    #[error("the image at offset {offset:#x} has no length")]
    NoLength {
        /// Where the image begins.
        offset: usize,
    },
    /// The chain goes on where no image is.
    #[error("the image before offset {offset:#x} is not marked as the last, but no other follows")]
    NoLast {
        /// Where the next image should be.
        offset: usize,
    },
    /// More images than any card has.
    #[error("it has more than {MAX_IMAGES} images")]
    TooMany,
    /// For another card.
    #[error("it is for {found}, not for {vendor:04x}:{device:04x}")]
    OtherDevice {
        /// The IDs in the ROM.
        found: String,
        /// Wanted vendor ID.
        vendor: u16,
        /// Wanted device ID.
        device: u16,
    },
    /// A legacy image that no BIOS would start, and no UEFI image beside it.
    #[error(
        "the checksum of its only image is wrong: it was changed or copied from memory after use"
    )]
    BadChecksum,
}

/// The images of a ROM, in order: one at least.
pub fn parse(rom: &[u8]) -> Result<Vec<Image>, RomError> {
    let mut images = Vec::new();
    let mut offset = 0;
    for _ in 0..MAX_IMAGES {
        let rest = rom.get(offset..).unwrap_or_default();
        if rest.get(..2) != Some(&[0x55, 0xaa]) {
            return Err(match offset {
                0 => no_signature(rom),
                _ => RomError::NoLast { offset },
            });
        }
        let (image, is_last) = image(rest, offset)?;
        offset = offset.saturating_add(image.len);
        images.push(image);
        if is_last {
            return Ok(images);
        }
    }
    Err(RomError::TooMany)
}

/// Vendors whose graphics of one family share an image that names one of its members: Intel's and AMD's integrated
/// graphics, which coreboot therefore has tables of IDs for. NVIDIA's images name the very card.
const FAMILIES: &[u16] = &[0x8086, 0x1002];

/// The device that a ROM is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wearer {
    /// Vendor and device IDs: its own, and what it shows to the guest if that is another pair.
    pub ids: Vec<(u16, u16)>,
    /// What kind of device.
    pub class: Class,
    /// Vendor and device IDs of the other functions of its slot. Firmware of one chip may look for the driver of its
    /// graphics in the ROM of its sound.
    pub siblings: Vec<(u16, u16)>,
}

/// The images of a ROM that a device can wear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// All of them.
    pub images: Vec<Image>,
    /// Not this device is named, but a relative, a function beside it or none: probably right, and worth a warning.
    pub relative: Option<String>,
}

/// The images of a ROM that a guest can use on this device.
pub fn check(rom: &[u8], wearer: &Wearer) -> Result<Fitting, RomError> {
    let images = parse(rom)?;
    let serves = |vendor, device| images.iter().any(|image| image.serves(vendor, device));
    let mut relative = None;
    if !wearer.ids.iter().any(|&(vendor, device)| serves(vendor, device)) {
        let is_relative = |image: &Image| {
            wearer.class.is_display()
                && FAMILIES.contains(&image.vendor)
                && wearer.ids.iter().any(|&(vendor, _)| vendor == image.vendor)
        };
        let (vendor, device) = wearer.ids.first().copied().unwrap_or_default();
        let found = ids(&images);
        let is_siblings = |image: &Image| {
            wearer.siblings.iter().any(|&(vendor, device)| image.serves(vendor, device))
        };
        let is_anyones =
            |image: &Image| wearer.ids.iter().any(|&(vendor, _)| image.serves_any(vendor));
        relative = Some(if images.iter().any(is_siblings) {
            format!("it names {found}, another function of the card of {vendor:04x}:{device:04x}")
        } else if images.iter().any(is_anyones) {
            format!("it names no single device ({found}), so {vendor:04x}:{device:04x} may wear it")
        } else if images.iter().any(is_relative) {
            format!("it names {found}, a relative of {vendor:04x}:{device:04x}")
        } else {
            return Err(RomError::OtherDevice { found, vendor, device });
        });
    }
    let has_efi = images.iter().any(|image| image.code == CodeType::Efi);
    if !has_efi && images.iter().all(|image| image.checksum_ok == Some(false)) {
        return Err(RomError::BadChecksum);
    }
    Ok(Fitting { images, relative })
}

/// Every device that the images say they serve: `10de:1e07, 10de:1e04`.
fn ids(images: &[Image]) -> String {
    let mut ids: Vec<String> = Vec::new();
    for image in images {
        for device in &image.devices {
            let id = format!("{:04x}:{device:04x}", image.vendor);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids.join(", ")
}

/// Is there an image that UEFI firmware can start?
pub fn has_efi(images: &[Image]) -> bool {
    images.iter().any(Image::is_uefi)
}

/// An image begins on a 512-byte boundary of the flash, but after a tool's header of any length; so look at
/// every offset in the first pages for a signature whose pointer leads to PCIR.
fn no_signature(rom: &[u8]) -> RomError {
    const FAR_ENOUGH: usize = 64 << 10;
    let start = (1..rom.len().min(FAR_ENOUGH)).find(|at| {
        let rest = rom.get(*at..).unwrap_or_default();
        rest.starts_with(&[0x55, 0xaa]) && pcir(rest).is_some()
    });
    start.map_or(RomError::NoSignature, |at| RomError::Header { at })
}

/// The PCIR structure of the image that `rest` begins with.
fn pcir(rest: &[u8]) -> Option<&[u8]> {
    let at = usize::from(word(rest, 0x18)?);
    let structure = rest.get(at..)?;
    (structure.starts_with(b"PCIR") && structure.len() >= 0x18).then_some(structure)
}

/// The image at the start of `rest`, and whether it is the last.
fn image(rest: &[u8], offset: usize) -> Result<(Image, bool), RomError> {
    let no_pcir = RomError::NoPcir { offset };
    let pcir = pcir(rest).ok_or_else(|| no_pcir.clone())?;
    let field = |at| word(pcir, at).ok_or_else(|| no_pcir.clone());
    let (vendor, device, units) = (field(0x04)?, field(0x06)?, field(0x10)?);
    let (code, indicator) = (field(0x14)? as u8, (field(0x14)? >> 8) as u8);
    let len = usize::from(units) * UNIT;
    if len == 0 {
        return Err(RomError::NoLength { offset });
    }
    let bytes = rest.get(..len).ok_or(RomError::Truncated { offset, len })?;
    let code = match code {
        0 => CodeType::Legacy,
        3 => CodeType::Efi,
        other => CodeType::Other(other),
    };
    let mut devices = vec![device];
    devices.extend(device_list(pcir).into_iter().filter(|other| *other != device));
    let checksum_ok = (code == CodeType::Legacy)
        .then(|| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0);
    // Programming interface, subclass, base class from 0x0d on.
    let class = field(0x0d)?.to_le_bytes();
    let base = pcir.get(0x0f).copied().unwrap_or(0);
    let class = Class(u32::from_le_bytes([class[0], class[1], base, 0]));
    // UEFI 2.10, 14.4.2.1: the header of an EFI image.
    const EFI_SIGNATURE: [u8; 4] = 0x0ef1_u32.to_le_bytes();
    let is_efi = bytes.get(0x04..0x08) == Some(&EFI_SIGNATURE);
    let machine = word(bytes, 0x0a).filter(|_| code == CodeType::Efi && is_efi);
    let image = Image { offset, len, code, vendor, devices, class, machine, checksum_ok };
    Ok((image, indicator & LAST != 0))
}

/// Other devices that the image serves: from revision 3 of the structure on, a list that ends with 0.
fn device_list(pcir: &[u8]) -> Vec<u16> {
    /// More IDs than any image lists.
    const MAX_IDS: usize = 256;
    let revision = pcir.get(0x0c).copied().unwrap_or(0);
    let at = match word(pcir, 0x08) {
        Some(at) if at != 0 && revision >= 3 => usize::from(at),
        _ => return Vec::new(),
    };
    (0..MAX_IDS).map_while(|n| word(pcir, at + 2 * n)).take_while(|id| *id != 0).collect()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An image of `units` times 512 bytes with a right checksum.
    fn image_bytes(code: u8, indicator: u8, device: u16, units: u16) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(units) * UNIT];
        bytes[..2].copy_from_slice(&[0x55, 0xaa]);
        bytes[2] = units as u8;
        bytes[0x18] = 0x40;
        let pcir = &mut bytes[0x40..];
        pcir[..4].copy_from_slice(b"PCIR");
        pcir[4..6].copy_from_slice(&0x10de_u16.to_le_bytes());
        pcir[6..8].copy_from_slice(&device.to_le_bytes());
        pcir[0x0a] = 0x18;
        pcir[0x0f] = 0x03;
        pcir[0x10..0x12].copy_from_slice(&units.to_le_bytes());
        pcir[0x14] = code;
        pcir[0x15] = indicator;
        if code == 3 {
            bytes[4..8].copy_from_slice(&0x0ef1_u32.to_le_bytes());
            bytes[0x0a..0x0c].copy_from_slice(&0x8664_u16.to_le_bytes());
        }
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        *bytes.last_mut().unwrap() = sum.wrapping_neg();
        bytes
    }

    /// Legacy and UEFI, as graphics cards have.
    fn graphics_rom() -> Vec<u8> {
        [image_bytes(0, 0, 0x1e07, 4), image_bytes(3, LAST, 0x1e07, 6)].concat()
    }

    fn card(vendor: u16, device: u16) -> Wearer {
        Wearer { ids: vec![(vendor, device)], class: Class(0x03_0000), siblings: Vec::new() }
    }

    #[test]
    fn r42_only_code_for_this_machine_makes_a_rom_uefi_capable() {
        let mut rom = graphics_rom();
        assert!(has_efi(&parse(&rom).unwrap()));
        assert_eq!(parse(&rom).unwrap()[1].class, Class(0x03_0000));
        // ARM's 64-bit code in the second image.
        rom[2048 + 0x0a..2048 + 0x0c].copy_from_slice(&0xaa64_u16.to_le_bytes());
        assert!(!has_efi(&parse(&rom).unwrap()));
        assert!(!has_efi(&parse(&image_bytes(0, LAST, 0x1e07, 4)).unwrap()));
    }

    #[test]
    fn r41_relatives_are_a_matter_of_the_vendor() {
        let mut rom = graphics_rom();
        for image in [0, 2048] {
            rom[image + 0x44..image + 0x46].copy_from_slice(&0x8086_u16.to_le_bytes());
        }
        let intel = check(&rom, &card(0x8086, 0x0412)).unwrap();
        assert_eq!(intel.relative.unwrap(), "it names 8086:1e07, a relative of 8086:0412");
        let nic = Wearer { class: Class(0x02_0000), ..card(0x8086, 0x0412) };
        assert!(matches!(check(&rom, &nic), Err(RomError::OtherDevice { .. })));
        assert!(check(&rom, &card(0x8086, 0x1e07)).unwrap().relative.is_none());
    }

    #[test]
    fn check_rom_of_a_sibling_or_of_nobody_fits_with_a_word_on_it() {
        // The sound function of AMD's integrated graphics, and the driver of its picture.
        let amd = |device: u16| {
            let mut rom = image_bytes(3, LAST, device, 2);
            rom[0x44..0x46].copy_from_slice(&0x1002_u16.to_le_bytes());
            rom
        };
        let sound = Wearer { class: Class(0x04_0300), ..card(0x1002, 0x1640) };
        let any = check(&amd(0xffff), &sound).unwrap().relative.unwrap();
        assert!(any.contains("no single device (1002:ffff)"), "{any}");
        let picture = amd(0x164e);
        assert!(matches!(check(&picture, &sound), Err(RomError::OtherDevice { .. })));
        let sound = Wearer { siblings: vec![(0x1002, 0x164e)], ..sound };
        let beside = check(&picture, &sound).unwrap().relative.unwrap();
        assert!(beside.contains("1002:164e, another function"), "{beside}");
        let other = Wearer { class: Class(0x04_0300), ..card(0x10de, 0x10f7) };
        assert!(matches!(check(&amd(0xffff), &other), Err(RomError::OtherDevice { .. })));
    }

    #[test]
    fn r41_ids_shown_to_the_guest_count_too() {
        let mut wearer = card(0x10de, 0x2204);
        wearer.ids.push((0x10de, 0x1e07));
        assert!(check(&graphics_rom(), &wearer).unwrap().relative.is_none());
    }

    #[test]
    fn check_graphics_rom_lists_both_images() {
        let images = check(&graphics_rom(), &card(0x10de, 0x1e07)).unwrap().images;
        assert_eq!(images.len(), 2);
        assert_eq!((images[0].code, images[0].checksum_ok), (CodeType::Legacy, Some(true)));
        assert_eq!((images[1].code, images[1].offset, images[1].len), (CodeType::Efi, 2048, 3072));
        assert!(has_efi(&images));
    }

    #[test]
    fn parse_stops_at_the_last_image_whatever_follows() {
        let mut rom = graphics_rom();
        rom.extend([0xff; 4096]);
        assert_eq!(parse(&rom).unwrap().len(), 2);
    }

    #[test]
    fn check_rom_of_another_card_names_both() {
        let error = check(&graphics_rom(), &card(0x10de, 0x2204)).unwrap_err();
        assert_eq!(error.to_string(), "it is for 10de:1e07, not for 10de:2204");
    }

    #[test]
    fn check_device_list_of_a_newer_structure_counts() {
        let mut rom = image_bytes(3, LAST, 0x1e07, 2);
        rom[0x40 + 0x0c] = 3;
        rom[0x40 + 0x08] = 0x20;
        rom[0x60..0x66].copy_from_slice(&[0x04, 0x1e, 0x04, 0x22, 0, 0]);
        assert_eq!(
            check(&rom, &card(0x10de, 0x2204)).unwrap().images[0].devices,
            [0x1e07, 0x1e04, 0x2204]
        );
    }

    #[test]
    fn check_bad_checksum_matters_only_without_uefi_image() {
        let mut both = graphics_rom();
        both[0x100] ^= 1;
        assert_eq!(check(&both, &card(0x10de, 0x1e07)).unwrap().images[0].checksum_ok, Some(false));
        let mut legacy = image_bytes(0, LAST, 0x1e07, 4);
        legacy[0x100] ^= 1;
        assert_eq!(check(&legacy, &card(0x10de, 0x1e07)), Err(RomError::BadChecksum));
    }

    #[test]
    fn parse_nvflash_header_says_where_the_rom_begins() {
        let mut rom = b"NVGI".to_vec();
        rom.resize(0x9400, 0);
        rom.extend(graphics_rom());
        assert_eq!(parse(&rom), Err(RomError::Header { at: 0x9400 }));
    }

    #[test]
    fn parse_damaged_roms_say_what_is_wrong() {
        assert_eq!(parse(b""), Err(RomError::NoSignature));
        assert_eq!(parse(&[0; 4096]), Err(RomError::NoSignature));
        assert_eq!(parse(&[0x55, 0xaa]), Err(RomError::NoPcir { offset: 0 }));
        let rom = graphics_rom();
        let len = 3072;
        assert_eq!(parse(&rom[..rom.len() - 1]), Err(RomError::Truncated { offset: 2048, len }));
        assert_eq!(parse(&rom[..2048]), Err(RomError::NoLast { offset: 2048 }));
        let mut empty = rom.clone();
        empty[0x50..0x52].fill(0);
        assert_eq!(parse(&empty), Err(RomError::NoLength { offset: 0 }));
        let endless = image_bytes(0, 0, 0x1e07, 1).repeat(MAX_IMAGES + 1);
        assert_eq!(parse(&endless), Err(RomError::TooMany));
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_images_lie_in_the_file(
            mut rom in prop::collection::vec(any::<u8>(), 0..4096),
            start in prop::bool::ANY,
        ) {
            if start {
                // Likelier to get somewhere: a signature, and PCIR where it is pointed to.
                for (at, byte) in graphics_rom()[..0x46].iter().enumerate() {
                    if let Some(place) = rom.get_mut(at) {
                        *place = *byte;
                    }
                }
            }
            if let Ok(images) = parse(&rom) {
                prop_assert!(images.iter().all(|image| image.offset + image.len <= rom.len()));
            }
        }
    }
}

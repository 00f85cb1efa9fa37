//! `--json` of both commands: the document is docs/json.md.

use serde::Serialize;
use strait_resources::host::rom::{self, CodeType, Image};

use super::Findings;

const SCHEMA: &str = "strait.rom/1";

#[derive(Serialize)]
pub(super) struct Answer {
    schema: &'static str,
    file: Option<String>,
    size: usize,
    uefi: bool,
    images: Vec<ImageAnswer>,
    device: Option<Device>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct ImageAnswer {
    offset: usize,
    size: usize,
    kind: &'static str,
    class: String,
    vendor: String,
    devices: Vec<String>,
    machine: Option<String>,
    checksum_ok: Option<bool>,
}

#[derive(Serialize)]
struct Device {
    bdf: String,
    id: String,
    named: bool,
}

pub(super) fn answer(findings: &Findings<'_>) -> Answer {
    let Findings { file, device, bytes, images, notes } = findings;
    Answer {
        schema: SCHEMA,
        file: file.map(|file| file.display().to_string()),
        size: bytes.len(),
        uefi: rom::has_efi(images),
        images: images.iter().map(image).collect(),
        device: device.map(|function| Device {
            bdf: function.bdf.to_string(),
            id: function.id(),
            named: images.iter().any(|image| image.serves(function.vendor, function.device)),
        }),
        notes: notes.clone(),
    }
}

fn image(image: &Image) -> ImageAnswer {
    ImageAnswer {
        offset: image.offset,
        size: image.len,
        kind: match image.code {
            CodeType::Legacy => "legacy",
            CodeType::Efi => "uefi",
            CodeType::Other(_) => "other",
        },
        class: image.class.to_string(),
        vendor: format!("{:04x}", image.vendor),
        devices: image.devices.iter().map(|device| format!("{device:04x}")).collect(),
        machine: image.machine.map(|machine| format!("{machine:04x}")),
        checksum_ok: image.checksum_ok,
    }
}

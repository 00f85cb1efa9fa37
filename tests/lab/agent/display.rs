//! A display device: its DRM driver, and text on its screen.

use std::fs;

use anyhow::{Context, Result};

use crate::{Arguments, pci, read, report, wait_for};

/// Step `draw,TITLE`: waits for the console on the device and writes a page on it.
pub(crate) fn draw(words: &mut Arguments<'_>) -> Result<()> {
    let title = words.word()?;
    wait_for("/dev/dri/card0", 20, || fs::exists("/dev/dri/card0").ok()?.then_some(()))?;
    let name = wait_for("a framebuffer console", 20, || read("/sys/class/graphics/fb0/name").ok())?;
    report("display.fb", &name);
    let card = fs::canonicalize("/sys/class/drm/card0/device")?;
    // virtio: the card's parent is the virtio device, whose parent is the PCI function.
    let functions = pci::all()?;
    let gpu = functions
        .iter()
        .find(|function| {
            card.to_string_lossy().contains(&function.bdf)
                && function.driver().is_some_and(|d| d != "pcieport")
        })
        .context("the card is no PCI function")?;
    report("display.device", format!("{} {:04x}:{:04x}", gpu.bdf, gpu.vendor, gpu.device));
    let driver = drm_driver(gpu)?;
    report("display.driver", &driver);

    let version = read("/proc/version")?;
    let kernel = version.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let mut page = String::from("\x1b[2J\x1b[H\x1b[?25l\n");
    page.push_str(&format!("   \x1b[1;32m{}\x1b[0m\n\n", title.replace('_', " ")));
    page.push_str(&format!("   This text is drawn by {kernel}\n"));
    page.push_str("   in a guest, on a GPU that was passed to it.\n\n");
    let line = |name: &str, value: String| format!("   \x1b[1m{name:<12}\x1b[0m{value}\n");
    page.push_str(&line("device", format!("{} {:04x}:{:04x}", gpu.bdf, gpu.vendor, gpu.device)));
    page.push_str(&line("driver", format!("{driver}, framebuffer {name}")));
    for (n, bar) in gpu.bars()?.iter().enumerate().filter(|(_, bar)| bar.size > 0) {
        page.push_str(&line(
            &format!("BAR {n}"),
            format!("{:#x}, {} KiB", bar.start, bar.size / 1024),
        ));
    }
    let vectors = fs::read_dir(gpu.file("msi_irqs")).map_or(0, Iterator::count);
    page.push_str(&line("interrupts", format!("{vectors} MSI-X vectors")));
    page.push_str("\n   ");
    for colour in [41, 43, 42, 46, 44, 45, 47] {
        page.push_str(&format!("\x1b[{colour}m        \x1b[0m"));
    }
    page.push('\n');
    fs::write("/dev/tty1", page).context("cannot write to /dev/tty1")?;
    report("mark", "drawn");
    Ok(())
}

/// The driver that draws: on a virtio function that of the virtio device it carries, else the function's own.
fn drm_driver(gpu: &pci::Function) -> Result<String> {
    let mut carried = fs::read_dir(gpu.file(""))?.filter_map(Result::ok);
    let virtio = carried.find(|entry| entry.file_name().to_string_lossy().starts_with("virtio"));
    let link = match virtio {
        Some(virtio) => virtio.path().join("driver"),
        None => gpu.file("driver").into(),
    };
    let driver = fs::read_link(&link).with_context(|| format!("no {}", link.display()))?;
    Ok(driver.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

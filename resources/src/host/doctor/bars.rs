//! Address space.

use super::{
    super::{
        capabilities, check::assignable, cpu, inventory, pci::HostFunction, sysroot::SysError,
    },
    Answer, Host, Outcome,
};
use crate::{codes, size::Size};

/// 23: every memory BAR has an address.
pub(super) fn addressed(_: &Host<'_>, function: &HostFunction) -> Answer {
    let totals = inventory::totals(&function.bars);
    let good = format!(
        "{} BARs: {} of 32-bit and {} of 64-bit memory",
        function.bars.len(),
        Size(totals.memory32),
        Size(totals.memory64)
    );
    Ok(vec![Outcome::of(assignable::addressed(function), good)])
}

/// 24: what the chosen devices need together.
pub(super) fn need(host: &Host<'_>) -> Answer {
    if host.chosen.is_empty() {
        return Ok(Vec::new());
    }
    let (mut low, mut high) = (0_u64, 0_u64);
    for function in host.chosen {
        let totals = inventory::totals(&function.bars);
        low = low.saturating_add(totals.memory32).saturating_add(totals.rom);
        high = high.saturating_add(totals.memory64);
    }
    let bits = cpu::physical_bits(host.sysroot);
    let much = |bytes| if bytes == 0 { "nothing".to_owned() } else { Size(bytes).to_string() };
    Ok(vec![Outcome::info(format!(
        "BARs need {} below 4 GiB and {} anywhere within {bits} bits; run --dry-run shows where",
        much(low),
        much(high)
    ))])
}

/// What the kernel calls a firmware framebuffer in /proc/iomem.
const FRAMEBUFFERS: [&str; 6] =
    ["BOOTFB", "efifb", "vesafb", "simplefb", "simple-framebuffer", "simpledrm"];

/// 25: no console draws into a BAR.
pub(super) fn framebuffer(host: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(map) = host.text("/proc/iomem")? else {
        return Ok(vec![Outcome::skip("there is no /proc/iomem", "")]);
    };
    // Without root every address reads as 0, but the names and their nesting are there.
    let mut inside = None;
    for line in map.lines() {
        let depth = line.len() - line.trim_start().len();
        let Some((range, name)) = line.trim_start().split_once(" : ") else { continue };
        if inside.is_some_and(|outer| depth <= outer) {
            inside = None;
        }
        if name == function.bdf.to_string() {
            inside = Some(depth);
        } else if inside.is_some() && FRAMEBUFFERS.iter().any(|known| name.contains(known)) {
            let fact = format!("the host's framebuffer {name} lies in its BAR ({range})");
            let fix = match console(host)? {
                Some(console) => format!(
                    "let go of it: echo 0 > /sys/class/vtconsole/{console}/bind, or boot with initcall_blacklist=sysfb_init"
                ),
                None => "boot with initcall_blacklist=sysfb_init".to_owned(),
            };
            return Ok(vec![Outcome::warn(fact, fix).code(&codes::E1203)]);
        }
    }
    Ok(vec![Outcome::pass("no framebuffer of the host lies in its BARs")])
}

/// The text console that draws into a framebuffer: `vtcon1`, whose name is "(M) frame buffer device".
fn console(host: &Host<'_>) -> Result<Option<String>, SysError> {
    const CONSOLES: &str = "/sys/class/vtconsole";
    for console in host.sysroot.list_if_present(CONSOLES)? {
        let name = host.text(&format!("{CONSOLES}/{console}/name"))?.unwrap_or_default();
        let bound = host.text(&format!("{CONSOLES}/{console}/bind"))?;
        if name.contains("frame buffer") && bound.as_deref() == Some("1") {
            return Ok(Some(console));
        }
    }
    Ok(None)
}

/// 26: sizes that can be chosen on the host, before the guest starts.
pub(super) fn resizable(_: &Host<'_>, function: &HostFunction) -> Answer {
    if !capabilities::is_visible(&function.config) {
        return Ok(vec![Outcome::skip(
            "only root sees whether BARs can be resized",
            "run strait doctor as root",
        )]);
    }
    let bars = capabilities::resizable(&function.config);
    Ok(bars
        .iter()
        .map(|bar| {
            let most = bar.possible.last().copied().unwrap_or(bar.current);
            Outcome::info(format!(
                "BAR {} is {} and can be {} at most; the guest sees it as it is",
                bar.bar,
                Size(bar.current),
                Size(most)
            ))
        })
        .collect())
}

//! Address space.

use super::{
    super::{
        capabilities,
        check::{self, assignable},
        cpu, framebuffer, inventory,
        pci::HostFunction,
    },
    Answer, Host, Outcome,
};
use crate::size::Size;

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
    let places = [(low, "below 4 GiB".to_owned()), (high, format!("anywhere within {bits} bits"))];
    let needed: Vec<String> = places
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, place)| format!("{} {place}", Size(*bytes)))
        .collect();
    if needed.is_empty() {
        return Ok(vec![Outcome::info("they have no memory BARs")]);
    }
    let needed = needed.join(" and ");
    Ok(vec![Outcome::info(format!("BARs need {needed}; run --dry-run shows where"))])
}

/// 25: no console draws into a BAR.
pub(super) fn framebuffer(host: &Host<'_>, function: &HostFunction) -> Answer {
    if !host.sysroot.exists("/proc/iomem") {
        return Ok(vec![Outcome::skip("there is no /proc/iomem", "")]);
    }
    let found = check::framebuffer::none(host.sysroot, function);
    let mut outcome = Outcome::of(found, "no framebuffer of the host lies in its BARs");
    for console in
        framebuffer::on(host.sysroot, function.bdf)?.iter().flat_map(|found| &found.consoles)
    {
        outcome = outcome.detail(format!("the text console {console} draws on it"));
    }
    Ok(vec![outcome])
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

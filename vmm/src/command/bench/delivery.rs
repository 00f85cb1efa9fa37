//! How long an interrupt takes through the host: from the host's handler for the device's vector to the entry into the
//! guest with it. Both ends are events of the host's own tracer, so it is the same for every monitor and needs nothing of
//! the guest. What it leaves out is what no monitor can change, the way from the device to the host's CPU.
//!
//! A CPU that delivers interrupts into a running guest by itself (posted interrupts) has no handler to see: then there is
//! no figure, and a note says so.

use std::{fs, io, path::PathBuf};

use strait_resources::bdf::Bdf;

use super::exits::{other_guest, tracing};

/// Events, each with what is wanted of it. `vfio-msix[1](0000:3b:00.0)` is the name of VFIO's handler.
const EVENTS: [&str; 3] = ["irq/irq_handler_entry", "kvm/kvm_msi_set_irq", "kvm/kvm_inj_virq"];
/// For each CPU: 500 interrupts are 100 KiB of it, and the guest's timer comes in between.
const BUFFER_KIB: &str = "512";

/// The tracer's instance, armed; dropping it removes it.
pub(super) struct Delivery {
    instance: PathBuf,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Delivered {
    /// Microseconds, ascending.
    pub(super) micros: Vec<f64>,
    /// Interrupts of the device that the host's handler took.
    pub(super) handled: u64,
}

impl Delivered {
    /// Why there is no figure, if there is none.
    pub(super) fn missing(&self) -> Option<String> {
        let why = match (self.micros.len(), self.handled) {
            (0, 0) => "the host's handlers see none: the CPU posts them into the running guest",
            (0, _) => "the CPU delivers them into the guest by itself, unseen",
            _ => return None,
        };
        Some(format!("interrupts: not timed: {why}"))
    }
}

impl Delivery {
    /// Arms it for this function, without recording yet; or says why that cannot be.
    pub(super) fn arm(device: Bdf) -> Result<Self, String> {
        if let Some(other) = other_guest() {
            return Err(format!("another guest runs on this host (process {other})"));
        }
        let instance =
            tracing()?.join(format!("instances/strait-bench-irq-{}", std::process::id()));
        fs::create_dir(&instance).map_err(|error| format!("no tracer: {error}"))?;
        let this = Self { instance };
        this.set(device).map_err(|error| format!("no events of interrupts: {error}"))?;
        Ok(this)
    }

    fn set(&self, device: Bdf) -> io::Result<()> {
        self.record(false)?;
        fs::write(self.instance.join("trace_clock"), "mono")?;
        fs::write(self.instance.join("buffer_size_kb"), BUFFER_KIB)?;
        let filter = format!("name ~ \"vfio*{device}*\"");
        fs::write(self.instance.join("events").join(EVENTS[0]).join("filter"), filter)?;
        for event in EVENTS {
            fs::write(self.instance.join("events").join(event).join("enable"), "1")?;
        }
        Ok(())
    }

    /// Begins or ends what is measured.
    pub(super) fn record(&self, on: bool) -> io::Result<()> {
        fs::write(self.instance.join("tracing_on"), if on { "1" } else { "0" })
    }

    /// What was recorded.
    pub(super) fn delivered(&self) -> io::Result<Delivered> {
        Ok(parse(&fs::read_to_string(self.instance.join("trace"))?))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            log::info!("{} stays: {error}", self.instance.display());
        }
    }
}

/// One interrupt at a time is under way: the work waits for each.
fn parse(trace: &str) -> Delivered {
    let mut seen = Delivered::default();
    // When the host's handler took it, and by which vector the guest gets it.
    let mut under_way: Option<(f64, Option<u32>)> = None;
    for (at, event, rest) in trace.lines().filter_map(line) {
        match (event, under_way) {
            ("irq_handler_entry", _) => {
                seen.handled += 1;
                under_way = Some((at, None));
            }
            ("kvm_msi_set_irq", Some((begin, None))) => {
                under_way = Some((begin, number_after(rest, "vec ")));
            }
            ("kvm_inj_virq", Some((begin, Some(vector)))) if injected(rest) == Some(vector) => {
                seen.micros.push((at - begin) * 1e6);
                under_way = None;
            }
            _ => {}
        }
    }
    seen.micros.sort_by(f64::total_cmp);
    seen
}

/// `  <idle>-0  [001] d.h1.  123.456789: kvm_inj_virq: IRQ 0x23`: seconds, the event, the rest.
fn line(line: &str) -> Option<(f64, &str, &str)> {
    let (head, rest) = line.split_once(": ")?;
    let at = head.split_whitespace().next_back()?.parse().ok()?;
    let (event, rest) = rest.split_once(": ")?;
    Some((at, event.trim(), rest))
}

fn number_after(text: &str, word: &str) -> Option<u32> {
    text.split_once(word)?.1.split_whitespace().next()?.parse().ok()
}

/// `IRQ 0x23` of newer kernels, `irq 35` of older ones.
fn injected(text: &str) -> Option<u32> {
    let number = text.split_whitespace().nth(1)?;
    match number.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "# tracer: nop\n#\n\
        \x20         <idle>-0       [001] d.h1.   100.000000: irq_handler_entry: irq=28 name=vfio-msix[1](0000:00:04.0)\n\
        \x20         <idle>-0       [001] d.h1.   100.000010: kvm_msi_set_irq: dst 0 vec 35 (Fixed|physical|edge)\n\
        \x20         vcpu0-77       [000] d....   100.000015: kvm_inj_virq: IRQ 0xec\n\
        \x20         vcpu0-77       [000] d....   100.000042: kvm_inj_virq: IRQ 0x23\n\
        \x20         vcpu0-77       [000] d....   100.000050: kvm_inj_virq: IRQ 0x23\n\
        \x20         <idle>-0       [001] d.h1.   100.100000: irq_handler_entry: irq=28 name=vfio-msix[1](0000:00:04.0)\n\
        \x20         <idle>-0       [001] d.h1.   100.100004: kvm_msi_set_irq: dst 0 vec 35 (Fixed|physical|edge)\n\
        \x20         vcpu0-77       [000] d....   100.100020: kvm_inj_virq: irq 35\n\
        \x20         <idle>-0       [001] d.h1.   100.200000: irq_handler_entry: irq=28 name=vfio-msix[1](0000:00:04.0)\n";

    #[test]
    fn interrupts_are_timed_from_the_handler_to_the_entry_with_their_own_vector() {
        let seen = parse(TRACE);
        assert_eq!(seen.handled, 3);
        let rounded: Vec<f64> = seen.micros.iter().map(|micros| micros.round()).collect();
        assert_eq!(rounded, [20.0, 42.0]);
    }

    #[test]
    fn trace_without_events_or_of_posted_interrupts_has_no_figure() {
        assert_eq!(parse("# tracer: nop\n"), Delivered::default());
        let posted = TRACE.lines().filter(|line| !line.contains("inj_virq")).collect::<Vec<_>>();
        let seen = parse(&posted.join("\n"));
        assert_eq!((seen.handled, seen.micros.len()), (3, 0));
    }
}

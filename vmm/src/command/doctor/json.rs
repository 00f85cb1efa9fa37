//! What `--json` answers. docs/json.md lists every field, and a test compares the two.

use serde::Serialize;
use strait_resources::host::doctor::{Finding, Plan};

use super::next::Next;

/// Counts up when a field changes its meaning or goes; a new field does not.
const SCHEMA: &str = "strait.doctor/1";

#[derive(Serialize)]
pub(super) struct Answer<'a> {
    schema: &'static str,
    exit: u8,
    findings: Vec<Found<'a>>,
    next: Vec<&'a str>,
    plan: Option<Steps<'a>>,
}

#[derive(Serialize)]
struct Found<'a> {
    check: u8,
    name: &'static str,
    level: &'static str,
    code: Option<&'static str>,
    device: Option<String>,
    fact: &'a str,
    source: &'static str,
    fix: Option<&'a str>,
    details: &'a [String],
}

#[derive(Serialize)]
struct Steps<'a> {
    system: &'a str,
    steps: Vec<Step<'a>>,
}

#[derive(Serialize)]
struct Step<'a> {
    title: &'a str,
    lines: &'a [String],
}

pub(super) fn answer<'a>(
    findings: &'a [Finding],
    next: &'a Next,
    plan: Option<&'a Plan>,
    exit: u8,
) -> Answer<'a> {
    let found = |finding: &'a Finding| Found {
        check: finding.check,
        name: finding.name,
        level: finding.level.name(),
        code: finding.code.map(|code| code.id),
        device: finding.device.map(|bdf| bdf.to_string()),
        fact: &finding.fact,
        source: finding.source,
        fix: Some(finding.fix.as_str()).filter(|fix| !fix.is_empty()),
        details: &finding.details,
    };
    let steps = |plan: &'a Plan| Steps {
        system: &plan.system,
        steps: plan
            .steps
            .iter()
            .map(|step| Step { title: &step.title, lines: &step.lines })
            .collect(),
    };
    Answer {
        schema: SCHEMA,
        exit,
        findings: findings.iter().map(found).collect(),
        next: next.steps.iter().map(|step| step.command.as_str()).collect(),
        plan: plan.map(steps),
    }
}

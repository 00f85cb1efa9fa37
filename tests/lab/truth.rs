//! One truth: what `strait run --dry-run --json` said of a machine before it was started is what `strait inspect --json`
//! says of it while its guest runs. Every scenario whose guest is started by `vm_NAME` is held to it.

use serde_json::Value;

use crate::{
    outcome::{Outcome, Run},
    scenario::Vm,
};

/// Seconds of a guest's run within which it has been inspected, even in a busy lab.
const SEEN_WITHIN: f64 = 20.0;

/// Compares the two answers for this guest, where both were had: `Some` if they were compared.
pub(crate) fn check(outcome: &Outcome, vm: &Vm) -> Result<Option<()>, String> {
    let run = outcome.vm(&vm.name)?;
    let answer =
        |kind: &str| serde_json::from_str::<Value>(&outcome.text(&format!("{}.{kind}", vm.name)));
    let Ok(plan) = answer("plan.json") else { return Ok(None) };
    if plan["schema"] != "strait.plan/1" {
        return Ok(None);
    }
    let Ok(guest) = answer("inspect.json") else { return missed(run, vm, outcome) };
    // These write to BARs themselves.
    let moves = ["move-", "swap-", "hostile"].iter().any(|step| vm.steps.contains(step));
    let wrong = differences(&plan, &guest, moves);
    if wrong.is_empty() {
        return Ok(Some(()));
    }
    Err(format!("{}: --dry-run and inspect differ: {}", vm.name, wrong.join("; ")))
}

/// A guest that lived long enough should have answered.
fn missed(run: &Run, vm: &Vm, outcome: &Outcome) -> Result<Option<()>, String> {
    let long = run.report("up").is_ok() && run.seconds.is_some_and(|seconds| seconds > SEEN_WITHIN);
    let said = outcome.text(&format!("{}.inspect.err", vm.name));
    match long && outcome.text(&format!("{}.inspect.late", vm.name)).is_empty() {
        true => Err(format!("{}: strait inspect had no answer: {said}", vm.name)),
        false => Ok(None),
    }
}

/// What the two say differently, in words.
fn differences(plan: &Value, guest: &Value, moves: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut same = |what: &str, planned: &Value, seen: &Value| {
        if planned != seen {
            wrong.push(format!("{what} is {planned} in the plan and {seen} in the guest"));
        }
    };
    let hide = plan["cpus"]["hide"].as_str().unwrap_or_default();
    same("the number of CPUs", &plan["cpus"]["count"], &guest["cpus"]);
    same("memory", &ram(plan).into(), &guest["memory"]);
    same("memory", &plan["memory"]["size"], &guest["memory"]);
    same("KVM's visibility", &(hide == "no").into(), &guest["kvm_visible"]);
    same("the hypervisor's visibility", &(hide != "all").into(), &guest["hypervisor_visible"]);
    let battery = list(plan, "acpi").iter().any(|table| table["file"].is_null());
    same("the battery", &battery.into(), &guest["fake_battery"]);
    same("DMA between devices", &plan["p2p"], &guest["p2p"]);
    let (planned, seen) = (list(plan, "devices"), list(guest, "devices"));
    same("the number of devices", &planned.len().into(), &seen.len().into());
    for device in planned {
        let bdf = device["bdf"].as_str().unwrap_or_default();
        let Some(other) = seen.iter().find(|other| other["bdf"] == device["bdf"]) else {
            same(bdf, &device["guest"], &Value::Null);
            continue;
        };
        same(&format!("{bdf}'s address"), &device["guest"], &other["guest"]);
        same(&format!("{bdf}'s IDs"), &device["shown_as"], &other["shown_as"]);
        let (bars, seen) = (list(device, "bars"), list(other, "bars"));
        same(&format!("{bdf}'s number of BARs"), &bars.len().into(), &seen.len().into());
        for bar in bars {
            let what = format!("{bdf}'s BAR {}", bar["index"]);
            let Some(now) = seen.iter().find(|now| now["index"] == bar["index"]) else {
                same(&what, &bar["size"], &Value::Null);
                continue;
            };
            same(&format!("the kind of {what}"), &bar["kind"], &now["kind"]);
            same(&format!("the size of {what}"), &bar["size"], &now["size"]);
            if !moves && now["decoded"] == true {
                same(&format!("the address of {what}"), &bar["first"], &now["address"]);
            }
        }
    }
    wrong
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Bytes of RAM in the plan's address map.
fn ram(plan: &Value) -> u64 {
    let length = |range: &Value| Some(range["last"].as_u64()? - range["first"].as_u64()? + 1);
    list(&plan["addresses"], "ram").iter().filter_map(length).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan() -> Value {
        json!({
            "cpus": {"count": 2, "hide": "kvm"},
            "memory": {"size": 4096},
            "addresses": {"ram": [{"first": 0, "last": 4095}]},
            "acpi": [],
            "p2p": false,
            "devices": [{"bdf": "0000:00:04.0", "guest": "0000:01:00.0", "shown_as": null, "bars":
                [{"index": 0, "kind": "memory64", "size": 16384, "first": 0xe000_0000u64}]}],
        })
    }

    fn guest() -> Value {
        json!({
            "cpus": 2, "memory": 4096, "kvm_visible": false, "hypervisor_visible": true, "fake_battery": false,
            "p2p": false,
            "devices": [{"bdf": "0000:00:04.0", "guest": "0000:01:00.0", "shown_as": null, "bars":
                [{"index": 0, "kind": "memory64", "size": 16384, "address": 0xe000_0000u64, "decoded": true}]}],
        })
    }

    #[test]
    fn machine_that_is_as_planned_has_no_differences() {
        assert_eq!(differences(&plan(), &guest(), false), [""; 0]);
    }

    #[test]
    fn each_difference_between_plan_and_guest_is_found() {
        for (path, value) in [
            ("/cpus", json!(1)),
            ("/memory", json!(8192)),
            ("/kvm_visible", json!(true)),
            ("/hypervisor_visible", json!(false)),
            ("/fake_battery", json!(true)),
            ("/p2p", json!(true)),
            ("/devices", json!([])),
            ("/devices/0/guest", json!("0000:02:00.0")),
            ("/devices/0/shown_as", json!("10de:1e07")),
            ("/devices/0/bars/0/size", json!(4096)),
            ("/devices/0/bars/0/kind", json!("io")),
            ("/devices/0/bars/0/address", json!(0)),
        ] {
            let mut other = guest();
            *other.pointer_mut(path).expect("a path of the answer") = value;
            assert!(!differences(&plan(), &other, false).is_empty(), "{path}");
        }
    }

    #[test]
    fn moved_bar_is_no_difference_where_the_guest_moves_it() {
        let mut moved = guest();
        moved["devices"][0]["bars"][0]["address"] = json!(0x1000);
        assert!(differences(&plan(), &moved, true).is_empty());
        assert!(!differences(&plan(), &moved, false).is_empty());
    }
}

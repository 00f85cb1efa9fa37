//! `strait bench` as far as it goes without a device: what it refuses, and the comparison of two results.

mod golden;

use std::{fs, process::Command};

use serde_json::{Value, json};

fn strait(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_strait")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A whole report with one row, whose figures are these.
fn report(samples: [f64; 2]) -> Value {
    let [min, max] = samples;
    let median = (min + max) / 2.0;
    json!({
        "schema": "strait.bench/1", "date": "d", "command": ["strait"],
        "host": {"name": "h", "kernel": "k", "cpu": "c", "cpus": 1},
        "device": {"bdf": "0000:3b:00.0", "id": "1b36:0010", "name": "n"},
        "settings": {"runs": 2, "warm_up": 1, "memory": 1, "cpus": 1, "kernel": "k", "workload": null},
        "contenders": [{"name": "strait", "version": "v", "command": ["c"], "latency": [[50.0, 1.0]],
            "exits": null, "start": [{"name": "s", "begin": 0.0, "end": 1.0, "beside": false}]}],
        "rows": [{"id": "start.init", "title": "start", "unit": "s", "less_is_better": true,
            "results": {"strait": {"median": median, "min": min, "max": max, "samples": samples}}}],
        "notes": ["n"],
    })
}

#[test]
fn compare_answers_as_documented() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, samples| {
        let path = directory.path().join(name);
        fs::write(&path, report(samples).to_string()).unwrap();
        path.display().to_string()
    };
    let (before, after) = (file("a.json", [4.0, 5.0]), file("b.json", [2.0, 3.0]));
    let (status, out, errors) = strait(&["bench", "compare", &before, &after, "--json"]);
    assert_eq!(status, Some(0), "{errors}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["rows"][0]["verdict"], "better");
    golden::assert_schema("strait bench compare --json", &answer);
    let (_, out, _) = strait(&["bench", "compare", &after, &before]);
    golden::assert_golden("bench-compare.txt", &out);
}

/// The form that `compare` reads is the one that is documented: the fields by contender as `*`.
#[test]
fn report_has_the_documented_fields() {
    let text =
        report([1.0, 2.0]).to_string().replace(r#""results":{"strait":"#, r#""results":{"*":"#);
    golden::assert_schema("strait bench --json", &serde_json::from_str(&text).unwrap());
}

#[test]
fn bad_input_is_refused_by_code() {
    for (arguments, code, says) in [
        (&["bench"][..], "E2001", "--vfio is missing"),
        (&["bench", "--vfio", "nonsense"], "E2003", "nonsense"),
        (&["bench", "--vfio", "ffff:ff:1f.7"], "E1101", "ffff:ff:1f.7"),
        (&["bench", "--vfio", "3b:00.0", "--runs", "0"], "E2001", "0"),
        (&["bench", "--vfio", "3b:00.0", "--peer", "10.0.0.1"], "E2003", "--peer 10.0.0.1"),
        (&["bench", "compare", "/dev/null", "/dev/null"], "E2151", "/dev/null"),
        (&["bench", "compare", "/absent", "/dev/null"], "E2151", "/absent"),
    ] {
        let (status, out, errors) = strait(arguments);
        assert!(errors.contains(&format!("error[{code}]")), "{arguments:?}: {errors}");
        assert!(errors.contains(says) && errors.contains("fix: "), "{arguments:?}: {errors}");
        assert!(status.is_some_and(|status| status != 0) && out.is_empty(), "{arguments:?}");
    }
}

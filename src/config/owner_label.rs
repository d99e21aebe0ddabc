//! Owner labels: which are allowed, and the label of a process that sets none.

use std::fs;
use std::sync::Arc;

use crate::protocol::token::{MAX_OWNER_LABEL, OwnerLabel};
use crate::sync::threads;

/// The host of the default label where the operating system tells none.
const UNKNOWN_HOST: &str = "unknown-host";

/// Validates a label.
///
/// # Errors
/// The reason, which names the label.
pub(crate) fn validate(label: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| (b' '..=b'~').contains(&byte);
    match (1..=MAX_OWNER_LABEL).contains(&label.len()) && label.bytes().all(is_allowed) {
        true => Ok(()),
        false => Err(format!(
            "owner_label {label:?} is not 1 to {MAX_OWNER_LABEL} printable ASCII characters"
        )),
    }
}

/// Returns `HOST/PID`, by which an operator finds the process.
pub(super) fn default_label() -> OwnerLabel {
    // Linux has the name in the file; elsewhere a shell may have set the variables.
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = |name: &str| std::env::var(name).ok();
    let host = name
        .or_else(|| variable("HOSTNAME"))
        .or_else(|| variable("COMPUTERNAME"))
        .unwrap_or_default();
    Arc::new(host_and_pid(&host, threads::process_id()))
}

/// Joins host and process id. Characters that a label cannot have are left out, and the host is cut
/// to the length of a label.
fn host_and_pid(host: &str, pid: u32) -> String {
    let pid = format!("/{pid}");
    let allowed = host.chars().filter(char::is_ascii_graphic);
    let host: String = allowed.take(MAX_OWNER_LABEL - pid.len()).collect();
    match host.is_empty() {
        true => format!("{UNKNOWN_HOST}{pid}"),
        false => format!("{host}{pid}"),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn default_label_is_host_and_pid_and_always_valid() {
        let long = "h".repeat(200);
        for (host, pid, expected) in [
            ("web-7\n", 1234, "web-7/1234".to_owned()),
            ("", 1, "unknown-host/1".to_owned()),
            ("é \n", 7, "unknown-host/7".to_owned()),
            (&long, u32::MAX, format!("{}/4294967295", "h".repeat(53))),
        ] {
            let label = host_and_pid(host, pid);
            assert_eq!((validate(&label), &label), (Ok(()), &expected));
        }
        let ours = default_label();
        assert!(
            ours.ends_with(&format!("/{}", threads::process_id())),
            "{ours}"
        );
        assert_eq!(validate(&ours), Ok(()));
    }

    #[test]
    fn label_is_one_to_64_printable_characters() {
        let longest = "x".repeat(MAX_OWNER_LABEL);
        for label in [
            "a",
            "web 7",
            "10.0.0.1:8080",
            "2026-11-28T00:37:18Z",
            &longest,
        ] {
            assert_eq!(validate(label), Ok(()), "{label}");
        }
        for label in ["", "a\n", "\u{7f}", "é", &format!("{longest}x")] {
            let reason = validate(label).unwrap_err();
            assert!(reason.contains(&format!("{label:?}")), "{reason}");
        }
    }
}

//! The default owner label: `HOST/PID`.

/// The longest host name in a label.
const MAX_HOST: usize = 48;

/// Returns `HOST/PID`, without characters that a label cannot contain.
pub(crate) fn default_label() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    label(&host.to_string_lossy(), std::process::id())
}

fn label(host: &str, pid: u32) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '-' };
    let host: String = host.chars().map(printable).take(MAX_HOST).collect();
    format!("{host}/{pid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_is_printable_and_short() {
        assert_eq!(label("web-7.example", 12), "web-7.example/12");
        assert_eq!(label("ho st\u{fc}", 1), "ho-st-/1");
        assert!(label(&"x".repeat(99), u32::MAX).len() <= 64);
    }
}

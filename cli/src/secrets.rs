//! Passwords in texts that repeat arguments.

use redguard::Endpoint;

/// Returns a text in which each word that may be an address with a login is shown as the library
/// shows an address.
pub(crate) fn hidden(text: &str) -> String {
    let words = text.split_inclusive(char::is_whitespace);
    let words = words.map(|word| {
        let address = word.trim().trim_start_matches(['\'', '"', '`', '(']);
        let address = address.trim_end_matches(|c| "'\"`).,:;?".contains(c));
        match may_have_secret(address) {
            true => word.replace(address, &Endpoint::from(address).to_string()),
            false => word.to_owned(),
        }
    });
    words.collect()
}

/// Returns whether a word has the form of a login before a host, or of an option with a password.
fn may_have_secret(word: &str) -> bool {
    let has_colon = |text: &str| text.contains(':');
    let behind_scheme = word.split_once("://").map(|(_, rest)| rest);
    let before_host = word.rsplit_once('@').map(|(login, _)| login);
    behind_scheme.is_some_and(has_colon)
        || before_host.is_some_and(has_colon)
        || word.contains("pass") && word.contains('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_in_a_text_shows_no_secret() {
        for address in [
            "redis://:s3cret@h",
            "redis://joe:s3cret@h:6379/1",
            "redis://s3cret@h",
            "redis://:s3cret",
            "joe:s3cret@h",
            ":s3c@s3cret@h",
            "rediss+sentinel://:s3cret@h+i/shop",
            "redis://:s3cret@h,redis://:s3cret@i",
            "h,redis://:s3cret@i",
            "redis://h:1,redis://:s3cret@i",
            "--redis=redis://:s3cret@h",
            "-rredis://:s3cret@h",
            "@redis://:s3cret@h",
            "unix:///run/redis.sock?db=1&pass=s3cret",
            "h:6380,password=s3cret,ssl=True",
            "--password=s3cret",
        ] {
            for text in [
                format!("unexpected argument '{address}' found"),
                format!("did you mean `-- make {address}`?"),
                format!("\"{address}\": No such file"),
            ] {
                let shown = hidden(&text);
                assert!(!shown.contains("s3c"), "{shown}");
                assert_eq!(shown.split(' ').count(), text.split(' ').count(), "{shown}");
            }
        }
        let text = "did you mean `-- ping redis://:s3cret@h:1`?";
        assert_eq!(hidden(text), "did you mean `-- ping redis://h:1`?");
    }

    #[test]
    fn text_without_a_login_is_unchanged() {
        for text in [
            "did you mean `-- ssh joe@h  make -j`?",
            "unexpected argument 'https://h/a?b=c#d' found",
            "\"/etc/passwd\": no nodes in this file; see `a: b`\n",
            "--timeout must be above 0",
        ] {
            assert_eq!(hidden(text), text);
        }
    }
}

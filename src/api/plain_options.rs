//! The part of `LockOptions` that a file of settings can have. With the feature `serde`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::options::{LockOptions, Wait};
use crate::time::human;

/// The options under the names of the methods of [`LockOptions`].
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PlainOptions {
    #[serde(with = "human")]
    ttl: Duration,
    #[serde(default, with = "human::optional")]
    wait_for: Option<Duration>,
    #[serde(default)]
    fencing: bool,
    #[serde(default)]
    auto_renew: bool,
    #[serde(default, with = "human::optional")]
    max_renewal: Option<Duration>,
    #[serde(default, with = "human::optional")]
    min_hold: Option<Duration>,
    owner_label: Option<String>,
}

/// From a map of options under the names of the methods, and `ttl`. Durations are texts such as
/// `30s`. Callbacks, [`wait_until`](LockOptions::wait_until) and
/// [`cancel_on`](LockOptions::cancel_on) are left to the program. With the feature `serde`.
///
/// ```
/// let options: redguard::LockOptions =
///     serde_json::from_str(r#"{ "ttl": "30s", "auto_renew": true, "wait_for": "1m" }"#)?;
/// # Ok::<_, serde_json::Error>(())
/// ```
impl<'de> Deserialize<'de> for LockOptions {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<LockOptions, D::Error> {
        let plain = PlainOptions::deserialize(from)?;
        let mut options = LockOptions::new(plain.ttl)
            .fencing(plain.fencing)
            .auto_renew(plain.auto_renew)
            .min_hold(plain.min_hold.unwrap_or_default());
        if let Some(limit) = plain.wait_for {
            options = options.wait_for(limit);
        }
        if let Some(limit) = plain.max_renewal {
            options = options.max_renewal(limit);
        }
        if let Some(label) = plain.owner_label {
            options = options.owner_label(label);
        }
        Ok(options)
    }
}

/// Writes what can be read. Other options are left out.
impl Serialize for LockOptions {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let lease_options = self.lease_options();
        let plain = PlainOptions {
            ttl: self.ttl(),
            wait_for: match self.wait() {
                Some(Wait::For(limit)) => Some(limit),
                _ => None,
            },
            fencing: self.is_fenced(),
            auto_renew: lease_options.auto_renew,
            max_renewal: lease_options.max_renewal,
            min_hold: Some(lease_options.min_hold).filter(|time| !time.is_zero()),
            owner_label: self.label().map(|label| label.to_string()),
        };
        plain.serialize(to)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn options_written_and_read_are_unchanged() {
        let seconds = Duration::from_secs;
        let all = LockOptions::new(seconds(90))
            .wait_for(seconds(5))
            .fencing(true)
            .auto_renew(true)
            .max_renewal(seconds(3600))
            .min_hold(seconds(7))
            .owner_label("web-7:1");
        for options in [LockOptions::new(Duration::from_millis(1_500)), all] {
            let text = serde_json::to_string(&options).unwrap();
            assert_eq!(
                serde_json::from_str::<LockOptions>(&text).unwrap(),
                options,
                "{text}"
            );
            let with_callback = options.clone().on_lost(|_| ());
            assert_eq!(serde_json::to_string(&with_callback).unwrap(), text);
        }
        for (text, word) in [
            ("{}", "ttl"),
            (r#"{ "ttl": "30 parsecs" }"#, "parsecs"),
            (r#"{ "ttl": "30s", "renew": true }"#, "renew"),
        ] {
            let error = serde_json::from_str::<LockOptions>(text)
                .map(|_| ())
                .unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

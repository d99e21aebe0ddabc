//! Settings: command line before environment before `~/.config/redguard.toml` before
//! `/etc/redguard.toml`, each setting by itself.

use std::env::{self, VarError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::args::Common;
use crate::duration;
use crate::failure::{Failure, Result};
use crate::nodes::spec::{self, NodeSpec};

const SYSTEM_FILE: &str = "/etc/redguard.toml";
const DEFAULT_PREFIX: &str = "redguard:";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);
const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// The settings of all commands.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) prefix: String,
    pub(crate) owner: Option<String>,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) quarantine: Option<Duration>,
    pub(crate) tls: TlsFiles,
}

/// The contents of the PEM files.
#[derive(Clone, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<Vec<u8>>,
    /// The certificate and its private key.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    pub(crate) fn is_empty(&self) -> bool {
        self.ca.is_none() && self.client.is_none()
    }
}

/// A configuration file.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    nodes: Option<NodeList>,
    prefix: Option<String>,
    owner: Option<String>,
    #[serde(default, deserialize_with = "time")]
    ttl: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    quarantine: Option<Duration>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

/// `nodes = ["a", "b"]`, `nodes = "a,b"` or `nodes = "@FILE"`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum NodeList {
    Text(String),
    List(Vec<String>),
}

impl NodeList {
    fn into_text(self) -> String {
        match self {
            NodeList::Text(text) => text,
            NodeList::List(list) => list.join("\n"),
        }
    }
}

/// A number of seconds, or a text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

fn time<'de, D: Deserializer<'de>>(source: D) -> std::result::Result<Option<Duration>, D::Error> {
    let text = match Time::deserialize(source)? {
        Time::Seconds(seconds) => seconds.to_string(),
        Time::Text(text) => text,
    };
    duration::parse(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

impl Settings {
    /// Reads all sources of settings.
    ///
    /// # Errors
    /// `Usage` if a source cannot be read or parsed, and without nodes.
    pub(crate) fn load(common: &Common) -> Result<Settings> {
        let file = match &common.config {
            Some(path) => read_file(path)?.ok_or_else(|| missing(path))?,
            None => user_file()
                .as_deref()
                .map(read_file)
                .transpose()?
                .flatten()
                .unwrap_or_default()
                .or(read_file(Path::new(SYSTEM_FILE))?.unwrap_or_default()),
        };
        let nodes = node_list(common, file.nodes)?;
        let tls = TlsFiles {
            ca: read_pem(common.ca.clone().or(file.ca))?,
            client: match (
                read_pem(common.cert.clone().or(file.cert))?,
                read_pem(common.key_file.clone().or(file.key_file))?,
            ) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                _ => return Err(Failure::usage("cert and key_file go together")),
            },
        };
        let timeout = common.timeout.or(file.timeout).unwrap_or(DEFAULT_TIMEOUT);
        if timeout.is_zero() {
            return Err(Failure::usage("--timeout must be above 0"));
        }
        let prefix = common.prefix.clone().or(file.prefix);
        Ok(Settings {
            nodes,
            prefix: prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            owner: file.owner,
            ttl: file.ttl.unwrap_or(DEFAULT_TTL),
            timeout,
            quarantine: file.quarantine,
            tls,
        })
    }

    /// Returns the limit for a connect.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.timeout.saturating_mul(5)
    }

    /// Returns the number of nodes that is a quorum.
    pub(crate) fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }
}

impl ConfigFile {
    /// Fills the settings that are not in this file from another one.
    fn or(self, other: ConfigFile) -> ConfigFile {
        ConfigFile {
            nodes: self.nodes.or(other.nodes),
            prefix: self.prefix.or(other.prefix),
            owner: self.owner.or(other.owner),
            ttl: self.ttl.or(other.ttl),
            timeout: self.timeout.or(other.timeout),
            quarantine: self.quarantine.or(other.quarantine),
            ca: self.ca.or(other.ca),
            cert: self.cert.or(other.cert),
            key_file: self.key_file.or(other.key_file),
        }
    }
}

/// Returns the nodes of the first source that names any.
fn node_list(common: &Common, file: Option<NodeList>) -> Result<Vec<NodeSpec>> {
    let text = if let Some(list) = &common.redis {
        list.clone()
    } else if let Some(path) = variable("REDGUARD_NODES_FILE")? {
        format!("@{path}")
    } else if let Some(list) = variable("REDIS_URLS")? {
        list
    } else {
        file.map(NodeList::into_text).unwrap_or_default()
    };
    let (nodes, empty) = match text.trim().strip_prefix('@') {
        Some(path) => {
            let nodes = spec::parse_list(&read_list(path.trim())?)?;
            (nodes, format!("{}: no nodes in this file", path.trim()))
        }
        None => {
            let empty = "no nodes were given: use --redis, REDIS_URLS, REDGUARD_NODES_FILE, or \
                         `nodes` in /etc/redguard.toml";
            (spec::parse_list(&text)?, empty.to_owned())
        }
    };
    match nodes.is_empty() {
        true => Err(Failure::usage(empty)),
        false => Ok(nodes),
    }
}

/// Returns a variable of the environment, `None` if it is not set or blank. An
/// unreadable one is an error: the next source may name other nodes.
fn variable(name: &str) -> Result<Option<String>> {
    match env::var(name) {
        Ok(text) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Failure::usage(format!("{name}: not UTF-8"))),
    }
}

/// Reads a file of nodes, without the mark that some editors write before UTF-8.
fn read_list(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned()),
        Err(error) => Err(Failure::usage(format!("{path:?}: {error}"))),
    }
}

fn user_file() -> Option<PathBuf> {
    let config = match env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME")?).join(".config"),
    };
    Some(config.join("redguard.toml"))
}

/// Reads a configuration file; returns `None` if there is none.
fn read_file(path: &Path) -> Result<Option<ConfigFile>> {
    match fs::read_to_string(path) {
        Ok(text) => parse_file(&text)
            .map(Some)
            .map_err(|reason| Failure::usage(format!("{}: {reason}", path.display()))),
        // A user without a home has `/dev/null/.config`, for example.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Failure::usage(format!("{}: {error}", path.display()))),
    }
}

/// Parses a configuration file. The reason quotes no line, because a line may contain a password.
fn parse_file(text: &str) -> std::result::Result<ConfigFile, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..before]
            .iter()
            .filter(|byte| **byte == b'\n');
        format!("line {}: {}", line.count() + 1, error.message())
    })
}

fn missing(path: &Path) -> Failure {
    Failure::usage(format!("{}: no such file", path.display()))
}

fn read_pem(path: Option<PathBuf>) -> Result<Option<Vec<u8>>> {
    let read = |path: PathBuf| {
        fs::read(&path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
    };
    path.map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_parsed_and_completed_by_another() {
        let user = parse_file("nodes = [\"a\", \"b\"]\nttl = \"1m\"\n").unwrap();
        let system = parse_file("nodes = \"@f\"\nprefix = \"p:\"\nttl = 5\ntimeout = 0.5").unwrap();
        let file = user.or(system);
        assert_eq!(file.nodes.unwrap().into_text(), "a\nb");
        assert_eq!(file.prefix.as_deref(), Some("p:"));
        assert_eq!(file.ttl, Some(Duration::from_secs(60)));
        assert_eq!(file.timeout, Some(Duration::from_millis(500)));
    }

    #[test]
    fn wrong_file_is_refused_without_its_text() {
        for (text, reason) in [
            ("\nnodes = \"redis://:s3cret@h\"\nnoodles = 1", "line 3: "),
            ("nodes = \"redis://:s3cret@h", "line 1: "),
            ("ttl = \"redis://:s3cret@h\"", "line 1: "),
            ("nodes = 1", "line 1: "),
        ] {
            let told = parse_file(text).unwrap_err();
            assert!(told.starts_with(reason), "{told}");
            assert!(
                !told.contains("s3cret") && told.lines().count() == 1,
                "{told}"
            );
        }
    }
}

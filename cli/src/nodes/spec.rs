//! Addresses of nodes: servers, Sentinel-watched masters and clusters, in one list of texts.

use redguard::{Credentials, Endpoint};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::failure::{Failure, Result};

/// The default port of a sentinel.
const SENTINEL_PORT: u16 = 26379;

const NOT_AN_ADDRESS: &str = "not an address of a node";
const NOT_OVER_TLS: &str = "the address is not over TLS, but --ca or --cert is given";

/// One node of the quorum.
#[derive(Clone)]
pub(crate) struct NodeSpec {
    kind: SpecKind,
}

/// Addresses may contain passwords, so there is no `Debug`.
#[derive(Clone)]
enum SpecKind {
    Server(String),
    Sentinel {
        sentinels: Vec<String>,
        master: String,
        /// The master's address, with a placeholder for the host.
        template: Box<ConnectionInfo>,
        /// The library's name of the node.
        name: String,
    },
    Cluster(Vec<String>),
}

/// Where the servers of a node are found.
pub(crate) enum Servers {
    One(ConnectionInfo),
    /// The sentinels, the name of their master, and its address with a placeholder for the host.
    Sentinel(Vec<ConnectionInfo>, String, ConnectionInfo),
    Cluster(Vec<ConnectionInfo>),
}

/// Parses addresses that are separated by commas or white space. `#` begins a comment at the start
/// of a word.
///
/// # Errors
/// `Usage` if one is not an address; the line shows no secret.
pub(crate) fn parse_list(text: &str) -> Result<Vec<NodeSpec>> {
    let lines = text.lines().map(|line| match line.find('#') {
        Some(at) if at == 0 || line[..at].ends_with([' ', '\t', ',']) => &line[..at],
        _ => line,
    });
    let addresses = lines.flat_map(|line| line.split([',', ' ', '\t']));
    let addresses = addresses
        .map(str::trim)
        .filter(|address| !address.is_empty());
    addresses.map(NodeSpec::parse).collect()
}

impl NodeSpec {
    fn parse(address: &str) -> Result<NodeSpec> {
        let kind = match address.split_once("://") {
            Some(("redis+sentinel", rest)) => sentinel("redis", rest)?,
            Some(("rediss+sentinel", rest)) => sentinel("rediss", rest)?,
            Some(("redis+cluster", rest)) => cluster("redis", rest)?,
            Some(("rediss+cluster", rest)) => cluster("rediss", rest)?,
            _ => SpecKind::Server(address.to_owned()),
        };
        Ok(NodeSpec { kind })
    }

    /// Returns the node as the library takes it.
    pub(crate) fn endpoint(&self) -> Endpoint {
        match &self.kind {
            SpecKind::Server(address) => Endpoint::from(address),
            SpecKind::Sentinel {
                sentinels, master, ..
            } => Endpoint::sentinel(master, sentinels),
            SpecKind::Cluster(seeds) => Endpoint::cluster(seeds),
        }
    }

    /// Returns the node's name for people, without secrets.
    pub(crate) fn name(&self) -> String {
        let shown = self.endpoint().to_string();
        match shown.strip_prefix("redis://") {
            Some(host) => host.to_owned(),
            None => shown,
        }
    }

    /// Returns where the servers of the node are found. An address without a scheme is over TLS if
    /// there are files for TLS, as the library takes it.
    ///
    /// # Errors
    /// `Usage` if an address cannot be parsed, or is not over TLS although there are files for it.
    pub(crate) fn servers(&self, has_tls_files: bool) -> Result<Servers> {
        let parse = |address: &String| {
            let info = connection_info(address, has_tls_files);
            info.map_err(|reason| Failure::usage(format!("{}: {reason}", self.name())))
        };
        let all = |addresses: &[String]| addresses.iter().map(parse).collect::<Result<Vec<_>>>();
        Ok(match &self.kind {
            SpecKind::Server(address) => Servers::One(parse(address)?),
            SpecKind::Sentinel {
                sentinels,
                master,
                template,
                ..
            } => Servers::Sentinel(all(sentinels)?, master.clone(), (**template).clone()),
            SpecKind::Cluster(seeds) => Servers::Cluster(all(seeds)?),
        })
    }

    /// Returns the library's name of a Sentinel-watched master, and the master's credentials, which
    /// the library does not take from the addresses of the sentinels; `None` without credentials.
    pub(crate) fn master_login(&self) -> Option<(String, Credentials)> {
        let SpecKind::Sentinel { template, name, .. } = &self.kind else {
            return None;
        };
        let login = template.redis_settings();
        let password = login.password()?;
        let credentials = match login.username() {
            Some(username) => Credentials::new(username, password),
            None => Credentials::password(password),
        };
        Some((name.clone(), credentials))
    }
}

/// Parses the address of a server. The reason of an error shows no secret.
fn connection_info(
    address: &str,
    has_tls_files: bool,
) -> std::result::Result<ConnectionInfo, &'static str> {
    // An address that the library would refuse may have a password where the host is expected.
    if address.contains([';', '=']) && !address.contains("://") {
        return Err(NOT_AN_ADDRESS);
    }
    let url = match address.split_once("://") {
        Some(("valkey", rest)) => format!("redis://{rest}"),
        Some(("valkeys", rest)) => format!("rediss://{rest}"),
        Some(_) => address.to_owned(),
        None if address.starts_with(['/', '.']) => format!("unix://{address}"),
        None if has_tls_files => format!("rediss://{address}"),
        None => format!("redis://{address}"),
    };
    let info = url.into_connection_info().map_err(|_| NOT_AN_ADDRESS)?;
    if has_tls_files && !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Err(NOT_OVER_TLS);
    }
    // The name of a library is of no use, and a hung node would be waited for at the connect.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    Ok(info.set_redis_settings(settings))
}

/// Parses `[user:password@]host[:port]+host[:port]…` into the login with its `@`, and the hosts.
fn hosts(text: &str) -> (&str, Vec<&str>) {
    let (login, hosts) = text.split_at(text.rfind('@').map_or(0, |at| at + 1));
    let hosts = hosts.split('+').filter(|host| !host.is_empty());
    (login, hosts.collect())
}

/// Parses `[user:password@]host+host/MASTER`; the credentials are for the sentinels and the master.
fn sentinel(scheme: &str, rest: &str) -> Result<SpecKind> {
    let refuse = |_| {
        let line = "a sentinel address is redis+sentinel://host:26379+host:26379/MASTER";
        Failure::usage(line)
    };
    let (before, master) = rest.rsplit_once('/').unwrap_or_default();
    let (login, hosts) = hosts(before);
    let sentinels: Vec<String> = hosts
        .into_iter()
        .map(|host| format!("{scheme}://{login}{}", with_port(host)))
        .collect();
    let (Some(first), false) = (sentinels.first(), master.is_empty()) else {
        return Err(refuse(NOT_AN_ADDRESS));
    };
    let first = connection_info(first, false).map_err(refuse)?;
    let template = format!("{scheme}://{login}placeholder");
    let template = connection_info(&template, false).map_err(refuse)?;
    Ok(SpecKind::Sentinel {
        sentinels,
        master: master.to_owned(),
        template: Box::new(template),
        name: format!("sentinel:{master}@{}", host_port(&first)),
    })
}

/// Adds the port of a sentinel to a host that has none.
fn with_port(host: &str) -> String {
    // An IPv6 address has colons, too, in brackets.
    let behind_brackets = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    match behind_brackets.contains(':') {
        true => host.to_owned(),
        false => format!("{host}:{SENTINEL_PORT}"),
    }
}

/// Formats host and port as the library does in the names of nodes.
fn host_port(info: &ConnectionInfo) -> String {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            let host = host.to_ascii_lowercase();
            match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            }
        }
        other => other.to_string(),
    }
}

fn cluster(scheme: &str, rest: &str) -> Result<SpecKind> {
    let (login, hosts) = hosts(rest.trim_end_matches('/'));
    if hosts.is_empty() {
        let line = "a cluster address is redis+cluster://host:6379+host:6379";
        return Err(Failure::usage(line));
    }
    let seeds = hosts.into_iter();
    let seeds = seeds.map(|host| format!("{scheme}://{login}{host}"));
    Ok(SpecKind::Cluster(seeds.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let nodes = parse_list(text).map_err(|failure| failure.line).unwrap();
        nodes.iter().map(NodeSpec::name).collect()
    }

    #[test]
    fn list_has_commas_lines_and_comments() {
        let text = "# the lock nodes\na:1, redis://joe:s3cret@b:2\n\n  /run/c.sock # local\nrediss://d:3\n";
        let wanted = ["a:1", "b:2", "/run/c.sock", "rediss://d:3"];
        assert_eq!(names(text), wanted);
        assert_eq!(names(" , \n#a\n"), [""; 0]);
    }

    #[test]
    fn sentinel_and_cluster_are_one_node_each() {
        let text = "redis+sentinel://joe:s3cret@a:1+b:2/shop,rediss+cluster://c+d:4";
        let wanted = [
            r#"sentinel("shop", [redis://a:1, redis://b:2])"#,
            "cluster([rediss://c, rediss://d:4])",
        ];
        assert_eq!(names(text), wanted);
        for wrong in [
            "redis+sentinel://a:1",
            "redis+sentinel:///m",
            "redis+sentinel://joe:s3cret@/m",
            "redis+sentinel://a:1/",
            "redis+cluster://",
        ] {
            assert!(parse_list(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn refused_address_shows_no_secret() {
        for address in [
            "h:6380;password=s3cret=;ssl=True",
            "http://joe:s3cret@h",
            "redis://joe:s3cret@h:port",
        ] {
            let spec = parse_list(address).unwrap().remove(0);
            let Err(failure) = spec.servers(false) else {
                panic!("{address} is accepted")
            };
            assert!(!failure.line.contains("s3cret"), "{}", failure.line);
        }
    }

    #[test]
    fn bare_address_is_over_tls_if_there_are_files_for_it() {
        let is_over_tls = |address: &str, has_tls_files| {
            let spec = parse_list(address).unwrap().remove(0);
            spec.servers(has_tls_files).map(|servers| {
                let Servers::One(info) = servers else {
                    panic!("{address} is one server")
                };
                matches!(info.addr(), ConnectionAddr::TcpTls { .. })
            })
        };
        for address in ["h", "h:1", "joe:s3cret@h:1", "[::1]:1"] {
            assert!(is_over_tls(address, true).unwrap(), "{address}");
            assert!(!is_over_tls(address, false).unwrap(), "{address}");
        }
        assert!(is_over_tls("rediss://h", false).unwrap());
        assert!(is_over_tls("valkeys://h", true).unwrap());
        for address in ["redis://:s3cret@h", "valkey://h", "unix:///s", "/s"] {
            let line = is_over_tls(address, true).unwrap_err().line;
            assert!(line.ends_with(NOT_OVER_TLS), "{line}");
            assert!(!line.contains("s3cret"), "{line}");
        }
        for address in ["redis+sentinel://h/shop", "redis+cluster://h"] {
            let spec = parse_list(address).unwrap().remove(0);
            assert!(spec.servers(true).is_err(), "{address}");
        }
    }

    #[test]
    fn sentinel_without_a_port_has_the_one_of_sentinels() {
        let spec = parse_list("redis+sentinel://a+b:1+[::1]+[::1]:2/shop").unwrap();
        let Servers::Sentinel(sentinels, ..) = spec[0].servers(false).unwrap() else {
            panic!("no sentinels")
        };
        let ports: Vec<String> = sentinels.iter().map(host_port).collect();
        assert_eq!(ports, ["a:26379", "b:1", "[::1]:26379", "[::1]:2"]);
    }

    #[test]
    fn credentials_of_a_sentinel_address_are_for_its_master() {
        for (address, login) in [
            (
                "redis+sentinel://joe:s3%40cret@A+b/shop",
                Some(("sentinel:shop@a:26379", Credentials::new("joe", "s3@cret"))),
            ),
            (
                "rediss+sentinel://:s3cret@[0::1]:1/shop",
                Some(("sentinel:shop@[::1]:1", Credentials::password("s3cret"))),
            ),
            ("redis+sentinel://a/shop", None),
            ("redis://joe:s3cret@a", None),
            ("redis+cluster://joe:s3cret@a", None),
        ] {
            let spec = parse_list(address).unwrap().remove(0);
            let login = login.map(|(name, credentials)| (name.to_owned(), credentials));
            assert_eq!(spec.master_login(), login, "{address}");
        }
    }
}

//! Addresses of nodes: servers, Sentinel-watched masters and clusters, in one list of texts.

use redguard::Endpoint;
use redis::{ConnectionInfo, IntoConnectionInfo};

use crate::failure::{Failure, Result};

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
        /// The scheme and the credentials of the master.
        master_url: (String, String),
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

    /// Returns where the servers of the node are found.
    pub(crate) fn servers(&self) -> Result<Servers> {
        let parse = |address: &String| self.connection_info(address);
        let all = |addresses: &[String]| addresses.iter().map(parse).collect::<Result<Vec<_>>>();
        Ok(match &self.kind {
            SpecKind::Server(address) => Servers::One(parse(address)?),
            SpecKind::Sentinel {
                sentinels,
                master,
                master_url: (scheme, credentials),
            } => {
                let template = parse(&format!("{scheme}://{credentials}placeholder"))?;
                Servers::Sentinel(all(sentinels)?, master.clone(), template)
            }
            SpecKind::Cluster(seeds) => Servers::Cluster(all(seeds)?),
        })
    }

    fn connection_info(&self, address: &str) -> Result<ConnectionInfo> {
        let refuse = || Failure::usage(format!("{}: not an address of a node", self.name()));
        // An address that the library would refuse may have a password where the host is expected.
        if address.contains([';', '=']) && !address.contains("://") {
            return Err(refuse());
        }
        let url = match address.split_once("://") {
            Some(("valkey", rest)) => format!("redis://{rest}"),
            Some(("valkeys", rest)) => format!("rediss://{rest}"),
            Some(_) => address.to_owned(),
            None if address.starts_with(['/', '.']) => format!("unix://{address}"),
            None => format!("redis://{address}"),
        };
        let info = url.into_connection_info().map_err(|_| refuse())?;
        // The name of a library is of no use, and a hung node would be waited for at the connect.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        Ok(info.set_redis_settings(settings))
    }
}

/// Parses `[user:password@]host[:port]+host[:port]…` into an address of each host.
fn hosts(scheme: &str, text: &str) -> (String, Vec<String>) {
    let (credentials, hosts) = match text.rsplit_once('@') {
        Some((credentials, hosts)) => (format!("{credentials}@"), hosts),
        None => (String::new(), text),
    };
    let hosts = hosts.split('+').filter(|host| !host.is_empty());
    let hosts = hosts.map(|host| format!("{scheme}://{credentials}{host}"));
    (credentials.clone(), hosts.collect())
}

/// Parses `[user:password@]host+host/MASTER`; the credentials are for the sentinels and the master.
fn sentinel(scheme: &str, rest: &str) -> Result<SpecKind> {
    let parts = rest
        .rsplit_once('/')
        .filter(|(hosts, master)| !hosts.is_empty() && !master.is_empty());
    let Some((before, master)) = parts else {
        let line = "a sentinel address is redis+sentinel://host:26379+host:26379/MASTER";
        return Err(Failure::usage(line));
    };
    let (credentials, sentinels) = hosts(scheme, before);
    Ok(SpecKind::Sentinel {
        sentinels,
        master: master.to_owned(),
        master_url: (scheme.to_owned(), credentials),
    })
}

fn cluster(scheme: &str, rest: &str) -> Result<SpecKind> {
    let (_, seeds) = hosts(scheme, rest.trim_end_matches('/'));
    if seeds.is_empty() {
        let line = "a cluster address is redis+cluster://host:6379+host:6379";
        return Err(Failure::usage(line));
    }
    Ok(SpecKind::Cluster(seeds))
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
            let Err(failure) = spec.servers() else {
                panic!("{address} is accepted")
            };
            assert!(!failure.line.contains("s3cret"), "{}", failure.line);
        }
    }
}

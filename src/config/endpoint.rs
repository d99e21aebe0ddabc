//! Endpoints: one node of the quorum is a server's address, a Sentinel-watched master, or a
//! cluster.

use std::fmt;

use crate::config::address;
use crate::config::address::ParsedAddress;

/// One node of the quorum: a server, or with the features `sentinel` and `cluster` a system of
/// servers.
///
/// A server's address is one of
///
/// - `host` (port 6379), `host:port`, `[IPv6]:port`;
/// - `redis://[user[:password]@]host[:port][/db]`; with the feature `tls` `rediss://…`, the same
///   over TLS;
/// - `unix:///path/to/socket[?db=n&user=…&pass=…]`, with or without `unix://`.
///
/// Characters other than letters and digits in a user, password or path may be written as `%` and
/// two hexadecimal digits. After the `?` of a socket's address a `+` is a space: write `%2B` for a
/// `+` in a password. Each address must lead to one server.
///
/// Addresses are parsed by [`Nodes::connect`](crate::Nodes::connect), which reports mistakes: also
/// a list of addresses in one text, and a `?` or `#` after a host. `Debug`, errors and logs hide
/// credentials; of a text that is not an address they show at most the scheme and the host.
///
/// In logs, errors and [`Nodes::health`](crate::Nodes::health) a server is named `host:port` or by
/// its path, a system `sentinel:master@host:port` or `cluster:host:port`, after its first address.
///
/// ```
/// use redguard::Endpoint;
///
/// let node: Endpoint = "redis://worker:s3cret@10.0.0.1:6379".into();
/// assert!(!format!("{node:?}").contains("s3cret"));
/// let socket = Endpoint::from("unix:///run/redis/redis.sock?db=2&user=worker&pass=s3cret");
/// assert!(!format!("{socket:?}").contains("s3cret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    kind: EndpointKind,
}

/// The kinds of endpoint.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum EndpointKind {
    Server(Address),
    #[cfg(feature = "sentinel")]
    Sentinel {
        master: String,
        sentinels: Vec<Address>,
    },
    #[cfg(feature = "cluster")]
    Cluster {
        seeds: Vec<Address>,
    },
}

/// A server's address as given. `Display` and `Debug` hide its credentials.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    text: String,
}

impl Endpoint {
    /// Creates an endpoint for the master that `sentinels` name, as **one** node. With the feature
    /// `sentinel`.
    ///
    /// The sentinels (`host` is `host:26379`) are asked in turn. They share one
    /// [`connect_timeout`](crate::Config::connect_timeout), so a hanging sentinel does not block
    /// the others. The first reply counts whose server reports that it is a master. After a
    /// fail-over, when the connection breaks or the server replies `READONLY`, the sentinels are
    /// asked again.
    ///
    /// User and password in a sentinel's address are for that sentinel. The master's are
    /// [`Config::username`](crate::Config::username), [`password`](crate::Config::password) and
    /// [`db`](crate::Config::db). The master is connected to over TLS if the sentinel that named it
    /// is.
    ///
    /// Replication is asynchronous: **a fail-over may lose locks**, and then grants them again.
    /// Where that must not happen, use several such systems, or servers without replicas ([the
    /// guide](crate::guide::sentinel_cluster#what-is-given-up)).
    ///
    /// ```
    /// use redguard::{Config, Endpoint};
    ///
    /// let sentinels = ["10.0.0.1", "10.0.0.2", "redis://asks:s3cret@10.0.0.3:26379"];
    /// let node = Endpoint::sentinel("mymaster", sentinels);
    /// let config = Config::new([node]).password("the-master-s");
    /// ```
    #[cfg(feature = "sentinel")]
    pub fn sentinel<I>(master: impl Into<String>, sentinels: I) -> Endpoint
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let master = master.into();
        let sentinels = addresses(sentinels);
        Endpoint {
            kind: EndpointKind::Sentinel { master, sentinels },
        }
    }

    /// Creates an endpoint for the Redis Cluster of `seeds`, as **one** node. With the feature
    /// `cluster`.
    ///
    /// The seeds are asked in turn for the cluster's masters, within one
    /// [`connect_timeout`](crate::Config::connect_timeout); name enough of them that one is always
    /// up. The node is up while all masters with hash slots are. User, password and TLS of the seed
    /// that replied, or of the [`Config`](crate::Config), are used for all servers. The database
    /// is 0.
    ///
    /// Replication is asynchronous: **a fail-over may lose locks** ([the
    /// guide](crate::guide::sentinel_cluster#what-is-given-up)).
    ///
    /// ```
    /// use redguard::{Config, Endpoint};
    ///
    /// let seeds = ["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"];
    /// let config = Config::new([Endpoint::cluster(seeds)]);
    /// ```
    #[cfg(feature = "cluster")]
    pub fn cluster<I>(seeds: I) -> Endpoint
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let seeds = addresses(seeds);
        Endpoint {
            kind: EndpointKind::Cluster { seeds },
        }
    }

    pub(crate) fn kind(&self) -> &EndpointKind {
        &self.kind
    }
}

#[cfg(any(feature = "sentinel", feature = "cluster"))]
fn addresses<I>(texts: I) -> Vec<Address>
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let texts = texts.into_iter();
    texts.map(|text| Address::new(text.as_ref())).collect()
}

/// Addresses or endpoints for [`Config::new`](crate::Config::new): an array, a `Vec`, an iterator,
/// or any other [`IntoIterator`]. All of these implement it; it exists for the compiler's message
/// about types that do not.
///
/// ```
/// use redguard::Config;
///
/// let one = Config::new(["10.0.0.1:6379"]);
/// let listed = Config::new("10.0.0.1,10.0.0.2,10.0.0.3".split(','));
/// let read: Vec<String> = vec!["10.0.0.1".to_owned()];
/// let read = Config::new(read);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of nodes",
    label = "not a list of nodes",
    note = "a single node is a list of one: `Config::new([address])`; split a text of several addresses: \
            `Config::new(addresses.split(','))`"
)]
pub trait IntoEndpoints: IntoIterator<Item: Into<Endpoint>> {}

impl<I: IntoIterator<Item: Into<Endpoint>>> IntoEndpoints for I {}

impl<T: AsRef<str>> From<T> for Endpoint {
    fn from(address: T) -> Endpoint {
        Endpoint {
            kind: EndpointKind::Server(Address::new(address.as_ref())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            EndpointKind::Server(address) => write!(f, "{address}"),
            #[cfg(feature = "sentinel")]
            EndpointKind::Sentinel { master, sentinels } => {
                write!(f, "sentinel({master:?}, {sentinels:?})")
            }
            #[cfg(feature = "cluster")]
            EndpointKind::Cluster { seeds } => write!(f, "cluster({seeds:?})"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl Address {
    fn new(text: &str) -> Address {
        Address {
            text: text.trim().to_owned(),
        }
    }

    /// Parses the address.
    ///
    /// # Errors
    /// Returns a reason that contains no secret.
    pub(crate) fn parse(&self) -> Result<ParsedAddress, String> {
        address::parse(&self.text)
    }
}

/// Shows the address without its credentials.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&address::without_secrets(&self.text))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn endpoint_shows_nothing_that_may_be_a_secret() {
        for (address, shown) in [
            ("unix:///run/a@b?pass=s3c@ret", "unix:///run/a@b"),
            ("unix://joe:s3c@/run/a?pass=s3c", "unix:///run/a"),
            ("redis:///joe:s3c@h", "redis://.."),
            ("redis://joe:s3?c@h:1", "redis://.."),
            ("redis://joe@h?pass=s3@c", "redis://.."),
            ("joe:s3c://s3c@h:1", ".."),
            ("//joe:s3c@h:1", ".."),
            ("//h:s3c", ".."),
            ("http://h:1", "http://h:1"),
            ("h:6380,password=s3c=,ssl=True", "h"),
            ("h:6380,password=s3c@s3c", ".."),
            ("h:6380,password=s3c@s3c,ssl=True", ".."),
            ("h:6379 -a s3c@s3c", ".."),
            ("h:6379:s3c", "h"),
            ("h:6379s3c", "h"),
            ("redis://h:s3c", "redis://h"),
            ("redis://joe:s3c", "redis://joe"),
            ("redis://:s3c", "redis://.."),
            ("redis://h:1 -a s3c", "redis://h"),
            ("redis://h:1/2?password=s3c", "redis://h:1"),
            ("redis://h:1/2s3c", "redis://h:1"),
            ("redis://h:1#s3c", "redis://h:1"),
            ("redis://joe:%73%33c@h:1", "redis://h:1"),
            ("redis://joe:s3c@[::1]:1", "redis://[::1]:1"),
            ("::1:6379", "::1:6379"),
            ("/run/redis.sock", "/run/redis.sock"),
            ("/run/redis.sock?pass=s3c", "/run/redis.sock"),
            ("/run/redis.sock,password=s3c", "/run/redis.sock"),
            ("/run/redis.sock -a s3c", "/run/redis.sock"),
            ("", ""),
        ] {
            assert_eq!(Endpoint::from(address).to_string(), shown, "{address}");
        }
    }

    #[cfg(feature = "sentinel")]
    #[test]
    fn sentinel_shows_its_master_and_no_secret() {
        let endpoint = Endpoint::sentinel("mymaster", ["redis://joe:s3cret@a:1", "b"]);
        let shown = r#"Endpoint(sentinel("mymaster", [redis://a:1, b]))"#;
        assert_eq!(format!("{endpoint:?}"), shown);
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn cluster_shows_its_seeds_and_no_secret() {
        let endpoint = Endpoint::cluster(["redis://joe:s3cret@a:1", "b"]);
        assert_eq!(
            format!("{endpoint:?}"),
            "Endpoint(cluster([redis://a:1, b]))"
        );
    }
}

//! Servers that name others: sentinels, and the seeds of a cluster.

use redis::{
    ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, RedisError, RedisResult, Value,
};

/// Asks one server after the other until one answers.
pub(crate) fn first_answer<T>(
    servers: &[ConnectionInfo],
    request: impl Fn(&ConnectionInfo) -> RedisResult<T>,
) -> RedisResult<T> {
    let mut last = RedisError::from((ErrorKind::Io, "no addresses"));
    for server in servers {
        match request(server) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns the address of another server with the same credentials and encryption.
pub(crate) fn at(template: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let address = match template.addr().clone() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure,
            tls_params,
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    template.clone().set_addr(address)
}

/// Returns the host of a server in a network.
pub(crate) fn host_of(server: &ConnectionInfo) -> &str {
    match server.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}

/// Returns the masters in a reply to CLUSTER SLOTS of the server at `host`; `None` if an entry is
/// invalid, or there are no masters: a lock may be on the one that is missing.
pub(crate) fn masters(slots: &Value, host: &str) -> Option<Vec<(String, u16)>> {
    let Value::Array(entries) = slots else {
        return None;
    };
    let masters = entries.iter().map(|entry| master_of(entry, host));
    let mut masters = masters.collect::<Option<Vec<_>>>()?;
    masters.sort();
    masters.dedup();
    (!masters.is_empty()).then_some(masters)
}

/// Returns the master of an entry: first slot, last slot, master, replicas. A server that does not
/// tell its host is reached at the one of the reply.
fn master_of(entry: &Value, host: &str) -> Option<(String, u16)> {
    let Value::Array(fields) = entry else {
        return None;
    };
    let Value::Array(master) = fields.get(2)? else {
        return None;
    };
    let told = Option::<String>::from_redis_value(master.first()?.clone()).ok()?;
    let told = told.filter(|host| !host.is_empty());
    let Value::Int(port) = master.get(1)? else {
        return None;
    };
    let port = u16::try_from(*port).ok()?;
    Some((told.unwrap_or_else(|| host.to_owned()), port))
}

#[cfg(test)]
mod tests {
    use redis::Client;

    use super::*;

    /// Returns an entry of CLUSTER SLOTS with this master.
    fn entry(host: Value, port: Value) -> Value {
        let master = Value::Array(vec![host, port, text("id")]);
        Value::Array(vec![Value::Int(0), Value::Int(1), master])
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn masters_without_a_host_are_at_the_host_of_the_reply() {
        let slots = Value::Array(vec![
            entry(text("b"), Value::Int(2)),
            entry(Value::Nil, Value::Int(1)),
            entry(text(""), Value::Int(3)),
            entry(text("b"), Value::Int(2)),
        ]);
        let wanted = [("b", 2), ("seed", 1), ("seed", 3)];
        let wanted = wanted.map(|(host, port)| (host.to_owned(), port));
        assert_eq!(masters(&slots, "seed").unwrap(), wanted);
    }

    #[test]
    fn reply_without_masters_or_with_an_invalid_one_is_refused() {
        let valid = || entry(text("b"), Value::Int(2));
        for entries in [
            vec![],
            vec![valid(), Value::Nil],
            vec![valid(), Value::Array(vec![])],
            vec![valid(), entry(Value::Int(7), text("port"))],
            vec![valid(), entry(text("b"), Value::Int(70_000))],
        ] {
            let slots = Value::Array(entries);
            assert_eq!(masters(&slots, "seed"), None, "{slots:?}");
        }
        assert_eq!(masters(&Value::Okay, "seed"), None);
    }

    #[test]
    fn next_server_is_asked_after_a_failure() {
        let servers = ["redis://a", "redis://b"].map(|url| {
            let client = Client::open(url).unwrap();
            client.get_connection_info().clone()
        });
        let told = first_answer(&servers, |server| match host_of(server) {
            "a" => Err((ErrorKind::Io, "unknown").into()),
            host => Ok(host.to_owned()),
        });
        assert_eq!(told.unwrap(), "b");
        assert!(first_answer::<()>(&[], |_| Ok(())).is_err());
    }
}

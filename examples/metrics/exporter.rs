//! Serves the statistics of a `Nodes` to Prometheus over HTTP.
#![expect(
    clippy::disallowed_methods,
    reason = "the exporter's thread is the example's own"
)]

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use redguard::{BreakerState, Mode, NodeReply, NodeState, Nodes, Observer};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Observer that fills the histograms of wait, hold and reply times.
#[derive(Debug)]
pub struct Histograms {
    waits: Histogram,
    holds: Histogram,
    replies: Family<Vec<(&'static str, String)>, Histogram>,
}

impl Histograms {
    /// Returns empty histograms.
    #[must_use]
    pub fn new() -> Arc<Histograms> {
        Arc::new(Histograms {
            waits: buckets(),
            holds: buckets(),
            replies: Family::new_with_constructor(buckets),
        })
    }
}

/// Histogram with buckets from 100 µs to about 100 s.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 11))
}

impl Observer for Histograms {
    fn acquired(&self, _key: &str, _mode: Mode, waited: Duration) {
        self.waits.observe(waited.as_secs_f64());
    }

    fn released(&self, _key: &str, held: Duration, _late: bool) {
        self.holds.observe(held.as_secs_f64());
    }

    fn replied(&self, node: &str, reply: NodeReply, latency: Duration) {
        let labels = vec![
            ("node", node.to_owned()),
            ("reply", format!("{reply:?}").to_lowercase()),
        ];
        let histogram = self.replies.get_or_create(&labels);
        histogram.observe(latency.as_secs_f64());
    }
}

/// Collector that reads the counters at each scrape, so that nothing is counted twice.
#[derive(Debug)]
struct Counts(Nodes);

impl Collector for Counts {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats();
        for (name, help, count) in [
            ("acquired", "Locks acquired", stats.acquired),
            (
                "contended",
                "Acquires refused because the lock was held",
                stats.contended,
            ),
            (
                "unavailable",
                "Acquires without an answer of a quorum",
                stats.unavailable,
            ),
            ("attempts", "Attempts to acquire a lock", stats.attempts),
            ("renewals", "Renewals by a quorum", stats.renewals),
            ("lost", "Locks lost while held", stats.lost),
            (
                "released_late",
                "Guards released after the loss of their lock",
                stats.released_late,
            ),
            (
                "drop_failures",
                "Drops whose release failed",
                stats.drop_failures,
            ),
        ] {
            let metric = ConstCounter::new(count);
            let encoder = to.encode_descriptor(name, help, None, metric.metric_type())?;
            metric.encode(encoder)?;
        }
        let health = self.0.health();
        let open = ConstGauge::new(i64::from(health.breaker != BreakerState::Closed));
        let encoder = to.encode_descriptor(
            "breaker_open",
            "1 unless the breaker is closed",
            None,
            open.metric_type(),
        )?;
        open.encode(encoder)?;
        let help = "1 for a node that is up";
        let up = ConstGauge::new(0_i64).metric_type();
        let mut encoder = to.encode_descriptor("node_up", help, None, up)?;
        for node in &health.nodes {
            let up = ConstGauge::new(i64::from(node.state == NodeState::Up));
            let labels = [("node", node.node.as_str())];
            up.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// HTTP server that answers `/metrics` until it is dropped.
pub struct Exporter {
    server: Arc<tiny_http::Server>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Exporter {
    /// Starts the server in a thread of its own; port 0 selects a free port.
    ///
    /// # Errors
    /// The error of the system.
    pub fn serve(
        nodes: &Nodes,
        histograms: &Histograms,
        at: SocketAddr,
    ) -> Result<Exporter, Failure> {
        let mut registry = Registry::with_prefix("redguard");
        let seconds = || Unit::Seconds;
        let mut add = |name: &str, help: &str, metric: &Histogram| {
            registry.register_with_unit(name, help, seconds(), metric.clone());
        };
        add("wait", "Time from acquire to grant", &histograms.waits);
        add("hold", "Time from acquire to release", &histograms.holds);
        registry.register_with_unit(
            "reply",
            "Time from request to reply of a node",
            seconds(),
            histograms.replies.clone(),
        );
        registry.register_collector(Box::new(Counts(nodes.clone())));
        let server = Arc::new(tiny_http::Server::http(at)?);
        let serves = Arc::clone(&server);
        let thread = std::thread::Builder::new()
            .name("exporter".into())
            .spawn(move || {
                for request in serves.incoming_requests() {
                    let mut body = String::new();
                    let response = match request.url() {
                        "/metrics" if text::encode(&mut body, &registry).is_ok() => {
                            let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
                            let kind = kind.parse::<tiny_http::Header>();
                            kind.into_iter()
                                .fold(tiny_http::Response::from_string(body), |response, kind| {
                                    response.with_header(kind)
                                })
                        }
                        _ => tiny_http::Response::from_string("see /metrics\n").with_status_code(404),
                    };
                    // The client may have closed the connection.
                    let _ = request.respond(response);
                }
            })?;
        Ok(Exporter {
            server,
            thread: Some(thread),
        })
    }

    /// Returns the address that the server listens at.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        self.server.server_addr().to_ip()
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("addr", &self.addr())
            .finish_non_exhaustive()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

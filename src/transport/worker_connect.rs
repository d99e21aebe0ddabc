//! How a worker connects: it opens a session, checks that the server counts as its node, and brings
//! the connection up.
//!
//! - The connection never comes up with a server that must not be used as this node.
//! - Jobs that were queued before an overdue connection ended are rejected before it is up again,
//!   because their callers have stopped waiting.
//! - The same fact is logged once, not per connection: [`Pipeline::warnings`] knows what is new.
//!
//! Tests: `src/tests/engine/` (`quorum.rs`, `outage.rs`, `idle.rs`), `tests/it/nodes/`.

use crate::sync::atomic::Ordering;

use log::{info, warn};

use crate::error::node_failure::NodeFailure;
use crate::protocol::server_info::ServerInfo;
use crate::time::{clock, deadline};
use crate::transport::messages::ConnectEvent;
use crate::transport::node::traits::{Handshake, Session};
use crate::transport::pipeline::{Pipeline, catch_panic};
use crate::transport::registry::Entered;
use crate::transport::warning_state::Permission;
use crate::transport::worker::Worker;

impl Worker {
    /// Connects to the node, and brings the connection up.
    ///
    /// # Errors
    /// The cause if the connect failed, or if the server must not be used as this node.
    pub(super) fn connect(&mut self, pipeline: &mut Pipeline) -> Result<(), NodeFailure> {
        let found = pipeline.registry.found_runs(self.node);
        let (session, mut handshake) = self.open_session(pipeline)?;
        pipeline.warnings().clear_denied(Permission::Connect);
        self.warn_of_kill(pipeline, handshake.no_kill.as_ref());
        if let Some(former) = &self.former_session
            && former.run_id == handshake.run_id
        {
            handshake.server_info.refine(&former.server_info);
        }
        let (run_id, is_one_server) = (&handshake.run_id, self.is_one_server);
        let registry = &pipeline.registry;
        let entered = registry.register_run(self.node, run_id, is_one_server, found);
        let (info, run_id) = (handshake.server_info.clone(), handshake.run_id.clone());
        let run_ids = handshake.runs();
        let is_first = self.former_session.replace(handshake).is_none();
        self.check_registration(pipeline, entered)?;
        self.registered = true;
        if let Err(cause) = self.apply_server_info(pipeline, info, &run_id) {
            self.send_connect_event(ConnectEvent::Failed(cause.clone()));
            return Err(cause);
        }
        self.come_up(pipeline, session, &run_ids);
        let was_down = std::mem::take(&mut self.is_down);
        let warnings = pipeline.warnings();
        let (is_back, has_changed) = (warnings.note_up(was_down), warnings.note_runs(&run_ids));
        let event = match (is_first, has_changed) {
            (_, true) => "connected again, after its restart or to another server",
            (true, false) => "connected",
            (false, false) => "connected again",
        };
        // A balancer may close idle connections often, so a reconnect alone gets no info line.
        self.log(is_back || has_changed && !was_down, event);
        Ok(())
    }

    /// Opens a session, and records whether the node was reached.
    fn open_session(
        &mut self,
        pipeline: &Pipeline,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        let opened = catch_panic(|| self.connector.connect(self.former_session.as_ref()));
        let round_trip = opened.as_ref().ok();
        let round_trip = round_trip.map(|(_, handshake)| handshake.server_info.round_trip);
        pipeline.status.report.lock().connecting = round_trip;
        let reached = !opened.as_ref().is_err_and(NodeFailure::is_outage);
        pipeline.registry.note_connect(self.node, reached);
        if let Err(cause) = &opened {
            // Logged as a warning: only an operator can grant the access.
            if matches!(cause, NodeFailure::AccessDenied(_))
                && pipeline.warnings().is_newly_denied(Permission::Connect)
            {
                warn!("{}: {cause}", self.name);
            }
            self.send_connect_event(ConnectEvent::Failed(cause.clone()));
        }
        opened
    }

    /// Checks that the server counts as this node.
    ///
    /// # Errors
    /// The cause if the server is another node's, or if several servers share the address.
    fn check_registration(
        &mut self,
        pipeline: &mut Pipeline,
        entered: Entered,
    ) -> Result<(), NodeFailure> {
        match entered {
            Entered::Counted { epoch } => {
                pipeline.epoch = epoch;
                Ok(())
            }
            // The next connect tells which run is the present one.
            Entered::Outdated => Err(NodeFailure::Unreachable(
                "the server has restarted during the connect".to_owned(),
            )),
            Entered::Twin(twin) => {
                self.send_connect_event(ConnectEvent::Duplicate(twin));
                Err(NodeFailure::Unreachable(
                    "the same server as another node".into(),
                ))
            }
            Entered::SeveralServers => {
                let cause = NodeFailure::ServerError(
                    "several servers at this address, as behind a balancer: \
                     each must be a node of its own"
                        .into(),
                );
                if pipeline.warnings().is_new_several_servers() {
                    warn!("{}: {cause}", self.name);
                }
                self.send_connect_event(ConnectEvent::Failed(cause.clone()));
                Err(cause)
            }
        }
    }

    /// Attaches the session and marks the connection as up. Pending releases stay behind the
    /// requests of callers.
    fn come_up(&mut self, pipeline: &mut Pipeline, session: Box<dyn Session>, run_ids: &str) {
        if pipeline.is_overdue() {
            // Callers that submitted before the connection was overdue have stopped waiting.
            pipeline.status.report.lock().cause = NodeFailure::TimedOut;
            self.reject_queued(pipeline);
        }
        pipeline.attach_session(session, run_ids);
        let status = &pipeline.status;
        status.overdue_at.store(u64::MAX, Ordering::Release);
        if !status.up.load(Ordering::Acquire) {
            status.report.lock().since = clock::now();
            status.up.store(true, Ordering::Release);
        }
        self.send_connect_event(ConnectEvent::Up);
        pipeline.registry.record_connected();
    }

    /// Sets the quarantine and logs warnings by a node's server info, before the node is up.
    ///
    /// # Errors
    /// The cause if the node must not be used.
    fn apply_server_info(
        &self,
        pipeline: &Pipeline,
        info: ServerInfo,
        run_id: &str,
    ) -> Result<(), NodeFailure> {
        let (name, now, warnings) = (&self.name, clock::now(), pipeline.warnings());
        let quarantine = self
            .restart_quarantine
            .map(|max_ttl| info.quarantine_left(max_ttl));
        let quarantine = quarantine.unwrap_or_default();
        let until = match quarantine.is_zero() {
            true => 0,
            false => deadline::deadline(now, quarantine).map_or(u64::MAX, clock::to_micros),
        };
        pipeline
            .status
            .quarantined_until
            .store(until, Ordering::Release);
        let rejection = info.rejection(self.reject_evicting);
        pipeline.status.report.lock().server_info = Some(info.clone());
        if let Some(cause) = rejection {
            return Err(cause);
        }
        let (eviction, offset) = (info.eviction_warning(), info.excessive_clock_offset());
        let is_new = warnings.is_new_eviction_warning(eviction.as_deref());
        if let (true, Some(eviction)) = (is_new, eviction) {
            warn!("{name}: {eviction}");
        }
        if let (true, Some(offset)) = (warnings.is_new_clock_warning(offset.is_some()), offset) {
            warn!("{name}: its clock is {offset}");
        }
        let far = info.is_too_far(self.node_timeout);
        if let (true, Some(far)) = (warnings.is_new_distance_warning(far.is_some()), far) {
            warn!("{name}: {far}");
        }
        if until > 0 && warnings.is_new_quarantine(run_id) {
            info!("{name}: restarted recently: quarantined for {quarantine:.1?}");
        }
        Ok(())
    }

    /// Warns, once, if the server does not permit to kill the former connection.
    fn warn_of_kill(&self, pipeline: &Pipeline, no_kill: Option<&NodeFailure>) {
        match no_kill {
            None => pipeline.warnings().clear_denied(Permission::Kill),
            Some(cause) if pipeline.warnings().is_newly_denied(Permission::Kill) => warn!(
                "{}: CLIENT KILL not permitted: a request on a broken connection may still be \
                 executed, and its lock then blocks others until its TTL ends: {cause}",
                self.name
            ),
            Some(_) => {}
        }
    }

    /// Reports an event to `Nodes::connect`, until the connection is up or the call has ended.
    fn send_connect_event(&mut self, event: ConnectEvent) {
        if let Some(connect_events) = &self.connect_events {
            let is_last = matches!(event, ConnectEvent::Up);
            // The receiver is dropped when `Nodes::connect` has ended.
            if connect_events.send((self.node, event)).is_err() || is_last {
                self.connect_events = None;
            }
        }
    }
}

//! The handshake of a session: it identifies the server, loads the preloaded scripts and kills our
//! former connections (S4).
//!
//! Nothing of a former connection runs after a handshake, unless the server denies CLIENT KILL.
//!
//! Tests: `tests/it/nodes/acl.rs`, `network.rs`; `src/tests/engine/idle.rs`.

use std::time::{Duration, Instant};

use redis::Value;

use crate::error::node_failure::NodeFailure;
use crate::protocol::server_error::protocol_error;
use crate::protocol::server_info::{ServerInfo, ServerMode};
use crate::protocol::{encode, server_error, server_info};
use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::session::RedisSession;
use crate::transport::node::stream;
use crate::transport::node::traits::Handshake;

/// The INFO sections that the handshake reads. The first one contains the server's clock.
const INFO_SECTIONS: [&str; 3] = ["server", "replication", "memory"];

/// The id of no client. Killing it shows whether CLIENT KILL is allowed, and changes nothing.
const NO_CLIENT: i64 = i64::MAX;

impl RedisSession {
    /// Identifies the server, loads the preloaded scripts and kills our former connections to it
    /// (S4). A former connection is given by the server's run id and the client id within that run.
    ///
    /// # Errors
    /// - The connection fails, or `end` is reached.
    /// - The server is a sentinel, or does not reply as a Redis server does.
    pub(crate) fn handshake(
        &mut self,
        former: &[(String, i64)],
        end: Instant,
    ) -> Result<Handshake, NodeFailure> {
        self.encode_handshake();
        let (wall, sent) = (clock::unix_time(), clock::now());
        self.send(end)?;
        let mut handshake = self.read_handshake(wall, sent, end)?;
        let round_trip = handshake.server_info.round_trip;
        // A server that was hung until now has replied late. Measure clock and distance again.
        if round_trip > self.timeout && remaining_timeout(end) > 2 * round_trip {
            let again = self.query_server_info(end)?;
            handshake.server_info.refine(&again);
        }
        if handshake.no_kill.is_none() {
            handshake.no_kill = self.kill_former(former, &handshake.run_id, end)?;
        }
        self.record_round_trip();
        Ok(handshake)
    }

    /// Encodes everything that depends on no reply, so that the handshake is one round trip.
    fn encode_handshake(&mut self) {
        self.out.clear();
        redis::cmd("CLIENT")
            .arg("ID")
            .write_packed_command(&mut self.out);
        // One command per section, because Redis before 7 accepts one section at a time.
        for section in INFO_SECTIONS {
            redis::cmd("INFO")
                .arg(section)
                .write_packed_command(&mut self.out);
        }
        write_kill(NO_CLIENT, &mut self.out);
        stream::write_client_info(&mut self.out);
        encode::encode_script_loads(&mut self.out);
    }

    /// Reads the replies to `encode_handshake`, which was sent at `sent`; `wall` is that moment on
    /// our wall clock.
    fn read_handshake(
        &mut self,
        wall: Duration,
        sent: Instant,
        end: Instant,
    ) -> Result<Handshake, NodeFailure> {
        let client_id = self.receive_as::<i64>(end)?;
        let mut info = self.receive_as::<String>(end)?;
        let round_trip = clock::now().saturating_duration_since(sent);
        for _ in &INFO_SECTIONS[1..] {
            info.push('\n');
            info.push_str(&self.receive_as::<String>(end)?);
        }
        let no_kill = self.receive_kill(end)?;
        for _ in 0..stream::CLIENT_INFO_REPLIES {
            self.receive(end)?; // an error before Redis 7.2
        }
        let server_info = ServerInfo::parse_info(&info, wall + round_trip / 2, round_trip);
        // A sentinel does not know SCRIPT, whose error would hide its mode.
        if server_info.mode == Some(ServerMode::Sentinel)
            && let Some(failure) = server_info.wrong_mode()
        {
            return Err(failure);
        }
        for hash in encode::script_hashes() {
            if self.receive_as::<String>(end)? != hash {
                return Err(protocol_error());
            }
        }
        let run_id = server_info::info_field(&info, "run_id")
            .filter(|run_id| is_sha1_hex(run_id))
            .ok_or_else(|| NodeFailure::ServerError("INFO server names no run_id".into()))?
            .to_owned();
        // A server refuses to kill an id below 1, and would do so at every later connect.
        if client_id <= 0 {
            return Err(protocol_error());
        }
        Ok(Handshake {
            run_id,
            others: Vec::new(),
            client_id,
            server_info,
            no_kill,
        })
    }

    /// Kills the former connections of this server run. Returns why the server refused, if it did.
    /// Client ids start again after a restart, so an id of another run may be another client's.
    fn kill_former(
        &mut self,
        former: &[(String, i64)],
        run_id: &str,
        end: Instant,
    ) -> Result<Option<NodeFailure>, NodeFailure> {
        let of_this_run = || former.iter().filter(|(run, _)| run == run_id);
        if of_this_run().next().is_none() {
            return Ok(None);
        }
        self.out.clear();
        of_this_run().for_each(|(_, client_id)| write_kill(*client_id, &mut self.out));
        self.send(end)?;
        let mut refusal = None;
        for _ in of_this_run() {
            refusal = refusal.or(self.receive_kill(end)?);
        }
        Ok(refusal)
    }

    /// Queries INFO of the server once more, for its clock and round trip.
    fn query_server_info(&mut self, end: Instant) -> Result<ServerInfo, NodeFailure> {
        self.out.clear();
        redis::cmd("INFO")
            .arg(INFO_SECTIONS[0])
            .write_packed_command(&mut self.out);
        let (wall, sent) = (clock::unix_time(), clock::now());
        self.send(end)?;
        let info = self.receive_as::<String>(end)?;
        let round_trip = clock::now().saturating_duration_since(sent);
        Ok(ServerInfo::parse_info(
            &info,
            wall + round_trip / 2,
            round_trip,
        ))
    }

    /// Reads the reply to CLIENT KILL. Returns why the server refused, if it did.
    fn receive_kill(&mut self, end: Instant) -> Result<Option<NodeFailure>, NodeFailure> {
        match self.receive(end)? {
            Value::Int(_) => Ok(None),
            Value::ServerError(error) => Ok(Some(server_error::failure_redacted(
                &error.into(),
                &self.password,
            ))),
            _ => Err(protocol_error()),
        }
    }

    fn receive_as<T: redis::FromRedisValue>(&mut self, end: Instant) -> Result<T, NodeFailure> {
        let value = self.receive(end)?;
        let failure = |error| server_error::failure_redacted(&error, &self.password);
        match value {
            Value::ServerError(error) => Err(failure(error.into())),
            value => redis::from_redis_value(value).map_err(|error| failure(error.into())),
        }
    }
}

/// Appends CLIENT KILL of a client id.
fn write_kill(client_id: i64, out: &mut Vec<u8>) {
    let mut cmd = redis::cmd("CLIENT");
    cmd.arg("KILL").arg("ID").arg(client_id);
    cmd.write_packed_command(out);
}

/// Returns whether the text has the form of a run id: 40 hexadecimal digits.
fn is_sha1_hex(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

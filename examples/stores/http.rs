//! A document in a store with `ETag` and `If-Match`, such as S3 or CouchDB: the token is its first
//! line.
//!
//! The store compares only its own versions. The holder compares the tokens, and `If-Match` makes
//! sure that nobody has written between its read and its write.

use std::error::Error;
use ureq::Agent;

/// Returns an agent for which a status such as 412 is no error.
#[must_use]
pub fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into()
}

/// Writes the document. Returns `false` if a later holder has written it.
///
/// # Errors
/// The error of the connection, or another status than the expected ones.
pub fn write(agent: &Agent, url: &str, text: &str, token: u64) -> Result<bool, Box<dyn Error>> {
    loop {
        let mut found = agent.get(url).call()?;
        let condition = match found.status().as_u16() {
            404 => ("If-None-Match", "*".to_owned()), // the first write, and of no other holder
            200 => {
                let tag = found.headers().get("ETag").ok_or("no ETag")?;
                let condition = ("If-Match", tag.to_str()?.to_owned());
                let former = found.body_mut().read_to_string()?;
                let fence = former.lines().next().unwrap_or_default();
                if fence.parse::<u64>()? > token {
                    return Ok(false);
                }
                condition
            }
            status => return Err(format!("GET: status {status}").into()),
        };
        let put = agent.put(url).header(condition.0, condition.1);
        match put.send(format!("{token}\n{text}"))?.status().as_u16() {
            200..=204 => return Ok(true),
            412 => {} // written meanwhile: compare again
            status => return Err(format!("PUT: status {status}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use std::thread::{self, JoinHandle};
    use tiny_http::{Header, Method, Request, Response, Server};

    /// A store of one document. `write_between` is written, by another, after the next read.
    #[derive(Default)]
    struct Document {
        version: u64,
        text: Option<String>,
        write_between: Option<String>,
    }

    impl Document {
        fn answer(&mut self, request: &mut Request) -> Response<std::io::Empty> {
            let header = |name: &'static str| {
                let found = request.headers().iter().find(|h| h.field.equiv(name));
                found.map(|h| h.value.to_string())
            };
            let is_current = match (header("If-Match"), header("If-None-Match")) {
                (Some(tag), None) => self.text.is_some() && tag == self.tag(),
                (None, Some(any)) => any == "*" && self.text.is_none(),
                _ => false,
            };
            if !is_current {
                return Response::empty(412);
            }
            let mut text = String::new();
            request.as_reader().read_to_string(&mut text).unwrap();
            self.store(text);
            Response::empty(204)
        }

        fn tag(&self) -> String {
            format!("\"{}\"", self.version)
        }

        fn store(&mut self, text: String) {
            self.version += 1;
            self.text = Some(text);
        }
    }

    struct Store {
        server: Arc<Server>,
        document: Arc<Mutex<Document>>,
        thread: Option<JoinHandle<()>>,
    }

    impl Store {
        #[expect(clippy::disallowed_methods, reason = "the store is the test's own")]
        fn start() -> Store {
            let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
            let document = Arc::new(Mutex::new(Document::default()));
            let (serves, shared) = (Arc::clone(&server), Arc::clone(&document));
            let thread = thread::spawn(move || {
                for mut request in serves.incoming_requests() {
                    let mut document = shared.lock().unwrap();
                    _ = match (request.method() == &Method::Get, document.text.clone()) {
                        (true, Some(text)) => {
                            let tag = format!("ETag: {}", document.tag());
                            let tag: Header = tag.parse().unwrap();
                            if let Some(other) = document.write_between.take() {
                                document.store(other);
                            }
                            request.respond(Response::from_string(text).with_header(tag))
                        }
                        (true, None) => request.respond(Response::empty(404)),
                        (false, _) => {
                            let answer = document.answer(&mut request);
                            request.respond(answer)
                        }
                    };
                }
            });
            Store {
                server,
                document,
                thread: Some(thread),
            }
        }

        fn url(&self) -> String {
            format!("http://{}/doc", self.server.server_addr())
        }

        fn text(&self) -> String {
            self.document.lock().unwrap().text.clone().unwrap()
        }
    }

    impl Drop for Store {
        fn drop(&mut self) {
            self.server.unblock();
            _ = self.thread.take().map(JoinHandle::join);
        }
    }

    #[test]
    fn document_is_written_by_tokens_that_do_not_decrease() {
        let (store, agent) = (Store::start(), agent());
        for (token, text, is_written) in [
            (5, "first", true),
            (4, "stale", false),
            (5, "again", true),
            (7, "second", true),
            (6, "stale", false),
        ] {
            let written = write(&agent, &store.url(), text, token).unwrap();
            assert_eq!(written, is_written, "{text} {token}");
        }
        assert_eq!(store.text(), "7\nsecond");
    }

    #[test]
    fn write_of_another_between_read_and_write_is_not_overwritten() {
        let (store, agent) = (Store::start(), agent());
        assert!(write(&agent, &store.url(), "first", 5).unwrap());
        // The holder of token 6 is paused between its read and its write; the holder of token 7
        // writes.
        store.document.lock().unwrap().write_between = Some("7\nsecond".to_owned());
        assert!(!write(&agent, &store.url(), "stale", 6).unwrap());
        assert_eq!(store.text(), "7\nsecond");
    }
}

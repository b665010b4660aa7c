//! Calls to the server: the options that find it, JSON in and out, its errors as ours.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use super::{
    Place,
    address::Address,
    client::{Answer as RawAnswer, Client, ClientError},
    failure::{Failure, Refusal},
    locate::{self, Found, Token},
    running,
    show::{self, Reader},
    wire::{Call, Stream},
};

/// How long the server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries to reach the process that an upgrade has handed the server over to.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What must be encoded in a segment of a path: all but the unreserved (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How the server's answers are shown.
#[derive(Debug, Default, Args)]
pub(super) struct ServerOptions {
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
}

impl ServerOptions {
    /// Finds the server; the first call connects to it.
    pub(super) fn admin(&self, place: &Place) -> Result<Admin, Failure> {
        let Found { address, config } = locate::find(place)?;
        let token_file = place.token_file.as_deref();
        let config_of_token = config.as_deref().unwrap_or(place.config());
        let token = locate::find_token(&address, token_file, Some(config_of_token))?;
        Ok(Admin { client: Client::new(address), token, json: self.json, config })
    }
}

/// The server, as commands see it.
pub(super) struct Admin {
    client: Client,
    token: Option<Token>,
    json: bool,
    /// What named the address, until it was looked whether a server is elsewhere.
    config: Option<PathBuf>,
}

/// The server's answer: what we understand of it, and all of it.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: T,
    json: String,
}

impl<T> Answer<T> {
    /// The same answer, of which something else is understood.
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> Option<U>) -> Option<Answer<U>> {
        let Self { value, json } = self;
        Some(Answer { value: map(value)?, json })
    }
}

impl Admin {
    /// The server at an address that wants no token.
    pub(super) fn of(address: Address) -> Self {
        Self { client: Client::new(address), token: None, json: false, config: None }
    }

    /// Asks for something; changes nothing.
    pub(super) fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Answer<T>, Failure> {
        self.call("GET", path, None, PATIENCE)
    }

    /// Asks for something, and lets the server hold the answer back for `wait`.
    pub(super) fn poll<T: DeserializeOwned>(
        &mut self,
        path: &str,
        wait: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.call("GET", path, None, PATIENCE + wait)
    }

    /// Asks for something that is there at once, or not at all.
    pub(super) fn fetch_within<T: DeserializeOwned>(
        &mut self,
        path: &str,
        patience: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.call("GET", path, None, patience)
    }

    /// Has something done.
    pub(super) fn post<T: DeserializeOwned>(&mut self, path: &str) -> Result<Answer<T>, Failure> {
        self.call("POST", path, None, PATIENCE)
    }

    /// Has something done that may take so long.
    pub(super) fn post_within<T: DeserializeOwned>(
        &mut self,
        path: &str,
        patience: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.call("POST", path, None, patience)
    }

    /// Puts something in its place.
    pub(super) fn put<T: DeserializeOwned>(
        &mut self,
        path: &str,
        json: &str,
    ) -> Result<Answer<T>, Failure> {
        self.call("PUT", path, Some(json.as_bytes()), PATIENCE)
    }

    /// Takes something away.
    pub(super) fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<Answer<T>, Failure> {
        self.call("DELETE", path, None, PATIENCE)
    }

    /// Asks for an answer without end.
    pub(super) fn stream(&mut self, path: &str) -> Result<Stream, Failure> {
        let stream = |admin: &mut Self| {
            let token = admin.token.as_ref().map(|token| token.text.as_str());
            admin.client.stream(&Call { method: "GET", path, token, content: None }, PATIENCE)
        };
        let streamed = match stream(self) {
            Err(error) if error.is_absent() && self.config.is_some() => {
                self.follow(error)?;
                stream(self)
            }
            streamed => streamed,
        };
        match streamed? {
            Ok(stream) => Ok(stream),
            Err(answer) => Err(match self.text(answer) {
                Ok(_) => self.foreign("it does not answer with a stream"),
                Err(failure) => failure,
            }),
        }
    }

    /// The same server, by a connection of its own.
    pub(super) fn beside(&self) -> Self {
        let token = self.token.clone();
        let client = Client::new(self.client.address().clone());
        Self { client, token, json: self.json, config: None }
    }

    /// The connection.
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Whether answers are printed as JSON.
    pub(super) fn prints_json(&self) -> bool {
        self.json
    }

    /// Prints an answer: as JSON, or for people.
    pub(super) fn print<T>(
        &self,
        answer: &Answer<T>,
        for_people: impl FnOnce(&T) -> String,
    ) -> Result<Reader, Failure> {
        if self.json {
            return show::print_line(&answer.json);
        }
        show::print(&for_people(&answer.value))
    }

    /// What answers is not what we know.
    pub(super) fn foreign(&self, what: &str) -> Failure {
        Failure::Foreign { address: self.client.address().to_string(), what: what.to_owned() }
    }

    /// Has something done whose answer is held back for long; `is_waited_for` is asked every
    /// `tick`.
    pub(super) fn post_held<T: DeserializeOwned>(
        &mut self,
        path: &str,
        tick: Duration,
        mut is_waited_for: impl FnMut() -> bool,
    ) -> Result<Answer<T>, Failure> {
        self.ask("POST", path, None, |client, call| {
            client.call_held(call, tick, &mut is_waited_for)
        })
    }

    fn call<T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        path: &str,
        content: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.ask(method, path, content, |client, call| client.call(call, patience))
    }

    /// Asks, and when an upgrade has just handed the server over, asks the process that has it.
    fn ask<T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        path: &str,
        content: Option<&[u8]>,
        mut exchange: impl FnMut(&mut Client, &Call<'_>) -> Result<RawAnswer, ClientError>,
    ) -> Result<Answer<T>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let json = loop {
            let token = self.token.as_ref().map(|token| token.text.as_str());
            let answer = exchange(&mut self.client, &Call { method, path, token, content });
            let answer = match answer {
                Err(error) if error.is_absent() && self.config.is_some() => {
                    self.follow(error)?;
                    continue;
                }
                answer => answer?,
            };
            match self.text(answer) {
                // New connections reach the new process as soon as the old one has let go of the
                // listener.
                Err(failure) if failure.is_for_successor() && Instant::now() < deadline => {
                    self.client.hang_up();
                    thread::sleep(ASK_AGAIN);
                }
                text => break text?,
            }
        };
        let value = serde_json::from_str(&json)
            .map_err(|error| self.foreign(&format!("its answer to {method} {path}: {error}")))?;
        Ok(Answer { value, json })
    }

    /// Nobody listens where the config says: finds the server that was started from it when it said
    /// something else.
    fn follow(&mut self, error: ClientError) -> Result<(), Failure> {
        let Some(config) = self.config.take() else { return Err(error.into()) };
        let servers = running::servers_of(&config);
        let mut sockets: Vec<&PathBuf> =
            servers.iter().flat_map(|server| &server.sockets).collect();
        sockets.sort();
        sockets.dedup();
        let (Some(server), config) = (servers.last(), config.display()) else {
            return Err(error.into());
        };
        let pid = server.pid;
        if let [socket] = sockets[..] {
            let address = Address::Unix(socket.clone());
            show::note(&show::clean(&format!(
                "tidegate: nobody listens on {}, which {config} names; its server, pid {pid}, was \
                 started when that was {address}, and is found there until it is restarted",
                self.client.address()
            )));
            show::note("\n");
            // A socket needs no token.
            (self.client, self.token) = (Client::new(address), None);
            return Ok(());
        }
        let others = sockets.iter().map(|path| format!("unix:{}", path.display()));
        let others = others.chain(server.loopback.iter().map(ToString::to_string));
        Err(Failure::Unended(format!(
            "{error}\na server that was started from {config} runs as pid {pid}, and listens \
             elsewhere: name it with --admin, and its token with --token-file; these are its local \
             addresses: {}",
            others.collect::<Vec<_>>().join(", ")
        )))
    }

    /// The text of a good answer, or the server's error.
    fn text(&self, answer: RawAnswer) -> Result<String, Failure> {
        let RawAnswer { status, content } = answer;
        let text = String::from_utf8(content)
            .map_err(|_| self.foreign(&format!("its answer {status} is not UTF-8")))?;
        let json = text.trim_end().to_owned();
        match status {
            200..300 => Ok(json),
            401 => Err(Failure::Unauthorized {
                address: self.client.address().to_string(),
                source: self.token.as_ref().map(|token| token.source.clone()),
            }),
            _ => match serde_json::from_str::<Refusal>(&json) {
                Ok(refusal) => {
                    let json = self.json.then_some(json);
                    Err(Failure::Refused { status, refusal, json })
                }
                Err(_) => Err(self.foreign(&format!("it answers {status} without a reason"))),
            },
        }
    }
}

/// The path of an app, with `behind` it.
pub(super) fn app_path(host: &str, behind: &str) -> String {
    format!("/apps/{}{behind}", encode(host))
}

/// A segment of a path.
pub(super) fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_segment_of_a_path() {
        assert_eq!(app_path("shop.example", "/drain"), "/apps/shop.example/drain");
        assert_eq!(app_path("*.a", ""), "/apps/%2A.a");
        assert_eq!(app_path("[::1]", ""), "/apps/%5B%3A%3A1%5D");
        assert_eq!(encode("a/b?c#d e\u{fc}\r\n"), "a%2Fb%3Fc%23d%20e%C3%BC%0D%0A");
    }
}

//! Calls to the server's admin API: the options for output, JSON requests and answers, errors.

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

/// How long an ordinary answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between attempts to reach the new process during an upgrade.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The characters to encode in a path segment: all but the unreserved ones (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How the server's answers are shown.
#[derive(Debug, Default, Args)]
pub(super) struct ServerOptions {
    /// Print the server's answer as JSON
    #[arg(long)]
    json: bool,
}

impl ServerOptions {
    /// Finds the server. The first call connects to it.
    pub(super) fn admin(&self, place: &Place) -> Result<Admin, Failure> {
        let Found { address, config } = locate::find(place)?;
        let token_file = place.token_file.as_deref();
        let config_of_token = config.as_deref().unwrap_or(place.config());
        let token = locate::find_token(&address, token_file, Some(config_of_token))?;
        Ok(Admin { client: Client::new(address), token, json: self.json, config })
    }
}

/// The server's admin API.
pub(super) struct Admin {
    client: Client,
    token: Option<Token>,
    json: bool,
    /// The config that named the address; taken when the address turns out to be wrong.
    config: Option<PathBuf>,
}

/// The server's answer: the parsed part, and the whole text.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: T,
    json: String,
}

impl<T> Answer<T> {
    /// The same answer with another parsed part.
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> Option<U>) -> Option<Answer<U>> {
        let Self { value, json } = self;
        Some(Answer { value: map(value)?, json })
    }
}

impl Admin {
    /// The server at an address that needs no token.
    pub(super) fn of(address: Address) -> Self {
        Self { client: Client::new(address), token: None, json: false, config: None }
    }

    /// Sends a GET, which changes nothing.
    pub(super) fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Answer<T>, Failure> {
        self.call("GET", path, None, PATIENCE)
    }

    /// Sends a GET whose answer the server may hold back for `wait`.
    pub(super) fn poll<T: DeserializeOwned>(
        &mut self,
        path: &str,
        wait: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.call("GET", path, None, PATIENCE + wait)
    }

    /// Sends a GET that must be answered within this time.
    pub(super) fn fetch_within<T: DeserializeOwned>(
        &mut self,
        path: &str,
        patience: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.call("GET", path, None, patience)
    }

    /// Sends a POST.
    pub(super) fn post<T: DeserializeOwned>(&mut self, path: &str) -> Result<Answer<T>, Failure> {
        self.call("POST", path, None, PATIENCE)
    }

    /// Sends a POST that may take this long.
    pub(super) fn post_within<T: DeserializeOwned>(
        &mut self,
        path: &str,
        patience: Duration,
    ) -> Result<Answer<T>, Failure> {
        self.call("POST", path, None, patience)
    }

    /// Sends a PUT.
    pub(super) fn put<T: DeserializeOwned>(
        &mut self,
        path: &str,
        json: &str,
    ) -> Result<Answer<T>, Failure> {
        self.call("PUT", path, Some(json.as_bytes()), PATIENCE)
    }

    /// Sends a DELETE.
    pub(super) fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<Answer<T>, Failure> {
        self.call("DELETE", path, None, PATIENCE)
    }

    /// Sends a GET whose answer never ends.
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
                Ok(_) => self.foreign("its answer is not a stream"),
                Err(failure) => failure,
            }),
        }
    }

    /// The same server, over a second connection.
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

    /// Prints an answer as JSON or as text.
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

    /// An answer that isn't from a Tidegate of this version.
    pub(super) fn foreign(&self, what: &str) -> Failure {
        Failure::Foreign { address: self.client.address().to_string(), what: what.to_owned() }
    }

    /// Sends a POST whose answer is held back for a long time. Calls `is_waited_for` every `tick`.
    pub(super) fn post_held<T: DeserializeOwned>(
        &mut self,
        path: &str,
        json: Option<&str>,
        tick: Duration,
        mut is_waited_for: impl FnMut() -> bool,
    ) -> Result<Answer<T>, Failure> {
        self.ask("POST", path, json.map(str::as_bytes), |client, call| {
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

    /// Sends a request. If an upgrade has just handed over, sends it to the new process.
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
                // New connections reach the new process once the old one has closed the listener.
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

    /// No server listens where the config says: looks for a server that was started from this
    /// config when it named another address.
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
                "tidegate: no server listens on {}, which {config} names; its server, pid {pid}, \
                 was started when the config named {address}, and stays there until a restart",
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
            "{error}\nthe server with pid {pid} was started from {config} but listens \
             elsewhere: name it with --admin, and its token with --token-file; these are its local \
             addresses: {}",
            others.collect::<Vec<_>>().join(", ")
        )))
    }

    /// The text of a successful answer, or the server's error.
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

/// The API path of an app, followed by `behind`.
pub(super) fn app_path(host: &str, behind: &str) -> String {
    format!("/apps/{}{behind}", encode(host))
}

/// Encodes a path segment.
pub(super) fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_encoded_as_one_path_segment() {
        assert_eq!(app_path("shop.example", "/drain"), "/apps/shop.example/drain");
        assert_eq!(app_path("*.a", ""), "/apps/%2A.a");
        assert_eq!(app_path("[::1]", ""), "/apps/%5B%3A%3A1%5D");
        assert_eq!(encode("a/b?c#d e\u{fc}\r\n"), "a%2Fb%3Fc%23d%20e%C3%BC%0D%0A");
    }
}

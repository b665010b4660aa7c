//! A minimal server with hyper on tokio, for comparison.
//!
//! `hyper-server PORT`: a runtime of one thread, which routes nothing, logs nothing, and always
//! gives the same answer. Started by `bench/throughput`.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::net::TcpListener;

/// As the other servers give it (`throughput/case.rs`).
const SMALL_BODY: &str = "Hello, World!";

/// Serves the small answer on a port of 127.0.0.1. Never ends by itself: the kernel ends it with
/// its parent.
fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port = port.ok_or_else(|| io::Error::other("usage: hyper-server PORT"))?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve(port))
}

async fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    // The answers to pipelined requests go out together.
    let mut protocol = http1::Builder::new();
    protocol.pipeline_flush(true);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(protocol.serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(SMALL_BODY.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

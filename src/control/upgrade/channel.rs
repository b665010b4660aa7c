//! The channel between two generations: messages as JSON behind their length, and descriptors.
//!
//! A unix stream socket. Reads take exactly what belongs to a message, so none ever runs into the
//! byte that descriptors travel with (unix(7), SCM_RIGHTS).

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};

/// One end of the channel. Clones are the same end: it closes with the last of them.
#[derive(Clone, Debug)]
pub(super) struct Channel(Arc<UnixStream>);

/// The kernel passes 253 at once (SCM_MAX_FD).
const DESCRIPTORS_AT_ONCE: usize = 128;

/// The longest message. A server with a hundred thousand drained apps says less.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

impl Channel {
    pub(super) fn new(socket: impl Into<OwnedFd>) -> Self {
        Self(Arc::new(UnixStream::from(socket.into())))
    }

    /// Both ends of a new channel.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self(Arc::new(ours)), theirs.into()))
    }

    /// The end that a process was started with as its standard input, which is /dev/null from here
    /// on.
    pub(super) fn from_stdin() -> io::Result<Self> {
        let channel = Self::new(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(channel)
    }

    /// Limits each of the next reads; `None`: they wait forever.
    pub(super) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        self.0.set_read_timeout(timeout)?;
        self.0.set_write_timeout(timeout)
    }

    /// How long the other side may take to read what is sent.
    pub(super) fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_write_timeout(Some(timeout))
    }

    /// Takes nothing from the other side that it has not sent already: its next message fails.
    pub(super) fn hear_no_more(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Read)
    }

    /// Sends a message. `FileTooLarge` when the other side would not take it; then nothing is sent.
    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the message is too long"));
        }
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        // In one piece: a short message is there, or it is not.
        let message = [&length.to_be_bytes(), &text[..]].concat();
        (&*self.0).write_all(&message)
    }

    /// Waits until there is something to receive, at most this long; whether there is.
    pub(super) fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)))?;
        Ok(ready > 0)
    }

    /// Waits for a message. `UnexpectedEof` when the other process is gone.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut length = [0; 4];
        (&*self.0).read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without end"));
        }
        let mut text = vec![0; length];
        (&*self.0).read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(super) fn send_descriptors(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        for some in descriptors.chunks(DESCRIPTORS_AT_ONCE) {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            assert!(rights.push(SendAncillaryMessage::ScmRights(some)), "the space is too small");
            // SA_RESTART does not hold for a socket with a time-out (signal(7)).
            rustix::io::retry_on_intr(|| {
                let byte = [IoSlice::new(&[0])];
                rustix::net::sendmsg(self.0.as_fd(), &byte, &mut rights, SendFlags::NOSIGNAL)
            })?;
        }
        Ok(())
    }

    /// Waits for exactly so many descriptors, as [`Self::send_descriptors`] sends them.
    /// `InvalidData` when the other side sends more, or a byte without any.
    pub(super) fn receive_descriptors(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
            let mut rights = RecvAncillaryBuffer::new(&mut space);
            let got = rustix::io::retry_on_intr(|| {
                let (mut byte, flags) = ([0], RecvFlags::CMSG_CLOEXEC);
                let mut byte = [IoSliceMut::new(&mut byte)];
                rustix::net::recvmsg(self.0.as_fd(), &mut byte, &mut rights, flags)
            })?;
            let before = all.len();
            for message in rights.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    all.extend(descriptors);
                }
            }
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if got.flags.contains(ReturnFlags::CTRUNC) {
                // The kernel drops what the process has no numbers for.
                return Err(io::Error::other("the descriptor limit is too low for all listeners"));
            }
            if all.len() == before || all.len() > count {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "other descriptors came"));
            }
        }
        Ok(all)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{iter, net::TcpListener, thread};

    use proptest::{collection::vec, prelude::*};
    use serde_json::Value;

    use super::*;

    /// What a receiver makes of these bytes, if the other side is gone behind them: each message,
    /// and why there is no other.
    fn expected(mut bytes: &[u8]) -> (Vec<Value>, io::ErrorKind) {
        let mut messages = Vec::new();
        let error = loop {
            let Some((length, rest)) = bytes.split_at_checked(4) else {
                break io::ErrorKind::UnexpectedEof;
            };
            let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
            if length > MESSAGE_BYTES_MAX {
                break io::ErrorKind::InvalidData;
            }
            let Some((text, rest)) = rest.split_at_checked(length) else {
                break io::ErrorKind::UnexpectedEof;
            };
            match serde_json::from_slice(text) {
                Ok(message) => messages.push(message),
                Err(error) => break io::Error::from(error).kind(),
            }
            bytes = rest;
        };
        (messages, error)
    }

    /// A message, perhaps with a wrong length, or bytes that are no message.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            Just("{}".to_owned()),
            Just("[1, \"two\", null]".to_owned()),
            Just("{\"a\": ".to_owned()),
            "[ -~]{0,12}",
        ];
        let lie =
            prop_oneof![4 => Just(0), 1 => -3..4_i64, 1 => Just(1_i64 << 26), 1 => 0..1_i64 << 31];
        let framed = (text, lie).prop_map(|(text, lie)| {
            let length = (text.len() as i64 + lie).max(0) as u32;
            [&length.to_be_bytes()[..], text.as_bytes()].concat()
        });
        prop_oneof![4 => framed, 1 => vec(any::<u8>(), 0..9)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_in_any_pieces_are_messages_or_an_error(
            messages in vec(message(), 0..5),
            cut in any::<prop::sample::Index>(),
            piece in 1..20_usize,
        ) {
            let mut bytes = messages.concat();
            bytes.truncate(cut.index(bytes.len() + 1).max(bytes.len() / 2));
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut theirs = Channel::new(theirs);
            let (messages, error) = expected(&bytes);
            let sender = thread::spawn(move || {
                // The receiver may be gone behind an error.
                bytes.chunks(piece).try_for_each(|piece| (&ours).write_all(piece)).ok();
            });
            let mut received = Vec::new();
            let ended = loop {
                match theirs.receive::<Value>() {
                    Ok(message) => received.push(message),
                    Err(error) => break error,
                }
            };
            drop(theirs);
            sender.join().unwrap();
            prop_assert_eq!((received, ended.kind()), (messages, error), "{}", ended);
        }

        #[test]
        fn descriptors_in_other_numbers_than_asked_are_an_error(
            sent in vec(0..4_usize, 0..6),
            asked in 0..12_usize,
        ) {
            let (mut ours, theirs) = Channel::pair().unwrap();
            let mut theirs = Channel::new(theirs);
            let null = File::open("/dev/null").unwrap();
            for &count in &sent {
                if count == 0 {
                    (&*ours.0).write_all(&[0]).unwrap();
                } else {
                    let some: Vec<_> = iter::repeat_n(null.as_fd(), count).collect();
                    ours.send_descriptors(&some).unwrap();
                }
            }
            drop(ours);
            let sums = sent.iter().scan(0, |sum, &count| {
                *sum += count;
                Some((*sum, count))
            });
            let mut expected = if asked == 0 { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof) };
            for (sum, count) in sums.take_while(|_| asked > 0) {
                if count == 0 || sum > asked {
                    expected = Err(io::ErrorKind::InvalidData);
                    break;
                }
                if sum == asked {
                    expected = Ok(asked);
                    break;
                }
            }
            let received = theirs.receive_descriptors(asked);
            let received = received.map(|all| all.len()).map_err(|error| error.kind());
            prop_assert_eq!(received, expected);
        }
    }

    #[test]
    fn what_was_sent_before_the_other_side_hears_no_more_is_heard() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        ours.send(&"before").unwrap();
        theirs.hear_no_more().unwrap();
        assert_eq!(ours.send(&"behind").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(theirs.receive::<String>().unwrap(), "before");
        let end = theirs.receive::<String>().unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn messages_and_descriptors_come_in_order_whatever_their_number() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        let listeners: Vec<_> = (0..2 * DESCRIPTORS_AT_ONCE + 1)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let sent: Vec<_> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        ours.send(&"before").unwrap();
        ours.send_descriptors(&listeners.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        ours.send(&"behind").unwrap();
        assert_eq!(theirs.receive::<String>().unwrap(), "before");
        let received = theirs.receive_descriptors(listeners.len()).unwrap();
        drop(listeners);
        let address = |socket: OwnedFd| TcpListener::from(socket).local_addr().unwrap();
        assert_eq!(received.into_iter().map(address).collect::<Vec<_>>(), sent);
        assert_eq!(theirs.receive::<String>().unwrap(), "behind");
        drop(ours);
        let gone = theirs.receive::<String>().unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }
}

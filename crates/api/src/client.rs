//! The side that asks.

use crate::wire::{Connection, LONGEST_ANSWER};
use crate::{Action, Answer, ApiError, Request, VERSION};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long sending a request may take.
const SENDING: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWERING: Duration = Duration::from_secs(10);

/// A connection to a machine, good for one action.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to the control socket at `path`; `None` if nobody listens there.
    ///
    /// # Errors
    /// [`ApiError::Connection`].
    pub fn connect(path: &Path) -> Result<Option<Self>, ApiError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(Self {
                connection: Connection::new(stream)?,
            })),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::NotFound
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(ApiError::Connection(error)),
        }
    }

    /// Asks for `action` without waiting for the answer.
    ///
    /// # Errors
    /// [`ApiError::Timeout`], [`ApiError::Connection`].
    pub fn ask(&self, action: Action) -> Result<(), ApiError> {
        let request = Request {
            version: VERSION,
            action,
        };
        self.connection.send(&request, SENDING)
    }

    /// Receives the answer, within `limit` if there is one.
    ///
    /// # Errors
    /// [`ApiError::Refused`] if that is the answer; what can go wrong with a connection.
    pub fn answer(&mut self, limit: Option<Duration>) -> Result<Answer, ApiError> {
        match self.connection.receive(LONGEST_ANSWER, limit)? {
            Answer::Refused { reason } => Err(ApiError::Refused(reason)),
            answer => Ok(answer),
        }
    }

    /// Asks for `action` and receives the answer.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask) and [`answer`](Self::answer).
    pub fn call(&mut self, action: Action) -> Result<Answer, ApiError> {
        self.ask(action)?;
        self.answer(Some(ANSWERING))
    }

    /// The connection, as a stream after an answer that makes it one.
    pub fn into_connection(self) -> Connection {
        self.connection
    }
}

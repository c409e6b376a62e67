//! Frames: a byte for the kind, four for the length (little-endian), and the content.

use std::io::{self, ErrorKind, Read, Write};

/// The port of the guest's virtual socket device that the agent listens at.
pub const PORT: u32 = 1024;
/// The most bytes that a frame's content may have.
pub const LONGEST_FRAME: usize = 256 << 10;
/// The most bytes of input that the host may send before the guest has [taken](ToHost::Taken) them.
pub const WINDOW: usize = 64 << 10;
/// Bytes before the content.
const HEADER: usize = 5;

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The command of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The program and its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Variables of its environment, as `NAME=VALUE`, before the agent's own.
    pub environment: Vec<Vec<u8>>,
    /// Its working directory; empty for the agent's own choice.
    pub directory: Vec<u8>,
    /// The size of its terminal; without one, its standard streams are pipes.
    pub terminal: Option<TerminalSize>,
}

/// What the host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// Start this command. Comes first and once.
    Start(Start),
    /// More of the command's standard input.
    Input(Vec<u8>),
    /// Its standard input is at its end.
    InputEnd,
    /// Its terminal has another size.
    Resize(TerminalSize),
    /// Send this signal to it and the processes that it has started.
    Signal(u8),
}

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToHost {
    /// The command was started.
    Started,
    /// It wrote this to its standard output, or its terminal.
    Output(Vec<u8>),
    /// It wrote this to its standard error.
    Errors(Vec<u8>),
    /// So many bytes of input were handed to it.
    Taken(u32),
    /// It ended with this status. Comes last.
    Exited(u8),
    /// This signal ended it. Comes last.
    Killed(u8),
    /// It was not started, with the status that shells give for that, and why. Comes last.
    Failed(u8, String),
}

/// A frame that is none of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

impl std::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a frame of the agent's protocol")
    }
}

impl std::error::Error for BadFrame {}

/// What can be said in a frame.
pub trait Message: Sized {
    /// The kind and the content.
    fn encode(&self) -> (u8, Vec<u8>);

    /// The message of a kind and a content.
    ///
    /// # Errors
    /// [`BadFrame`].
    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame>;
}

/// Writes a message.
///
/// # Errors
/// Those of `to`.
pub fn write(to: &mut impl Write, message: &impl Message) -> io::Result<()> {
    let (kind, content) = message.encode();
    let length = u32::try_from(content.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(HEADER + content.len());
    frame.push(kind);
    frame.extend(length.to_le_bytes());
    frame.extend(content);
    to.write_all(&frame)
}

/// Reads a message; `None` at the end.
///
/// # Errors
/// Those of `from`; [`ErrorKind::InvalidData`] for what is no message, or too long.
pub fn read<M: Message>(from: &mut impl Read) -> io::Result<Option<M>> {
    let mut header = [0; HEADER];
    match from.read_exact(&mut header) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let [kind, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_FRAME {
        return Err(io::Error::new(ErrorKind::InvalidData, BadFrame));
    }
    let mut content = vec![0; length];
    from.read_exact(&mut content)?;
    let message = M::decode(kind, &content);
    message
        .map(Some)
        .map_err(|bad| io::Error::new(ErrorKind::InvalidData, bad))
}

/// The parts of a frame's content, taken one after the other.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], BadFrame> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BadFrame)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, BadFrame> {
        self.bytes(1)?.first().copied().ok_or(BadFrame)
    }

    fn number(&mut self) -> Result<u32, BadFrame> {
        let bytes = self.bytes(4)?.try_into().map_err(|_| BadFrame)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn short(&mut self) -> Result<u16, BadFrame> {
        let bytes = self.bytes(2)?.try_into().map_err(|_| BadFrame)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<Vec<u8>, BadFrame> {
        let length = self.number()? as usize;
        Ok(self.bytes(length)?.to_vec())
    }

    fn texts(&mut self) -> Result<Vec<Vec<u8>>, BadFrame> {
        // Each text has its length at least, so that the number is bounded by the frame's length.
        let count = self.number()? as usize;
        if count > self.0.len() / 4 {
            return Err(BadFrame);
        }
        (0..count).map(|_| self.text()).collect()
    }

    fn size(&mut self) -> Result<TerminalSize, BadFrame> {
        Ok(TerminalSize {
            rows: self.short()?,
            columns: self.short()?,
        })
    }

    fn end(self) -> Result<(), BadFrame> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(BadFrame)
        }
    }
}

fn put_text(content: &mut Vec<u8>, text: &[u8]) {
    // A longer one does not fit into a frame anyway, which is then refused by its length.
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    content.extend(length.to_le_bytes());
    content.extend(text);
}

fn put_texts(content: &mut Vec<u8>, texts: &[Vec<u8>]) {
    let count = u32::try_from(texts.len()).unwrap_or(u32::MAX);
    content.extend(count.to_le_bytes());
    for text in texts {
        put_text(content, text);
    }
}

fn put_size(content: &mut Vec<u8>, size: TerminalSize) {
    content.extend(size.rows.to_le_bytes());
    content.extend(size.columns.to_le_bytes());
}

impl Start {
    fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        put_texts(&mut content, &self.arguments);
        put_texts(&mut content, &self.environment);
        put_text(&mut content, &self.directory);
        content.push(u8::from(self.terminal.is_some()));
        if let Some(size) = self.terminal {
            put_size(&mut content, size);
        }
        content
    }

    fn decode(parts: &mut Parts<'_>) -> Result<Self, BadFrame> {
        Ok(Self {
            arguments: parts.texts()?,
            environment: parts.texts()?,
            directory: parts.text()?,
            terminal: match parts.byte()? {
                0 => None,
                1 => Some(parts.size()?),
                _ => return Err(BadFrame),
            },
        })
    }
}

impl Message for ToGuest {
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Start(start) => (1, start.encode()),
            Self::Input(bytes) => (2, bytes.clone()),
            Self::InputEnd => (3, Vec::new()),
            Self::Resize(size) => {
                let mut content = Vec::new();
                put_size(&mut content, *size);
                (4, content)
            }
            Self::Signal(signal) => (5, vec![*signal]),
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut parts = Parts(content);
        let message = match kind {
            1 => Self::Start(Start::decode(&mut parts)?),
            2 => return Ok(Self::Input(content.to_vec())),
            3 => Self::InputEnd,
            4 => Self::Resize(parts.size()?),
            5 => Self::Signal(parts.byte()?),
            _ => return Err(BadFrame),
        };
        parts.end()?;
        Ok(message)
    }
}

impl Message for ToHost {
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Started => (128, Vec::new()),
            Self::Output(bytes) => (129, bytes.clone()),
            Self::Errors(bytes) => (130, bytes.clone()),
            Self::Taken(count) => (131, count.to_le_bytes().to_vec()),
            Self::Exited(status) => (132, vec![*status]),
            Self::Killed(signal) => (133, vec![*signal]),
            Self::Failed(status, why) => {
                let mut content = vec![*status];
                put_text(&mut content, why.as_bytes());
                (134, content)
            }
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Result<Self, BadFrame> {
        let mut parts = Parts(content);
        let message = match kind {
            128 => Self::Started,
            129 => return Ok(Self::Output(content.to_vec())),
            130 => return Ok(Self::Errors(content.to_vec())),
            131 => Self::Taken(parts.number()?),
            132 => Self::Exited(parts.byte()?),
            133 => Self::Killed(parts.byte()?),
            134 => {
                let status = parts.byte()?;
                let why = String::from_utf8_lossy(&parts.text()?).into_owned();
                Self::Failed(status, why)
            }
            _ => return Err(BadFrame),
        };
        parts.end()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn survives<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
        let mut bytes = Vec::new();
        write(&mut bytes, message).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(&read::<M>(&mut from).unwrap().unwrap(), message);
        assert!(read::<M>(&mut from).unwrap().is_none());
    }

    #[test]
    fn messages_survive_the_way() {
        let size = TerminalSize {
            rows: 24,
            columns: 80,
        };
        for terminal in [None, Some(size)] {
            survives(&ToGuest::Start(Start {
                arguments: vec![b"ls".to_vec(), b"-l".to_vec(), Vec::new()],
                environment: vec![b"A=\xff".to_vec()],
                directory: b"/tmp".to_vec(),
                terminal,
            }));
        }
        for message in [
            ToGuest::Input(b"abc".to_vec()),
            ToGuest::InputEnd,
            ToGuest::Resize(size),
            ToGuest::Signal(15),
        ] {
            survives(&message);
        }
        for message in [
            ToHost::Started,
            ToHost::Output(Vec::new()),
            ToHost::Errors(vec![1]),
            ToHost::Taken(70_000),
            ToHost::Exited(3),
            ToHost::Killed(9),
            ToHost::Failed(127, "not found".to_owned()),
        ] {
            survives(&message);
        }
    }

    #[test]
    fn a_length_without_bounds_is_refused_before_anything_is_read() {
        let mut from = &[2, 0xff, 0xff, 0xff, 0xff][..];
        let error = read::<ToGuest>(&mut from).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_errors(
            kind in any::<u8>(),
            content in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = ToGuest::decode(kind, &content);
            let _ = ToHost::decode(kind, &content);
        }

        #[test]
        fn a_start_cut_anywhere_is_refused(cut in 0_usize..39) {
            let start = Start {
                arguments: vec![b"echo".to_vec(), b"hello".to_vec()],
                environment: vec![b"A=b".to_vec()],
                directory: Vec::new(),
                terminal: Some(TerminalSize { rows: 1, columns: 2 }),
            };
            let (kind, content) = ToGuest::Start(start).encode();
            let cut = cut.min(content.len() - 1);
            prop_assert_eq!(ToGuest::decode(kind, &content[..cut]), Err(BadFrame));
        }
    }
}

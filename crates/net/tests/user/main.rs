//! The user-mode network with an independent peer: a guest whose TCP/IP is smoltcp.

mod access;
mod datagrams;
mod guest;
mod hostile;
mod streams;

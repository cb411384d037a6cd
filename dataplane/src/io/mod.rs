//! The Linux edge: TUN, UDP in batches, the error queue, raw sockets. All `unsafe` of this room is here, in `clock` and in `lock`.

mod address;
mod cmsg;
pub(crate) mod error_queue;
pub(crate) mod pages;
pub(crate) mod probe;
mod queue;
pub(crate) mod realtime;
pub(crate) mod receive;
pub(crate) mod route;
pub(crate) mod send;
pub(crate) mod sockets;
pub(crate) mod tun;

#[cfg(test)]
mod tests;

//! HTTP/1: heads ([`head`]), request bodies ([`body`]) and what a worker's CONNECT must carry
//! ([`connect`]).

pub mod body;
pub mod connect;
pub mod head;
mod write;

pub use write::{CONTINUE, reason_of, write_answer, write_fault, write_response, write_text};

//! The life of one request.

pub mod client_head;
pub mod forward;
pub mod reply;

//! What all versions of HTTP share (RFC 9110): heads, fields, responses, limits.
//!
//! Does not depend on a wire format, on framing or on connections.

mod bytes;
mod fields;
mod head;
mod host;
mod limits;
mod method;
mod refused;
mod response;
mod status;
pub(super) mod syntax;
mod target;
mod trailers;

pub(super) use refused::refused;
pub(super) use target::TargetForm;

pub use bytes::Bytes;
pub use fields::Fields;
pub use head::{RequestContent, RequestHead, ResponseContent, ResponseHead, Version};
pub use host::{Host, is_host_name};
pub use limits::Limits;
pub use method::Method;
pub use refused::Refused;
pub use response::Response;
pub use status::reason_phrase;
pub use syntax::{is_field_name, is_field_value, is_framing_field};
pub use trailers::Trailers;

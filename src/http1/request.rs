//! Request heads.

use super::{Field, FieldId, Limits, Span, Version, Violation};

/// How the body of a request is delimited (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestBody {
    #[default]
    None,
    Length(u64),
    Chunked,
}

/// One request head. The value is reused: `parse` refills it and keeps the capacity of its vectors.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// The head as received, request line to final CRLF (without empty lines before it). After a
    /// violation: what came, at most 8 KiB, so that the record can show it.
    pub bytes: Vec<u8>,
    /// The request line without its line end (after a violation: up to the first CR or LF).
    pub line: Span,
    pub method: Span,
    /// The request target as received.
    pub target: Span,
    /// What goes to the app as target: origin-form (absolute-form cut to path and query) or `*`.
    /// Empty where absolute-form had no path: the app gets `/` (or `*` for OPTIONS).
    pub path: Span,
    /// The authority of an absolute-form target, which wins over Host (RFC 9112, 3.2.2).
    pub authority: Option<Span>,
    pub version: Version,
    pub fields: Vec<Field>,
    pub body: RequestBody,
    /// The client allows another request on this connection (RFC 9112, 9.3).
    pub keep_alive: bool,
    /// `Expect: 100-continue` from an HTTP/1.1 client.
    pub expect_continue: bool,
    /// `TE: trailers` was sent.
    pub te_trailers: bool,
    /// Connection lists `upgrade`, an Upgrade field is there, HTTP/1.1, no body.
    pub upgrade: bool,
    /// Names that Connection lists (beyond close, keep-alive, upgrade, te), as spans of `bytes`.
    pub connection_names: Vec<Span>,
}

impl RequestHead {
    /// Forgets the last head, keeps the capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.connection_names.clear();
        self.line = Span::default();
        self.method = Span::default();
        self.target = Span::default();
        self.path = Span::default();
        self.authority = None;
        self.version = Version::Http11;
        self.body = RequestBody::None;
        self.keep_alive = false;
        self.expect_continue = false;
        self.te_trailers = false;
        self.upgrade = false;
    }

    /// Parses the head at the start of `input`. `Ok(Some(n))`: complete, `n` bytes of `input` belong
    /// to it (empty lines before it included). `Ok(None)`: more bytes are needed.
    pub fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<Option<usize>, Violation> {
        let _ = (input, limits);
        Ok(None)
    }

    /// Value of the first field with this id.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(&self.bytes))
    }
}

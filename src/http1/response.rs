//! Response heads.

use super::{Field, FieldId, Limits, Span, Version, Violation};

/// How the body of a response is delimited (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseBody {
    /// HEAD, 1xx, 204, 304, or Content-Length: 0.
    #[default]
    None,
    Length(u64),
    Chunked,
    /// Ends when the app closes.
    Close,
}

/// One response head. Reused like `RequestHead`.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// The head as received (obs-fold replaced by spaces).
    pub bytes: Vec<u8>,
    pub version: Version,
    pub status: u16,
    /// Reason phrase, may be empty.
    pub reason: Span,
    pub fields: Vec<Field>,
    pub body: ResponseBody,
    /// Value of a Content-Length field, also where there is no body (HEAD, 304).
    pub content_length: Option<u64>,
    /// The app allows another request on its connection.
    pub keep_alive: bool,
    /// Names that Connection lists.
    pub connection_names: Vec<Span>,
    /// `text/event-stream`, or `X-Accel-Buffering: no`: to be flushed as it comes.
    pub stream: bool,
}

impl ResponseHead {
    /// Forgets the last head, keeps the capacity.
    pub fn clear(&mut self) {
        *self = ResponseHead {
            bytes: std::mem::take(&mut self.bytes),
            fields: std::mem::take(&mut self.fields),
            connection_names: std::mem::take(&mut self.connection_names),
            ..ResponseHead::default()
        };
        self.bytes.clear();
        self.fields.clear();
        self.connection_names.clear();
    }

    /// Parses the head at the start of `input`; `method` is that of the request. As
    /// `RequestHead::parse`. A violation is always `InvalidResponse`.
    pub fn parse(
        &mut self,
        input: &[u8],
        method: &[u8],
        limits: &Limits,
    ) -> Result<Option<usize>, Violation> {
        let _ = (input, method, limits);
        Ok(None)
    }

    /// Value of the first field with this id.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(&self.bytes))
    }
}

//! Field lines and the names that the proxy itself must recognise.

use super::Span;

/// One field line of a head, in the order received, bytes untouched.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub id: FieldId,
    pub name: Span,
    /// Without optional whitespace at both ends.
    pub value: Span,
}

/// Names that some rule of ours looks at; everything else is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FieldId {
    Other,
    /// A name with `_` in it (see `Config::allow_underscore`).
    Underscore,
    Accept,
    AcceptEncoding,
    Authorization,
    CacheControl,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    Forwarded,
    FrontEndHttps,
    Host,
    Http2Settings,
    KeepAlive,
    MaxForwards,
    Proxy,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Referer,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XAccelBuffering,
    XForwardedBy,
    XForwardedFor,
    XForwardedHost,
    XForwardedPort,
    XForwardedPrefix,
    XForwardedProto,
    XForwardedProtocol,
    XForwardedScheme,
    XForwardedServer,
    XForwardedSsl,
    XQueueStart,
    XRealIp,
    XRequestId,
    XRequestStart,
}

impl FieldId {
    /// Classifies a field name, without regard to case.
    pub fn of(name: &[u8]) -> FieldId {
        let _ = name;
        FieldId::Other
    }
}

//! Why an exchange ended: one table of reasons, each with its status, its name in the log and its
//! sentence for the visitor. Every decision "what do we answer" ends in this table.

/// The end of an exchange (field `end` of the record). Names are fixed by the design, section 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Ok,
    BadRequest,
    HeaderTimeout,
    BodyTimeout,
    BodyTooLarge,
    TargetTooLong,
    Expectation,
    HeadTooLarge,
    ClientGone,
    UnknownCoding,
    ConnectMethod,
    Version,
    ResetBeforeResponse,
    InvalidResponse,
    QueueFull,
    QueueTimeout,
    Shed,
    Deadline,
    Draining,
    SpoolFull,
    TooManyConnections,
    ClientLimit,
    AppUnavailable,
    AppStarting,
    AppTimeout,
    Internal,
    Truncated,
    AppIdleTimeout,
    SendTimeout,
}

impl Reason {
    /// Every reason, for metrics and tests.
    pub const ALL: [Reason; 29] = {
        use Reason::*;
        [
            Ok,
            BadRequest,
            HeaderTimeout,
            BodyTimeout,
            BodyTooLarge,
            TargetTooLong,
            Expectation,
            HeadTooLarge,
            ClientGone,
            UnknownCoding,
            ConnectMethod,
            Version,
            ResetBeforeResponse,
            InvalidResponse,
            QueueFull,
            QueueTimeout,
            Shed,
            Deadline,
            Draining,
            SpoolFull,
            TooManyConnections,
            ClientLimit,
            AppUnavailable,
            AppStarting,
            AppTimeout,
            Internal,
            Truncated,
            AppIdleTimeout,
            SendTimeout,
        ]
    };

    /// Status that a client is answered with for this reason, where nothing was sent to it yet.
    /// 499 is for the log only; `Ok` and the reasons after the response began have none (0).
    pub fn status(self) -> u16 {
        use Reason::*;
        match self {
            BadRequest => 400,
            HeaderTimeout | BodyTimeout => 408,
            BodyTooLarge => 413,
            TargetTooLong => 414,
            Expectation => 417,
            HeadTooLarge => 431,
            ClientGone => 499,
            UnknownCoding | ConnectMethod => 501,
            Version => 505,
            ResetBeforeResponse | InvalidResponse => 502,
            QueueFull | QueueTimeout | Shed | Deadline | Draining | SpoolFull
            | TooManyConnections | ClientLimit | AppUnavailable | AppStarting => 503,
            AppTimeout => 504,
            Internal => 500,
            Ok | Truncated | AppIdleTimeout | SendTimeout => 0,
        }
    }

    /// The name in the log, in metrics and in the docs.
    pub fn name(self) -> &'static str {
        use Reason::*;
        match self {
            Ok => "ok",
            BadRequest => "bad_request",
            HeaderTimeout => "header_timeout",
            BodyTimeout => "body_timeout",
            BodyTooLarge => "body_too_large",
            TargetTooLong => "target_too_long",
            Expectation => "expectation",
            HeadTooLarge => "head_too_large",
            ClientGone => "client_gone",
            UnknownCoding => "unknown_coding",
            ConnectMethod => "connect_method",
            Version => "version",
            ResetBeforeResponse => "reset_before_response",
            InvalidResponse => "invalid_response",
            QueueFull => "queue_full",
            QueueTimeout => "queue_timeout",
            Shed => "shed",
            Deadline => "deadline",
            Draining => "draining",
            SpoolFull => "spool_full",
            TooManyConnections => "too_many_connections",
            ClientLimit => "client_limit",
            AppUnavailable => "app_unavailable",
            AppStarting => "app_starting",
            AppTimeout => "app_timeout",
            Internal => "internal",
            Truncated => "truncated",
            AppIdleTimeout => "app_idle_timeout",
            SendTimeout => "send_timeout",
        }
    }

    /// One sentence for the visitor. It never names an option: that is for the diagnostics.
    pub fn sentence(self) -> &'static str {
        use Reason::*;
        match self {
            BadRequest => "The request is not valid HTTP.",
            HeaderTimeout => "The request head took too long to arrive.",
            BodyTimeout => "The request body took too long to arrive.",
            BodyTooLarge => "The request body is larger than this site accepts.",
            TargetTooLong => "The address is longer than this site accepts.",
            Expectation => "This site cannot meet the Expect header of the request.",
            HeadTooLarge => "The request headers are larger than this site accepts.",
            UnknownCoding => "The transfer coding of the request is not known here.",
            ConnectMethod => "CONNECT is not offered here.",
            Version => "This HTTP version is not offered here.",
            ResetBeforeResponse => "The application ended the connection before it answered.",
            InvalidResponse => "The application answered with something that is not HTTP.",
            QueueFull | Shed | ClientLimit | TooManyConnections => {
                "This site is very busy. Please try again in a moment."
            }
            QueueTimeout | Deadline => {
                "This site was too busy to answer in time. Please try again."
            }
            Draining => "This server is restarting. Please try again in a moment.",
            SpoolFull => "This server has no room for the request right now. Please try again.",
            AppUnavailable => "The application is not reachable right now. Please try again.",
            AppStarting => "The application is starting. Please try again in a moment.",
            AppTimeout => "The application took too long to answer.",
            Ok | ClientGone | Internal | Truncated | AppIdleTimeout | SendTimeout => {
                "Something went wrong on this server."
            }
        }
    }
}

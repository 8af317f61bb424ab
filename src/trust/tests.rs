use super::*;
use crate::config::{
    Concurrency, Forwarded, LogDestination, LogQuery, OpenPort, QueueOrder, Retry,
};
use crate::http1::{Span, Version};
use std::time::Duration;

/// A request head from text with bare newlines.
pub(crate) fn request(text: &str) -> RequestHead {
    let mut head =
        RequestHead { bytes: text.replace('\n', "\r\n").into_bytes(), ..Default::default() };
    head.bytes.extend_from_slice(b"\r\n");
    let at = |from: usize, to: usize| Span { start: from as u32, end: to as u32 };
    let bytes = String::from_utf8_lossy(&head.bytes).into_owned();
    let mut start = 0;
    for (i, line) in bytes.split_inclusive("\r\n").enumerate() {
        if i == 0 {
            let mut words = line.trim_end().splitn(3, ' ');
            let method = words.next().unwrap().len();
            let target = words.next().unwrap();
            head.method = at(0, method);
            head.target = at(method + 1, method + 1 + target.len());
            head.path = head.target;
            if let Some(rest) = target.strip_prefix("http://") {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let from = method + 8;
                head.authority = Some(at(from, from + end));
                head.path = at(from + end, head.target.end as usize);
            }
            if words.next() == Some("HTTP/1.0") {
                head.version = Version::Http10;
            }
        } else if let Some((name, value)) = line.trim_end().split_once(':') {
            let value_start = start + name.len() + 1 + (value.len() - value.trim_start().len());
            let value = value.trim();
            let id = IDS
                .into_iter()
                .find(|id| name.replace('-', "").eq_ignore_ascii_case(&format!("{id:?}")))
                .unwrap_or(if name.contains('_') { FieldId::Underscore } else { FieldId::Other });
            if id == FieldId::Connection {
                let mut from = value_start;
                for word in value.split(',') {
                    let skip = word.len() - word.trim_start().len();
                    head.connection_names.push(at(from + skip, from + skip + word.trim().len()));
                    from += word.len() + 1;
                }
            }
            head.fields.push(Field {
                id,
                name: at(start, start + name.len()),
                value: at(value_start, value_start + value.len()),
            });
        }
        start += line.len();
    }
    head
}

const IDS: [FieldId; 39] = {
    use FieldId::*;
    [
        Accept,
        Authorization,
        Connection,
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
    ]
};

/// A configuration in which nothing is trusted.
pub(crate) fn config() -> Config {
    const SECOND: Duration = Duration::from_secs(1);
    Config {
        listen: Vec::new(),
        upstream: Vec::new(),
        threads: 1,
        concurrency: Concurrency::Off,
        concurrency_reason: String::new(),
        queue: 1,
        queue_timeout: SECOND,
        queue_order: QueueOrder::Fifo,
        queue_share: 1.0,
        app_timeout: SECOND,
        app_idle_timeout: SECOND,
        connect_retry: SECOND,
        upstream_keepalive: None,
        header_timeout: SECOND,
        body_timeout: SECOND,
        body_min_rate: None,
        send_timeout: SECOND,
        send_min_rate: None,
        client_keepalive: SECOND,
        max_body: 1,
        max_head: 1,
        max_fields: 1,
        max_connections: 1,
        max_requests_per_client: None,
        max_tunnels: 1,
        tunnel_idle_timeout: SECOND,
        linger_timeout: SECOND,
        log_backlog: 1,
        body_memory: 1,
        response_memory: 1,
        memory: 1,
        spool_dir: Default::default(),
        spool_max: 1,
        response_spool_max: 1,
        trust: TrustConfig::default(),
        forwarded: Forwarded::Preserve,
        real_ip_header: None,
        allow_underscore: Vec::new(),
        access_log: LogDestination::Off,
        log_format: String::new(),
        log_skip: Vec::new(),
        log_name: String::new(),
        log_time: false,
        log_query: LogQuery::On,
        log_level: tracing::Level::INFO,
        retry: Retry::Off,
        error_page: None,
        open_port: OpenPort::Early,
        ready_path: String::new(),
        ready_path_set: false,
        ready_file: None,
        ready_host: String::new(),
        boot_timeout: SECOND,
        child_stop_signal: 15,
        drain_timeout: SECOND,
        drain_delay: SECOND,
        idle_grace: SECOND,
        admin: None,
        command: Vec::new(),
        config_file: None,
        heroku: false,
        memory_limit: None,
    }
}

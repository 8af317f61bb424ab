use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::*;
use crate::access_log::tests::head;
use crate::config::Peer;
use crate::error::Reason;
use crate::http1::Limits;

const OPTIONS: FormatOptions<'static> =
    FormatOptions { name: "bufproxy", time: false, query: LogQuery::On, upstream: &[] };

const USER_AGENT: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_10_4) AppleWebKit/537.36";

/// The request of the article that the default format comes from.
fn seed() -> Record {
    let mut record = Record::new(Peer::Ip("10.16.227.159:43210".parse().unwrap()));
    record.head = head(
        format!(
            "GET / HTTP/1.1\r\nHost: www.Example.com:80\r\nUser-Agent: {USER_AGENT}\r\n\
             X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\n\
             X-Forwarded-For: 199.188.193.220\r\nX-Forwarded-Proto: http\r\nVia: 1.1 vegur\r\n\r\n"
        )
        .as_bytes(),
    );
    record.time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_656);
    record.client = Some("199.188.193.220".parse().unwrap());
    record.local = Some("172.16.0.2:5000".parse().unwrap());
    record.request_id = b"8b6402de-d072-42c4-9854-0f71697b30e5".to_vec();
    record.status = 200;
    record.upstream_status = 200;
    record.upstream_addr = Some(0);
    record.request_length = 612;
    record.bytes_sent = 12_900;
    record.body_bytes_sent = 12_666;
    record.upstream_bytes_received = 12_666;
    record.first_byte = Some(Duration::from_millis(21));
    record.upstream = Duration::from_millis(22);
    record.send = Duration::from_millis(111);
    record.service = Duration::from_millis(133);
    record
}

fn render(format: &str, options: FormatOptions<'_>, record: &Record) -> String {
    let format = Format::parse(format, options).unwrap();
    let mut line = Vec::new();
    format.render(record, 9_899, &mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn l2met_is_the_seed_line() {
    let expected = format!(
        "measure#bufproxy.service=0.133 request=\"GET / HTTP/1.1\" status_code=200 \
         request_id=8b6402de-d072-42c4-9854-0f71697b30e5 remote_addr=\"10.16.227.159\" \
         forwarded_for=\"199.188.193.220\" forwarded_proto=\"http\" via=\"1.1 vegur\" \
         body_bytes_sent=12666 referer=\"-\" user_agent=\"{USER_AGENT}\" \
         client=\"199.188.193.220\" receive=0.000 queue=0.000 connect=0.000 first_byte=0.021 \
         upstream=0.022 send=0.111 slow=client_down end=ok"
    );
    assert_eq!(render("l2met", OPTIONS, &seed()), expected);
    let timed = FormatOptions { time: true, ..OPTIONS };
    assert_eq!(
        render("l2met", timed, &seed()),
        format!("time=2024-02-29T12:34:56.789Z {expected}")
    );
    let mut marked = seed();
    (marked.retry, marked.paced, marked.stream) = (1, true, true);
    assert_eq!(
        render("l2met", OPTIONS, &marked),
        expected.replace(" slow=", " retry=1 paced=1 stream=1 slow=")
    );
}

#[test]
fn logfmt_is_like_the_routers_line() {
    assert_eq!(
        render("logfmt", OPTIONS, &seed()),
        format!(
            "at=info method=GET path=\"/\" host=www.example.com \
             request_id=8b6402de-d072-42c4-9854-0f71697b30e5 fwd=\"199.188.193.220\" \
             dyno=bufproxy connect=0ms service=133ms status=200 bytes=12666 protocol=http1.1 \
             client=199.188.193.220 referer=\"\" user_agent=\"{USER_AGENT}\" receive=0ms \
             queue=0ms first_byte=21ms upstream=22ms send=111ms slow=client_down end=ok"
        )
    );
}

#[test]
fn combined_is_nginxs_line() {
    let mut record = seed();
    assert_eq!(
        render("combined", OPTIONS, &record),
        format!(
            "199.188.193.220 - - [29/Feb/2024:12:34:56 +0000] \"GET / HTTP/1.1\" 200 12666 \
             \"-\" \"{USER_AGENT}\""
        )
    );
    record.head = head(
        b"GET /\"\x80\\ HTTP/1.0\r\nReferer: \x1b\x7f\xFF\r\nAuthorization: Basic YSBiOmM=\r\n\
          User-Agent: \r\n\r\n",
    );
    assert_eq!(
        render("combined", OPTIONS, &record),
        "199.188.193.220 - a b [29/Feb/2024:12:34:56 +0000] \"GET /\\x22\\x80\\x5C HTTP/1.0\" 200 \
         12666 \"\\x1B\\x7F\\xFF\" \"\""
    );
}

/// What one line of tests/corpus/combined.jsonl says (made by tests/nginx_combined.py).
#[derive(serde::Deserialize)]
struct Replayed {
    request: String,
    msec: u64,
    status: u16,
    bytes: u64,
    line: String,
}

#[test]
fn combined_is_nginxs_line_for_every_odd_request_of_the_corpus() {
    let corpus = include_str!("../../../tests/corpus/combined.jsonl");
    let format = Format::parse("combined", OPTIONS).unwrap();
    let mut record = Record::new(Peer::Ip("127.0.0.1:1".parse().unwrap()));
    let mut different = Vec::new();
    for entry in corpus.lines() {
        let entry: Replayed = serde_json::from_str(entry).unwrap();
        let request: Vec<u8> = entry.request.chars().map(|c| c as u8).collect();
        record.reset();
        let limits = Limits { head: 32 << 10, fields: 100 };
        match record.head.parse(&request, &limits) {
            Ok(Some(_)) => {}
            Ok(None) => {
                record.head.salvage(&request);
                record.end = Reason::ClientGone;
            }
            Err(violation) => record.end = violation.reason,
        }
        record.time = SystemTime::UNIX_EPOCH + Duration::from_millis(entry.msec);
        record.status = entry.status;
        record.body_bytes_sent = entry.bytes;
        let mut line = Vec::new();
        format.render(&record, 99_999, &mut line);
        let line = String::from_utf8(line).unwrap();
        if line != entry.line {
            different.push(format!("nginx: {}\nours:  {line}", entry.line));
        }
    }
    assert!(corpus.lines().count() > 300);
    assert!(different.is_empty(), "{} lines:\n{}", different.len(), different.join("\n"));
}

#[test]
fn json_is_one_object_with_numbers_as_numbers() {
    assert_eq!(
        render("json", OPTIONS, &seed()),
        format!(
            "{{\"time\":\"2024-02-29T12:34:56.789Z\",\"name\":\"bufproxy\",\"service\":0.133,\
             \"request\":\"GET / HTTP/1.1\",\"method\":\"GET\",\"host\":\"www.example.com\",\
             \"path\":\"/\",\"status_code\":200,\
             \"request_id\":\"8b6402de-d072-42c4-9854-0f71697b30e5\",\
             \"remote_addr\":\"10.16.227.159\",\"forwarded_for\":\"199.188.193.220\",\
             \"forwarded_proto\":\"http\",\"via\":\"1.1 vegur\",\"body_bytes_sent\":12666,\
             \"referer\":null,\"user_agent\":\"{USER_AGENT}\",\"client\":\"199.188.193.220\",\
             \"receive\":0.000,\"queue\":0.000,\"connect\":0.000,\"first_byte\":0.021,\
             \"upstream\":0.022,\"send\":0.111,\"retry\":0,\"paced\":false,\"stream\":false,\"tunnel\":false,\
             \"slow\":\"client_down\",\"end\":\"ok\"}}"
        )
    );
}

#[test]
fn the_docs_have_the_lines_as_they_are() {
    let docs = include_str!("../../../docs/log.md");
    let mut record = seed();
    let agent = record.head.fields[1];
    let mut bytes = record.head.bytes.clone();
    bytes.splice(agent.value.start as usize..agent.value.end as usize, *b"curl/8.5.0");
    record.head = head(&bytes);
    record.time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_282_096_656);
    for name in ["l2met", "logfmt", "combined", "json"] {
        let line = render(name, FormatOptions { time: true, ..OPTIONS }, &record);
        assert!(docs.contains(&format!("```\n{line}\n```")), "{line}");
    }
}

#[test]
fn every_field_of_the_default_line_is_in_the_docs_with_its_source() {
    let docs = include_str!("../../../docs/log.md");
    let (_, table) = docs.split_once("## Variables").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let code = |cell: &'static str| cell.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    let rows: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("| `$"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').collect();
            let [names, fields, source] = cells[..] else { panic!("{line}") };
            assert!(source.trim().len() > 3, "{line}");
            (code(names), code(fields))
        })
        .collect();
    for name in rows.iter().flat_map(|(names, _)| names) {
        let name = name.trim_start_matches('$').to_lowercase();
        let known = variable::lookup(&name).is_some() || variable::CONSTANTS.contains(&&*name);
        assert!(known, "${name} is in docs/log.md and nowhere else");
    }
    let mut fields = 0;
    for (field, value) in L2MET.split(' ').map(|word| word.split_once('=').unwrap()) {
        let field = field.replace("$log_name", "NAME");
        let name = format!("${}", value.trim_matches('"').split('$').nth(1).unwrap());
        let is_there = rows.iter().any(|(names, fields)| {
            names.contains(&name.as_str()) && fields.contains(&field.as_str())
        });
        assert!(is_there, "{field} ({name}) is not in docs/log.md");
        fields += 1;
    }
    assert_eq!(fields, 20);
}

#[test]
fn a_template_has_nginxs_variables() {
    let mut record = seed();
    record.head = head(
        b"POST /a/b?x=1&y=2 HTTP/1.1\r\nHost: [::1]:8080\r\nReferer: http://r/?q=1\r\n\
          Cookie: a=1\r\nCookie: b=2\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\
          Content-Type: text/plain\r\nAuthorization: Basic dXNlcjpw\r\n\r\n",
    );
    record.connection = 41;
    record.connection_requests = 2;
    record.connect = Duration::from_millis(3);
    record.response_head = b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nETag:  \"x\" \r\n\r\n".to_vec();
    let upstream = [UpstreamAddr::Unix("/tmp/app.sock".into())];
    let options = FormatOptions { upstream: &upstream, ..OPTIONS };
    for (template, expected) in [
        ("$remote_addr $realip_remote_addr:$remote_port", "199.188.193.220 10.16.227.159:43210"),
        ("$remote_user ${remote_user}s", "user users"),
        (
            "[$time_local] $time_iso8601 $msec",
            "[29/Feb/2024:12:34:56 +0000] 2024-02-29T12:34:56+00:00 1709210096.789",
        ),
        ("$request_method $request_uri $server_protocol", "POST /a/b?x=1&y=2 HTTP/1.1"),
        ("$uri $args $query_string $is_args", "/a/b x=1&y=2 x=1&y=2 ?"),
        ("$scheme $host $http_host", "http [::1] [::1]:8080"),
        (
            "$http_cookie|$http_x_forwarded_for|$content_type",
            "a=1; b=2|1.1.1.1, 2.2.2.2|text/plain",
        ),
        ("$http_x_no_such $content_length", "- -"),
        ("$sent_http_server $upstream_http_etag $sent_http_date", "gunicorn \\x22x\\x22 -"),
        ("$http_referer $http_x_forwarded_for", "http://r/?q=1 1.1.1.1, 2.2.2.2"),
        ("$status $body_bytes_sent $bytes_sent $request_length", "200 12666 12900 612"),
        ("$request_time $upstream_response_time", "0.133 0.025"),
        ("$upstream_connect_time $upstream_header_time", "0.003 0.024"),
        (
            "$upstream_status $upstream_addr $upstream_response_length",
            "200 unix:/tmp/app.sock 12666",
        ),
        ("$connection $connection_requests $pipe", "41 3 ."),
        ("$server_addr $server_port", "172.16.0.2 5000"),
        ("$receive_time $queue_time $connect_time $app_time", "0.000 0.000 0.003 0.022"),
        (
            "$retry $paced $stream $slow $end $at $request_completion",
            "0 0 0 client_down ok info OK",
        ),
        ("$gzip_ratio $ssl_protocol $upstream_cache_status", "- - -"),
        ("$REMOTE_ADDR$log_name", "199.188.193.220bufproxy"),
    ] {
        assert_eq!(render(template, options, &record), expected, "{template}");
    }
    let v6 = [UpstreamAddr::Tcp("::1".to_owned(), 8000)];
    let options = FormatOptions { upstream: &v6, ..OPTIONS };
    assert_eq!(render("$upstream_addr", options, &record), "[::1]:8000");
    let pid = std::process::id().to_string();
    assert_eq!(render("$pid$status", OPTIONS, &record), pid + "200");
    assert!(!render("$hostname$status", OPTIONS, &record).starts_with("200"));
    let wants = |text| Format::parse(text, OPTIONS).unwrap().wants_response_head();
    assert!(wants("$status $sent_http_etag"));
    assert!(!wants("$status $http_etag"));
}

#[test]
fn what_was_not_reached_is_missing() {
    let record = Record::new(Peer::Unix);
    assert_eq!(
        render(
            "$remote_addr $remote_port $request $request_method $request_uri $uri $args$is_args \
             $server_protocol $host $upstream_response_time $upstream_connect_time \
             $upstream_header_time $upstream_status $upstream_addr $upstream_response_length \
             $server_addr $server_port $request_id",
            OPTIONS,
            &record
        ),
        "unix: - - - - - -- - - - - - - - - unix: - -"
    );
    assert!(render("l2met", OPTIONS, &record).contains("request=\"-\" status_code=0 request_id=-"));
    assert!(render("l2met", OPTIONS, &record).contains(" first_byte=- upstream=0.000 "));
    let json: serde_json::Value = serde_json::from_str(&render("json", OPTIONS, &record)).unwrap();
    assert!(json["request"].is_null() && json["first_byte"].is_null());
}

#[test]
fn a_log_format_of_nginx_conf_can_be_pasted() {
    let record = seed();
    let main = "'$remote_addr - $remote_user [$time_local] \"$request\" '\n    \
                '$status $body_bytes_sent \"$http_referer\" '\n    '\"$http_user_agent\"'";
    let combined = render("combined", OPTIONS, &record);
    assert_eq!(render(main, OPTIONS, &record), combined);
    assert_eq!(render(&format!("log_format  main  {main};"), OPTIONS, &record), combined);
    assert_eq!(render(&format!("escape=default {main}"), OPTIONS, &record), combined);
    assert_eq!(
        render(
            r#"log_format j escape=json '{"s":$status,"ua":"$http_x","r":"$request",'
               '"h":$http_x,"m":$request_method}';"#,
            OPTIONS,
            &record
        ),
        r#"{"s":200,"ua":"","r":"GET / HTTP/1.1","h":null,"m":"GET"}"#
    );
    assert_eq!(render(r"'a\tb\'c\\d\q' $status", OPTIONS, &record), r"a	b'c\d\q200");
    // A template as it stands: its quotes are its own.
    assert_eq!(render("\"$status\" x", OPTIONS, &record), "\"200\" x");
}

#[test]
fn a_wrong_template_is_told_what_would_be_right() {
    let long = format!("$status {}", "x".repeat(4_100));
    for (text, expected) in [
        ("combind", "\"combind\" is no log format: l2met, logfmt, combined, json, or a template"),
        ("$remote_adr", "there is no variable $remote_adr; did you mean $remote_addr?"),
        ("$quux", "there is no variable $quux (docs/log.md has the list)"),
        ("a $ b", "a `$` has no variable after it, such as $status"),
        ("${status", "\"${status\" is not closed: write \"${status}\""),
        ("escape=none '$status'", "escape=none is not offered: a client could forge lines"),
        ("'$status", "a ' is not closed in the log_format"),
        ("$status\n$request", "a template is one line: '\\n' cannot be in it"),
        (&long, "a line must stay under 4096 bytes on a pipe"),
    ] {
        let error = Format::parse(text, OPTIONS).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let error = Format::parse("l2met", FormatOptions { name: "a b", ..OPTIONS }).unwrap_err();
    assert!(error.starts_with("log-name \"a b\" may have"), "{error}");
}

#[test]
fn queries_are_left_out_or_redacted_everywhere() {
    let mut record = seed();
    record.head =
        head(b"GET /p?token=s3cret&s3cret HTTP/1.1\r\nReferer: http://r/?t=s3cret#s3cret\r\n\r\n");
    let template = "$request|$request_uri|$args|$is_args|$http_referer|$uri";
    let off = FormatOptions { query: LogQuery::Off, ..OPTIONS };
    assert_eq!(render(template, off, &record), "GET /p HTTP/1.1|/p|-|-|http://r/|/p");
    let redact = FormatOptions { query: LogQuery::Redact, ..OPTIONS };
    assert_eq!(
        render(template, redact, &record),
        "GET /p?token=REDACTED&REDACTED HTTP/1.1|/p?token=REDACTED&REDACTED|\
         token=REDACTED&REDACTED|?|http://r/?t=REDACTED|/p"
    );
    for options in [off, redact] {
        for name in ["l2met", "logfmt", "combined", "json"] {
            assert!(!render(name, options, &record).contains("s3cret"), "{name}");
        }
        // Malformed: a space in the query, no version.
        record.head.line = record.head.path;
        record.head.line.end -= 1;
        assert!(!render("$request", options, &record).contains("s3cre"));
    }
}

#[test]
fn a_long_line_is_cut_where_it_is_long() {
    let long = "é".repeat(20_000);
    let mut record = seed();
    record.head = head(
        format!("GET /{long}?a HTTP/1.1\r\nReferer: {long}\r\nUser-Agent: short\r\n\r\n")
            .as_bytes(),
    );
    for name in ["l2met", "logfmt", "combined", "json"] {
        let format = Format::parse(name, FormatOptions { time: true, ..OPTIONS }).unwrap();
        for max in [4_095, 9_899] {
            let mut line = b"before".to_vec();
            format.render(&record, max, &mut line);
            let line = str::from_utf8(&line[6..]).unwrap();
            assert!(line.len() <= max && line.len() > max - 100, "{name}: {}", line.len());
            assert_eq!(line.matches("...").count(), if name == "json" { 3 } else { 2 }, "{line}");
            assert!(line.contains("short"));
            if name == "json" {
                serde_json::from_str::<serde_json::Value>(line).unwrap();
            }
        }
    }
}

/// Bytes that a client would like: much of what is special, little of what is plain.
fn hostile(random: &mut fastrand::Rng) -> Vec<u8> {
    const PIECES: [&[u8]; 16] = [
        b"\"",
        b"\\",
        b" end=ok",
        b"\t",
        b"\x1b[0m",
        b"\x7f",
        b"\xff",
        b"\xc3",
        "é😀".as_bytes(),
        b"?",
        b"=",
        b"&",
        b"\"}",
        b"null",
        b"a",
        b"...",
    ];
    let count = if random.u8(..) == 0 { random.usize(..6_000) } else { random.usize(..8) };
    let mut bytes = Vec::new();
    for _ in 0..count {
        if random.bool() {
            bytes.push(random.u8(..));
        } else {
            bytes.extend_from_slice(PIECES[random.usize(..PIECES.len())]);
        }
    }
    bytes.retain(|b| !matches!(b, b'\r' | b'\n'));
    bytes
}

fn hostile_record(random: &mut fastrand::Rng) -> Record {
    let mut text = b"GET /".to_vec();
    text.extend(hostile(random).into_iter().filter(|&b| b != b' '));
    text.extend_from_slice(b" HTTP/1.1\r\n");
    for name in ["Referer", "User-Agent", "X-Forwarded-For", "X-Forwarded-For", "Via", "Host"] {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend(hostile(random));
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    let mut record = seed();
    record.head = head(&text);
    record
}

#[test]
fn no_request_can_forge_a_line_or_a_field() {
    let mut random = fastrand::Rng::with_seed(20_261_007);
    let formats = ["l2met", "logfmt", "combined", "json"].map(|name| {
        [LogQuery::On, LogQuery::Off, LogQuery::Redact]
            .map(|query| Format::parse(name, FormatOptions { query, ..OPTIONS }).unwrap())
    });
    for _ in 0..3_000 {
        let record = hostile_record(&mut random);
        let max = if random.bool() { 4_095 } else { 9_899 };
        let query = random.usize(..3);
        let [l2met, logfmt, combined, json] = formats.each_ref().map(|formats| {
            let mut line = Vec::new();
            formats[query].render(&record, max, &mut line);
            assert!(line.len() <= max);
            String::from_utf8(line).expect("every format is UTF-8")
        });
        for line in [&l2met, &logfmt, &combined] {
            assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')), "{line}");
        }
        assert_eq!(l2met.matches('"').count(), 16, "{l2met}");
        assert_eq!(combined.matches('"').count(), 6, "{combined}");
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
        assert_eq!(object.len(), 29);
        assert!(!json.contains('\n'));
        let fields = parse_logfmt(&logfmt);
        assert_eq!(fields.len(), 22, "{logfmt}");
        if query == 0 && !logfmt.contains("...") {
            let agent = String::from_utf8_lossy(record.head.fields[1].value.of(&record.head.bytes));
            // Tabs around a value stay in the log.
            assert_eq!(fields["user_agent"].trim_matches([' ', '\t']), agent);
            assert_eq!(object["user_agent"], fields["user_agent"]);
        }
    }
}

/// A logfmt reader with go-logfmt's rules.
fn parse_logfmt(line: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').unwrap();
        assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{key:?} in {line}");
        let value;
        (value, rest) = if after.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = values.next().unwrap().unwrap();
            (value, &after[values.byte_offset()..])
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            assert!(!after[..end].contains(['"', '=']), "{line}");
            (after[..end].to_owned(), &after[end..])
        };
        assert!(fields.insert(key.to_owned(), value).is_none(), "{key} twice in {line}");
        rest = rest.strip_prefix(' ').unwrap_or(rest);
    }
    fields
}

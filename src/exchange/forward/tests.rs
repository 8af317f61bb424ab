use super::*;
use crate::trust::tests::{config, request};

const CLIENT: &str = "198.51.100.7";

/// The head that the app gets, finished, for a request from a peer of which `resolved` is believed.
fn forwarded(request_text: &str, mode: Forwarded, resolved: Resolved) -> String {
    let config = Config { forwarded: mode, ..config() };
    let with = Forward {
        config: &config,
        peer: Peer::Ip("10.16.227.159:4321".parse().unwrap()),
        local: Some("[::ffff:172.17.0.2]:5000".parse().unwrap()),
        resolved,
        started_ms: 1_700_000_000_500,
        keep_alive: false,
    };
    let mut out = ForwardedHead::default();
    out.write(&request(request_text), &with);
    out.finish(0, u64::MAX, None);
    String::from_utf8(out.bytes).unwrap()
}

fn untrusted() -> Resolved {
    Resolved { trusted: false, client: Some("10.16.227.159".parse().unwrap()), scheme: "http" }
}

fn trusted() -> Resolved {
    Resolved { trusted: true, client: Some(CLIENT.parse().unwrap()), scheme: "https" }
}

/// The seed article's own request: the router's X-Forwarded-For holds the client and, at the right,
/// the CDN's edge that the router saw.
const SEED: &str = "\
GET / HTTP/1.1
Connection: close
Host: example.herokuapp.com
User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)
Accept: text/html
X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5
X-Forwarded-For: 199.188.193.220, 108.162.219.160
X-Forwarded-Proto: http
X-Forwarded-Port: 80
Via: 1.1 vegur
Connect-Time: 1
X-Request-Start: 1700000000123
Total-Route-Time: 0
";

#[test]
fn the_routers_request_comes_to_the_app_as_the_router_sent_it() {
    let mut config = config();
    config.trust.any_peer = true;
    config.trust.ranges.push("108.162.192.0/18".parse().unwrap());
    let peer = Peer::Ip("10.16.227.159:4321".parse().unwrap());
    let head = request(SEED);
    let resolved = crate::trust::resolve(&config, peer, &head);
    assert_eq!(resolved.client, Some("199.188.193.220".parse().unwrap()));
    let with = Forward {
        config: &config,
        peer,
        local: None,
        resolved,
        started_ms: 1_700_000_000_500,
        keep_alive: false,
    };
    let mut out = ForwardedHead::default();
    out.write(&head, &with);
    out.finish(0, 1_700_000_000_500, None);
    assert_eq!(
        str::from_utf8(&out.bytes).unwrap(),
        "GET / HTTP/1.1\r\n\
         Host: example.herokuapp.com\r\n\
         User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)\r\n\
         Accept: text/html\r\n\
         X-Forwarded-For: 199.188.193.220, 108.162.219.160\r\n\
         X-Forwarded-Port: 80\r\n\
         Via: 1.1 vegur\r\n\
         Connect-Time: 1\r\n\
         Total-Route-Time: 0\r\n\
         Connection: close\r\n\
         X-Real-Ip: 199.188.193.220\r\n\
         X-Forwarded-Proto: http\r\n\
         X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\n\
         X-Request-Start: 1700000000123\r\n\
         Via: 1.1 bufproxy\r\n\
         \r\n"
    );
}

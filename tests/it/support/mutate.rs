//! Inputs that are nearly right: what a parser is most likely to get wrong.

/// What the grammars of HTTP turn on.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\"",
    b"\\",
    b"\0",
    b"%",
    b"=",
    b"0",
    b"1",
    b"18446744073709551616",
    b"-",
    b"+",
    b"0x",
    b"\x7f",
    b"\xe9",
    b"#",
    b"/",
    b"*",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"Host: b\r\n",
    b"Content-Length: 5\r\n",
    b"chunked",
    b"close",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"_",
    b"\xff",
    b"5",
    b"\n\n",
    b"X: y\r\n",
    b"http://",
    b"http://b/",
    b"Expect: 100-continue\r\n",
    b"X_Y: z\r\n",
    b"Connection: x, y\r\n",
    b";a=\"b\"",
    b"Content-Type: a/b\r\n",
    b"Upgrade: websocket\r\n",
    b"[::1]",
    b":80",
    b"@",
    b"Trailer: x\r\n",
    b"Host: a:80\r\n",
    b"Forwarded: for=a\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"%41",
    b"?",
    b"Authorization: a\r\n",
    b"X-Forwarded-For: 1.1.1.1\r\n",
    b"X-Forwarded-Proto: https\r\n",
    b"OPTIONS ",
    b"\xc3\xa9",
    b"X: \xff\r\n",
    b"//",
    b"\x0b",
    b"\x0c",
];

/// `input` with one to three changes: a byte, a token or a piece of another of `corpus` put in, a
/// piece left out, said twice, or in another case.
pub(crate) fn mutate(
    input: &[u8],
    corpus: &[impl AsRef<[u8]>],
    random: &mut fastrand::Rng,
) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..random.usize(1..=3) {
        let start = random.usize(..=out.len());
        let end = random.usize(start..=out.len().min(start + 12));
        match random.usize(..7) {
            0 if start < out.len() => out[start] = random.u8(..),
            1 => drop(out.splice(start..end, [])),
            2 => drop(out.splice(start..start, random.choice(TOKENS).unwrap().iter().copied())),
            3 => drop(out.splice(start..end, random.choice(TOKENS).unwrap().iter().copied())),
            4 => {
                let piece = out[start..end].to_vec();
                out.splice(end..end, piece);
            }
            5 => {
                let other = random.choice(corpus).unwrap().as_ref();
                let from = random.usize(..=other.len());
                let to = random.usize(from..=other.len().min(from + 40));
                out.splice(start..end, other[from..to].iter().copied());
            }
            _ => out[start..end].iter_mut().for_each(|b| {
                *b = if b.is_ascii_lowercase() {
                    b.to_ascii_uppercase()
                } else {
                    b.to_ascii_lowercase()
                }
            }),
        }
    }
    out
}

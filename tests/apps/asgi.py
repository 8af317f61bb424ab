"""The same as an ASGI app, as far as the tests ask: for uvicorn."""

import asyncio
import hashlib
import json
from urllib.parse import parse_qs


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    digest, length, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        block = message.get("body", b"")
        digest.update(block)
        length += len(block)
        more = message.get("more_body", False)
    query = parse_qs(scope["query_string"].decode())
    if scope["path"] == "/big":
        n = int(query["n"][0])
        block = b"".join(b"%015d\n" % i for i in range(4096))
        body = (block * (n // len(block) + 1))[:n]
    elif scope["path"] == "/sleep":
        await asyncio.sleep(float(query["s"][0]))
        body = b"slept\n"
    elif scope["path"] == "/echo":
        seen = {"CONTENT_LENGTH": dict(scope["headers"]).get(b"content-length", b"").decode()}
        seen |= {"scheme": scope["scheme"], "length": length, "sha256": digest.hexdigest()}
        body = json.dumps(seen).encode()
    else:
        body = b"Hello\n"
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})

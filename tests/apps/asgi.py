"""The same as an ASGI app, as far as the tests ask, with a WebSocket and events: for uvicorn."""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from urllib.parse import parse_qs

# What the page of browser.html has counted; one worker, so a variable will do.
reports = []


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["type"] == "http" and scope["path"] == "/events":
        await events(send)
    elif scope["type"] == "http":
        await http(scope, receive, send)


async def http(scope, receive, send):
    digest, received, more = hashlib.sha256(), [], True
    while more:
        message = await receive()
        received.append(message.get("body", b""))
        digest.update(received[-1])
        more = message.get("more_body", False)
    query, content_type = parse_qs(scope["query_string"].decode()), b"text/plain"
    if scope["path"] == "/big":
        n = int(query["n"][0])
        block = b"".join(b"%015d\n" % i for i in range(4096))
        body = (block * (n // len(block) + 1))[:n]
    elif scope["path"] == "/sleep":
        await asyncio.sleep(float(query["s"][0]))
        body = b"slept\n"
    elif scope["path"] == "/echo":
        seen = {"CONTENT_LENGTH": dict(scope["headers"]).get(b"content-length", b"").decode()}
        length = sum(map(len, received))
        seen |= {"scheme": scope["scheme"], "length": length, "sha256": digest.hexdigest()}
        body = json.dumps(seen).encode()
    elif scope["path"] == "/pid":
        body = b"%d" % os.getpid()
    elif scope["path"] == "/page":
        body, content_type = Path(__file__).with_name("browser.html").read_bytes(), b"text/html"
    elif scope["path"] == "/report":
        if scope["method"] == "POST":
            reports.append(json.loads(b"".join(received)))
        body = json.dumps(reports).encode()
    else:
        body = b"Hello\n"
    head = [(b"content-length", str(len(body)).encode()), (b"content-type", content_type)]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def events(send):
    """Server-sent events without an end, one each 100 ms."""
    head = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    number = 0
    while True:
        event = b"id: %d\ndata: %d\n\n" % (number, number)
        await send({"type": "http.response.body", "body": event, "more_body": True})
        number += 1
        await asyncio.sleep(0.1)


async def websocket(scope, receive, send):
    """Echoes; the text `close CODE` closes with that code."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text and text.startswith("close "):
            return await send({"type": "websocket.close", "code": int(text[6:]), "reason": "asked"})
        await send(message | {"type": "websocket.send"})

// The same as a Node server, as far as the tests ask: server.js SOCKET.
const { createHash } = require("node:crypto");
const http = require("node:http");

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const hash = createHash("sha256");
  let length = 0;
  for await (const block of request) {
    hash.update(block);
    length += block.length;
  }
  if (pathname === "/big") {
    const n = Number(searchParams.get("n"));
    let block = "";
    for (let i = 0; i < 4096; i++) block += String(i).padStart(15, "0") + "\n";
    response.end(block.repeat(Math.ceil(n / block.length)).slice(0, n));
  } else if (pathname === "/sleep") {
    setTimeout(() => response.end("slept\n"), 1000 * Number(searchParams.get("s")));
  } else if (pathname === "/echo") {
    const seen = { CONTENT_LENGTH: request.headers["content-length"], length };
    response.end(JSON.stringify({ ...seen, sha256: hash.digest("hex") }));
  } else {
    response.end("Hello\n");
  }
});
server.listen(process.argv[2]);
process.on("SIGTERM", () => server.close());

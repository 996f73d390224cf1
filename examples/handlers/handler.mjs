// Handles orders with Node alone: node handler.mjs
import { createServer } from "node:http";
import { buffer } from "node:stream/consumers";

const utf8 = new TextDecoder("utf-8", { fatal: true });

async function handle(request) {
  let order;
  try {
    order = JSON.parse(utf8.decode(await buffer(request)));
  } catch {
    return 400; // never going to work: dead-letter
  }
  console.log("order", order, "attempt", request.headers["warren-attempt"]);
  return 204; // done: ack
}

const server = createServer(async (request, response) => {
  const status = await handle(request).catch(() => 500); // perhaps later: retry
  response.writeHead(status).end();
});
server.listen(8080, "127.0.0.1");
process.once("SIGTERM", () => server.close()); // ends once calls that run are answered; PID 1 of a container ignores it otherwise

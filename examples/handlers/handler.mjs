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

createServer(async (request, response) => {
  const status = await handle(request).catch(() => 500); // perhaps later: retry
  response.writeHead(status).end();
}).listen(8080, "127.0.0.1");

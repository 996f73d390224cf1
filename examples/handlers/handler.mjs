// Handles orders with Node alone: node handler.mjs
import { createServer } from "node:http";

createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  try {
    const order = JSON.parse(body);
    console.log("order", order, "attempt", request.headers["warren-attempt"]);
    response.writeHead(204).end(); // done: ack
  } catch {
    response.writeHead(400).end("no JSON"); // never going to work: dead-letter
  }
}).listen(8080, "127.0.0.1");

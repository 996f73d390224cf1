"""Handles orders with the standard library alone: python3 handler.py"""
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            order = json.loads(body)
        except ValueError:
            return self.answer(400)  # never going to work: dead-letter
        print("order", order, "attempt", self.headers["warren-attempt"], flush=True)
        self.answer(204)  # done: ack

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()

"""Handles orders with the standard library alone: python3 handler.py"""
import json
import signal
import sys
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


class Server(ThreadingHTTPServer):
    daemon_threads = False  # the end waits for calls that run


signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # PID 1 of a container ignores it otherwise
with Server(("127.0.0.1", 8080), Handler) as server:
    server.serve_forever()

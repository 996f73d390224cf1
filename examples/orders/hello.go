package main

import (
	"io"
	"log/slog"
	"net/http"
)

// newHello is the smallest handler: it logs each message and answers 200, so that Warren acknowledges it.
func newHello(log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			http.Error(w, "the message could not be read", http.StatusRequestEntityTooLarge)
			return
		}
		log.Info("hello", "message", string(body), "queue", r.Header.Get("warren-queue"), "attempt", r.Header.Get("warren-attempt"))
	})
}

package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const pageLimit = 1000

// ledger is the book behind HTTP. It stands in for the database of an accounting department and keeps all in memory.
type ledger struct {
	mutex sync.Mutex
	book  *Book
	now   func() time.Time
}

// newLedger serves
//
//	POST /invoices         a Draft: 201 with the new Invoice, 200 with the one that the order has already, 409 for other content
//	GET  /invoices?after=  the Invoices after a sequence number, at most 1000
//	GET  /summary          the Summary
//	GET  /healthz          200
func newLedger(now func() time.Time) http.Handler {
	l := &ledger{book: NewBook(), now: now}
	routes := http.NewServeMux()
	routes.HandleFunc("POST /invoices", l.enter)
	routes.HandleFunc("GET /invoices", l.after)
	routes.HandleFunc("GET /summary", l.summary)
	routes.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	return routes
}

func (l *ledger) enter(w http.ResponseWriter, r *http.Request) {
	var draft Draft
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&draft); err != nil || draft.OrderID == "" {
		http.Error(w, "the body is not an invoice with an order_id", http.StatusBadRequest)
		return
	}
	l.mutex.Lock()
	invoice, duplicate, err := l.book.Enter(draft, l.now().UnixMilli())
	l.mutex.Unlock()
	var conflict Conflict
	switch {
	case errors.As(err, &conflict):
		http.Error(w, conflict.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case duplicate:
		writeJSON(w, http.StatusOK, invoice)
	default:
		writeJSON(w, http.StatusCreated, invoice)
	}
}

func (l *ledger) after(w http.ResponseWriter, r *http.Request) {
	sequence, err := strconv.ParseInt(withDefault(r.URL.Query().Get("after"), "0"), 10, 64)
	if err != nil {
		http.Error(w, "after must be a sequence number", http.StatusBadRequest)
		return
	}
	l.mutex.Lock()
	invoices := l.book.After(sequence, pageLimit)
	l.mutex.Unlock()
	writeJSON(w, http.StatusOK, invoices)
}

func (l *ledger) summary(w http.ResponseWriter, _ *http.Request) {
	l.mutex.Lock()
	summary := l.book.Summary()
	l.mutex.Unlock()
	writeJSON(w, http.StatusOK, summary)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // a reader that has gone is no fault of ours
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const maxBody = 1 << 20

// handlerConfig is the environment of the handler, checked.
type handlerConfig struct {
	invoicesURL string        // where drafts go
	work        time.Duration // how much longer an order takes, for demonstrations
	pod         string
}

func handlerConfigFrom(getenv func(string) string) (handlerConfig, error) {
	ledgerURL := withDefault(getenv("LEDGER_URL"), "http://ledger:8081")
	if parsed, err := url.Parse(ledgerURL); err != nil || parsed.Host == "" {
		return handlerConfig{}, fmt.Errorf("LEDGER_URL %q is not an address such as http://ledger:8081", ledgerURL)
	}
	milliseconds, err := strconv.ParseUint(withDefault(getenv("WORK_MILLISECONDS"), "0"), 10, 31)
	if err != nil {
		return handlerConfig{}, fmt.Errorf("WORK_MILLISECONDS %q is not a whole number", getenv("WORK_MILLISECONDS"))
	}
	pod := getenv("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname() // "" will do
	}
	return handlerConfig{
		invoicesURL: strings.TrimSuffix(ledgerURL, "/") + "/invoices",
		work:        time.Duration(milliseconds) * time.Millisecond,
		pod:         pod,
	}, nil
}

// orderHandler answers Warren's sidecar.
type orderHandler struct {
	handlerConfig
	client *http.Client
}

// newHandler serves
//
//	POST /         an order: 200 with its invoice, 422 when it can never be one, 503 while the ledger can't be reached
//	GET  /healthz  200
func newHandler(config handlerConfig) http.Handler {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	h := &orderHandler{config, &http.Client{Timeout: 10 * time.Second, Transport: transport}}
	routes := http.NewServeMux()
	routes.HandleFunc("POST /{$}", h.handle)
	routes.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	return routes
}

// handle turns one message into one invoice. The status tells Warren what to do with the message: 2xx acknowledges it, 422
// dead-letters it at once, since no retry mends a bad order, and 503 lets it be tried again.
func (h *orderHandler) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the order could not be read, or has more than %d bytes: %w", maxBody, err))
		return
	}
	order, err := ParseOrder(body)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err)
		return
	}
	priced, err := Price(order)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err)
		return
	}
	if !pause(r.Context(), h.work) {
		return // the caller has gone
	}
	draft := Draft{OrderID: order.ID, Customer: order.Customer, Country: order.Country, Priced: priced, HandledBy: h.pod}
	status, answer, err := h.enter(r.Context(), draft)
	switch {
	case err != nil:
		w.Header().Set("retry-after", "2")
		refuse(w, http.StatusServiceUnavailable, fmt.Errorf("the ledger can't be reached: %w", err))
	case status == http.StatusOK || status == http.StatusCreated:
		w.Header().Set("content-type", "application/json")
		_, _ = w.Write(answer)
	case status == http.StatusConflict:
		refuse(w, http.StatusUnprocessableEntity, fmt.Errorf("%s", strings.TrimSpace(string(answer))))
	default:
		refuse(w, http.StatusBadGateway, fmt.Errorf("the ledger answered %d: %s", status, strings.TrimSpace(string(answer))))
	}
}

// enter sends a draft to the ledger, which gives it its number.
func (h *orderHandler) enter(ctx context.Context, draft Draft) (status int, answer []byte, err error) {
	body, err := json.Marshal(draft)
	if err != nil {
		return 0, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.invoicesURL, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("content-type", "application/json")
	response, err := h.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxBody))
	return response.StatusCode, answer, err
}

// pause waits, and says whether the caller is still there.
func pause(ctx context.Context, duration time.Duration) bool {
	if duration == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// refuse answers with a reason, which Warren keeps with a message that it dead-letters.
func refuse(w http.ResponseWriter, status int, reason error) {
	slog.Warn("order refused", "status", status, "reason", reason)
	w.Header().Set("warren-reason", oneLine(reason.Error()))
	http.Error(w, reason.Error(), status)
}

// oneLine makes a text fit for a header.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
}

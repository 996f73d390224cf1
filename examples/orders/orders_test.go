package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// shop is a ledger and a handler that writes to it.
type shop struct{ ledger, handler *httptest.Server }

func newShop(t *testing.T) shop {
	ledger := httptest.NewServer(newLedger(func() time.Time { return time.UnixMilli(1000) }))
	t.Cleanup(ledger.Close)
	return shop{ledger, newHandlerFor(t, ledger.URL)}
}

func newHandlerFor(t *testing.T, ledgerURL string) *httptest.Server {
	config, err := handlerConfigFrom(func(name string) string {
		return map[string]string{"LEDGER_URL": ledgerURL, "POD_NAME": "pod-1"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := httptest.NewServer(newHandler(config))
	t.Cleanup(handler.Close)
	return handler
}

func post(t *testing.T, to *httptest.Server, body string) *http.Response {
	t.Helper()
	response, err := http.Post(to.URL, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response
}

func get[T any](t *testing.T, url string) T {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var value T
	if err := json.NewDecoder(response.Body).Decode(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func madeUp(t *testing.T, number uint64) string {
	t.Helper()
	body, err := json.Marshal(MadeUpOrder(number))
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestAnOrderBecomesOneInvoiceHoweverOftenItIsDelivered(t *testing.T) {
	shop := newShop(t)
	for range 3 {
		if got := post(t, shop.handler, madeUp(t, 7)).StatusCode; got != http.StatusOK {
			t.Fatal(got)
		}
	}
	summary := get[Summary](t, shop.ledger.URL+"/summary")
	if summary.Invoices != 1 || summary.Duplicates != 2 || summary.ByPod["pod-1"] != 1 || summary.FirstHandledUnixMS != 1000 {
		t.Fatalf("%+v", summary)
	}
}

func TestInvoicesAreNumberedWithoutGapsUnderConcurrentOrders(t *testing.T) {
	shop := newShop(t)
	var all sync.WaitGroup
	for number := range uint64(50) {
		all.Add(1)
		go func() {
			defer all.Done()
			post(t, shop.handler, madeUp(t, number))
		}()
	}
	all.Wait()
	var total int64
	for index, invoice := range get[[]Invoice](t, shop.ledger.URL+"/invoices") {
		if invoice.Sequence != int64(index)+1 || invoice.Number != fmt.Sprintf("INV-%08d", index+1) {
			t.Fatalf("%+v", invoice)
		}
		total += invoice.TotalCents
	}
	summary := get[Summary](t, shop.ledger.URL+"/summary")
	if summary.Invoices != 50 || summary.TotalCents != total {
		t.Fatalf("%+v, %d cents in the invoices", summary, total)
	}
	if rest := get[[]Invoice](t, shop.ledger.URL+"/invoices?after=49"); len(rest) != 1 || rest[0].Sequence != 50 {
		t.Fatalf("%+v", rest)
	}
	if none := get[[]Invoice](t, shop.ledger.URL+"/invoices?after=50"); len(none) != 0 {
		t.Fatalf("%+v", none)
	}
}

func TestABadOrderAnswers422WithAReasonAndIsNotInvoiced(t *testing.T) {
	shop := newShop(t)
	for _, body := range []string{
		`nonsense`,
		`{"id":"o","customer":"c","country":"DE","lines":[{"sku":"UNICORN","quantity":1}]}`,
		`{"id":"o","customer":"c","country":"Ünknown","lines":[{"sku":"MUG-ACK","quantity":1}]}`,
		`{"id":"o","customer":"` + strings.Repeat("<", 201) + `","country":"DE","lines":[{"sku":"MUG-ACK","quantity":1}]}`,
	} {
		response := post(t, shop.handler, body)
		if response.StatusCode != http.StatusUnprocessableEntity || response.Header.Get("warren-reason") == "" {
			t.Fatalf("%s: %d %v", body, response.StatusCode, response.Header)
		}
	}
	if got := get[Summary](t, shop.ledger.URL+"/summary"); got.Invoices != 0 {
		t.Fatalf("%+v", got)
	}
}

func TestTheSameIdWithAnotherContentIsRefused(t *testing.T) {
	shop := newShop(t)
	post(t, shop.handler, madeUp(t, 7))
	other := strings.Replace(madeUp(t, 8), "order-00000008", "order-00000007", 1)
	if got := post(t, shop.handler, other).StatusCode; got != http.StatusUnprocessableEntity {
		t.Fatal(got)
	}
}

func TestALedgerThatIsAwayAnswersNotNow(t *testing.T) {
	away := httptest.NewServer(http.NotFoundHandler())
	away.Close()
	response := post(t, newHandlerFor(t, away.URL), madeUp(t, 7))
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("retry-after") == "" {
		t.Fatal(response.StatusCode)
	}
}

func TestALedgerThatFailsAnswersAFailure(t *testing.T) {
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	if got := post(t, newHandlerFor(t, broken.URL), madeUp(t, 7)).StatusCode; got != http.StatusBadGateway {
		t.Fatal(got)
	}
}

func TestHelloLogsTheMessageAndItsAttempt(t *testing.T) {
	var log bytes.Buffer
	hello := httptest.NewServer(newHello(slog.New(slog.NewTextHandler(&log, nil))))
	defer hello.Close()
	request, err := http.NewRequest(http.MethodPost, hello.URL, strings.NewReader("Hello, Warren"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("warren-attempt", "2")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK || !strings.Contains(log.String(), `message="Hello, Warren"`) || !strings.Contains(log.String(), "attempt=2") {
		t.Fatal(response.StatusCode, log.String())
	}
}

func TestABodyThatIsTooLargeAnswers413(t *testing.T) {
	if got := post(t, newShop(t).handler, strings.Repeat(" ", maxBody+1)).StatusCode; got != http.StatusRequestEntityTooLarge {
		t.Fatal(got)
	}
}

func TestAnOrderNumberAlwaysGivesTheSameOrder(t *testing.T) {
	distinct := map[string]bool{}
	for number := range uint64(1000) {
		if !reflect.DeepEqual(MadeUpOrder(number), MadeUpOrder(number)) {
			t.Fatal(number)
		}
		distinct[fmt.Sprint(MadeUpOrder(number).Lines)] = true
	}
	if len(distinct) < 800 {
		t.Fatalf("only %d distinct orders of 1000", len(distinct))
	}
}

func TestOrdersArePrintedOneALine(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"order", "5", "3"}, nil, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || lines[0] != madeUp(t, 5) || lines[2] != madeUp(t, 7) {
		t.Fatal(out.String())
	}
}

func TestAWrongCallSaysWhatToWrite(t *testing.T) {
	for _, args := range [][]string{{}, {"fly"}, {"order"}, {"order", "x"}, {"order", "1", "-1"}} {
		if err := run(args, func(string) string { return "" }, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
	for name, value := range map[string]string{"WORK_MILLISECONDS": "soon", "LEDGER_URL": "ledger"} {
		if _, err := handlerConfigFrom(func(n string) string { return map[string]string{name: value}[n] }); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

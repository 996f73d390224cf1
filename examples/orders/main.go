// Orders is a small real application for Warren: it prices orders that arrive as messages and turns each into exactly one invoice.
//
//	orders handler             serves POST / for Warren's sidecar and writes invoices to the ledger
//	orders ledger              keeps the invoices, one for each order id
//	orders hello               logs each message that is posted to it, and acknowledges it
//	orders order N [COUNT]     prints the made-up order number N, and the ones after it, one JSON object a line
//
// Orders, prices and the book of invoices are plain values and functions (order.go, pricing.go, generate.go, book.go); handler.go
// and ledger.go put HTTP around them.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const usage = `usage:
  orders handler           price orders that are posted to / (LISTEN, LEDGER_URL, WORK_MILLISECONDS, POD_NAME)
  orders ledger            keep the invoices (LISTEN)
  orders hello             log what is posted to / and answer 200 (LISTEN)
  orders order N [COUNT]   print COUNT made-up orders, from number N on
`

func main() {
	if err := run(os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "orders:", err)
		os.Exit(1)
	}
}

// run performs one subcommand.
func run(args []string, getenv func(string) string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("no subcommand\n" + usage)
	}
	switch args[0] {
	case "handler":
		config, err := handlerConfigFrom(getenv)
		if err != nil {
			return err
		}
		return serve(withDefault(getenv("LISTEN"), ":8080"), newHandler(config))
	case "ledger":
		return serve(withDefault(getenv("LISTEN"), ":8081"), newLedger(time.Now))
	case "hello":
		return serve(withDefault(getenv("LISTEN"), ":8080"), newHello(slog.Default()))
	case "order":
		return printOrders(args[1:], out)
	default:
		return fmt.Errorf("unknown subcommand %q\n%s", args[0], usage)
	}
}

// printOrders writes made-up orders as JSON lines.
func printOrders(args []string, out io.Writer) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("order takes a number and, if you like, a count\n" + usage)
	}
	first, err := strconv.ParseUint(args[0], 10, 63)
	if err != nil {
		return fmt.Errorf("the order's number %q is not a whole number: %w", args[0], err)
	}
	count := uint64(1)
	if len(args) == 2 {
		if count, err = strconv.ParseUint(args[1], 10, 31); err != nil {
			return fmt.Errorf("the count %q is not a whole number: %w", args[1], err)
		}
	}
	lines := bufio.NewWriter(out)
	encoder := json.NewEncoder(lines)
	for number := first; number < first+count; number++ {
		if err := encoder.Encode(MadeUpOrder(number)); err != nil {
			return err
		}
	}
	return lines.Flush()
}

// serve answers HTTP until SIGTERM or an interrupt, then lets running requests end. In a container this program is PID 1, for
// which the kernel has no default action on SIGTERM: without the handler the pod would hang until it is killed.
func serve(address string, handler http.Handler) error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	slog.Info("serving", "address", address)
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	slog.Info("stopping: no new requests, waiting for the running ones")
	grace, cancelGrace := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancelGrace()
	return server.Shutdown(grace)
}

func withDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// App is the application of the whole-cluster tests. What it does with a message is not in it: it asks the test's desk, which
// runs beside the test on the host, for how long to work and what to answer, and tells the desk when it is done.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type report struct {
	Pod     string            `json:"pod"`
	Body    string            `json:"body"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
}

type order struct {
	Milliseconds int               `json:"milliseconds"`
	Status       int               `json:"status"`
	Headers      map[string]string `json:"headers"`
}

func main() {
	// As PID 1 the kernel has no default action on SIGTERM for it.
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(handle)}
	go func() {
		<-stop.Done()
		_ = server.Shutdown(context.Background())
	}()
	fmt.Println(server.ListenAndServe())
}

func handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	call := report{Pod: os.Getenv("POD_NAME"), Body: string(body), Path: r.URL.Path, Headers: map[string]string{}}
	for name, values := range r.Header {
		call.Headers[strings.ToLower(name)] = values[0]
	}
	var todo order
	if err := tell("begin", call, &todo); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	time.Sleep(time.Duration(todo.Milliseconds) * time.Millisecond)
	if err := tell("end", call, nil); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	for name, value := range todo.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(todo.Status)
}

func tell(event string, call report, answer any) error {
	data, err := json.Marshal(call)
	if err != nil {
		return err
	}
	response, err := http.Post(os.Getenv("DESK_URL")+"/"+event, "application/json", bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

package main

import (
	"fmt"
	"reflect"
)

// Draft is an invoice before it has its number: what the handler sends to the ledger.
type Draft struct {
	OrderID   string `json:"order_id"`
	Customer  string `json:"customer"`
	Country   string `json:"country"`
	Priced           // its fields are the invoice's own
	HandledBy string `json:"handled_by"` // the pod, for the curious
}

// Invoice is a draft that is in the book.
type Invoice struct {
	Sequence int64  `json:"sequence"` // 1, 2, 3... without gaps
	Number   string `json:"number"`
	Draft
	UnixMilliseconds int64 `json:"unix_ms"`
}

// Summary is what the book holds.
type Summary struct {
	Invoices           int            `json:"invoices"`
	Duplicates         int            `json:"duplicates"`
	TotalCents         int64          `json:"total_cents"`
	ByPod              map[string]int `json:"by_pod"`
	FirstHandledUnixMS int64          `json:"first_handled_unix_ms,omitempty"` // absent while there is none
	LastHandledUnixMS  int64          `json:"last_handled_unix_ms,omitempty"`
}

// Conflict means that an order id came back with another content.
type Conflict struct{ OrderID, Number string }

func (c Conflict) Error() string {
	return fmt.Sprintf("order %s is invoice %s already, with another content", c.OrderID, c.Number)
}

// Book is the invoices in the order of their numbers, one for each order id. It is not safe for concurrent use.
type Book struct {
	invoices   []Invoice
	byOrder    map[string]int
	byPod      map[string]int
	totalCents int64
	duplicates int
}

// NewBook is an empty book.
func NewBook() *Book {
	return &Book{byOrder: map[string]int{}, byPod: map[string]int{}}
}

// Enter puts an invoice into the book and gives it the next number. A draft of an order that is there already, as a
// redelivered message makes one, is counted as a duplicate and gets the invoice that exists: nothing is invoiced twice.
func (b *Book) Enter(draft Draft, unixMilliseconds int64) (invoice Invoice, duplicate bool, err error) {
	if index, ok := b.byOrder[draft.OrderID]; ok {
		known := b.invoices[index]
		if !sameContent(known.Draft, draft) {
			return Invoice{}, false, Conflict{draft.OrderID, known.Number}
		}
		b.duplicates++
		return known, true, nil
	}
	sequence := int64(len(b.invoices)) + 1
	invoice = Invoice{
		Sequence:         sequence,
		Number:           fmt.Sprintf("INV-%08d", sequence),
		Draft:            draft,
		UnixMilliseconds: unixMilliseconds,
	}
	b.byOrder[draft.OrderID] = len(b.invoices)
	b.invoices = append(b.invoices, invoice)
	b.byPod[draft.HandledBy]++
	b.totalCents += draft.TotalCents
	return invoice, false, nil
}

// sameContent compares all but the pod: a redelivery is handled by another one.
func sameContent(a, b Draft) bool {
	a.HandledBy, b.HandledBy = "", ""
	return reflect.DeepEqual(a, b)
}

// After is at most limit invoices whose sequence is greater than the given one.
func (b *Book) After(sequence int64, limit int) []Invoice {
	from := min(max(sequence, 0), int64(len(b.invoices)))
	to := min(from+int64(limit), int64(len(b.invoices)))
	return append([]Invoice{}, b.invoices[from:to]...)
}

// Summary adds up the book.
func (b *Book) Summary() Summary {
	byPod := make(map[string]int, len(b.byPod))
	for pod, count := range b.byPod {
		byPod[pod] = count
	}
	summary := Summary{Invoices: len(b.invoices), Duplicates: b.duplicates, TotalCents: b.totalCents, ByPod: byPod}
	if len(b.invoices) > 0 {
		summary.FirstHandledUnixMS = b.invoices[0].UnixMilliseconds
		summary.LastHandledUnixMS = b.invoices[len(b.invoices)-1].UnixMilliseconds
	}
	return summary
}

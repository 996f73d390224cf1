package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"
)

const (
	maxLines    = 100
	maxQuantity = 10_000
)

// Order is what a customer wants: the body of a message.
type Order struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Country  string `json:"country"`
	Lines    []Line `json:"lines"`
}

// Line is a number of pieces of one article.
type Line struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// ParseOrder reads an order and checks everything that does not need the catalogue. Its errors are for people: no retry mends
// them.
func ParseOrder(body []byte) (Order, error) {
	var order Order
	if !utf8.Valid(body) { // the decoder would put U+FFFD into the order
		return Order{}, fmt.Errorf("the body is not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := decoder.Decode(&order); err != nil {
		return Order{}, fmt.Errorf("the body is not an order: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return Order{}, fmt.Errorf("the body has something after the order")
	}
	switch {
	case order.ID == "":
		return Order{}, fmt.Errorf("the order has no id")
	case len(order.ID) > 100:
		return Order{}, fmt.Errorf("the order's id has %d bytes, more than 100", len(order.ID))
	case order.Customer == "":
		return Order{}, fmt.Errorf("order %s has no customer", order.ID)
	case len(order.Customer) > 200:
		return Order{}, fmt.Errorf("order %s: the customer has more than 200 bytes", order.ID)
	case order.Country == "":
		return Order{}, fmt.Errorf("order %s has no country", order.ID)
	case len(order.Lines) == 0:
		return Order{}, fmt.Errorf("order %s has no lines", order.ID)
	case len(order.Lines) > maxLines:
		return Order{}, fmt.Errorf("order %s has %d lines, more than %d", order.ID, len(order.Lines), maxLines)
	}
	for index, line := range order.Lines {
		if line.Quantity < 1 || line.Quantity > maxQuantity {
			return Order{}, fmt.Errorf("order %s, line %d: the quantity %d is not between 1 and %d", order.ID, index+1, line.Quantity, maxQuantity)
		}
	}
	return order, nil
}

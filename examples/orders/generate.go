package main

import (
	"fmt"
	"sort"
)

// dice is SplitMix64: the same seed gives the same throws on every machine.
type dice struct{ state uint64 }

func (d *dice) throw(sides int) int {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	z ^= z >> 31
	return int(z % uint64(sides))
}

// MadeUpOrder is the order with the given number, always the same one. It can always be priced.
func MadeUpOrder(number uint64) Order {
	d := &dice{state: number}
	d.throw(2) // neighbouring seeds part ways after the first throw
	order := Order{
		ID:       fmt.Sprintf("order-%08d", number),
		Customer: fmt.Sprintf("customer-%04d", d.throw(2500)),
		Country:  pick(d, countryCodes),
	}
	for range 1 + d.throw(5) {
		order.Lines = append(order.Lines, Line{SKU: pick(d, skus), Quantity: madeUpQuantity(d)})
	}
	return order
}

// madeUpQuantity is mostly small, and sometimes large enough for a discount.
func madeUpQuantity(d *dice) int64 {
	switch d.throw(10) {
	case 0:
		return int64(10 + d.throw(30))
	case 1:
		return int64(100 + d.throw(50))
	default:
		return int64(1 + d.throw(4))
	}
}

func pick(d *dice, from []string) string { return from[d.throw(len(from))] }

var (
	skus         = sortedKeys(catalogue)
	countryCodes = sortedKeys(countries)
)

func sortedKeys[V any](of map[string]V) []string {
	keys := make([]string, 0, len(of))
	for key := range of {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

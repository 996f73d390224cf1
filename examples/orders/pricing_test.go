package main

import (
	"strings"
	"testing"
)

func order(country string, lines ...Line) Order {
	return Order{ID: "order-1", Customer: "customer-1", Country: country, Lines: lines}
}

func price(t *testing.T, o Order) Priced {
	t.Helper()
	priced, err := Price(o)
	if err != nil {
		t.Fatal(err)
	}
	return priced
}

func TestASmallOrderCostsItsArticlesAndTheTaxOfItsCountry(t *testing.T) {
	priced := price(t, order("DE", Line{"MUG-ACK", 2}))
	if priced.NetCents != 2398 || priced.VAT[0].VATCents != 456 || priced.TotalCents != 2854 {
		t.Fatalf("2 mugs of 11.99 are 23.98 net, 4.56 tax at 19 %%: %+v", priced)
	}
}

func TestBooksTakeTheReducedRateAndEachRateIsTaxedOnItsSum(t *testing.T) {
	priced := price(t, order("FR", Line{"BOOK-BURROWS", 1}, Line{"MUG-ACK", 1}, Line{"BOOK-QUEUES", 1}))
	if len(priced.VAT) != 2 || priced.VAT[0] != (VAT{550, 5485, 302}) || priced.VAT[1] != (VAT{2000, 1199, 240}) {
		t.Fatalf("%+v", priced.VAT)
	}
}

func TestAQuantityDiscountBeginsExactlyAtItsQuantity(t *testing.T) {
	for _, expect := range []struct{ quantity, net int64 }{{9, 2997}, {10, 3247}, {25, 7909}, {100, 29970}} {
		if got := price(t, order("DE", Line{"STICKERS", expect.quantity})).NetCents; got != expect.net {
			t.Errorf("%d sheets: %d cents, expected %d", expect.quantity, got, expect.net)
		}
	}
}

func TestALargeOrderGetsADiscountOnTheWhole(t *testing.T) {
	priced := price(t, order("DE", Line{"HUTCH-OAK", 3}))
	if priced.DiscountCents != 1701 || priced.NetCents != 54999 {
		t.Fatalf("3 %% of 567.00 are 17.01: %+v", priced)
	}
}

func TestEveryMadeUpOrderAddsUpToTheCent(t *testing.T) {
	for number := uint64(0); number < 20_000; number++ {
		priced := price(t, MadeUpOrder(number))
		var lines, taxed, tax int64
		for _, line := range priced.Lines {
			if line.NetCents < 0 {
				t.Fatalf("order %d has a line below nothing: %+v", number, priced)
			}
			lines += line.NetCents
		}
		for _, vat := range priced.VAT {
			taxed += vat.NetCents
			tax += vat.VATCents
		}
		if lines != priced.NetCents || taxed != priced.NetCents || priced.NetCents+tax != priced.TotalCents {
			t.Fatalf("order %d does not add up: %+v", number, priced)
		}
	}
}

func TestTheLargestOrderDoesNotOverflow(t *testing.T) {
	lines := make([]Line, maxLines)
	for index := range lines {
		lines[index] = Line{"HUTCH-OAK", maxQuantity}
	}
	priced := price(t, order("FI", lines...))
	if priced.NetCents <= 0 || priced.TotalCents <= priced.NetCents {
		t.Fatalf("%+v", priced)
	}
}

func TestAnUnknownArticleOrCountryIsNamed(t *testing.T) {
	if _, err := Price(order("DE", Line{"UNICORN", 1})); err == nil || !strings.Contains(err.Error(), "UNICORN") {
		t.Fatal(err)
	}
	if _, err := Price(order("XX", Line{"MUG-ACK", 1})); err == nil || !strings.Contains(err.Error(), "XX") {
		t.Fatal(err)
	}
}

func TestABadOrderIsRefusedWithAReason(t *testing.T) {
	for body, reason := range map[string]string{
		``:          "not an order",
		`[]`:        "not an order",
		`{"id": 7}`: "not an order",
		"{\"id\": \"o\", \"customer\": \"\xff\"}":                                              "not UTF-8",
		`{"customer":"c","country":"DE"}`:                                                      "no id",
		`{"id":"o","country":"DE"}`:                                                            "no customer",
		`{"id":"o","customer":"c"}`:                                                            "no country",
		`{"id":"o","customer":"c","country":"DE"}`:                                             "no lines",
		`{"id":"o","customer":"c","country":"DE","lines":[{"sku":"MUG-ACK"}]}`:                 "quantity",
		`{"id":"o","customer":"c","country":"DE","lines":[{"sku":"MUG-ACK","quantity":-1}]}`:   "quantity",
		`{"id":"o","customer":"c","country":"DE","lines":[{"sku":"MUG-ACK","quantity":1.5}]}`:  "not an order",
		`{"id":"o","customer":"c","country":"DE","lines":[{"sku":"MUG-ACK","quantity":1}]} {}`: "after the order",
	} {
		if _, err := ParseOrder([]byte(body)); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, expected %q", body, err, reason)
		}
	}
}

package main

import (
	"fmt"
	"sort"
)

// Basis points: 10,000 are the whole.
const whole = 10_000

// quantityDiscounts apply to a line, the first that its quantity reaches.
var quantityDiscounts = []struct{ from, basisPoints int64 }{{100, 1000}, {25, 500}, {10, 250}}

// An order of this net value or more gets a discount on all of it.
const (
	largeOrderCents       = 50_000
	largeOrderBasisPoints = 300
)

// Priced is an order with its prices, in whole cents.
type Priced struct {
	Lines         []PricedLine `json:"lines"`
	DiscountCents int64        `json:"discount_cents"` // on the whole order, taken from the lines' net already
	NetCents      int64        `json:"net_cents"`
	VAT           []VAT        `json:"vat"`
	TotalCents    int64        `json:"total_cents"`
}

// PricedLine is a line with its net price after all discounts.
type PricedLine struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	Quantity  int64  `json:"quantity"`
	UnitCents int64  `json:"unit_cents"`
	NetCents  int64  `json:"net_cents"`
}

// VAT is the tax of all lines of one rate.
type VAT struct {
	BasisPoints int64 `json:"basis_points"`
	NetCents    int64 `json:"net_cents"`
	VATCents    int64 `json:"vat_cents"`
}

// Price prices an order. All sums are exact: only the discounts and the tax of each rate are rounded, half a cent up, and the
// discount on a whole order is shared among the lines so that they add up to it to the cent.
func Price(order Order) (Priced, error) {
	rates, ok := countries[order.Country]
	if !ok {
		return Priced{}, fmt.Errorf("order %s: the shop does not deliver to country %q", order.ID, order.Country)
	}
	lines := make([]PricedLine, 0, len(order.Lines))
	lineRates := make([]int64, 0, len(order.Lines))
	var net int64
	for _, line := range order.Lines {
		article, ok := catalogue[line.SKU]
		if !ok {
			return Priced{}, fmt.Errorf("order %s: the catalogue has no article %q", order.ID, line.SKU)
		}
		gross := article.Cents * line.Quantity
		lineNet := gross - share(gross, quantityDiscount(line.Quantity))
		lines = append(lines, PricedLine{line.SKU, article.Name, line.Quantity, article.Cents, lineNet})
		lineRates = append(lineRates, rates.of(article.Class))
		net += lineNet
	}
	var discount int64
	if net >= largeOrderCents {
		discount = share(net, largeOrderBasisPoints)
		spread(discount, lines)
		net -= discount
	}
	vat := taxes(lines, lineRates)
	total := net
	for _, tax := range vat {
		total += tax.VATCents
	}
	return Priced{Lines: lines, DiscountCents: discount, NetCents: net, VAT: vat, TotalCents: total}, nil
}

func quantityDiscount(quantity int64) int64 {
	for _, discount := range quantityDiscounts {
		if quantity >= discount.from {
			return discount.basisPoints
		}
	}
	return 0
}

// share is the given part of an amount that is not negative, half a cent rounded up.
func share(cents, basisPoints int64) int64 {
	return (cents*basisPoints + whole/2) / whole
}

// spread takes a discount from the lines by their net value: each line takes the difference of the running sums, so no cent
// is lost or made up.
func spread(discount int64, lines []PricedLine) {
	var net int64
	for _, line := range lines {
		net += line.NetCents
	}
	var seen, taken int64
	for index := range lines {
		seen += lines[index].NetCents
		due := discount * seen / net
		lines[index].NetCents -= due - taken
		taken = due
	}
}

// taxes sums the lines of each rate, then taxes each sum: that is how an invoice shows it.
func taxes(lines []PricedLine, lineRates []int64) []VAT {
	nets := map[int64]int64{}
	for index, line := range lines {
		nets[lineRates[index]] += line.NetCents
	}
	vat := make([]VAT, 0, len(nets))
	for rate, net := range nets {
		vat = append(vat, VAT{BasisPoints: rate, NetCents: net, VATCents: share(net, rate)})
	}
	sort.Slice(vat, func(a, b int) bool { return vat[a].BasisPoints < vat[b].BasisPoints })
	return vat
}

package main

// VATClass says which of a country's rates an article takes.
type VATClass int

const (
	// Standard is the rate of most goods.
	Standard VATClass = iota
	// Reduced is the rate of printed books.
	Reduced
)

// Article is something that can be ordered.
type Article struct {
	Name  string
	Cents int64 // the net price of one piece
	Class VATClass
}

// catalogue is what the shop sells, by SKU.
var catalogue = map[string]Article{
	"BOOK-QUEUES":   {Name: "Queues for everyone, hardcover", Cents: 3495, Class: Reduced},
	"BOOK-BURROWS":  {Name: "Field guide to burrows", Cents: 1990, Class: Reduced},
	"CARROT-SEEDS":  {Name: "Carrot seeds, 500 pieces", Cents: 299, Class: Standard},
	"HUTCH-OAK":     {Name: "Hutch, oak, two floors", Cents: 18900, Class: Standard},
	"LAMP-BURROW":   {Name: "Burrow lamp", Cents: 2749, Class: Standard},
	"MUG-ACK":       {Name: "Mug \"acknowledged\"", Cents: 1199, Class: Standard},
	"SHIRT-DURABLE": {Name: "Shirt, durable", Cents: 2450, Class: Standard},
	"STICKERS":      {Name: "Stickers, sheet of 12", Cents: 333, Class: Standard},
}

// VAT rates of a country, in hundredths of a percent.
type vatRates struct {
	standard, reduced int64
}

// countries that the shop delivers to, by ISO code.
var countries = map[string]vatRates{
	"AT": {2000, 1000},
	"DE": {1900, 700},
	"ES": {2100, 400},
	"FI": {2550, 1350},
	"FR": {2000, 550},
	"IE": {2300, 0},
	"IT": {2200, 400},
	"NL": {2100, 900},
	"PL": {2300, 500},
}

func (rates vatRates) of(class VATClass) int64 {
	if class == Reduced {
		return rates.reduced
	}
	return rates.standard
}

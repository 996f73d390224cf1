module warren.dev/examples/orders

go 1.22

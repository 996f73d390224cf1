module warren.dev/tests/cluster/smoke

go 1.26.0

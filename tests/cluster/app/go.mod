module warren.dev/tests/app

go 1.26

module ringway.test/goworker

go 1.24

# The checks of this repository, for people and for .ci/run. CONTRIBUTING.md says what
# they are.

MODULES = . bench examples/topostgres examples/webapp/e2e
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK = go run golang.org/x/vuln/cmd/govulncheck@v1.1.4

.PHONY: all system lint vuln test e2e robustness bench

all: lint test e2e robustness

# What tests need beside Go, on Debian.
system:
	apt-get update -q
	apt-get install -qy gcc libc6-dev postgresql chromium

lint:
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	CGO_ENABLED=0 go build ./...
	GOOS=windows go vet ./...
	GOOS=darwin go vet ./...
	set -e; for module in $(MODULES); do \
		(cd $$module && go mod tidy -diff && go vet ./... && $(STATICCHECK) ./...); \
	done

# Apart from lint, because it asks a database on the net.
vuln:
	set -e; for module in $(MODULES); do (cd $$module && $(GOVULNCHECK) ./...); done

test:
	go test -race -shuffle=on -timeout 1200s ./...
	go test -run '^$$' -bench 'Site|Commit/1/memory' -benchtime 50x
	cd bench && go test -timeout 1200s ./...
	cd examples/topostgres && go test -timeout 300s ./...

e2e:
	cd examples/webapp/e2e && go test -count=1 -timeout 300s ./...

# First the tests that the race detector leaves out or makes small. Fuzzing does not
# minimize, because the engine's own goroutines make coverage vary. It ends after a number
# of runs: at the end of a time, the go command sometimes fails with "context deadline
# exceeded" (golang.org/issue/75804).
robustness:
	go test -timeout 300s -run 'StaleIndex|Memory' . ./internal/engine ./internal/robustness
	go test ./internal/modeltest -run '^$$' -timeout 300s -fuzz FuzzSession -fuzzminimizetime 1x -fuzztime 5000x
	go test ./internal/modeltest -run '^$$' -timeout 300s -fuzz FuzzOperations -fuzzminimizetime 1x -fuzztime 300x
	go test ./internal/robustness -v -run 'Crash|Faults|Soak' -crash-rounds 20 -fault-runs 5 -soak 10s -count=1 -timeout 600s

bench:
	cd bench && go run ./cmd/compare -quick

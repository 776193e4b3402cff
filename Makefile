# The checks of this repository, for people and for .ci/run. CONTRIBUTING.md says what
# they are.

MODULES = . bench examples/topostgres examples/webapp/e2e
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK = go run golang.org/x/vuln/cmd/govulncheck@v1.1.4

.PHONY: all system lint vuln test race e2e robustness bench

all: lint test race e2e robustness

# What tests need beside Go, on Debian.
system:
	apt-get update -q
	apt-get install -qy gcc libc6-dev postgresql chromium

# What nobody runs is compiled without optimizing it.
lint: CROSS = -gcflags='all=-N -l'
lint:
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	CGO_ENABLED=0 go build $(CROSS) ./...
	GOOS=windows go vet $(CROSS) ./...
	GOOS=darwin go vet $(CROSS) ./...
	set -e; for module in $(MODULES); do \
		(cd $$module && go mod tidy -diff && go vet ./... && $(STATICCHECK) ./...); \
	done

# Apart from lint, because it asks a database on the net.
vuln:
	set -e; for module in $(MODULES); do (cd $$module && $(GOVULNCHECK) ./...); done

test:
	go test -shuffle=on -timeout 300s ./...
	go test -run '^$$' -bench 'Site|Commit/1/memory' -benchtime 50x
	cd bench && go test -timeout 1200s ./...
	cd examples/topostgres && go test -timeout 300s ./...

race:
	go test -race -shuffle=on -timeout 600s ./...

e2e:
	cd examples/webapp/e2e && go test -count=1 -timeout 300s ./...

# All combinations and more rounds of what the other targets try a part of. Fuzz targets get
# random inputs, because building them for fuzzing takes longer than running them.
robustness:
	go test . ./examples/quickstart ./internal/engine ./storetest -full -count=1 -timeout 600s
	go test ./internal/modeltest -run 'Statements|Deadlocks' -full -count=1 -timeout 300s
	go test ./internal/modeltest -run 'Fuzz|NeverStale|Owners|LeftOut|Contexts|Absent' -inputs 300 -model 2s -leftout 2s -absent 1000000 -count=1 -timeout 300s
	go test ./internal/robustness -v -full -run 'Crash|Files|Disk|History|Soak|Close|Renewals' -crash-rounds 20 -history-runs 20 -soak 10s -closes 40 -count=1 -timeout 600s

bench:
	cd bench && go run ./cmd/compare -quick

package docs

// documents has the commands of all documents, each line once for each document.
var documents = []document{
	{"README.md", []command{
		{
			line: "go get go.elara.ws/chaistore github.com/alexedwards/scs/v2 github.com/chaisql/chai@v0.16.1",
			with: []string{
				"go get", newModule + "go get",
				"chai@v0.16.1", "chai@v0.16.1 && cp $root/examples/quickstart/main.go . && go vet",
			},
		},
		{line: "curl -c cookies -b cookies http://localhost:4000", tested: "examples/quickstart/main_test.go TestREADMEShowsWhatCurlPrints"},
		{
			line: `cd bench && go test -run '^$' -bench ` +
				`'Store/store=(chaistore|badgerstore|boltstore)$/sessions=20000/bytes=300/workload=(find|warm|commit)$'`,
			with: []string{"go test", "go test -benchtime 1x", "sessions=20000", "sessions=1000"},
			in:   "bench",
		},
		{line: "go run ./examples/quickstart", tested: "examples/quickstart/main_test.go TestSessionSurvivesRestart"},
		{line: "go test ./...", with: []string{"go test", "go test -race -shuffle=on -timeout 1200s"}, tested: "make test"},
		{line: "go test -run '^$' -bench Site", with: []string{"Site", "Site -benchtime 50x"}},
		{line: "go run ./examples/webapp", tested: "examples/webapp/e2e/webapp_test.go TestPlainHTTP"},
	}},
	{"CONTRIBUTING.md", []command{
		{
			line: "go work init . ./bench ./examples/topostgres ./examples/webapp/e2e",
			with: []string{"/e2e", "/e2e && grep /bench go.work && grep /topostgres go.work && grep /e2e go.work"}, // which has what it finds
		},
		{line: "make lint", tested: "make lint"},
		{line: "make test", tested: "make test"},
		{line: "make e2e", tested: "make e2e"},
		{line: "make robustness", tested: "make robustness"},
		{line: "make bench", tested: "bench/cmd/compare/main_test.go TestQuick"},
		{
			line:   "go test ./internal/robustness -run Crash -v -crash-rounds 500",
			with:   []string{"-run Crash ", "", "500", "20 -fault-runs 5 -soak 20s"},
			tested: "make robustness",
		},
		{
			line:   "go test ./internal/robustness -run Faults -v -fault-runs 500 -timeout 60m",
			with:   []string{"-run Faults ", "", "-fault-runs 500 -timeout 60m", "-crash-rounds 20 -fault-runs 5 -soak 20s"},
			tested: "make robustness",
		},
		{
			line:   "go test ./internal/robustness -run FullDisk -v",
			with:   []string{"-run FullDisk ", ""},
			tested: "make robustness",
		},
		{
			line:   "go test ./internal/robustness -run Soak -v -soak 10m",
			with:   []string{"-run Soak ", "", "-soak 10m", "-crash-rounds 20 -fault-runs 5 -soak 20s"},
			tested: "make robustness",
		},
		{
			line:   "go test ./internal/modeltest -run 'NeverStale|Owners' -v -model 10m -timeout 30m",
			tested: "internal/modeltest/finds_test.go TestFindsAreNeverStale",
		},
		{
			line:   "go test ./internal/modeltest -run 'Beside|NoRoom' -v -full -timeout 1h",
			tested: "internal/modeltest/busy_test.go TestFindsBesideBusyApplication",
		},
		{
			line:   "go test ./internal/modeltest -run '^$' -fuzz FuzzOperations -fuzzminimizetime 1x",
			with:   []string{"'^$'", "'^$$' -timeout 300s", "1x", "1x -fuzztime 400x"},
			tested: "make robustness",
		},
		{line: "make system", tested: "make system"},
	}},
	{"bench/README.md", []command{
		{line: "cd bench", with: []string{"cd bench", "cd ../bench"}, in: "bench"},
		{line: "go run ./cmd/compare", tested: "bench/cmd/compare/main_test.go TestMeasure"},
		{line: "go run ./cmd/compare -quick", tested: "bench/cmd/compare/main_test.go TestQuick"},
		{line: "go run golang.org/x/perf/cmd/benchstat -col /store -filter '/sessions:20000 /bytes:300' results/raw.txt", in: "bench"},
		{line: "go test -C .. -run '^$' -bench .", with: []string{"-bench .", "-bench Commit/1/memory -benchtime 1x"}},
		{
			line:   "go test -C .. ./internal/robustness -run RenewalsLeaveNoMemory -v -renewals 200000",
			tested: "internal/robustness/memory_test.go TestRenewalsLeaveNoMemory",
		},
		{line: "go run ./cmd/conformance", tested: "bench/cmd/conformance/main_test.go TestCommittedResults"},
		{
			line: `go test -run '^$' -bench 'Store/^store=chaistore$/sessions=20000/bytes=300/commit/=64' -count 5 -cpuprofile cpu.out`,
			with: []string{"go test", "go test -benchtime 1x", "-count 5", "-count 1", "sessions=20000", "sessions=1000"},
			in:   "bench",
		},
		{
			line: `mkdir some && go test -run '^$' -bench 'Store/store=(chaistore|boltstore)$/sessions=20000/bytes=300' -count 5 > some/raw.txt`,
			with: []string{"go test", "go test -benchtime 1x", "sessions=20000", "sessions=1000", "-count 5", "-count 1"},
			in:   "bench",
		},
		{line: "go run ./cmd/compare -report some", in: "bench"},
		{line: "go test ./...", with: []string{"go test", "cd bench && go test -timeout 1200s"}, tested: "make test"},
	}},
	{"storetest/README.md", []command{
		{line: "go get -t go.elara.ws/chaistore/storetest", with: []string{"go get", newModule + "go get"}},
		{line: "go test -run TestStore -v", with: []string{"TestStore", "TestStore/Store/Find"}},
		{line: "go test -run TestStore/Store/All -race", with: []string{" -race", ""}}, // which needs a C compiler
		{line: "TZ=Asia/Tokyo go test -run TestStore -parallel 16", with: []string{"TestStore", "TestStore/Store/Expiry"}},
		{
			line:   `go test -run TestStore -skip 'TestStore/.*/^(Delete|DeleteMissing|Concurrent|Twins)$'`,
			tested: "chaistore_test.go TestConformanceWithRememberEnded",
		},
		{line: "cd bench && go run ./cmd/conformance", tested: "bench/cmd/conformance/main_test.go TestCommittedResults"},
	}},
	{"examples/topostgres/README.md", []command{
		{line: "go build", tested: recipe},
		{line: "export DATABASE_URL=postgres://user:password@host:5432/database", tested: recipe},
		{line: "./topostgres -chai /path/to/chai_db -dry-run", tested: recipe},
		{line: "./topostgres -chai /path/to/chai_db", tested: recipe},
		{line: "./topostgres -chai /path/to/new_chai_db -reverse -dry-run", tested: recipe},
		{line: "./topostgres -chai /path/to/new_chai_db -reverse", tested: recipe},
		{line: "./topostgres -help", tested: recipe},
		{line: "go test ./...", with: []string{"go test", "cd examples/topostgres && go test -timeout 300s"}, tested: "make test"},
	}},
}

const (
	recipe = "examples/topostgres/recipe_test.go TestREADMEsCommands"

	// newModule makes a new module that uses the library in this directory, and modules
	// that have been downloaded already.
	newModule = `root=$(go list -m -f '{{.Dir}}') && mkdir new && cd new && go mod init example.com/new && ` +
		`go mod edit -replace go.elara.ws/chaistore=$root && cp $root/go.sum . && ` +
		`export GOPROXY="file://$(go env GOMODCACHE)/cache/download,$(go env GOPROXY)" && `
)

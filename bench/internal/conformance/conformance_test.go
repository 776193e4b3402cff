package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.elara.ws/chaistore/storetest"
)

// output returns what go test -json prints for a store that has the given verdicts and
// passes all other cases.
func output(store string, verdicts map[string]Verdict) string {
	var b strings.Builder
	event := func(verdict Verdict, test string) {
		fmt.Fprintf(&b, "{\"Action\":\"run\",\"Test\":%q}\n{\"Action\":%q,\"Test\":%q}\n", test, verdict, test)
	}
	for _, name := range storetest.Cases() {
		verdict, ok := verdicts[name]
		if !ok {
			verdict = Passed
		}
		event(verdict, "TestConformance/"+store+"/"+name+"/ctx")
		event(verdict, "TestConformance/"+store+"/"+name)
	}
	event(Failed, "TestConformance/"+store)
	event(Failed, "TestConformance")
	return b.String()
}

func TestRead(t *testing.T) {
	// Store a fails a case in one of three runs.
	results, err := read(strings.NewReader(
		output("a", nil)+
			output("a", map[string]Verdict{"Store/Commit": Failed})+
			output("a", nil)+
			output("b", map[string]Verdict{"Store/All": Skipped, "Advice/StopTwice": Failed})+
			`{"Action":"skip","Test":"TestConformance/c"}`),
		[]string{"a", "b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(results)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("there are results for the stores %q", got)
	}
	for _, want := range []struct {
		store, name string
		verdict     Verdict
	}{
		{"a", "Store/Commit", Failed},
		{"a", "Store/All", Passed},
		{"b", "Store/All", Skipped},
		{"b", "Store/Commit", Passed},
		{"c", "", Skipped},
	} {
		if got := results[want.store][want.name]; got != want.verdict {
			t.Errorf("%s in %s: %s, want %s", want.store, want.name, got, want.verdict)
		}
	}

	summary := results.Summary([]string{"a", "b", "c"})
	advice := strings.Count(strings.Join(storetest.Cases(), "\n"), "Advice/")
	others := len(storetest.Cases()) - advice - 1
	want := fmt.Sprintf(`| case | a | b | c |
|---|:-:|:-:|:-:|
| Store/Commit | **✗** | ✓ | n/a |
| the other %d | %[1]d ✓ | %d ✓ 1 – | %[1]d n/a |

| advice | a | b | c |
|---|:-:|:-:|:-:|
`, others, others-1)
	if !strings.HasPrefix(summary, want) || !strings.Contains(summary, "\n| StopTwice | ✓ | no | n/a |\n") {
		t.Errorf("the summary is\n%s\nwant\n%s…\nand that b does not follow StopTwice", summary, want)
	}
	if got, want := strings.Count(results.Table([]string{"a", "b"}), "\n"), len(storetest.Cases())+5; got != want {
		t.Errorf("the tables have %d lines, want %d", got, want)
	}
}

func TestReadOfAborted(t *testing.T) {
	whole := output("a", nil)
	for _, text := range []string{
		"",
		whole[:strings.Index(whole, storetest.Cases()[3])] + "\"}\n",
		whole[:100],
	} {
		if results, err := read(strings.NewReader(text), []string{"a"}); err == nil {
			t.Errorf("no error for incomplete results: %v", results)
		}
	}
}

package modeltest

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// FuzzSession passes one session, with any token and data, through all methods, next
// to two others that must not change.
func FuzzSession(f *testing.F) {
	others := map[string][]byte{"-other": []byte("one"), "\xff\xfeother": []byte("two")}
	var db *chai.DB
	var s *chaistore.ChaiStore
	runs := 0
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for range 20 * *inputs {
		f.Add(string(randomBytes(rng, 120)), randomBytes(rng, 300), time.Now().Unix()+rng.Int64N(4000)-1000)
	}
	f.Fuzz(func(t *testing.T, token string, data []byte, seconds int64) {
		if _, ok := others[token]; ok {
			t.Skip()
		}
		// Each run leaves a deleted session behind, which All has to skip.
		if runs++; runs%200 == 1 {
			if db != nil {
				db.Close()
			}
			var err error
			if db, err = chai.Open(":memory:"); err != nil {
				t.Fatal(err)
			}
			if s, err = chaistore.NewWithConfig(db, chaistore.Config{CreateTable: true, CleanupInterval: -1}); err != nil {
				t.Fatal(err)
			}
			for token, data := range others {
				if err := s.Commit(token, data, inAnHour()); err != nil {
					t.Fatal(err)
				}
			}
		}
		want := maps.Clone(others)
		expiry := time.Unix(seconds, 0)
		err := s.Commit(token, data, expiry)
		if len(token) > 100 {
			if !errors.Is(err, chaistore.ErrTokenTooLong) {
				t.Fatalf("Commit of a token of %d bytes = %v, want %v", len(token), err, chaistore.ErrTokenTooLong)
			}
		} else if err != nil {
			t.Fatalf("Commit: %v", err)
		} else if time.Now().Before(expiry) {
			want[token] = data
		}
		for range 2 {
			for _, token := range append(slices.Collect(maps.Keys(want)), token) {
				data, found, err := s.Find(token)
				wantData, wantFound := want[token]
				if err != nil || found != wantFound || !bytes.Equal(data, wantData) {
					t.Fatalf("Find(%q) = %q, %v, %v; want %q, %v", token, data, found, err, wantData, wantFound)
				}
			}
			all, err := s.All()
			if err != nil || !maps.EqualFunc(all, want, bytes.Equal) {
				t.Fatalf("All = %q, %v; want %q", all, err, want)
			}
			if _, err := s.DeleteExpired(t.Context()); err != nil {
				t.Fatalf("DeleteExpired: %v", err)
			}
			if err := s.Delete(token); err != nil {
				t.Fatalf("Delete: %v", err)
			}
			delete(want, token)
		}
	})
}

// randomBytes returns up to most bytes, and few more often than many.
func randomBytes(rng *rand.Rand, most int) []byte {
	b := make([]byte, rng.IntN(rng.IntN(most+1)+1))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// FuzzOperations runs a sequence of operations on a table, with two stores, and
// compares them with a map, and the index with the result of REINDEX. Two bytes are
// one operation: its kind and its token.
func FuzzOperations(f *testing.F) {
	testdb.Slow(f)
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	for i := range *inputs {
		operations := randomBytes(rng, 100)
		for j := 1; j < len(operations); j += 2 {
			operations[j] %= 8 // few tokens
		}
		f.Add(i%2 == 0, operations)
	}
	f.Fuzz(func(t *testing.T, indexed bool, operations []byte) {
		if len(operations) > 100 {
			t.Skip()
		}
		setup := []string{testdb.CreateTable}
		if indexed {
			setup = append(setup, testdb.CreateIndex)
		}
		dir := t.TempDir()
		var db *chai.DB
		var stores [2]*chaistore.ChaiStore
		open := func() {
			var err error
			if db, err = chai.Open(dir); err != nil {
				t.Fatal(err)
			}
		}
		open()
		defer func() { db.Close() }()
		testdb.Exec(t, db, setup...)
		reopen := func() {
			testdb.CheckIndexes(t, db)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			open()
			stores[0], stores[1] = newStore(t, db, chaistore.Config{}), newStore(t, db, chaistore.Config{})
		}
		reopen()

		model, expired := make(map[string][]byte), make(map[string]bool)
		for i := 0; i+1 < len(operations); i += 2 {
			operation, token := operations[i], string(bytes.Repeat(operations[i+1:i+2], int(operations[i+1]%8)))
			s := stores[operation>>4%2]
			var err error
			switch operation % 8 {
			case 0, 1, 2:
				model[token] = bytes.Repeat([]byte{operation}, i)
				delete(expired, token)
				err = s.Commit(token, model[token], inAnHour())
			case 3:
				delete(model, token)
				expired[token] = true
				err = s.Commit(token, []byte("expired"), anHourAgo())
			case 4:
				delete(model, token)
				delete(expired, token)
				err = s.Delete(token)
			case 5:
				var n int
				if n, err = s.DeleteExpired(t.Context()); n != len(expired) {
					t.Fatalf("operation %d: DeleteExpired = %d, want %d", i/2, n, len(expired))
				}
				clear(expired)
			case 6:
				var n, want int
				for other := range model {
					if other < token {
						delete(model, other)
						want++
					}
				}
				n, err = s.DeleteFunc(t.Context(), func(session chaistore.Session) bool { return session.Token < token })
				if n != want {
					t.Fatalf("operation %d: DeleteFunc = %d, want %d", i/2, n, want)
				}
			case 7:
				reopen()
			}
			if err != nil {
				t.Fatalf("operation %d: %v", i/2, err)
			}
			data, found, err := stores[0].Find(token)
			if want, wantFound := model[token]; err != nil || found != wantFound || !bytes.Equal(data, want) {
				t.Fatalf("operation %d: Find = %q, %v, %v; want %q, %v", i/2, data, found, err, want, wantFound)
			}
		}
		all, err := stores[1].All()
		if err != nil || !maps.EqualFunc(all, model, bytes.Equal) {
			t.Fatalf("All = %q, %v; want %q", all, err, model)
		}
		if n := testdb.Count(t, db, "SELECT COUNT(*) FROM sessions"); n != len(model)+len(expired) {
			t.Fatalf("got %d rows, want %d active and %d expired", n, len(model), len(expired))
		}
		testdb.CheckIndexes(t, db)
	})
}

package chaistore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/alexedwards/scs/v2"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/testdb"
)

// newUserData returns the data of an SCS session in which a user is signed in, of
// about benchDataLen bytes.
func newUserData(b *testing.B, user string) []byte {
	b.Helper()
	data, err := scs.GobCodec{}.Encode(inAnHour(), map[string]any{"user": user, "csrf": fmt.Sprintf("%0200d", 1)})
	if err != nil {
		b.Fatal(err)
	}
	return data
}

var userOwner = chaistore.OwnerByKey(scs.GobCodec{}, "user")

// BenchmarkSessionsOf finds the 10 sessions of a user among 200,000. The benchmark
// called all decodes all sessions, as a function for DeleteFunc does.
func BenchmarkSessionsOf(b *testing.B) {
	const sessions, users = 200_000, 20_000
	s := newStoreWith(b, testdb.Disk(b), chaistore.Config{Owner: userOwner})
	data := make([][]byte, users)
	for i := range data {
		data[i] = newUserData(b, fmt.Sprint("user", i))
	}
	inParallel(256, sessions, func(rng *rand.Rand, i int) {
		token := fmt.Sprintf("%027x%016d", rng.Uint64(), i)
		if err := s.Commit(token, data[i%users], inAnHour()); err != nil {
			b.Error(err)
		}
	})
	for name, find := range map[string]func(user string) (n int, err error){
		"10 of 200000": func(user string) (n int, err error) {
			for _, err = range s.SessionsOf(context.Background(), user) {
				n++
			}
			return n, err
		},
		"all": func(user string) (n int, err error) {
			for session, err := range s.Sessions(context.Background()) {
				if err != nil {
					return n, err
				}
				if userOwner(session.Data) == user {
					n++
				}
			}
			return n, nil
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if n, err := find(fmt.Sprint("user", i*7919%users)); n != sessions/users || err != nil {
					b.Fatalf("got %d sessions, %v; want %d, nil", n, err, sessions/users)
				}
			}
		})
	}
}

// BenchmarkCommitWithOwner renews random SCS sessions from a number of goroutines:
// without Owner (none), with one that does next to nothing (trivial), and with
// OwnerByKey, which decodes the data (by-key).
func BenchmarkCommitWithOwner(b *testing.B) {
	data := newUserData(b, "alice")
	for _, goroutines := range []int{1, 64} {
		for _, bench := range []struct {
			name  string
			owner func([]byte) string
		}{
			{"none", nil},
			{"trivial", func([]byte) string { return "alice" }},
			{"by-key", userOwner},
		} {
			b.Run(fmt.Sprint(goroutines, "/", bench.name), func(b *testing.B) {
				s := newStoreWith(b, testdb.Disk(b), chaistore.Config{Owner: bench.owner})
				commit := func(rng *rand.Rand, i int) {
					if err := s.Commit(benchTokens[rng.IntN(benchSessions)], data, inAnHour()); err != nil {
						b.Error(err)
					}
				}
				inParallel(64, benchSessions, commit)
				b.ReportAllocs()
				b.ResetTimer()
				inParallel(goroutines, b.N, commit)
			})
		}
	}
	b.Run("owner-by-key", func(b *testing.B) { // alone
		b.ReportAllocs()
		for range b.N {
			if userOwner(data) != "alice" {
				b.Fatal("got the wrong owner")
			}
		}
	})
}

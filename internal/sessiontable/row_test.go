package sessiontable

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/testdb"
)

// The expiries at which the encoding of a timestamp changes.
func boundaryExpiries() []time.Time {
	epoch := time.UnixMicro(timestampEpoch)
	expiries := []time.Time{minExpiry, maxExpiry, time.UnixMicro(time.Now().UnixMicro())}
	for _, limit := range []int64{0, 31, -32, math.MaxUint8, math.MaxUint16, math.MaxUint32, math.MinInt8, math.MinInt16, math.MinInt32} {
		for delta := int64(-1); delta <= 1; delta++ {
			expiries = append(expiries, epoch.Add(time.Duration(limit+delta)*time.Microsecond))
		}
	}
	return expiries
}

// randomRow returns a row whose sizes and expiry are at and about boundaries.
func randomRow(rng *rand.Rand) Row {
	sizes := []int{0, 1, 2, 99, 100, 127, 128, 129, 300, 16383, 16384, 70000}
	token := make([]byte, min(sizes[rng.IntN(len(sizes))], rng.IntN(MaxKeyLen+1)))
	data := make([]byte, sizes[rng.IntN(len(sizes))])
	for _, b := range [][]byte{token, data} {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	expiries := boundaryExpiries()
	return Row{string(token), data, expiries[rng.IntN(len(expiries))].UTC()}
}

// Rows and keys are those that Chai's own SQL writes, to the last byte, and it
// reads, overwrites and deletes the ones of this package.
func TestRowsAreTheEngines(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	l, err := table.check()
	if err != nil || !l.simple {
		t.Fatalf("check = %+v, %v; want a simple table", l, err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		row := randomRow(rng)
		if err := db.Exec("DELETE FROM sessions"); err != nil {
			t.Fatal(err)
		}
		if err := db.Exec(table.insert, row.Token, row.Data, row.Expiry); err != nil {
			t.Fatal(err)
		}
		want, err := table.db.Get(appendKey(nil, l.number, row.Token))
		if err != nil || want == nil {
			t.Fatalf("the engine has no row with the key of a token of %d bytes (%v)", len(row.Token), err)
		}
		if got := appendRow(nil, row); !bytes.Equal(got, want) {
			t.Fatalf("the row of a token of %d bytes, %d bytes of data and the expiry %v is encoded as\n%x, by the engine as\n%x",
				len(row.Token), len(row.Data), row.Expiry, got, want)
		}

		other := randomRow(rng)
		other.Token = row.Token
		if err := table.Upsert(t.Context(), other.Token, other.Data, other.Expiry); err != nil {
			t.Fatal(err)
		}
		rows := 0
		result, err := db.Query("SELECT token, data, expiry FROM sessions")
		if err != nil {
			t.Fatal(err)
		}
		err = result.Iterate(func(r *chai.Row) error {
			rows++
			var got Row
			err := r.Scan(&got.Token, &got.Data, &got.Expiry)
			if got.Token != other.Token || !bytes.Equal(got.Data, other.Data) || !got.Expiry.Equal(other.Expiry) {
				t.Errorf("the engine reads another row than was written")
			}
			return err
		})
		if err != nil || rows != 1 {
			t.Fatalf("the engine reads %d rows (%v), want 1", rows, err)
		}
		result.Close()
		got, found, err := table.Find(other.Token)
		if err != nil || !found || got.Token != other.Token || !bytes.Equal(got.Data, other.Data) || !got.Expiry.Equal(other.Expiry) {
			t.Fatalf("Find does not return what was written (%v)", err)
		}
		if err := table.Delete(t.Context(), other.Token); err != nil {
			t.Fatal(err)
		}
		if _, err := db.QueryRow("SELECT token FROM sessions"); !chai.IsNotFoundError(err) {
			t.Fatalf("after Delete the engine still has a row (%v)", err)
		}
	}
}

func TestTablesThatNeedStatements(t *testing.T) {
	for name, test := range map[string]struct {
		setup  []string
		simple bool
	}{
		"simple":         {[]string{testdb.CreateTable}, true},
		"column order":   {[]string{"CREATE TABLE sessions (data BLOB, token TEXT PRIMARY KEY, expiry TIMESTAMP)"}, false},
		"another column": {[]string{"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, note TEXT DEFAULT 'x')"}, false},
		"check":          {[]string{"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP, CHECK (token != 'bad'))"}, false},
		"unique":         {[]string{"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB UNIQUE, expiry TIMESTAMP)"}, false},
		"added column":   {[]string{testdb.CreateTable, "ALTER TABLE sessions ADD COLUMN note TEXT"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, test.setup...)
			table := newTable(t, db)
			if l, err := table.check(); err != nil || l.simple != test.simple {
				t.Fatalf("check = %+v, %v; want simple %v", l, err, test.simple)
			}
			now := time.UnixMicro(time.Now().UnixMicro())
			for i, data := range []string{"one", "two"} {
				if err := table.Upsert(t.Context(), "a", []byte(data), now.Add(time.Duration(i))); err != nil {
					t.Fatal(err)
				}
				row, found, err := table.Find("a")
				if err != nil || !found || row.Token != "a" || string(row.Data) != data || !row.Expiry.Equal(now.Add(time.Duration(i)).Truncate(time.Microsecond)) {
					t.Fatalf("Find = %+v, %v, %v", row, found, err)
				}
				rows, next, err := table.Page(t.Context(), "")
				if err != nil || len(rows) != 1 || next != "" || string(rows[0].Data) != data {
					t.Fatalf("Page = %+v, %q, %v", rows, next, err)
				}
			}
			if name == "check" {
				if err := table.Upsert(t.Context(), "bad", nil, now); err == nil {
					t.Error("the table's CHECK does not hold")
				}
			}
			if err := table.Delete(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if _, found, err := table.Find("a"); found || err != nil {
				t.Fatalf("Find after Delete = %v, %v", found, err)
			}
		})
	}
}

// Older tables may have columns that are NULL.
func TestNullColumns(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db,
		"CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP)",
		"INSERT INTO sessions (token) VALUES ('a')")
	table := newTable(t, db)
	row, found, err := table.Find("a")
	if err != nil || !found || row.Data == nil || len(row.Data) > 0 || !row.Expiry.IsZero() {
		t.Errorf("Find = %+v, %v, %v; want no data and no expiry", row, found, err)
	}
	if sweep, err := table.DeleteExpired(t.Context(), time.Now()); sweep.Deleted != 0 || err != nil {
		t.Errorf("DeleteExpired = %+v, %v", sweep, err)
	}
}

func TestDecodeRowRefusesGarbage(t *testing.T) {
	valid := appendRow(nil, Row{strings.Repeat("t", 43), make([]byte, 200), time.Now()})
	if _, err := decodeRow(valid); err != nil {
		t.Fatal(err)
	}
	for n := range len(valid) {
		if _, err := decodeRow(valid[:n]); err == nil {
			t.Errorf("the first %d bytes of a row were taken for a row", n)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 10_000 {
		row := bytes.Clone(valid)
		for range 1 + rng.IntN(3) {
			row[rng.IntN(len(row))] = byte(rng.Uint32())
		}
		_, _ = decodeRow(row) // must not panic
	}
}

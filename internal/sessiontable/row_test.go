package sessiontable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "unsafe" // for linkname

	"github.com/chaisql/chai"

	"go.elara.ws/chaistore/internal/engine"
	"go.elara.ws/chaistore/internal/testdb"
)

// boundaryExpiries returns expiries at which the encoding of a timestamp changes.
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

// randomRow returns a row whose sizes and expiry are at or near boundaries.
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

func (r Row) equal(other Row) bool {
	return r.Token == other.Token && bytes.Equal(r.Data, other.Data) && r.Expiry.Equal(other.Expiry)
}

// Keys and rows are, byte for byte, those that Chai's own SQL writes. SQL reads,
// overwrites and deletes the rows of this package.
func TestRowsMatchSQL(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	l, err := table.layout()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		row := randomRow(rng)
		if err := db.Exec("DELETE FROM sessions"); err != nil {
			t.Fatal(err)
		}
		if err := db.Exec("INSERT INTO sessions (token, data, expiry) VALUES (?, ?, ?)", row.Token, row.Data, row.Expiry); err != nil {
			t.Fatal(err)
		}
		var want []byte
		err := table.db.Read(t.Context(), func(s *engine.Snapshot) (err error) {
			want, err = s.Get(appendKey(nil, l.sessions.namespace, row.Token))
			return err
		})
		if err != nil || want == nil {
			t.Fatalf("Get of the row with a token of %d bytes = %v, %v", len(row.Token), want, err)
		}
		if got := encodeRow(row); !bytes.Equal(got, want) {
			t.Fatalf("the row with a token of %d bytes, %d bytes of data and the expiry %v is encoded as\n%x, want\n%x",
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
			if !got.equal(other) {
				t.Errorf("SQL reads another row than was written")
			}
			return err
		})
		if err != nil || rows != 1 {
			t.Fatalf("SQL reads %d rows, %v; want 1, nil", rows, err)
		}
		result.Close()
		if got, found, err := find(t, table, other.Token); err != nil || !found || !got.equal(other) {
			t.Fatalf("Find returns another row than was written (%v)", err)
		}
		if err := table.Delete(t.Context(), other.Token); err != nil {
			t.Fatal(err)
		}
		if n := len(expiries(t, db)); n != 0 {
			t.Fatalf("SQL reads %d rows after Delete, want none", n)
		}
	}
}

// Older tables may have NULL in columns.
func TestNullColumns(t *testing.T) {
	for name, indexes := range indexedTables {
		t.Run(name, func(t *testing.T) {
			db := testdb.Memory(t)
			testdb.Exec(t, db, "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP)")
			testdb.Exec(t, db, indexes...)
			testdb.Exec(t, db, "INSERT INTO sessions (token) VALUES ('a')", "INSERT INTO sessions (token) VALUES ('b')")
			table := newTable(t, db)
			row, found, err := find(t, table, "a")
			if err != nil || !found || row.Data == nil || len(row.Data) > 0 || !row.Expiry.IsZero() {
				t.Errorf("Find = %+v, %v, %v; want no data and no expiry", row, found, err)
			}
			upsert(t, table, "a", time.Now().Add(time.Hour))
			testdb.CheckIndexes(t, db)
			if sweep, err := table.DeleteExpired(t.Context(), time.Now()); sweep.Deleted != 1 || err != nil {
				t.Errorf("DeleteExpired = %+v, %v; want 1 deleted", sweep, err)
			}
			testdb.CheckIndexes(t, db)
		})
	}
}

// Chai's own encoders.
//
//go:linkname chaiInt github.com/chaisql/chai/internal/encoding.EncodeInt
func chaiInt(dst []byte, n int64) []byte

//go:linkname chaiText github.com/chaisql/chai/internal/encoding.EncodeText
func chaiText(dst []byte, s string) []byte

//go:linkname chaiBlob github.com/chaisql/chai/internal/encoding.EncodeBlob
func chaiBlob(dst, b []byte) []byte

// boundaryInts returns the integers around those at which their encoding changes.
func boundaryInts() []int64 {
	ints := []int64{math.MinInt64, math.MinInt64 + 1, math.MaxInt64 - 1, math.MaxInt64}
	for bits := range 63 {
		for delta := int64(-1); delta <= 1; delta++ {
			ints = append(ints, 1<<bits+delta, -1<<bits+delta)
		}
	}
	return ints
}

// checkValueLen checks that the length of a value is found, in both orders of an index,
// whatever follows, and that no part of the value is taken for a value.
func checkValueLen(t *testing.T, what any, value []byte) {
	t.Helper()
	for _, descending := range []bool{false, true} {
		b := append(bytes.Clone(value), 0xff)
		if descending {
			b[0] = 255 - b[0]
		}
		if n := valueLen(b); n != len(value) {
			t.Errorf("the length of %v (descending: %v) is %d, want %d: entries with it would be removed", what, descending, n, len(value))
		}
		for i := range len(value) {
			if n := valueLen(b[:i]); n != 0 {
				t.Fatalf("%d of the %d bytes of %v (descending: %v) were taken for a value", i, len(value), what, descending)
			}
		}
	}
}

// Chai would not find a row or an entry whose integers are written in another way, and
// sessions that Chai has written would expire at another time.
func TestIntegersMatchChai(t *testing.T) {
	isInt := make(map[byte]bool) // by first byte
	for _, n := range boundaryInts() {
		want := chaiInt([]byte("before"), n)
		if got := appendInt([]byte("before"), n); !bytes.Equal(got, want) {
			t.Errorf("%d is encoded as %x, want %x", n, got, want)
		}
		value := want[len("before"):]
		if got, ok := decodeInt(value); got != n || !ok {
			t.Errorf("%d is decoded as %d, %v", n, got, ok)
		}
		checkValueLen(t, n, value)
		isInt[value[0]] = true
	}
	for n := int64(-32); n < 32; n++ {
		isInt[chaiInt(nil, n)[0]] = true
	}
	for typ := range 256 {
		value := append([]byte{byte(typ)}, make([]byte, 8)...)
		if _, ok := decodeInt(value); ok != isInt[byte(typ)] {
			t.Errorf("decodeInt of the type %d = %v, want %v", typ, ok, !ok)
		}
		// A value of another type, such as a Boolean, ends a row.
		known := func(typ byte) bool { return isInt[typ] || typ == nullType || typ == textType || typ == blobType }
		if n := valueLen(value); n > 0 != (known(byte(typ)) || known(255-byte(typ))) {
			t.Errorf("valueLen of the type %d = %d", typ, n)
		}
	}
}

func TestTextsAndBlobsMatchChai(t *testing.T) {
	for _, size := range []int{0, 1, 99, 100, 127, 128, 129, 255, 256, 16383, 16384, 16385} {
		s := strings.Repeat("x", size)
		for typ, test := range map[byte]struct{ got, want []byte }{
			textType: {appendText([]byte("before"), s), chaiText([]byte("before"), s)},
			blobType: {appendBlob([]byte("before"), []byte(s)), chaiBlob([]byte("before"), []byte(s))},
		} {
			if !bytes.Equal(test.got, test.want) {
				t.Errorf("a value of type %d with %d bytes is encoded as %.20x..., want %.20x...", typ, size, test.got, test.want)
			}
			value := test.want[len("before"):]
			if got, ok := decodeBytes(value, typ); string(got) != s || !ok {
				t.Errorf("a value of type %d with %d bytes is decoded as %d bytes, %v", typ, size, len(got), ok)
			}
			if _, ok := decodeBytes(value, textType+blobType-typ); ok {
				t.Errorf("a value of type %d was taken for one of type %d", typ, textType+blobType-typ)
			}
			checkValueLen(t, fmt.Sprintf("%d bytes of type %d", size, typ), value)
		}
	}
	// A damaged length is not one of a value, however large it seems to be.
	for _, length := range [][]byte{
		{0x80},       // goes on
		{2, 'x'},     // one byte is missing
		{0x80, 1, 0}, // 127 bytes are missing
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0}, // 1<<64 - 1
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0},       // 1<<63 - 1
		bytes.Repeat([]byte{0xff}, 20),                                  // more than 64 bits
	} {
		if n := valueLen(append([]byte{textType}, length...)); n != 0 {
			t.Errorf("the length of a text that begins with %x is %d, want 0", length, n)
		}
	}
}

// A row with a column of another type is no session, rather than one with the wrong
// data, or without an end.
func TestDecodeRefusesOtherTypes(t *testing.T) {
	text, blob, expiry := appendText(nil, "a"), appendBlob(nil, []byte("a")), appendInt(nil, 1000)
	for name, row := range map[string][]byte{
		"token":  slices.Concat(blob, blob, expiry),
		"data":   slices.Concat(text, text, expiry),
		"expiry": slices.Concat(text, blob, text),
		"all":    slices.Concat(expiry, expiry, blob),
	} {
		if token, data, expiry, err := decodeRow(row); err == nil {
			t.Errorf("%s: got the session %q, %q, %v, want an error", name, token, data, expiry)
		}
	}
	if _, err := decodeCatalogRow(slices.Concat(text, text, text)); err == nil {
		t.Error("a row of the catalog with a text for its number was accepted: another table would be read")
	}
}

func TestDecodeRefusesGarbage(t *testing.T) {
	row := Row{strings.Repeat("t", 43), make([]byte, 200), time.Now()}
	valid := encodeRow(row)
	if _, _, _, err := decodeRow(valid); err != nil {
		t.Fatal(err)
	}
	ix := &index{"ix", 300, []indexColumn{{2, true}, {0, false}}, len(sessionColumns)}
	key := appendKey(nil, 40, row.Token)
	validEntry, err := ix.appendEntry(nil, key, valid)
	if err != nil || !bytes.Equal(ix.rowKey(validEntry), key) {
		t.Fatalf("rowKey = %x, want %x (%v)", ix.rowKey(validEntry), key, err)
	}
	for n := range len(valid) {
		if _, _, _, err := decodeRow(valid[:n]); err == nil {
			t.Errorf("the first %d bytes of a row were taken for a row", n)
		}
		if _, err := ix.appendEntry(nil, key, valid[:n]); err == nil {
			t.Errorf("the first %d bytes of a row got an entry", n)
		}
	}
	for n := range len(validEntry) {
		if ix.rowKey(validEntry[:n]) != nil {
			t.Errorf("the first %d bytes of an entry were taken for an entry", n)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 10_000 {
		row, entry := bytes.Clone(valid), bytes.Clone(validEntry)
		for range 1 + rng.IntN(3) {
			row[rng.IntN(len(row))] = byte(rng.Uint32())
			entry[rng.IntN(len(entry))] = byte(rng.Uint32())
		}
		// These calls must not panic.
		_, _, _, _ = decodeRow(row)
		_, _ = decodeCatalogRow(row)
		_, _ = ix.appendEntry(nil, key, row)
		_ = ix.rowKey(entry)
	}
}

// Pages, and the parts of a sweep, leave out no token between them, not even the
// least possible next one.
func TestPagesMeet(t *testing.T) {
	for _, length := range []int{pageLen, sweepWrite, sweepScan} {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		now := time.Now()
		expiry := now
		if length == sweepScan {
			expiry = now.Add(time.Hour) // nothing else ends a part of the sweep
		}
		last := ""
		for i := range length {
			last = fmt.Sprintf("%05d", i)
			upsert(t, table, last, expiry)
		}
		upsert(t, table, last+"\x00", now)
		seen := 0
		for from, more := "", true; more; more = from != "" {
			rows, next, err := table.Page(t.Context(), from)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) > pageLen {
				t.Errorf("got %d sessions in a page, want at most %d", len(rows), pageLen)
			}
			seen, from = seen+len(rows), next
		}
		if seen != length+1 {
			t.Errorf("got %d sessions in all pages, want %d", seen, length+1)
		}
		want := Sweep{Scanned: length + 1, Deleted: length + 1}
		if length == sweepScan {
			want.Deleted, want.Active = 1, length
		}
		if sweep, err := table.DeleteExpired(t.Context(), now); sweep != want || err != nil {
			t.Errorf("DeleteExpired = %+v, %v; want %+v, nil", sweep, err, want)
		}
	}
}

// A page, or a part of a sweep, also ends after a number of bytes, but holds at least
// one session.
func TestPagesAreLimitedInBytes(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable)
	table := newTable(t, db)
	now := time.Now()
	const sessions, perPage = 7, 3
	for i := range sessions {
		data := make([]byte, pageBytes/2-100) // less than half, even with token and expiry
		if i == sessions-1 {
			data = make([]byte, 3*pageBytes)
		}
		if err := table.Upsert(t.Context(), fmt.Sprint(i), data, now); err != nil {
			t.Fatal(err)
		}
	}
	var lengths, swept []int
	for from, more := "", true; more; more = from != "" {
		rows, next, err := table.Page(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		lengths, from = append(lengths, len(rows)), next
	}
	for from, more := "", true; more; more = from != "" {
		page, err := table.scanExpired(t.Context(), from, now, newCollection(t, table))
		if err != nil {
			t.Fatal(err)
		}
		swept, from = append(swept, len(page.tokens)), page.next
	}
	if want := fmt.Sprint([]int{perPage, perPage, 1}); fmt.Sprint(lengths) != want || fmt.Sprint(swept) != want {
		t.Errorf("got pages of %v sessions, and parts of a sweep of %v; want %s", lengths, swept, want)
	}
}

// Whatever is read in pages takes no more memory than that: a page that is full to the
// byte gets no further session.
func TestFullPageGetsNoMore(t *testing.T) {
	db := testdb.Memory(t)
	table := newTableWithOwners(t, db)
	now := time.Now()
	half := bytes.Repeat([]byte("o"), pageBytes/2)
	withoutData := len(encodeRow(Row{"0", half, now})) - len(half)
	fill := func(data []byte) {
		t.Helper()
		for i := range 4 {
			if err := New(db, Options{Name: "sessions"}).Upsert(t.Context(), fmt.Sprint(i), data, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(name string, page func(from string) (n int, next string, err error)) {
		t.Helper()
		var got []int
		for from, more := "", true; more; more = from != "" {
			n, next, err := page(from)
			if err != nil {
				t.Fatal(err)
			}
			got, from = append(got, n), next
		}
		if !slices.Equal(got, []int{2, 2}) {
			t.Errorf("%s: got %d sessions of half a page in pages, want 2 in each of 2", name, got)
		}
	}
	fill(half)
	check("Page", func(from string) (int, string, error) {
		rows, next, err := table.Page(t.Context(), from)
		return len(rows), next, err
	})
	a, err := table.owners.begin("o")
	if err != nil {
		t.Fatal(err)
	}
	check("page of an owner", func(from string) (int, string, error) {
		rows, next, err := table.owners.page(t.Context(), a, "o", from)
		return len(rows), next, err
	})
	fill(half[withoutData:]) // a sweep counts whole rows
	check("scanExpired", func(from string) (int, string, error) {
		page, err := table.scanExpired(t.Context(), from, now, newCollection(t, table))
		return len(page.tokens), page.next, err
	})
}

// A session that waits for its turn takes memory, and is counted for that: no more
// sessions than there is room for wait at once.
func TestWaitingSessionTakesMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		const all = 32 << 20 // what waiting writes may take
		lock := engine.Open(db, nil).Lock()
		lock.Lock()
		go func() {
			if err := table.Upsert(t.Context(), "a", make([]byte, 8<<10), time.Now()); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := table.db.Reserve(ctx, all); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Reserve of all memory beside a waiting session = %v, want %v", err, context.DeadlineExceeded)
		}
		lock.Unlock()
		synctest.Wait()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := table.db.Reserve(ctx, all); err != nil {
			t.Errorf("Reserve of all memory once the session is stored = %v, want nil", err)
		}
		table.db.Release(all)
	})
}

// A turn is not made longer by any number of deletions that wait, so that a sign-in waits
// for a few of them only. (These fail, so little is written. Pebble must not make files in
// a synctest bubble, because it uses channels of theirs again.)
func TestManyDeletionsTakeSeveralTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
		table := newTable(t, db)
		err := table.write(t.Context(), 0, func(b *engine.Batch, l *layout) error {
			b.Put(appendKey(nil, l.sessions.namespace, "bad"), []byte{textType})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		deletion := func() {
			tokens := slices.Repeat([]string{"bad"}, 6000) // half of what a turn may write
			if err := table.Delete(t.Context(), tokens...); !errors.Is(err, errBadRow) {
				t.Errorf("Delete = %v, want %v", err, errBadRow)
			}
		}
		before := table.db.Fsyncs()
		lock := engine.Open(db, nil).Lock()
		lock.Lock()
		for _, call := range []func(){
			func() { upsert(t, table, "a", time.Now()) }, deletion,
			deletion, func() { upsert(t, table, "b", time.Now()) },
		} {
			go call()
			synctest.Wait()
		}
		lock.Unlock()
		synctest.Wait()
		if n := table.db.Fsyncs() - before; n != 2 {
			t.Errorf("got %d turns, want 2", n)
		}
	})
}

// Reads end as soon as their context does, even if there is nothing to read.
func TestReadingEndsWithItsContext(t *testing.T) {
	db := testdb.Memory(t)
	testdb.Exec(t, db, testdb.CreateTable, testdb.CreateIndex)
	table := newTable(t, db)
	calls := map[string]func(ctx context.Context) error{
		"Find": func(ctx context.Context) error { _, _, _, err := table.Find(ctx, "0"); return err },
		"Page": func(ctx context.Context) error { _, _, err := table.Page(ctx, ""); return err },
		"scanExpired": func(ctx context.Context) error {
			_, err := table.scanExpired(ctx, "", time.Now(), newCollection(t, table))
			return err
		},
		"DeleteExpired": func(ctx context.Context) error { _, err := table.DeleteExpired(ctx, time.Now()); return err },
		"repairIndexes": func(ctx context.Context) error { return newTable(t, db).repairIndexes(ctx) },
	}
	check := func(asked int) {
		t.Helper()
		for name, call := range calls {
			ctx := &hookContext{t.Context(), asked, canceled}
			if err := call(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%s = %v with a context that ends at call %d of Err, want %v", name, err, asked+1, context.Canceled)
			}
			if more := -ctx.n - 1; more > 1 { // read may ask once more, or its caller
				t.Errorf("%s called Err %d times after the end of its context, want at most once", name, more)
			}
		}
	}
	check(0)
	for i := range 100 {
		upsert(t, table, fmt.Sprint(i), time.Now().Add(time.Hour))
	}
	check(0)
	delete(calls, "Find")
	check(50)
	// Only repairIndexes goes on, from the rows to the entries.
	delete(calls, "Page")
	delete(calls, "scanExpired")
	delete(calls, "DeleteExpired")
	check(150)
}

// Find and Page do not return the buffers of the engine. An Upsert that has returned
// early does not read its data again.
func TestRowsAreTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := testdb.Memory(t)
		testdb.Exec(t, db, testdb.CreateTable)
		table := newTable(t, db)
		lock := engine.Open(db, nil).Lock()
		lock.Lock()
		data := []byte("one")
		done := make(chan error)
		go func() { done <- table.Upsert(t.Context(), "a", data, time.Now().Add(time.Hour)) }()
		synctest.Wait()
		// When writing hangs, a caller may go on before its turn.
		copy(data, "two")
		lock.Unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for range 2 {
			row, _, err := find(t, table, "a")
			rows, _, errPage := table.Page(t.Context(), "")
			if string(row.Data) != "one" || err != nil || len(rows) != 1 || string(rows[0].Data) != "one" || errPage != nil {
				t.Fatalf("Find = %q, %v; Page = %q, %v", row.Data, err, rows, errPage)
			}
			for _, data := range [][]byte{row.Data, rows[0].Data} {
				copy(data, "XXX")
				_ = append(data, "XXX"...)
			}
		}
	})
}

func newCollection(t *testing.T, table *Table) *collection {
	t.Helper()
	c, err := table.collect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

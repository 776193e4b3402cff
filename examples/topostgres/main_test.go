//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaisql/chai"
	"github.com/jackc/pgx/v5"

	"go.elara.ws/chaistore"
	"go.elara.ws/chaistore/internal/postgres"
)

// server is shared by the tests. It is nil if PostgreSQL is not installed.
var server *postgres.Server

// Some tests run this test binary again. In the new process, this environment variable
// selects a role.
const childEnv = "TOPOSTGRES_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "main":
		main()
		return
	case "hold":
		hold(os.Args[1])
		return
	}
	dir, err := os.MkdirTemp("", "topostgres")
	if err != nil {
		log.Fatal(err)
	}
	server, err = postgres.Start(dir)
	if err != nil && !errors.Is(err, postgres.ErrNotInstalled) {
		os.RemoveAll(dir)
		log.Fatal(err)
	}
	code := m.Run()
	if server != nil {
		if err := server.Stop(); err != nil {
			log.Print(err)
			code = 1
		}
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// child returns a command that runs this test binary in the given role.
func child(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"="+role)
	return cmd
}

// hold keeps a database open until its standard input ends.
func hold(dir string) {
	db, err := chai.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
}

// sessions maps tokens to sessions.
type sessions map[string]chaistore.Session

func (s sessions) add(token string, data []byte, expiry time.Time) {
	s[token] = chaistore.Session{Token: token, Data: data, Expiry: expiry.UTC().Truncate(time.Microsecond)}
}

// differ returns an error that describes the first difference, or nil.
func differ(got, want sessions) error {
	for token, g := range got {
		if w, ok := want[token]; !ok {
			return fmt.Errorf("there is a session %q", token)
		} else if !bytes.Equal(g.Data, w.Data) || !g.Expiry.Equal(w.Expiry) {
			return fmt.Errorf("the session %q has %d bytes and the expiry %v, not %d bytes and %v", token, len(g.Data), g.Expiry, len(w.Data), w.Expiry)
		}
	}
	for token := range want {
		if _, ok := got[token]; !ok {
			return fmt.Errorf("there is no session %q", token)
		}
	}
	return nil
}

func checkSame(t *testing.T, what string, got, want sessions) {
	t.Helper()
	if err := differ(got, want); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

var inAnHour, anHourAgo = time.Now().Add(time.Hour), time.Now().Add(-time.Hour)

// someSessions returns n active sessions.
func someSessions(n int) sessions {
	s := make(sessions)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		data := make([]byte, rng.IntN(400))
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		s.add(fmt.Sprintf("%040x%03d", rng.Uint64(), i%1000), data, inAnHour.Add(time.Duration(rng.IntN(1e9))*time.Microsecond))
	}
	return s
}

// A database is a separate schema in the PostgreSQL server's database.
type database struct {
	t   *testing.T
	url string
}

// newDatabase creates a database without tables.
func newDatabase(t *testing.T) *database {
	t.Helper()
	if server == nil {
		t.Skip(postgres.ErrNotInstalled)
	}
	schema := fmt.Sprintf("test%d", schemas.Add(1))
	(&database{t, server.URL()}).exec("CREATE SCHEMA " + schema)
	return &database{t, server.URL() + "&search_path=" + schema}
}

var schemas atomic.Int64

const password = "pa55word"

// as returns the database as seen by a new user with these privileges on the table.
func (db *database) as(privileges string) *database {
	db.t.Helper()
	_, schema, _ := strings.Cut(db.url, "search_path=")
	user := fmt.Sprintf("%s_user%d", schema, schemas.Add(1))
	db.exec(fmt.Sprintf("CREATE ROLE %[1]s LOGIN PASSWORD '%[2]s'; GRANT USAGE ON SCHEMA %[3]s TO %[1]s; GRANT %[4]s ON sessions TO %[1]s",
		user, password, schema, privileges))
	return &database{db.t, strings.Replace(db.url, "user=postgres", "user="+user+"&password="+password, 1)}
}

const createTable = "CREATE TABLE sessions (token TEXT PRIMARY KEY, data BYTEA NOT NULL, expiry TIMESTAMPTZ NOT NULL)"

// newTable creates a database with an empty table.
func newTable(t *testing.T) *database {
	t.Helper()
	db := newDatabase(t)
	db.exec(createTable)
	return db
}

func (db *database) connect() *pgx.Conn {
	db.t.Helper()
	conn, err := pgx.Connect(db.t.Context(), db.url)
	if err != nil {
		db.t.Fatal(err)
	}
	return conn
}

func (db *database) exec(sql string, args ...any) {
	db.t.Helper()
	conn := db.connect()
	defer conn.Close(db.t.Context())
	if _, err := conn.Exec(db.t.Context(), sql, args...); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
}

func (db *database) fill(s sessions) {
	db.t.Helper()
	var rows [][]any
	for _, session := range s {
		rows = append(rows, []any{session.Token, session.Data, session.Expiry})
	}
	conn := db.connect()
	defer conn.Close(db.t.Context())
	if _, err := conn.CopyFrom(db.t.Context(), pgx.Identifier{"sessions"}, []string{"token", "data", "expiry"}, pgx.CopyFromRows(rows)); err != nil {
		db.t.Fatal(err)
	}
}

// all returns all sessions, including expired ones.
func (db *database) all() sessions {
	db.t.Helper()
	conn := db.connect()
	defer conn.Close(db.t.Context())
	rows, err := conn.Query(db.t.Context(), "SELECT token, data, expiry FROM sessions")
	if err != nil {
		db.t.Fatal(err)
	}
	all := make(sessions)
	var session chaistore.Session
	_, err = pgx.ForEachRow(rows, []any{&session.Token, &session.Data, &session.Expiry}, func() error {
		all.add(session.Token, bytes.Clone(session.Data), session.Expiry)
		return nil
	})
	if err != nil {
		db.t.Fatal(err)
	}
	return all
}

// A directory holds a Chai database.
type directory struct {
	t    *testing.T
	path string
}

// newDirectory creates a Chai database with an empty table.
func newDirectory(t *testing.T) *directory {
	t.Helper()
	dir := &directory{t, filepath.Join(t.TempDir(), "chai_db")}
	dir.exec("CREATE TABLE sessions (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry TIMESTAMP NOT NULL)")
	return dir
}

func (dir *directory) use(use func(db *chai.DB) error) {
	dir.t.Helper()
	db, err := chai.Open(dir.path)
	if err != nil {
		dir.t.Fatal(err)
	}
	defer db.Close()
	if err := use(db); err != nil {
		dir.t.Fatal(err)
	}
}

func (dir *directory) exec(sql string, args ...any) {
	dir.t.Helper()
	dir.use(func(db *chai.DB) error { return db.Exec(sql, args...) })
}

func (dir *directory) fill(s sessions) {
	dir.t.Helper()
	dir.use(func(db *chai.DB) error {
		store := chaistore.NewWithCleanupInterval(db, 0)
		side := &chaiSide{db: db, store: store}
		var all []chaistore.Session
		for _, session := range s {
			all = append(all, session)
		}
		return side.write(dir.t.Context(), all)
	})
}

// all returns all sessions, including expired ones.
func (dir *directory) all() sessions {
	dir.t.Helper()
	all := make(sessions)
	dir.use(func(db *chai.DB) error {
		result, err := db.Query("SELECT token, data, expiry FROM sessions")
		if err != nil {
			return err
		}
		defer result.Close()
		return result.Iterate(func(row *chai.Row) error {
			var session chaistore.Session
			err := row.Scan(&session.Token, &session.Data, &session.Expiry)
			all.add(session.Token, bytes.Clone(session.Data), session.Expiry)
			return err
		})
	})
	return all
}

// command runs the command and returns its output.
func command(t *testing.T, dir *directory, db *database, args ...string) (stdout string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out strings.Builder
	err = run(ctx, append([]string{"-chai", dir.path, "-postgres", db.url}, args...), &out, io.Discard)
	return out.String(), err
}

// mustPrint checks that the command succeeds and prints all texts.
func mustPrint(t *testing.T, dir *directory, db *database, args []string, texts ...string) {
	t.Helper()
	out, err := command(t, dir, db, args...)
	t.Logf("topostgres %s\n%s", strings.Join(args, " "), out)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("the command did not print %q", text)
		}
	}
}

func TestThereAndBack(t *testing.T) {
	const n = 20_000
	dir, db := newDirectory(t), newTable(t)
	active := someSessions(n - 8)
	active.add("", []byte("the token is empty"), inAnHour)
	active.add("a", []byte("no data follows"), inAnHour)
	active.add("ab", nil, inAnHour)
	active.add("a b", []byte{0, 255, '\'', '\\', '\n'}, inAnHour)
	active.add("a_B", bytes.Repeat([]byte("large"), batchBytes/4), inAnHour)
	active.add("Ä€😀", []byte("not ASCII"), inAnHour)
	active.add("�", []byte("the last one but one"), maxExpiry)
	active.add(strings.Repeat("~", maxTokenLen), []byte("long"), inAnHour.Add(time.Microsecond))
	if len(active) != n {
		t.Fatalf("there are %d sessions, want %d", len(active), n)
	}
	all := maps.Clone(active)
	all.add("expired", []byte("expired"), anHourAgo)
	dir.fill(all)

	mustPrint(t, dir, db, nil,
		"from the table sessions of the Chai directory "+dir.path+": 20000 active sessions\n",
		"to the PostgreSQL table sessions: 20000 are missing there, 0 differ, 0 are the same; 0 others stay as they are\n",
		"copied 20000 sessions in ",
		"checked: all 20000 active sessions have the same data and expiry on both sides\n")
	checkSame(t, "PostgreSQL has what was active", db.all(), active)
	checkSame(t, "Chai has what it had", dir.all(), all)

	mustPrint(t, dir, db, nil, "0 are missing there, 0 differ, 20000 are the same", "copied 0 sessions", "checked: all 20000")

	expired := make(sessions)
	expired.add("expired in PostgreSQL", []byte("x"), anHourAgo)
	db.fill(expired)
	back := &directory{t, filepath.Join(t.TempDir(), "new", "chai_db")}
	mustPrint(t, back, db, []string{"-reverse"}, ": 20000 active sessions\n", "copied 20000 sessions", "checked: all 20000")
	checkSame(t, "the new Chai directory has what was active", back.all(), active)

	mustPrint(t, back, db, []string{"-reverse"}, "20000 are the same", "copied 0 sessions", "checked: all 20000")
}

func TestTableNames(t *testing.T) {
	dir, db := newDirectory(t), newDatabase(t)
	dir.exec("CREATE TABLE logins (token TEXT PRIMARY KEY, data BLOB, expiry TIMESTAMP)")
	dir.exec("INSERT INTO logins (token, expiry) VALUES ('without data', ?)", inAnHour)
	db.exec(`CREATE SCHEMA "Web"`)
	db.exec(strings.Replace(createTable, "sessions", `"Web".logins`, 1))

	// As for pgxstore, capital letters need quotes.
	mustPrint(t, dir, db, []string{"-chai-table", "logins", "-postgres-table", `"Web".LOGINS`},
		`to the PostgreSQL table "Web".logins: `, "copied 1 sessions", "checked: all 1")
	db.exec(`CREATE VIEW sessions AS SELECT * FROM "Web".logins`)
	want := make(sessions)
	want.add("without data", nil, inAnHour)
	checkSame(t, "PostgreSQL", db.all(), want)

	mustPrint(t, dir, db, []string{"-reverse", "-chai-table", "another", "-postgres-table", `"Web".LOGINS`}, "copied 1 sessions", "checked: all 1")
	dir.exec("DROP TABLE sessions")
	dir.exec("ALTER TABLE another RENAME TO sessions")
	checkSame(t, "Chai", dir.all(), want)
}

// A directory may have any name, even the one that means a database in memory.
func TestDirectoryNamedMemory(t *testing.T) {
	db := newTable(t)
	source := someSessions(10)
	db.fill(source)
	t.Chdir(t.TempDir())
	mustPrint(t, &directory{t, ":memory:"}, db, []string{"-reverse"}, "checked: all 10")
	mustPrint(t, &directory{t, ":memory:"}, db, nil, "10 are the same")
	checkSame(t, "the directory", (&directory{t, "./:memory:"}).all(), source)
}

// PostgreSQL often orders texts by the rules of a language.
func TestTokensAreInOrderOfTheirBytes(t *testing.T) {
	dir, db := newDirectory(t), newDatabase(t)
	db.exec(strings.Replace(createTable, "TEXT", `TEXT COLLATE "en-x-icu"`, 1))
	source := make(sessions)
	for _, token := range strings.Fields("a A b B ä Ä _a -a 1a aB Ab ab") {
		source.add(token, []byte(token), inAnHour)
	}
	dir.fill(source)
	db.fill(source)
	mustPrint(t, dir, db, []string{"-dry-run"}, "12 are the same")
}

// The destination may hold an earlier copy, or sessions of another application.
func TestDestinationInUse(t *testing.T) {
	source := someSessions(40)
	source.add("renewed", []byte("1"), inAnHour)
	source.add("changed", []byte("old"), inAnHour)
	source.add("back again", []byte("active"), inAnHour)
	destination := make(sessions)
	destination.add("renewed", []byte("1"), inAnHour.Add(time.Hour))
	destination.add("changed", []byte("new"), inAnHour)
	destination.add("back again", []byte("expired"), anHourAgo)
	destination.add("another one", []byte("stays"), inAnHour)
	destination.add("zombie", []byte("stays"), anHourAgo)
	want := maps.Clone(source)
	want["another one"], want["zombie"] = destination["another one"], destination["zombie"]

	test := func(dir *directory, db *database, all func() sessions, args ...string) {
		for _, args := range [][]string{args, append(args, "-dry-run")} {
			_, err := command(t, dir, db, args...)
			if err == nil || !strings.Contains(err.Error(), "2 sessions differ") || !strings.Contains(err.Error(), "-overwrite") {
				t.Errorf("without -overwrite the error is %v", err)
			}
			checkSame(t, "the destination, without -overwrite", all(), destination)
		}
		args = append(args, "-overwrite")
		mustPrint(t, dir, db, args,
			"41 are missing there, 2 differ, 0 are the same; 1 others stay as they are", "copied 43 sessions", "checked: all 43")
		checkSame(t, "the destination, with -overwrite", all(), want)
		mustPrint(t, dir, db, args, "0 are missing there, 0 differ, 43 are the same; 1 others", "copied 0 sessions")
	}
	t.Run("PostgreSQL", func(t *testing.T) {
		dir, db := newDirectory(t), newTable(t)
		dir.fill(source)
		db.fill(destination)
		test(dir, db, db.all)
	})
	t.Run("Chai", func(t *testing.T) {
		dir, db := newDirectory(t), newTable(t)
		db.fill(source)
		dir.fill(destination)
		test(dir, db, dir.all, "-reverse")
	})
}

func TestDryRunChangesNothing(t *testing.T) {
	dir, db := newDirectory(t), newTable(t)
	inChai, inPostgres := someSessions(30), make(sessions)
	inPostgres.add("in PostgreSQL alone", []byte("x"), inAnHour)
	dir.fill(inChai)
	db.fill(inPostgres)

	mustPrint(t, dir, db, []string{"-dry-run"}, "30 are missing there", "1 others", "30 sessions would be copied; nothing was changed")
	mustPrint(t, dir, db, []string{"-dry-run", "-reverse"}, "1 are missing there", "30 others", "1 sessions would be copied; nothing was changed")
	mustPrint(t, dir, db, []string{"-dry-run", "-reverse", "-chai-table", "missing"}, "1 sessions would be copied")
	checkSame(t, "Chai", dir.all(), inChai)
	checkSame(t, "PostgreSQL", db.all(), inPostgres)
	dir.use(func(db *chai.DB) error {
		if err := db.Exec("DELETE FROM missing"); err == nil {
			t.Error("the table was created")
		}
		return nil
	})

	parent := t.TempDir()
	missing := &directory{t, filepath.Join(parent, "new", "missing")}
	mustPrint(t, missing, db, []string{"-dry-run", "-reverse"}, "1 sessions would be copied")
	if files, err := os.ReadDir(parent); err != nil || len(files) > 0 {
		t.Errorf("the parent of the missing directory now contains %v (%v)", files, err)
	}
}

// A command that can't work says why, and changes nothing.
func TestRefusals(t *testing.T) {
	dir, db := newDirectory(t), newTable(t)
	const secret = "s3cr3t"
	inChai, inPostgres := someSessions(30), make(sessions)
	inChai.add(secret+"\x00", []byte(secret), inAnHour)
	inChai.add(secret+"\xff", []byte(secret), inAnHour)
	inPostgres.add(strings.Repeat(secret, 17), []byte(secret), inAnHour)
	inPostgres.add(secret, []byte(secret), maxExpiry.Add(time.Second))
	dir.fill(inChai)
	db.fill(inPostgres)
	held := newDirectory(t)
	holder := child(t, "hold", held.path)
	release, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the process that opens the directory printed %q (%v)", line, err)
	}
	user := db.as("ALL")
	// Connections to this listener wait, because it never accepts them.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	defer func(before time.Duration) { connectTimeout = before }(connectTimeout)
	connectTimeout = time.Second
	missing, empty := filepath.Join(t.TempDir(), "missing"), t.TempDir()

	connected := "PostgreSQL: failed to connect"
	malformed := "the URL of the PostgreSQL database is malformed"
	for name, test := range map[string]struct {
		dir, url string // by default, the directory and the database above
		args     []string
		want     string
	}{
		"no directory":             {dir: " ", want: "-chai"},
		"no URL":                   {url: " ", want: "DATABASE_URL"},
		"an argument":              {args: []string{"-dry-run", "chai_db"}, want: `unexpected argument "chai_db"`},
		"batch":                    {args: []string{"-batch", "0"}, want: "-batch"},
		"no server":                {url: "postgres://web:" + secret + "@127.0.0.1:1/web", want: connected},
		"another database":         {url: strings.Replace(db.url, "///postgres", "///missing", 1) + "&password=" + secret, want: "does not exist"},
		"wrong password":           {url: strings.Replace(user.url, password, secret, 1), want: "password authentication failed"},
		"no password":              {url: strings.Replace(user.url, password, "", 1), want: connected},
		"no answer":                {url: "postgres://web:" + secret + "@" + silent.Addr().String() + "/web", want: connected},
		"malformed: port":          {url: "postgres://web:" + secret + "@localhost:port/web", want: malformed},
		"malformed: slash":         {url: "postgres://web:/" + secret + "@localhost/web", want: malformed},
		"malformed: question":      {url: "postgres://web:1?" + secret + "@localhost/web", want: malformed},
		"malformed: percent":       {url: "postgres://web:" + secret + "%zz@localhost/web", want: malformed},
		"malformed: no URL":        {url: "web:" + secret + "@localhost/web", want: malformed},
		"malformed: option":        {url: "postgres://localhost/web?sslmode=" + secret, want: malformed},
		"missing table":            {args: []string{"-postgres-table", "logins"}, want: "CREATE TABLE logins (token TEXT PRIMARY KEY, "},
		"reverse: missing table":   {args: []string{"-reverse", "-postgres-table", "logins"}, want: "CREATE TABLE logins (token TEXT PRIMARY KEY, "},
		"bad table name":           {args: []string{"-postgres-table", "sessions; DROP TABLE sessions"}, want: "invalid name syntax"},
		"missing Chai directory":   {dir: missing, want: "there is no Chai database in " + missing},
		"in memory":                {dir: ":memory:", want: "there is no Chai database in :memory:"},
		"a directory without Chai": {dir: empty, want: "there is no Chai database in " + empty},
		"a file":                   {dir: os.Args[0], want: "not a directory"},
		"missing Chai table":       {args: []string{"-chai-table", "logins"}, want: `table "logins" does not exist`},
		"bad Chai table name":      {args: []string{"-reverse", "-chai-table", "log-ins"}, want: "not a plain identifier"},
		"held directory":           {dir: held.path, want: "is the application still running?"},
		"reverse: held directory":  {dir: held.path, args: []string{"-reverse"}, want: "is the application still running?"},
		"tokens":                   {want: "the PostgreSQL table sessions can't keep 2 of the sessions, one of them because its token is not a valid PostgreSQL TEXT"},
		"tokens, dry run":          {args: []string{"-dry-run"}, want: "can't keep 2 of the sessions"},
		"reverse: tokens":          {args: []string{"-reverse"}, want: "can't keep 2 of the sessions, one of them because "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("DATABASE_URL", "")
			t.Chdir(t.TempDir())
			args := []string{"-chai", orElse(test.dir, dir.path), "-postgres", orElse(test.url, db.url)}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var out, errOut strings.Builder
			began := time.Now()
			err := run(ctx, append(args, test.args...), &out, &errOut)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("the error is %v, which does not contain %q", err, test.want)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("the error took %v", d)
			}
			if printed := out.String() + errOut.String() + err.Error(); strings.Contains(printed, secret) {
				t.Errorf("the command printed a secret: %s", printed)
			}
			if files, err := os.ReadDir("."); err != nil || len(files) > 0 {
				t.Errorf("the working directory now contains %v (%v)", files, err)
			}
		})
	}
	checkSame(t, "Chai", dir.all(), inChai)
	checkSame(t, "PostgreSQL", db.all(), inPostgres)
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("the missing directory was created (%v)", err)
	}
	if files, err := os.ReadDir(empty); err != nil || len(files) > 0 {
		t.Errorf("the empty directory now contains %v (%v)", files, err)
	}
	release.Close()
	if err := holder.Wait(); err != nil {
		t.Error(err)
	}
	checkSame(t, "the held directory", held.all(), sessions{})
}

// orElse returns the value for a flag, or otherwise if it is empty. A blank stands for an
// empty value.
func orElse(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return strings.TrimSpace(value)
}

func TestURLFromEnvironment(t *testing.T) {
	dir, db := newDirectory(t), newTable(t)
	dir.fill(someSessions(10))
	t.Setenv("DATABASE_URL", db.url)
	var out strings.Builder
	if err := run(t.Context(), []string{"-chai", dir.path}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "PostgreSQL", db.all(), dir.all())
}

// An error while sessions are read must not look like the end of the sessions.
func TestUnreadableSessions(t *testing.T) {
	for _, expiry := range []string{"'infinity'::timestamptz", "now() + make_interval(hours => 1 / octet_length(data))"} {
		db := newDatabase(t)
		db.exec("CREATE TABLE logins (token TEXT, data BYTEA); INSERT INTO logins VALUES ('s3cr3t', '')")
		db.exec("CREATE VIEW sessions AS SELECT token, data, " + expiry + " AS expiry FROM logins")
		dir := &directory{t, filepath.Join(t.TempDir(), "chai_db")}
		_, err := command(t, dir, db, "-reverse")
		if err == nil || !strings.Contains(err.Error(), "read sessions from PostgreSQL: ") ||
			!strings.Contains(err.Error(), "nothing was changed") || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("with the expiry %s the error is %v", expiry, err)
		}
		if _, err := os.Stat(dir.path); !os.IsNotExist(err) {
			t.Errorf("the directory was created (%v)", err)
		}
	}
}

// chaistore refuses a session that is too large.
func TestFailedCommit(t *testing.T) {
	dir, db := &directory{t, filepath.Join(t.TempDir(), "chai_db")}, newTable(t)
	source := make(sessions)
	source.add("s3cr3t", make([]byte, 16<<20+1), inAnHour) // more than chaistore accepts
	db.fill(source)
	_, err := command(t, dir, db, "-reverse")
	if err == nil || !strings.Contains(err.Error(), "; 0 of 1 sessions have been copied") {
		t.Errorf("the error is %v", err)
	}
}

// If a table can't take the sessions, the error says why, even in a dry run.
func TestUnfitTable(t *testing.T) {
	const form = "is not a table of sessions"
	source := make(sessions)
	source.add("s3cr3t", []byte("s3cr3t"), inAnHour)
	dir := newDirectory(t)
	dir.fill(source)
	for _, test := range []struct{ columns, then, want string }{
		{"token UUID PRIMARY KEY, data BYTEA, expiry TIMESTAMPTZ", "", form},
		{"token TEXT PRIMARY KEY, data TEXT, expiry TIMESTAMPTZ", "", form},
		{"token TEXT PRIMARY KEY, data BYTEA, expiry TIMESTAMP", "", form},
		{"id TEXT PRIMARY KEY, data BYTEA, expiry TIMESTAMPTZ", "", form},
		{"id TEXT PRIMARY KEY", "", form},
		{"token TEXT, data BYTEA, expiry TIMESTAMPTZ", "",
			"sessions has no primary key or unique constraint on token"},
		{"token TEXT, data BYTEA, expiry TIMESTAMPTZ", "CREATE UNIQUE INDEX ON sessions (token) WHERE expiry > '2000-01-01'",
			"sessions has no primary key or unique constraint on token"},
		{"token TEXT PRIMARY KEY DEFERRABLE, data BYTEA, expiry TIMESTAMPTZ", "",
			"does not support deferrable unique constraints"},
		{"token TEXT PRIMARY KEY, data BYTEA, expiry TIMESTAMPTZ, owner TEXT NOT NULL", "",
			`null value in column "owner"`},
		{"token TEXT PRIMARY KEY CHECK (token = ''), data BYTEA, expiry TIMESTAMPTZ", "",
			"violates check constraint"},
		{"token TEXT PRIMARY KEY, data BYTEA, expiry TIMESTAMPTZ, owner TEXT DEFAULT 'nobody'",
			"CREATE TABLE users (name TEXT PRIMARY KEY); ALTER TABLE sessions ADD FOREIGN KEY (owner) REFERENCES users DEFERRABLE INITIALLY DEFERRED",
			"violates foreign key constraint"},
	} {
		db := newDatabase(t)
		db.exec("CREATE TABLE sessions (" + test.columns + ");" + test.then)
		for _, args := range [][]string{{"-dry-run"}, nil} {
			_, err := command(t, dir, db, args...)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%q with the table %s %s: the error is %v, want %q", args, test.columns, test.then, err, test.want)
			}
			db.exec("DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM sessions); END $$")
		}
	}
}

// A dry run finds missing privileges, even if there is nothing to copy.
func TestPrivileges(t *testing.T) {
	const denied = "permission denied for table sessions"
	full, empty := newDirectory(t), newDirectory(t)
	source := someSessions(10)
	full.fill(source)
	for privileges, want := range map[string]struct{ there, back string }{
		"INSERT, UPDATE":               {denied, denied},
		"SELECT":                       {denied, ""},
		"SELECT, INSERT":               {denied, ""},
		"SELECT, UPDATE":               {denied, ""},
		"SELECT, INSERT, UPDATE":       {"", ""},
		"SELECT (token, data), INSERT": {denied, denied},
	} {
		t.Run(privileges, func(t *testing.T) {
			db := newTable(t)
			user := db.as(privileges)
			check := func(dir *directory, want string, args ...string) {
				t.Helper()
				_, err := command(t, dir, user, args...)
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("topostgres %q: the error is %v, want %q", args, err, want)
				}
			}
			check(full, want.there, "-dry-run")
			check(empty, want.there, "-dry-run")
			check(full, want.back, "-dry-run", "-reverse")
			checkSame(t, "PostgreSQL", db.all(), sessions{})
			check(full, want.there)
			if want.there == "" {
				checkSame(t, "PostgreSQL", db.all(), source)
			}
		})
	}
}

// A dry run notices if a directory can't be created, and creates none.
func TestDirectoryThatCannotBeCreated(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a directory in which even root can't create another")
	}
	db := newTable(t)
	dir := &directory{t, "/proc/missing/chai_db"}
	for _, args := range [][]string{{"-reverse", "-dry-run"}, {"-reverse"}} {
		db.fill(someSessions(10))
		_, err := command(t, dir, db, args...)
		db.exec("TRUNCATE sessions")
		if err == nil || !strings.Contains(err.Error(), "the Chai database in "+dir.path) {
			t.Errorf("topostgres %q: the error is %v", args, err)
		}
	}
}

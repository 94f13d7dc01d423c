package pgsource_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgsource"
	"github.com/levada-io/levada/stream/streamtest"
)

func newPool(t *testing.T, statements ...string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	for _, s := range statements {
		exec(t, pool, s)
	}
	return pool
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func keyset(t *testing.T, pool *pgxpool.Pool, q pgsource.Query) stream.Source {
	t.Helper()
	s, err := pgsource.Keyset(pool, q)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read reads to the end, or n records.
func read(ctx context.Context, s stream.Source, q stream.Query, n int) (keys [][]byte, values []string, err error) {
	c, err := s.Open(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if e := c.Close(); err == nil {
			err = e
		}
	}()
	for n < 0 || len(values) < n {
		key, err := c.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return keys, values, nil
		case err != nil:
			return keys, values, err
		case key == nil:
			continue
		}
		value, err := c.Value(nil)
		if err != nil {
			value = fmt.Append(nil, "BAD ", err)
		}
		keys, values = append(keys, bytes.Clone(key)), append(values, string(value))
	}
	return keys, values, nil
}

const liveTable = `create table t (xid xid8 not null default pg_current_xact_id(), id bigint generated always as identity, name text not null, data bytea, primary key (xid, id))`

func TestKeysetKeepsTheContract(t *testing.T) {
	pool := newPool(t, liveTable)
	for i := range 30 { // several rows per transaction
		exec(t, pool, "insert into t (name, data) select 'row ' || $1 || '/' || g, convert_to('value' || g, 'UTF8') from generate_series(1, 3) g", fmt.Sprint(i))
	}
	exec(t, pool, "create table names (name text collate \"C\" primary key, n int)")
	exec(t, pool, `insert into names select n || s, 1 from unnest(array['a','B','ä','Z','z','_','user9','user10','']) n, unnest(array['','x','ß']) s`)
	tests := []struct {
		name  string
		query pgsource.Query
		count int
		after string
	}{
		{name: "horizon", query: pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Page: 7}, count: 90},
		{name: "large pages", query: pgsource.Query{Table: "public.t", Key: []string{"id"}, Horizon: "xid", Value: "data"}, count: 90},
		{name: "small pages in bytes", query: pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", PageBytes: 50}, count: 90},
		{name: "text", query: pgsource.Query{Table: "names", Key: []string{"name"}, Static: true, Page: 1}, count: 27},
		{name: "two keys of SQL", query: pgsource.Query{SQL: "select n, name, xmin::text from names -- all of them;", Key: []string{"n", "name"}, Static: true, Page: 2}, count: 27},
		{name: "encode", query: pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Encode: encodeName}, count: 90},
		{name: "follow", query: pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Follow: true, Page: 50}, count: 90},
		{name: "follow with notify", query: pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Follow: true, Notify: "t rows", Poll: time.Minute}, count: 90},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			streamtest.RunSource(t, func(t *testing.T) streamtest.SourceUnderTest {
				return streamtest.SourceUnderTest{Source: keyset(t, pool, test.query), Count: test.count, Waits: test.query.Follow}
			})
		})
	}
}

// encodeName panics at one row, as encoders do.
func encodeName(dst []byte, row pgx.CollectableRow) ([]byte, error) {
	r, err := pgx.RowToStructByNameLax[struct {
		Name string
		XID  uint64
		ID   int64
		Data []byte
	}](row)
	if err != nil {
		return dst, err
	}
	if r.Name == "row 20/2" {
		panic("no encoder is perfect")
	}
	return fmt.Appendf(dst, "%d %s %s", r.ID, r.Name, r.Data), nil
}

// The horizon test: writers whose transactions last differently long commit in another order than that of their numbers.
func TestHorizonLosesNothing(t *testing.T) {
	pool := newPool(t, liveTable)
	for writers := 8; ; writers *= 2 {
		lost, naive, total := raceWriters(t, pool, writers)
		t.Logf("%d writers: of %d rows, the horizon lost %d and the naive reader %d", writers, total, lost, naive)
		if lost > 0 {
			t.Fatalf("%d of %d rows were lost", lost, total)
		}
		if naive > 0 {
			return
		}
		if writers >= 32 {
			t.Fatal("even the naive reader lost nothing, so this test shows nothing")
		}
	}
}

func raceWriters(t *testing.T, pool *pgxpool.Pool, writers int) (lost, naive, total int) {
	exec(t, pool, "truncate t")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const each = 2400
	var written atomic.Int64
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 7))
			for written.Load() < each {
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					n := 1 + random.IntN(4)
					for range n {
						if _, err := tx.Exec(ctx, "insert into t (name) values ('x')"); err != nil {
							return err
						}
						if _, err := tx.Exec(ctx, "select pg_sleep($1)", random.Float64()*0.004); err != nil {
							return err
						}
					}
					if random.IntN(10) == 0 {
						return errGiveUp // some roll back
					}
					written.Add(int64(n))
					return nil
				})
				if err != nil && !errors.Is(err, errGiveUp) {
					t.Error(err)
					return
				}
			}
		})
	}
	seen, seenNaive := map[int64]int{}, map[int64]bool{}
	var seenMu sync.Mutex
	count := func() int { seenMu.Lock(); defer seenMu.Unlock(); return len(seen) }
	tail := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Follow: true, Poll: time.Millisecond, Page: 20})
	stop, stopReading := context.WithCancel(ctx)
	defer stopReading()
	reading.Go(func() { // reopens now and then, as a stream that is cut
		var after []byte
		for opening := 0; stop.Err() == nil; opening++ {
			c, err := tail.Open(stop, stream.Query{After: after})
			if err != nil {
				if stop.Err() == nil {
					t.Error(err)
				}
				return
			}
			for n := 0; n < 100+opening; n++ {
				key, err := c.Next(stop)
				if err != nil {
					if stop.Err() == nil {
						t.Error(err)
					}
					break
				}
				if key == nil {
					after = bytes.Clone(c.(stream.ProgressKeyer).ProgressKey())
					continue
				}
				after = bytes.Clone(key)
				value, err := c.Value(nil)
				if err != nil {
					t.Error(err)
				}
				var row struct{ ID int64 }
				if err := json.Unmarshal(value, &row); err != nil {
					t.Error(err)
				}
				seenMu.Lock()
				seen[row.ID]++
				seenMu.Unlock()
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	written0 := make(chan struct{})
	reading.Go(func() { // what everybody writes first
		last := int64(0)
		for final := false; ; {
			select {
			case <-written0:
				final = true
			default:
			}
			rows, err := pool.Query(ctx, "select id from t where id > $1 order by id limit 20", last)
			if err != nil {
				t.Error(err)
				return
			}
			ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			if err != nil {
				t.Error(err)
				return
			}
			for _, id := range ids {
				seenNaive[id], last = true, id
			}
			if final && len(ids) == 0 {
				return
			}
		}
	})
	writing.Wait()
	close(written0)
	rows, err := pool.Query(ctx, "select id from t")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); count() < len(all) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	stopReading()
	reading.Wait()
	if len(all) < 2000 {
		t.Fatalf("only %d rows were written", len(all))
	}
	for _, id := range all {
		if seen[id] == 0 {
			lost++
		}
		if seen[id] > 1 {
			t.Errorf("row %d was read %d times", id, seen[id])
		}
		if !seenNaive[id] {
			naive++
		}
	}
	if len(seen) > len(all) {
		t.Errorf("%d rows were read, of %d", len(seen), len(all))
	}
	return lost, naive, len(all)
}

var errGiveUp = errors.New("rolled back on purpose")

// A stream that does not follow has all that was committed before it was opened, and waits for what was being written.
func TestKeysetEndsWithWritersOfItsTime(t *testing.T) {
	pool := newPool(t, liveTable)
	exec(t, pool, "insert into t (name) values ('first')")
	slow, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Rollback(context.Background())
	if _, err := slow.Exec(t.Context(), "insert into t (name) values ('slow')"); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, "insert into t (name) values ('committed before')")
	source := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Value: "name", Poll: time.Millisecond})
	c, err := source.Open(t.Context(), stream.Query{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exec(t, pool, "insert into t (name) values ('later')")
	type result struct {
		names []string
		err   error
	}
	firstRead, done := make(chan struct{}), make(chan result, 1)
	go func() {
		var r result
		for {
			key, err := c.Next(t.Context())
			if err != nil {
				r.err = err
				done <- r
				return
			}
			if key == nil {
				continue
			}
			value, _ := c.Value(nil)
			if r.names = append(r.names, string(value)); len(r.names) == 1 {
				close(firstRead)
			}
		}
	}()
	<-firstRead
	select {
	case r := <-done:
		t.Fatalf("the stream ended with %q, %v while a transaction of its time was open", r.names, r.err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := slow.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := <-done
	if got := strings.Join(r.names, "|"); r.err != io.EOF || got != "first|slow|committed before" {
		t.Fatalf("read %s, %v", got, r.err)
	}
}

func TestKeysetNotify(t *testing.T) {
	pool := newPool(t, liveTable, "insert into t (name) values ('first')")
	source := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Value: "name", Follow: true, Notify: "Rows of t", Poll: time.Hour})
	c, err := source.Open(t.Context(), stream.Query{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i, want := range []string{"first", "second", "third"} {
		if i > 0 {
			exec(t, pool, "with i as (insert into t (name) values ($1)) select pg_notify('Rows of t', '')", want)
		}
		key, err := c.Next(ctx)
		for key == nil && err == nil {
			key, err = c.Next(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		if value, _ := c.Value(nil); string(value) != want {
			t.Fatalf("read %q, expected %q", value, want)
		}
	}
}

// While other tables are written, the bookmark moves, and is a position.
func TestKeysetBookmarkMoves(t *testing.T) {
	pool := newPool(t, liveTable, "create table other (n int)", "insert into t (name) values ('first')")
	source := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Value: "name", Follow: true, Poll: time.Millisecond})
	c, err := source.Open(t.Context(), stream.Query{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	first, err := c.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first = bytes.Clone(first)
	exec(t, pool, "insert into other values (1)")
	if key, err := c.Next(ctx); key != nil || err != nil {
		t.Fatalf("Next returned %x, %v, expected a bookmark", key, err)
	}
	mark := bytes.Clone(c.(stream.ProgressKeyer).ProgressKey())
	if bytes.Compare(mark, first) <= 0 {
		t.Fatalf("the bookmark %x is not after the record's key %x", mark, first)
	}
	exec(t, pool, "insert into t (name) values ('second')")
	if _, values, err := read(ctx, source, stream.Query{After: mark}, 1); err != nil || values[0] != "second" {
		t.Fatalf("after the bookmark: %q, %v", values, err)
	}
}

func TestKeysetParams(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key, name text, at date, j jsonb)",
		`insert into t values (1, 'a', '2026-01-01', '[1]'), (2, 'b', '2026-01-02', '{"x":1}'), (9007199254740993 % 1000, 'c', null, null)`)
	source := keyset(t, pool, pgsource.Query{SQL: "select * from t where id >= $1::bigint and name <> $2 and ($3::jsonb is null or j = $3);", Params: []string{"from", "not", "j"},
		Key: []string{"id"}, Value: "name", Static: true})
	tests := []struct {
		params, want string
	}{
		{`[1, "b", null]`, "a|c"},
		{`{"from": 2, "not": "a", "j": null}`, "b|c"},
		{`{"from": "0", "not": "", "j": {"x": 1}}`, "b"},
		{`[0, "", [1]]`, "a"},
		{`[9007199254740993, "", null]`, ""},
	}
	for _, test := range tests {
		if _, values, err := read(t.Context(), source, stream.Query{Params: []byte(test.params)}, -1); err != nil || strings.Join(values, "|") != test.want {
			t.Errorf("%s: read %q, %v, expected %q", test.params, values, err, test.want)
		}
	}
	for params, want := range map[string]string{
		"":                                      `expected a JSON object with ["from" "not" "j"]`,
		"{":                                     "are not JSON",
		"[1] [2]":                               "are not JSON",
		`"x"`:                                   "expected a JSON array or object",
		`{"from": 1, "not": 2}`:                 `lack "j"`,
		`{"from": 1, "not": 2, "j": 3, "k": 4}`: `no parameter "k"`,
		`[1]`:                                   "has 3 parameters, and the job gives 1",
		`["x", "b", null]`:                      "invalid input syntax for type bigint",
	} {
		_, _, err := read(t.Context(), source, stream.Query{Params: []byte(params)}, -1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, expected one with %q", params, err, want)
		}
	}
}

func TestKeysetRefuses(t *testing.T) {
	pool := newPool(t, liveTable,
		"create table nulls (id int, name text)", "insert into nulls values (1, 'a'), (null, 'b'), (3, 'c')",
		"create table twice (id int not null, name text)", "insert into twice select g / 2, g from generate_series(0, 9) g",
		"create table f (id float8 primary key)")
	tests := []struct {
		name  string
		query pgsource.Query
		want  string
		is    error
	}{
		{"null key", pgsource.Query{Table: "nulls", Key: []string{"id"}, Static: true}, `column "id" of the key is NULL`, stream.ErrOrder},
		{"null key by SQL", pgsource.Query{SQL: "select * from nulls", Key: []string{"name", "id"}, Static: true}, `column "id" of the key is NULL`, stream.ErrOrder},
		{"doubled key", pgsource.Query{Table: "twice", Key: []string{"id"}, Static: true}, "two rows have the key", stream.ErrOrder},
		{"float", pgsource.Query{Table: "f", Key: []string{"id"}, Static: true}, `"id" has type float8`, nil},
		{"no such column", pgsource.Query{Table: "t", Key: []string{"nr"}, Static: true}, `0 columns with the name "nr"`, nil},
		{"column twice", pgsource.Query{SQL: "select 1 as a, 2 as a", Key: []string{"a"}, Static: true}, `2 columns with the name "a"`, nil},
		{"horizon of another type", pgsource.Query{Table: "t", Key: []string{"name"}, Horizon: "id"}, "expected xid8", nil},
		{"syntax", pgsource.Query{SQL: "selct 1", Key: []string{"a"}, Static: true}, "syntax error", nil},
		{"no such table", pgsource.Query{Table: `t"; drop table t`, Key: []string{"a"}, Static: true}, "does not exist", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := read(t.Context(), keyset(t, pool, test.query), stream.Query{}, -1)
			if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v, expected one with %q", err, test.want)
			}
		})
	}
	for want, q := range map[string]pgsource.Query{
		"either Table or SQL":   {Key: []string{"id"}, Static: true},
		"Key names no column":   {Table: "t", Static: true},
		"set Horizon":           {Table: "t", Key: []string{"id"}},
		"Horizon or Static":     {Table: "t", Key: []string{"id"}, Static: true, Horizon: "xid"},
		"Follow needs":          {Table: "t", Key: []string{"id"}, Static: true, Follow: true},
		"Notify is only":        {Table: "t", Key: []string{"id"}, Static: true, Notify: "x"},
		"named twice":           {Table: "t", Key: []string{"id", "id"}, Static: true},
		"Value or Encode":       {Table: "t", Key: []string{"id"}, Static: true, Value: "id", Encode: encodeName},
		"must be positive":      {Table: "t", Key: []string{"id"}, Static: true, Page: -1},
		"a Table has no Params": {Table: "t", Key: []string{"id"}, Static: true, Params: []string{"x"}},
	} {
		if _, err := pgsource.Keyset(pool, q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected one with %q", err, want)
		}
	}
}

// A doubled key is noticed wherever pages end and streams are cut: the second row would be lost.
func TestKeysetFindsDoubledKeyAnywhere(t *testing.T) {
	pool := newPool(t, "create table t (id int not null, n int)", "insert into t values (1, 1), (2, 2), (3, 3), (3, 4), (4, 5)")
	for page := 1; page <= 6; page++ {
		source := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Static: true, Page: page})
		keys, _, err := read(t.Context(), source, stream.Query{}, -1)
		if !errors.Is(err, stream.ErrOrder) {
			t.Errorf("pages of %d: %d records, error %v, expected an ErrOrder", page, len(keys), err)
		}
	}
	exec(t, pool, "delete from t where n = 4")
	source := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Static: true})
	keys, _, err := read(t.Context(), source, stream.Query{}, 3)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, pool, "insert into t values (3, 4)")
	if _, _, err := read(t.Context(), source, stream.Query{After: keys[2]}, -1); !errors.Is(err, stream.ErrOrder) {
		t.Errorf("opened between the two: error %v, expected an ErrOrder", err)
	}
}

func TestKeysetPositionOfAnotherQuery(t *testing.T) {
	pool := newPool(t, "create table t (a int not null, b text not null, primary key (a, b))", "insert into t values (1, 'x'), (2, 'y')")
	position := func(key ...string) []byte {
		keys, _, err := read(t.Context(), keyset(t, pool, pgsource.Query{Table: "t", Key: key, Static: true}), stream.Query{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		return keys[0]
	}
	source := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"a", "b"}, Static: true})
	for _, after := range [][]byte{position("a"), position("b", "a"), []byte("garbage"), {0}} {
		if _, err := source.Open(t.Context(), stream.Query{After: after}); !errors.Is(err, stream.ErrQueryChanged) {
			t.Errorf("position %x: error %v, expected an ErrQueryChanged", after, err)
		}
	}
	after := position("a", "b")
	exec(t, pool, "alter table t alter a type bigint") // an integer may become wider
	if _, values, err := read(t.Context(), source, stream.Query{After: after}, -1); err != nil || len(values) != 1 {
		t.Errorf("after the column became wider: %q, %v", values, err)
	}
}

// Every type of a key goes there and back, in Postgres' own order, with pages of one row.
func TestKeysetTypes(t *testing.T) {
	pool := newPool(t)
	for typ, list := range map[string]string{
		"int2":        "'-32768', '-1', '0', '1', '32767'",
		"int4":        "'-2147483648', '-1', '0', '1', '2147483647'",
		"int8":        "'-9223372036854775808', '-1', '0', '1', '9223372036854775807'",
		"text":        "'', 'A', 'B', 'a', 'ab', 'b', 'ä', '漢'",
		"varchar(5)":  "'', 'A', 'a', 'ab'",
		"bytea":       `'\x', '\x00', '\x0000', '\x0001', '\x00ff', '\x01', '\xff'`,
		"uuid":        "'00000000-0000-0000-0000-000000000000', '80000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'",
		"timestamp":   "'-infinity', '0001-01-01', '1969-07-20 20:17:40.000001', '2000-01-01', '2026-11-21', 'infinity'",
		"timestamptz": "'-infinity', '1969-07-20 20:17:40.000001Z', '2026-11-21Z', 'infinity'",
		"date":        "'-infinity', '1582-10-15', '2000-01-01', '2026-11-21', 'infinity'",
		"bool":        "'false', 'true'",
		"xid8":        "'0', '1', '9223372036854775808', '18446744073709551615'",
	} {
		sql := fmt.Sprintf(`select v::%s as k from unnest(array[%s]) with ordinality u(v, n)`, typ, list)
		source := keyset(t, pool, pgsource.Query{SQL: sql, Key: []string{"k"}, Value: "k", Static: true, Page: 1})
		_, values, err := read(t.Context(), source, stream.Query{}, -1)
		if err != nil {
			t.Errorf("%s: %v", typ, err)
			continue
		}
		var want []string
		rows, err := pool.Query(t.Context(), fmt.Sprintf(`select (v::%s)::text from unnest(array[%s]) with ordinality u(v, n) order by n`, typ, list))
		if err == nil {
			want, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range want { // a bool's cast to text and its text form differ
			if typ == "bool" {
				want[i] = want[i][:1]
			}
		}
		if typ == "bytea" {
			for i := range values {
				values[i] = fmt.Sprintf(`\x%x`, values[i])
			}
		}
		if strings.Join(values, "|") != strings.Join(want, "|") {
			t.Errorf("%s: read %q, expected %q", typ, values, want)
		}
	}
}

func TestKeysetNullValueIsABadRecord(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key, name text)", "insert into t values (1, 'a'), (2, null), (3, '')")
	_, values, err := read(t.Context(), keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Value: "name", Static: true}), stream.Query{}, -1)
	if err != nil || len(values) != 3 || values[0] != "a" || !strings.Contains(values[1], `BAD column "name" is NULL`) || values[2] != "" {
		t.Fatalf("read %q, %v", values, err)
	}
}

func TestKeysetGeneration(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key)")
	query := pgsource.Query{Table: "t", Key: []string{"id"}, Static: true}
	name := func(pool *pgxpool.Pool, q pgsource.Query) string {
		name, err := keyset(t, pool, q).(stream.Generation).Generation(t.Context(), stream.Query{})
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	first := name(pool, query)
	if !strings.Contains(first, "timeline 1") {
		t.Errorf("the generation is %q, expected timeline 1", first)
	}
	if other := name(newPool(t), query); other == first {
		t.Errorf("another database has the same generation, %q", other)
	}
	query.SurvivesPromotion = true
	if any := name(pool, query); strings.Contains(any, "timeline 1") {
		t.Errorf("the generation %q names the timeline", any)
	}
	query.Generation = func(context.Context) (string, error) { return "mine", nil }
	if mine := name(pool, query); mine != "mine" {
		t.Errorf("the generation is %q, expected the query's own", mine)
	}
}

func snapshot(t *testing.T, pool *pgxpool.Pool, q pgsource.Query) *pgsource.SnapshotSource {
	t.Helper()
	s, err := pgsource.Snapshot(pool, q)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnapshotKeepsTheContract(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key, name text)", "insert into t select g, 'name ' || g from generate_series(1, 500) g")
	queries := map[string]pgsource.Query{
		"JSON":        {Table: "t", Page: 7},
		"value":       {SQL: "select *, convert_to(name, 'UTF8') as data from t", Key: []string{"name"}, Value: "data"},
		"small pages": {Table: "t", Key: []string{"id"}, Value: "name", PageBytes: 30},
	}
	for name, q := range queries {
		t.Run(name, func(t *testing.T) {
			streamtest.RunSource(t, func(t *testing.T) streamtest.SourceUnderTest {
				return streamtest.SourceUnderTest{Source: snapshot(t, pool, q), Query: stream.Query{Stream: "s", Job: t.Name()}, Count: 500}
			})
		})
	}
}

func TestSnapshotStaysAsItWas(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key, name text)", "insert into t select g, 'old ' || g from generate_series(1, 100) g")
	query := pgsource.Query{SQL: "select * from t where id <= $1 order by id desc", Value: "name"}
	job := stream.Query{Stream: "s", Job: "job", Params: []byte("[50]")}
	keys, before, err := read(t.Context(), snapshot(t, pool, query), job, 10)
	if err != nil || before[0] != "old 50" {
		t.Fatalf("read %q, %v", before, err)
	}
	exec(t, pool, "update t set name = 'new'")
	exec(t, pool, "delete from t where id < 20")
	exec(t, pool, "insert into t values (-1, 'new')")
	again := snapshot(t, pool, query) // another life of the producer
	job.After = keys[9]
	_, rest, err := read(t.Context(), again, job, -1)
	if err != nil || len(rest) != 40 || rest[39] != "old 1" {
		t.Fatalf("the rest is %d records, %q, %v", len(rest), rest, err)
	}
	if size, err := again.Size(t.Context(), job); err != nil || size != 50 {
		t.Fatalf("Size is %d, %v", size, err)
	}
	other := job
	other.Job, other.After = "other", nil
	if _, values, err := read(t.Context(), again, other, -1); err != nil || values[0] != "new" {
		t.Fatalf("another job read %q, %v, expected its own snapshot", values, err)
	}

	if err := again.Drop(t.Context(), "job"); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Open(t.Context(), job); !errors.Is(err, stream.ErrGone) {
		t.Fatalf("opening a snapshot that was dropped: %v, expected an ErrGone", err)
	} else if _, ok := errors.AsType[*stream.PositionGoneError](err); !ok {
		t.Fatalf("%v is no PositionGoneError", err)
	}
	fresh := job
	fresh.After = nil
	if _, values, err := read(t.Context(), again, fresh, -1); err != nil || values[0] != "new" {
		t.Fatalf("the job from its start read %q, %v, expected a new snapshot", values, err)
	}
	if _, err := again.Open(t.Context(), job); !errors.Is(err, stream.ErrGone) {
		t.Fatalf("a position of the first snapshot in the second: %v, expected an ErrGone", err)
	}
	if _, values, err := read(t.Context(), again, other, -1); err != nil || values[0] != "new" {
		t.Fatalf("the other job lost its snapshot: %q, %v", values, err)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key, name text)", "insert into t values (1, 'a'), (2, null)")
	source := snapshot(t, pool, pgsource.Query{Table: "t", Value: "name"})
	if _, err := source.Open(t.Context(), stream.Query{}); err == nil || !strings.Contains(err.Error(), "belongs to a job") {
		t.Errorf("without a job: %v", err)
	}
	keys, values, err := read(t.Context(), source, stream.Query{Job: "j"}, -1)
	if err != nil || !strings.Contains(values[1], "is NULL in record 2") {
		t.Errorf("read %q, %v", values, err)
	}
	for _, after := range [][]byte{[]byte("short"), append(make([]byte, 8), keys[0][8:]...), append(bytes.Repeat([]byte{0x7f}, 8), keys[0][8:]...)} {
		if _, err := source.Open(t.Context(), stream.Query{Job: "j", After: after}); !errors.Is(err, stream.ErrQueryChanged) && !errors.Is(err, stream.ErrBadToken) {
			t.Errorf("position %x: %v", after, err)
		}
	}
	changed := snapshot(t, pool, pgsource.Query{Table: "t"})
	if _, err := changed.Open(t.Context(), stream.Query{Job: "j", After: keys[0]}); !errors.Is(err, stream.ErrQueryChanged) {
		t.Errorf("another query over the job's snapshot: %v, expected an ErrQueryChanged", err)
	}
	if _, values, err := read(t.Context(), changed, stream.Query{Job: "j"}, -1); err != nil || values[0] != `{"id":1,"name":"a"}` {
		t.Errorf("another query from the start: %q, %v, expected a snapshot of its own", values, err)
	}
	if _, err := pgsource.Snapshot(pool, pgsource.Query{Table: "t", Horizon: "xid"}); err == nil || !strings.Contains(err.Error(), "Keyset only") {
		t.Errorf("a snapshot with a horizon: %v", err)
	}
}

// However many readers come first, in however many replicas, there is one copy.
func TestSnapshotConcurrentFirstOpens(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key)", "insert into t select generate_series(1, 2000)")
	const readers = 8
	var all [readers][]string
	var errs [readers]error
	var wg sync.WaitGroup
	for i := range readers {
		source := snapshot(t, pool, pgsource.Query{SQL: "select id, gen_random_uuid() as r from t", Key: []string{"id"}})
		wg.Go(func() {
			_, all[i], errs[i] = read(t.Context(), source, stream.Query{Job: "job"}, -1)
		})
	}
	wg.Wait()
	for i := range readers {
		if errs[i] != nil || len(all[i]) != 2000 || strings.Join(all[i], "|") != strings.Join(all[0], "|") {
			t.Errorf("reader %d: %d records, %v, expected the same as the first", i, len(all[i]), errs[i])
		}
	}
	var copies, rows int
	if err := pool.QueryRow(t.Context(), "select (select count(*) from levada_snapshot), (select count(*) from levada_snapshot_row)").Scan(&copies, &rows); err != nil {
		t.Fatal(err)
	}
	if copies != 1 || rows != 2000 {
		t.Errorf("there are %d copies with %d rows, expected 1 with 2000", copies, rows)
	}
}

func TestSnapshotExpires(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key)", "insert into t select generate_series(1, 100)")
	short := snapshot(t, pool, pgsource.Query{Table: "t", KeepFor: time.Hour, Page: 10})
	forever := snapshot(t, pool, pgsource.Query{Table: "t", KeepFor: -1})
	for job, source := range map[string]stream.Source{"old": short, "used": short, "forever": forever} {
		if _, _, err := read(t.Context(), source, stream.Query{Job: job}, -1); err != nil {
			t.Fatal(err)
		}
	}
	reading, err := short.Open(t.Context(), stream.Query{Job: "old"})
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	if _, err := reading.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, "update levada_snapshot set used_at = used_at - interval '2 hours'")
	if _, _, err := read(t.Context(), short, stream.Query{Job: "used"}, -1); err != nil {
		t.Fatal(err)
	}
	if n, err := short.Expire(t.Context()); err != nil || n != 1 {
		t.Fatalf("%d snapshots expired, %v, expected 1", n, err)
	}
	for {
		_, err := reading.Next(t.Context())
		if errors.Is(err, stream.ErrGone) {
			break
		}
		if err != nil {
			t.Fatalf("reading a snapshot that is removed meanwhile: %v, expected an ErrGone", err)
		}
	}
	var jobs []string
	rows, err := pool.Query(t.Context(), "select job from levada_snapshot order by job")
	if err == nil {
		jobs, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || strings.Join(jobs, " ") != "forever used" {
		t.Fatalf("left are %q, %v", jobs, err)
	}
}

// A copy whose maker dies half-way leaves nothing, and the next reader makes it again.
func TestSnapshotInterruptedCopy(t *testing.T) {
	pool := newPool(t, "create table t (id int primary key)", "insert into t select generate_series(1, 100)")
	source := snapshot(t, pool, pgsource.Query{SQL: "select id from t where pg_sleep(case when id = 50 and current_setting('application_name') = 'slow' then 60 else 0 end) is not null"})
	config := pool.Config()
	config.ConnConfig.RuntimeParams["application_name"] = "slow"
	slowPool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer slowPool.Close()
	slow := snapshot(t, slowPool, pgsource.Query{SQL: "select id from t where pg_sleep(case when id = 50 and current_setting('application_name') = 'slow' then 60 else 0 end) is not null"})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, _, err := read(ctx, slow, stream.Query{Job: "job"}, -1); err == nil {
		t.Fatal("the slow copy came to its end")
	}
	if _, values, err := read(t.Context(), source, stream.Query{Job: "job"}, -1); err != nil || len(values) != 100 {
		t.Fatalf("read %d records, %v", len(values), err)
	}
}

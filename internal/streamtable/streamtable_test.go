package streamtable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// What a job has put into a table is read back as it came.
func TestSQLiteRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	store, err := sqlitestore.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	table, err := CreateSQLite(t.Context(), path, "users")
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	roundTrip(t, store, store.Sink(table.Insert), table)
	again, err := CreateSQLite(t.Context(), path, "users") // it is there
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if _, err := OpenSQLite(t.Context(), path, "others"); !errors.Is(err, ErrNoTable) {
		t.Errorf("a table that is not there: %v", err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`create table mine (id integer, key text)`); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateSQLite(t.Context(), path, "mine"); err == nil || errors.Is(err, ErrNoTable) {
		t.Errorf("a table of somebody else's: %v", err)
	}
}

func TestPostgresRoundTrip(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	store, err := pgstore.New(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `create schema shop; create table mine (id int, key text)`); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"users", "shop.Users"} {
		t.Run(name, func(t *testing.T) {
			table, err := CreatePostgres(t.Context(), pool, name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := CreatePostgres(t.Context(), pool, name); err != nil {
				t.Errorf("again: %v", err)
			}
			roundTrip(t, store, store.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error { return table.Insert(ctx, tx, b) }), table)
		})
	}
	if _, err := OpenPostgres(t.Context(), pool, "others"); !errors.Is(err, ErrNoTable) {
		t.Errorf("a table that is not there: %v", err)
	}
	if _, err := CreatePostgres(t.Context(), pool, "mine"); err == nil || errors.Is(err, ErrNoTable) {
		t.Errorf("a table of somebody else's: %v", err)
	}
}

// roundTrip commits records, among them empty and strange ones, and reads them back; a commit that fails leaves nothing.
func roundTrip(t *testing.T, store stream.Store, sink stream.Sink, table Reader) {
	t.Helper()
	job, err := store.Submit(t.Context(), stream.Job{Stream: "s-" + table.Name()})
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := store.Claim(t.Context(), stream.Claim{Owner: stream.Self(), Streams: []string{job.Stream}, TTL: 1 << 40, Max: 1})
	if err != nil || len(claimed) != 1 {
		t.Fatalf("%v, %v", claimed, err)
	}
	lease := claimed[0].Lease()
	at, err := sink.Fence(t.Context(), lease)
	if err != nil {
		t.Fatal(err)
	}
	var want stream.Digest
	var records []stream.Record
	for seq := uint64(1); seq <= 300; seq++ {
		r := stream.Record{Seq: seq, Key: fmt.Appendf(nil, "%04d", seq), Value: []byte{0, 0xff, '\n', byte(seq)}}
		if seq == 7 {
			r.Value = nil
		}
		want.Add(r)
		records = append(records, r)
	}
	next := stream.Checkpoint{Seq: 300, Token: []byte("t"), Digest: want, Bytes: 2396}
	commit := func(prev, next stream.Checkpoint) error {
		return sink.Commit(t.Context(), stream.NewCommit(lease, prev, next, &stream.Batch{Job: claimed[0].Job, Epoch: lease.Epoch, Records: records}))
	}
	if err := commit(stream.Checkpoint{Seq: 5, Token: []byte("x")}, stream.Checkpoint{Seq: 305, Token: []byte("y")}); !errors.Is(err, stream.ErrConflict) {
		t.Fatalf("a commit from a checkpoint that is not stored: %v", err)
	}
	if err := commit(at, next); err != nil {
		t.Fatal(err)
	}
	for _, ordered := range []bool{false, true} {
		var got stream.Digest
		var n, last uint64
		for r, err := range table.Rows(t.Context(), job.ID, ordered) {
			if err != nil {
				t.Fatal(err)
			}
			if ordered && r.Seq <= last {
				t.Errorf("record %d comes after %d", r.Seq, last)
			}
			last = r.Seq
			got.Add(r)
			n++
		}
		if n != 300 || got != want {
			t.Errorf("%d rows with digest %v, want 300 with %v", n, got, want)
		}
	}
	for range table.Rows(t.Context(), "another job", false) {
		t.Error("another job has rows")
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"users": true, "Users_2": true, "_x": true, "": false, "2x": false, "a b": false, `a"b`: false, "a;b": false, "levada_job": false, "SQLITE_master": false, "pg_class": false, "shop.users": false,
	} {
		if err := checkName(name, false); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, ok := range map[string]bool{"shop.users": true, "shop.": false, ".users": false, "a.b.c": false, "shop.levada_job": false} {
		if err := checkName(name, true); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

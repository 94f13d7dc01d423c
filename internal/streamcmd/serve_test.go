package streamcmd

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
)

// The command took a pool that keeps statements prepared, and several workers behind PgBouncer in transaction mode met statements that were missing.
func TestStreamServeThroughPgBouncer(t *testing.T) {
	dsn := testserver.Postgres(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `create table events (id bigint primary key); insert into events select generate_series(1, 200)`); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, address := serving(t, "--postgres", testserver.PgBouncer(t, dsn, "transaction").DSN(), "--table", "events=events", "--snapshot")
	store, _ := submitted(t, "events", address)
	for range 7 {
		if o := levada(t, "stream", "submit", "events", "--store", store, "--target", address); o.Code != 0 {
			t.Fatal(o)
		}
	}
	o := levada(t, "stream", "work", "--store", store, "--stream", "events", "--print", "--until-done")
	if lines := strings.Count(o.Stdout, "\n"); o.Code != 0 || lines != 8*200 {
		t.Errorf("%d records were printed, want 1600; exit code %d: %s", lines, o.Code, o.Stderr)
	}
}

package streamcmd

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
)

// `stream list` on an empty database created five tables. Commands that look at jobs, or change one, create none; `stream migrate` does.
func TestOnlySomeCommandsCreateTables(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tables := func() (n int) {
		if err := conn.QueryRow(t.Context(), `select count(*) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')`).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	for _, command := range []string{"list", "show x", "pause x", "resume x", "cancel x", "retry x", "verify x --offline", "quarantine list x", "quarantine replay x --all", "quarantine drop x 1", "migrate --check"} {
		o := levada(t, append(append([]string{"stream"}, strings.Fields(command)...), "--store", dsn)...)
		if o.Code != 1 || !strings.Contains(o.Stderr, "levada stream migrate") {
			t.Errorf("%s: %+v, want exit code 1 and what to run", command, o)
		}
		if n := tables(); n != 0 {
			t.Fatalf("%s created %d tables", command, n)
		}
	}
	if o := levada(t, "stream", "migrate", "--store", dsn, "--store-schema", "jobs"); o.Code != 0 {
		t.Fatal(o)
	}
	if o := levada(t, "stream", "list", "--store", dsn, "--store-schema", "jobs"); o.Code != 0 || !strings.Contains(o.Stdout, "no jobs") {
		t.Error(o)
	}
	if o := levada(t, "stream", "migrate", "--check", "--store", dsn, "--store-schema", "jobs"); o.Code != 0 {
		t.Error(o)
	}
	if o := levada(t, "stream", "list", "--store", dsn); o.Code != 1 {
		t.Errorf("the other schema: %+v", o)
	}
	file := filepath.Join(t.TempDir(), "jobs.db")
	if o := levada(t, "stream", "migrate", "--check", "--store", file); o.Code != 1 || !strings.Contains(o.Stderr, "no job store") {
		t.Error(o)
	}
	if o := levada(t, "stream", "migrate", "--store", file); o.Code != 0 {
		t.Error(o)
	}
	if o := levada(t, "stream", "list", "--store", file); o.Code != 0 {
		t.Error(o)
	}
	if o := levada(t, "stream", "list", "--store", file, "--store-schema", "x"); o.Code != 2 || !strings.Contains(o.Stderr, "--store-schema") {
		t.Error(o)
	}
}

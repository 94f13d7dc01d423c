package streamcmd

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// The tables of a sink apart from the job store could be neither made beforehand nor cleaned up without a program.
func TestStreamMigrateAndPurgeASinkAlone(t *testing.T) {
	dir := t.TempDir()
	jobs, file := filepath.Join(dir, "jobs.db"), filepath.Join(dir, "copies.db")
	if o := levada(t, "stream", "migrate", "--store", jobs); o.Code != 0 {
		t.Fatal(o)
	}
	dsn := testserver.Postgres(t)
	for _, sink := range []string{file, dsn} {
		if o := levada(t, "stream", "migrate", "--check", "--sink-only", "--store", sink); o.Code != 1 || !strings.Contains(o.Stderr, "run ") {
			t.Errorf("check: %+v", o)
		}
		if o := levada(t, "stream", "migrate", "--sink-only", "--store", sink); o.Code != 0 || strings.Contains(o.Stdout, "job store") {
			t.Fatal(o)
		}
		if o := levada(t, "stream", "migrate", "--check", "--sink-only", "--store", sink); o.Code != 0 {
			t.Errorf("check: %+v", o)
		}
		if o := levada(t, "stream", "list", "--store", sink); o.Code != 1 {
			t.Errorf("there are tables of a job store: %+v", o)
		}
	}
	const old = `insert into levada_offset (job, version, epoch, token, digest, done, updated_at) values ('gone', 1, 1, '', '', `
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), old+`false, now() - interval '60 days')`); err != nil {
		t.Fatal(err)
	}
	db, err := sqlitestore.OpenDB(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), old+`false, 1)`); err != nil {
		t.Fatal(err)
	}
	for _, sink := range []string{file, dsn} {
		for _, want := range []string{"offsets of 1 jobs deleted from the sink", "offsets of 0 jobs deleted from the sink"} {
			if o := levada(t, "stream", "purge", "--store", jobs, "--sink", sink); o.Code != 0 || !strings.Contains(o.Stdout, want) {
				t.Errorf("purge: %+v, want %s", o, want)
			}
		}
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--sink mysql://x", 2, "--sink mysql://"},
		{"--sink-schema x", 2, "--sink-schema needs --sink"},
		{"--sink " + file + " --sink-schema x", 2, "--sink-schema"},
		{"--sink " + dir + "/none.db", 1, "there is no database at"},
	} {
		if o := levada(t, append(strings.Fields("stream purge --store "+jobs), strings.Fields(c.args)...)...); o.Code != c.code || !strings.Contains(o.Stderr, c.want) {
			t.Errorf("purge %s: %+v, want exit code %d and %q", c.args, o, c.code, c.want)
		}
	}
}

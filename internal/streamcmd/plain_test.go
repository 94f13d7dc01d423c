package streamcmd

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// A producer that cannot read its file is not announced: its readers would find out.
func TestServeAnnouncesNothingThatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{filepath.Join(dir, "none"): "no such file", dir: "not a regular file"} {
		o := levada(t, "stream", "serve", "--listen", "127.0.0.1:0", "--file", "a="+path)
		if o.Code != 2 || o.Stdout != "" || !strings.Contains(o.Stderr, want) {
			t.Errorf("%s: %+v", path, o)
		}
	}
	dsn := testserver.Postgres(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.Background()) }()
	role := "app_" + strings.ReplaceAll(stream.NewID(), "-", "")
	if _, err := admin.Exec(t.Context(), `create table users (id bigint primary key); create role `+role+` login password 'secret'`); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = admin.Exec(context.Background(), `drop owned by `+role+`; drop role `+role) }()
	url := strings.Replace(dsn, "//"+admin.Config().User+"@", "//"+role+":secret@", 1)
	for _, c := range []struct {
		url, want string
		flags     []string
	}{{url, "permission denied for table users", nil}, {dsn, "nothing", []string{"--key", "nothing"}}} {
		o := levada(t, append([]string{"stream", "serve", "--listen", "127.0.0.1:0", "--postgres", c.url, "--table", "users=users", "--static"}, c.flags...)...)
		if o.Code == 0 || o.Stdout != "" || !strings.Contains(o.Stderr, c.want) {
			t.Errorf("%v: %+v, want an error that says %q", c.flags, o, c.want)
		}
	}
}

// A database that has no room for the worker's table is waited for, as jobs do; that is no mistake of the command line.
func TestWorkWaitsForATableThatCannotBeMadeYet(t *testing.T) {
	dsn := testserver.Postgres(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.Background()) }()
	if o := levada(t, "stream", "migrate", "--store", dsn); o.Code != 0 {
		t.Fatal(o)
	}
	refuse := func(code string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), `create or replace function refuse() returns event_trigger language plpgsql as $$ begin raise exception 'refused' using errcode = '`+code+`'; end $$;
			drop event trigger if exists refusal; create event trigger refusal on ddl_command_start when tag in ('CREATE TABLE') execute function refuse()`); err != nil {
			t.Fatal(err)
		}
	}
	refuse("42501")
	if o := levada(t, "stream", "work", "--stream", "users", "--store", dsn); o.Code != 1 || !strings.Contains(o.Stderr, "refused") {
		t.Errorf("without the right to make its table: %+v, want exit code 1", o)
	}
	if o := levada(t, "stream", "work", "--stream", "users=1x", "--store", dsn); o.Code != 2 || !strings.Contains(o.Stderr, "not a table name") {
		t.Errorf("a name that is none: %+v, want exit code 2", o)
	}
	refuse("53100")
	s := start(t, "stream", "work", "--stream", "users", "--store", dsn, "-q")
	s.eventually("it says what it waits for", func() bool {
		return strings.Contains(s.stderr.String(), "worker waiting for its table") && strings.Contains(s.stderr.String(), "STORAGE_FULL")
	})
	if _, err := admin.Exec(t.Context(), `drop event trigger refusal`); err != nil {
		t.Fatal(err)
	}
	s.eventually("it works", func() bool { return strings.Contains(s.stderr.String(), "msg=working") })
}

// What is not done is an error: a target that is not used, a job that is complete already, an id that is too short.
func TestStreamCommandsSayWhatTheyDoNotDo(t *testing.T) {
	file, store := filepath.Join(t.TempDir(), "lines"), filepath.Join(t.TempDir(), "jobs.db")
	if err := os.WriteFile(file, []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, address := serving(t, "--file", "lines="+file)
	for _, id := range []string{"abcd-1", "abcd-2"} {
		if o := levada(t, "stream", "submit", "lines", "--store", store, "--target", address, "--id", id); o.Code != 0 {
			t.Fatal(o)
		}
	}
	if o := levada(t, "stream", "work", "--stream", "lines", "--store", store, "--until-done", "-q"); o.Code != 0 {
		t.Fatal(o)
	}
	before := status(t, store, "abcd-1")
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"verify abcd-1 --target 127.0.0.1:9", 2, []string{"--target is 127.0.0.1:9", address}},
		{"verify abcd-1 --target " + address, 0, nil},
		{"retry abcd-1", 1, []string{"is complete, nothing to retry"}},
		{"show abcd", 2, []string{"2 jobs begin with", "abcd-1", "abcd-2"}},
		{"show ab", 2, []string{"2 jobs begin with", "abcd-1"}},
		{"show zz", 1, []string{"no such job"}},
	} {
		o := levada(t, append(append([]string{"stream"}, strings.Fields(c.args)...), "--store", store)...)
		for _, words := range append(c.want, "") {
			if o.Code != c.code || !strings.Contains(o.Stderr, words) || strings.Count(o.Stderr, "\n") > 1 {
				t.Errorf("%s: %+v, want exit code %d and one line that says %q", c.args, o, c.code, words)
			}
		}
	}
	if now := status(t, store, "abcd-1"); now.Epoch != before.Epoch || now.State != stream.Completed {
		t.Errorf("the complete job is %s in epoch %d, and was in epoch %d", now.State, now.Epoch, before.Epoch)
	}
	t.Setenv("LEVADA_BATCH", "abc")
	if o := levada(t, "stream", "work", "--stream", "lines", "--store", store); o.Code != 2 || strings.Contains(o.Stderr, "strconv") || !strings.Contains(o.Stderr, `LEVADA_BATCH is "abc", but --batch takes a number, such as 1000`) {
		t.Errorf("a variable that is no number: %+v", o)
	}
}

func status(t *testing.T, store, id string) stream.Status {
	t.Helper()
	s, err := sqlitestore.Open(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

package streamcmd

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// A job whose sink may not be read is shown all the same, with the reason: that is when one looks at it.
func TestShowShowsAJobWhoseSinkMayNotBeRead(t *testing.T) {
	dsn := testserver.Postgres(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	role := "app_" + strings.ReplaceAll(stream.NewID(), "-", "")
	for _, sql := range []string{`create role ` + role + ` login password 'secret'`, `grant all on schema public to ` + role} {
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _, _ = admin.Exec(context.Background(), `drop owned by `+role+` cascade; drop role `+role) }()
	store := strings.Replace(dsn, "//"+admin.Config().User+"@", "//"+role+":secret@", 1)
	if o := levada(t, "stream", "migrate", "--store", dsn); o.Code != 0 {
		t.Fatal(o)
	}
	if _, err := admin.Exec(t.Context(), `grant all on levada_job, levada_job_version, levada_sink_version to `+role); err != nil {
		t.Fatal(err)
	}
	submitted := levada(t, "stream", "submit", "users", "--store", store)
	if submitted.Code != 0 {
		t.Fatal(submitted)
	}
	shown := levada(t, "stream", "show", strings.TrimSpace(submitted.Stdout), "--store", store)
	for _, words := range []string{"users", "ready", "not known", "permission denied for table levada_quarantine", role} {
		if shown.Code != 0 || !strings.Contains(shown.Stdout, words) {
			t.Errorf("show does not say %q: %+v", words, shown)
		}
	}
}

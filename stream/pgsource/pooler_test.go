package pgsource_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgsource"
)

// Through a pooler in transaction mode a statement that was prepared on one server connection is missing on the next, so that readers beside each other
// failed; with one reader it went unnoticed.
func TestSourcesThroughPgBouncer(t *testing.T) {
	dsn := testserver.Postgres(t)
	direct, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	exec(t, direct, liveTable)
	exec(t, direct, "insert into t (name) select 'row ' || g from generate_series(1, 300) g")
	bouncer := testserver.PgBouncer(t, dsn, "transaction")
	pool, err := pgsource.Connect(t.Context(), bouncer.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	copies, err := pgsource.Snapshot(pool, pgsource.Query{Table: "t", Key: []string{"id"}, Value: "name", Page: 50})
	if err != nil {
		t.Fatal(err)
	}
	rows := keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Horizon: "xid", Value: "name", Page: 50})
	var readers sync.WaitGroup
	for i := range 8 {
		for name, source := range map[string]stream.Source{"snapshot": copies, "keyset": rows} {
			readers.Go(func() {
				_, values, err := read(t.Context(), source, stream.Query{Stream: "t", Job: fmt.Sprint("job", i)}, -1)
				if err != nil || len(values) != 300 {
					t.Errorf("%s: %d records, error %v", name, len(values), err)
				}
			})
		}
	}
	readers.Wait()
}

// A pool of the user's that keeps statements prepared is refused with the setting to change, instead of failing later, under load.
func TestSourcesRefuseAPoolThatPreparesBehindPgBouncer(t *testing.T) {
	dsn := testserver.Postgres(t)
	bouncer := testserver.PgBouncer(t, dsn, "transaction")
	pool, err := pgxpool.New(t.Context(), bouncer.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	copies, err := pgsource.Snapshot(pool, pgsource.Query{Table: "t", Key: []string{"id"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]stream.Source{"Snapshot": copies, "Keyset": keyset(t, pool, pgsource.Query{Table: "t", Key: []string{"id"}, Static: true})} {
		if _, err := source.Open(t.Context(), stream.Query{Stream: "t", Job: "job"}); err == nil || !strings.Contains(err.Error(), "default_query_exec_mode=exec") || !strings.Contains(err.Error(), "pgsource.Connect") {
			t.Errorf("%s: error %v, want one that names default_query_exec_mode=exec and pgsource.Connect", name, err)
		}
	}
}

package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
	"github.com/levada-io/levada/stream/streamtest"
)

type order struct {
	ID    int     `json:"id"`
	Price float64 `json:"price"`
}

// Each program wrote the same decoding, and one that forgot to skip what cannot be decoded stopped at it.
func TestTypedHandlers(t *testing.T) {
	store, err := sqlitestore.Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.DB().Exec(`create table orders (id integer, price real)`); err != nil {
		t.Fatal(err)
	}
	var handler sqlitestore.Handler = stream.JSON(func(ctx context.Context, tx *sql.Tx, _ *stream.Batch, orders []stream.Typed[order]) error {
		for _, o := range orders {
			if _, err := tx.ExecContext(ctx, `insert into orders values (?, ?)`, o.Value.ID, o.Value.Price); err != nil {
				return err
			}
		}
		return nil
	})
	source := stream.SliceOf([]any{order{1, 1.5}, "nonsense", order{3, 2.5}, func() {}}, func() func(any) []byte {
		n := 0
		keys := map[string]int{}
		return func(item any) []byte {
			name := fmt.Sprintf("%T%v", item, item)
			if keys[name] == 0 {
				n++
				keys[name] = n
			}
			return []byte{byte(keys[name])}
		}
	}(), stream.JSONValue)
	got := streamtest.Work(t, source, store, store.Sink(handler))
	var n int
	var sum float64
	if err := store.DB().QueryRow(`select count(*), sum(price) from orders`).Scan(&n, &sum); err != nil || n != 2 || sum != 4 {
		t.Errorf("%d orders, sum %v, error %v; want 2 and 4", n, sum, err)
	}
	if len(got.Quarantine) != 2 || !strings.Contains(got.Quarantine[0].Error, "not JSON of sqlitestore_test.order") || !strings.Contains(got.Quarantine[1].Error, "encode func() as JSON") {
		t.Errorf("in quarantine: %+v", got.Quarantine)
	}
}

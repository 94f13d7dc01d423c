package pgstore

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

// connect opens connections that a test owns.
func connect(t *testing.T, dsn string, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	// The store's statements need not wait for the disk in a test; the sink's do in any case.
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	for _, c := range change {
		c(config)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func open(t *testing.T, pool *pgxpool.Pool, opts ...Option) *Store {
	t.Helper()
	s, err := New(t.Context(), pool, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// advance makes all times earlier instead of the clock later.
func advance(t *testing.T, pool *pgxpool.Pool) func(time.Duration) {
	return func(d time.Duration) {
		_, err := pool.Exec(context.Background(), `update levada_job set lease_until = lease_until - $1::bigint * interval '1 microsecond',
			not_before = not_before - $1::bigint * interval '1 microsecond', claimed_at = claimed_at - $1::bigint * interval '1 microsecond'`, d.Microseconds())
		if err != nil {
			t.Error(err)
		}
	}
}

// strange are settings that a user's pool may have, and that must not matter.
func strange(c *pgxpool.Config) {
	c.MaxConns = 3
	c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	c.ConnConfig.RuntimeParams["timezone"] = "Pacific/Chatham"
	c.ConnConfig.RuntimeParams["datestyle"] = "ISO, DMY"
}

func TestStoreConformance(t *testing.T) {
	streamtest.RunStore(t, func(t *testing.T) streamtest.StoreUnderTest {
		dsn := testserver.Postgres(t)
		a, b := connect(t, dsn), connect(t, dsn)
		return streamtest.StoreUnderTest{Store: open(t, a), More: []stream.Store{open(t, b, WithoutNotify())}, Advance: advance(t, a)}
	})
}

func TestStoreConformanceWithStrangeSettings(t *testing.T) {
	streamtest.RunStore(t, func(t *testing.T) streamtest.StoreUnderTest {
		dsn := testserver.Postgres(t)
		open(t, connect(t, dsn), WithSchema("odd")) // a read-only session cannot make tables
		a := connect(t, dsn, strange, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol })
		inSchema := connect(t, dsn, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = "odd" })
		return streamtest.StoreUnderTest{Store: open(t, a, WithSchema("odd"), WithoutMigrate()), Advance: advance(t, inSchema)}
	})
}

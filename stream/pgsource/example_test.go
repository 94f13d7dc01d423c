package pgsource_test

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgsource"
)

// A stream of the users of a tenant, which goes on for as long as there are new ones. The table has been prepared with
//
//	alter table users add column xid xid8 not null default pg_current_xact_id();
//	create index on users (tenant, xid, id);
func ExampleKeyset() {
	pool, err := pgxpool.New(context.Background(), "postgres:///app")
	if err != nil {
		log.Fatal(err)
	}
	users, err := pgsource.Keyset(pool, pgsource.Query{
		SQL:     "select xid, id, name from users where tenant = $1",
		Params:  []string{"tenant"}, // for jobs with a query such as {"tenant": 7}
		Horizon: "xid",
		Key:     []string{"id"},
		Follow:  true,
	})
	if err != nil {
		log.Fatal(err)
	}
	server, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	server.Handle("users", users)
}

// Each job gets the invoices as they are when it is first read.
func ExampleSnapshot() {
	pool, err := pgxpool.New(context.Background(), "postgres:///app")
	if err != nil {
		log.Fatal(err)
	}
	invoices, err := pgsource.Snapshot(pool, pgsource.Query{
		SQL: "select i.id, i.total, c.name from invoices i join customers c on c.id = i.customer where i.year = $1 order by c.name, i.id",
	})
	if err != nil {
		log.Fatal(err)
	}
	server, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	server.Handle("invoices", invoices)
}

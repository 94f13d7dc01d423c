// Package pgsource makes streams of Postgres queries.
//
// [Keyset] pages through a live table in the order of a key. Its horizon keeps it from passing over rows of transactions that
// took their number, or their place in the order, before others but committed after them. [Snapshot] gives each job a
// copy of the query's result at one moment.
package pgsource

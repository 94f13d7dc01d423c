// Package pgsource serves Postgres tables and queries as streams: [Keyset] reads rows in the order of a key, from a table that may be written to at the same
// time, and [Snapshot] gives each job a copy of what a query returned at one moment.
//
// # Why a key alone is not enough
//
// "where id > $1 order by id" loses rows. A sequence gives out its numbers when a row is inserted, and rows become visible when their transactions commit, in another
// order: row 7 may appear after a reader has gone past row 8. So [Query.Horizon] names a column with the number of the inserting transaction, which becomes the first
// column of the key, and a cursor reads only rows below pg_snapshot_xmin(pg_current_snapshot()): all transactions with smaller numbers have ended. A row that is
// not there then never appears below the cursor. The price is that a transaction which stays open holds the stream up.
//
// # Keys as bytes
//
// Positions are compared by programs that know nothing of Postgres, so a key is bytes in the order of the values: numbers big endian with the sign bit flipped, texts and
// bytea with 00 FF for a zero byte and 00 01 at the end, which sorts before all that a longer value may have there (the encoding of Google's orderedcode). Text is ordered by its bytes (collation "C"), since other collations
// change with the version of the C library.
//
// # Generations
//
// A position is valid for one history of the database: its system identifier, timeline and oid are the generation. A restored backup, or a standby that was promoted and
// may have lost commits, has another one, and positions of the first are refused instead of being read as something else.
package pgsource

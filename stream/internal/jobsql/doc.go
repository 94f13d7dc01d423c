// Package jobsql is what the stores in SQL databases have in common: the columns of their three tables, and what a row of them means.
//
// The statements themselves stay with each store, since they are written for what the database is good at: a store in Postgres sends one statement per
// transaction in a round trip, one in SQLite reads and writes under the one right to write. What both must agree about is here, and only here:
//
//   - which columns a row has, in which order they are read and written, and that numbers without sign are kept as numbers with one, durations as
//     microseconds, and an empty DedupeKey as NULL (see [Row], [Offset], [QuarantineRow]);
//   - which states a job may be taken from and to by a person, and what else that changes (see [TransitionsIn]);
//   - why a lease is not the job's current one, and when a release that seems to have failed has not (see [Fenced], [Released]);
//   - what becomes of a quarantined record that its handler refuses again, or panics at (see [Replay]).
//
// A column that is added here must be added by a migration of both stores.
package jobsql

// Package driver is for those who write a job store, a sink or a notifier driver of their own. Users of a worker or a server need package stream and one of
// the drivers there are: sqlitestore, pgstore, memstore; pgnotify, rabbitnotify, natsnotify.
//
// The cut: driver holds what only a driver implements, receives or returns. What it shares with users (Job, Status, Owner, Batch, Record, Checkpoint,
// Quarantined) is in package stream. The types here are aliases of types in package stream, which cannot import this one: its Store and Sink are made of
// the types that users need.
//
// # A job store
//
// A [Store] is authoritative about who owns a job. Three rules make it so:
//
//   - Its own clock decides. A worker says how long a lease lasts, never when it ends.
//   - Each claim makes the job's epoch one greater, and so does each cancel, pause and retry. Renew, Note and Release compare epoch and state in the
//     statement that changes the row, and return [ErrFenced] if they are not the lease's. A check before the change is a race.
//   - Each job that is not final has a time at which it is looked at next (NotBefore, or the end of its lease), or is paused. A claim looks for exactly that, so
//     that no job is forgotten.
//
// An answer may be lost on the way. Submit with the same ID, Release with the same epoch and final state, and Renew are therefore repeatable. Claim is not: a claim
// whose answer is lost runs out with its lease.
//
// # A sink
//
// A [Sink] keeps the effects of records in one transaction with the checkpoint. Fence and Commit are the whole protocol:
//
//   - Fence stores the lease's epoch beside the checkpoint if it is not less than the stored one, and waits for a commit under way or makes it fail. When
//     it returns, no older owner can commit any more.
//   - Commit begins a transaction, calls the handler, asks [Commit.Result] for what to store, writes quarantine and checkpoint, and commits. The write of the
//     checkpoint compares the stored epoch and the whole previous checkpoint: [ErrFenced] for another epoch, [ErrConflict] for another checkpoint. If that write
//     changes no row, everything is rolled back.
//
// The error of a commit means "unknown" unless it is one of these two or the handler's own: the worker asks Fence, with the same epoch, which of the two checkpoints
// there is. So a sink never repeats a commit by itself.
//
// A sink in the job store's own database also checks in its transaction that the job is running in the lease's epoch, renews the lease there, and calls
// [Commit.LeaseRenewed]: a worker that commits keeps its job also while nothing else reaches the store.
//
// # A notifier driver
//
// Notifications ([Notifier]) carry no right. A notification that is lost, doubled, late or invented costs time, and nothing else. A driver reconnects by itself for as long as Listen's
// context lives, calls wake one at a time, and acknowledges only when wake has returned.
//
// # The suites
//
// Package streamtest has a suite for each of the three: RunStore, RunSink and RunNotifier. A driver that passes them can be used by any worker. They run
// operations against each other from several clients, lose answers, and kill owners.
package driver

// Package stream makes long gRPC streams between two services survive panics, cut connections, SIGTERM, SIGKILL and
// out-of-memory kills: what the receiver has committed is never asked for again, and nothing is skipped.
//
// A producer serves ordered records from a [Source] with a [Server]. A [Worker] claims jobs from a [Store], reads each job's
// stream, hands batches to a handler and commits their effects together with the offset to a [Sink], under a lease with a
// fencing number. Everything else, such as notifications and the pod watcher, only makes it faster.
//
// # Which part to use
//
//   - Records in memory, a file, an iterator, a Postgres table: [Slice], [File], [Func], package pgsource. All else: a [Source] of your own.
//   - Effects in Postgres or SQLite, in one transaction with the offset: the store's Sink. Effects elsewhere, such as calls of other services: [AtLeastOnce].
//   - A program that keeps the position itself and needs no jobs: [Reader].
//   - A store, sink or notifier driver of your own: package driver, and the suites of package streamtest.
//
// # The lease
//
// A job is worked on by the process that has its lease. A claim gives one: it makes the job's epoch one greater and lasts WorkerConfig.Lease
// by the store's clock. The worker renews it each third of that time, and a sink in the store's database renews it with each commit.
//
// No two clocks are compared. The worker counts from before the request that renewed the lease, the store from when it came, so that the worker's
// count is the earlier one. When two thirds of the lease have passed since the last renewal that worked, the worker cancels the handler and gives
// the job up, before the store can give it to another.
//
//	worker:  renew sent |------ 2/3 lease ------| gives up
//	store:      renewed |------------- lease -------------| may be claimed
//
// # The fence
//
// A lease alone is not enough: a process that was frozen for longer than its lease still believes in it. So the sink keeps the epoch beside the checkpoint, and decides:
//
//  1. The new owner calls Sink.Fence with its epoch. From its return on, no commit of a smaller epoch succeeds, also none that was under way.
//  2. Fence returns the checkpoint, from which the new owner reads on.
//  3. A commit compares the stored epoch and the whole previous checkpoint in the statement that writes the next one. Of two commits that go on from the
//     same checkpoint one succeeds.
//
// Effects and checkpoint are in one transaction, so each record has its effect once. With [AtLeastOnce] effects are outside, and cannot be
// fenced: a process that was frozen may repeat what its successor does.
//
// # What a failure does
//
//	the stream is cut             it is opened again after the last commit
//	the answer to a commit lost   Fence with the same epoch returns one of the two checkpoints
//	the store is unavailable      the job goes on while commits renew the lease, or is given up after 2/3 of it
//	the process is killed         the lease runs out, or its successor in the container ends it at once
//	the process is frozen         another has the job; the frozen one is fenced at its next commit
//	the handler does not return   the lease is not renewed any more one lease after its time, see [Worker.Stuck]
//	a record kills the process    batches are halved with each crash until it is alone, and then quarantined
//
// # Files
//
// One folder, because it is what users import. The producer is server.go, reading.go and encode.go, with source.go, slice.go, file.go and funcof.go for records. The receiver is
// worker.go (which jobs to claim), claim.go (a claimed job, from claim to release), heartbeat.go (its lease), run.go (attempts at a stream, also a reader's), session.go and decode.go
// (one stream), commit.go (effects in the sink) or deliver.go and atleastonce.go (effects outside of it), suspicion.go (records that kill their process), cause.go (retries and limits),
// skip.go, evidence.go and replay.go (quarantine), presence*.go (processes of a pod that died). reader.go is a receiver without jobs. store.go, sink.go and notifier.go are what drivers implement.
package stream

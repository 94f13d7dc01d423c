// Package shard divides the partitions of a vertex among processes: each shard is read by one process at a time, and moves when processes come, leave, freeze or die. There is no leader,
// and no other service than the key-value store of the broker.
//
// # What is promised
//
//   - Of all that save the state of a shard, only the newest owner can (Fence). This holds whatever the clocks, the network and the store's timers do.
//   - Two processes that both believe to own a shard do not run at the same time, as long as clocks differ in speed by less than Guard in a TTL. This is a matter of efficiency, of order and of
//     sinks that are not idempotent; results are deduplicated by position. The one exception: a process that starts under the name of one which still runs takes over at once.
//   - Shares are even to within one shard, 2 s after the last member has come or gone.
//   - A shard is without an owner for 200 ms when its owner drains or restarts under the same name, and otherwise for TTL or, if the store does not expire sessions in time, for Expiry; then
//     for Gather, if all members come back together after an outage of the store.
//
// # Records
//
//	GROUP.member.NAME   {incarnation, renewal, draining}   with a TTL: the session of a process
//	GROUP.lease.SHARD   {owner, incarnation, epoch}        without:    who owns the shard
//
// A lease is valid as long as the session of its incarnation is there. So a process renews one record, however many shards it has: with a TTL of 5 s the broker stores one small message a
// second for each process and vertex, and nothing for a shard that stays where it is. And the epoch of a lease outlives its owner, since it does not expire.
//
// Every write is a compare-and-set. What holds everything together is the order that the store gives to them:
//
//  1. A process announces its session before it claims leases, and an incarnation announces itself once. Its renewals expect the revision of the one before.
//  2. So the end of a session is final. After it has expired, was removed by another member or overwritten by a restarted process, the next renewal is refused. The process then stops all
//     shards and comes back as another incarnation.
//  3. So a lease whose session is not there in a state of the store after the lease was written (a marker, or another incarnation, with a higher revision) is free for good.
//  4. When a member has seen neither, it removes the session with a compare-and-set. If that is applied, there is none; a read could be of a replica that lags.
//
// # The life of a member
//
//	       watch synced                    written                   Drain, all released
//	(new) ------------> announce session ----------> member ------------------------------> leave
//	          ^                                      |    \
//	          |   another incarnation, new watch     |     \ another process has the name: stop all, ErrSuperseded
//	          +--------------------------------------+
//	            session expired or removed: abandon all shards
//
//	a shard, as its member sees it:
//
//	            claim, epoch+1                 lease written, session valid
//	 free, or  --------------->  claiming  ------------------------------->  running
//	 owner's     <-------------                                                |  |
//	 session      refused: read, try again                   share, Drain      |  | session expiring or lost,
//	 ended                                                 +-------------------+  | lease taken
//	   ^                                                   v                      v
//	   |   release, epoch kept                         finishing ----------> abandoning
//	   +------------------------------- stopped <-----------  deadline -----------+
//	                                       |
//	                                       +--> claim again, epoch+1, if the shard belongs to this member again
//
// A claim is the only way to a higher epoch, and an epoch is started once. A lease is released when the reader says that nothing runs any more, not when it was asked to stop.
//
// # Time
//
// A member reads no wall clock. It counts its session as valid until TTL - Guard after it sent the newest renewal that is known to be applied, by its monotonic clock; the store counts from
// when it stored the renewal, which is later. Abandon before that end it stops everything. The others remove a session that was not renewed for Expiry by their own monotonic clocks, whether
// or not the store has a TTL: a broker of NATS whose leader was killed was measured to expire records 15 s late, never early.
//
// A clock that stops with the machine (CLOCK_MONOTONIC while a laptop sleeps or a VM is paused) makes an owner believe in its lease too long. Only the fence helps then.
//
// # Shares
//
// Who should have what is a function of the names of the members (share), so all who see the same sessions agree. A member releases what belongs to another, and claims what belongs to it and
// is free; nobody assigns anything to others. While their views differ, a shard waits for a moment or is claimed by two, of which the store refuses one.
//
// A member that joins counts after Settle, so that a scale-up is one move; those that join together count at once. A process that restarts under its name has its place at once.
//
// # Unknown outcomes
//
// A request that times out may have been applied, and may still be. The member never guesses: it sends the next compare-and-set over the revision that it knows. If the first was applied,
// the second is refused; a read then shows the member its own record, which it knows by its incarnation and its renewal or epoch. A claim that is applied after its member has lost interest is
// seen in the watch, and released. One whose incarnation has ended is a lease without a session.
//
// A watch can end in silence. A member sees its own renewals come back through it: after three that do not, it begins another watch, and after a TTL of them it leaves, since it would neither take
// nor release what it should.
//
// # Files
//
//   - protocol.go: events, actions, times. member.go and reconcile.go: the decisions, without I/O and clock. share.go: who should have what
//   - fence.go: what may be saved. state.go: the same with a store
//   - run.go: a process that takes part. store.go: what it needs of a store. memory.go: a store for one process
//   - sim_test.go, simfaults_test.go, simchecks_test.go: the simulation, what goes wrong in it, and what must hold
package shard

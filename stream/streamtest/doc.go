// Package streamtest is for tests of programs and drivers that use package stream.
//
// A driver passes the suite of its kind: [RunStore], [RunSink] (and [RunSinkAlone], if it can be in another database than the jobs), [RunNotifier], [RunSource], or [RunProducer] for a producer in another language. Each takes a function that opens
// what is tested, and runs its checks as subtests. They use real time and need seconds to a minute.
//
// A handler is tested with [Handle] in memory, or with [Work] over a real store. [BadNet] is a network between a worker and a producer that delays, cuts and corrupts.
//
// # Files
//
// One package has all suites, since authors of drivers import one name, and the suites share what they make records and owners of. The files of a suite begin
// with its name: store.go lists its checks and has how it opens a store, store_claim.go has the checks about claims, and so on.
package streamtest

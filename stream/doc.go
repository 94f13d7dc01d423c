// Package stream makes long gRPC streams between two services survive panics, cut connections, SIGTERM, SIGKILL and
// out-of-memory kills: what the receiver has committed is never asked for again, and nothing is skipped.
//
// A producer serves ordered records from a [Source] with a [Server]. A [Worker] claims jobs from a [Store], reads each job's
// stream, hands batches to a handler and commits their effects together with the offset to a [Sink], under a lease with a
// fencing number. Everything else, such as hints and the pod watcher, only makes it faster.
package stream

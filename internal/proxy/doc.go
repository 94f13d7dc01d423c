// Package proxy is a proxy for gRPC over HTTP/2 that tells callers the truth about how their streams ended.
//
// It works on frames. A connection of a caller (front) and one to an endpoint of a backend (back) each have two goroutines, one that reads and one
// that writes; a stream has none. What a reader has parsed is appended to the other side's output at once, and the other side's writer is woken once
// for all that was read together. A reader never waits for a socket of the other side: what cannot be sent on is kept with its stream, which is
// bounded by the window that we grant for it.
//
// Locks: a stream belongs to its front, whose lock guards all of the stream's state, of both sides. The order is front, endpoint, back; the
// wheel's lock is below all. Nothing is done to another front while a front's lock is held.
package proxy

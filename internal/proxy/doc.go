// Package proxy is a proxy for gRPC over HTTP/2 that preserves how streams end: what a backend said reaches the client unchanged, and where the proxy itself has to end a
// call, it does so between two messages and with a status that says what happened and whether the call was processed.
//
// # The way of a call
//
// A connection of a client (Envoy: downstream) is a front, one to an endpoint of a backend (upstream) is a back. A call is a stream of a front; while it has a connection it is a
// stream of a back, too. Both are a conn: conn.go (state), conn_read.go and conn_frames.go (reader), conn_write.go (output and writer), frame_budget.go (abuse).
//
//	client    front.read -> front.block -> stream.begin             conn_read.go, front.go, stream.go: HEADERS open the call, its route is found, limits are checked
//	          front.batch -> stream.dispatch                        dispatch.go: a cluster by the route's weights, an endpoint by its balance.Set
//	          endpoint.assign -> back.take -> stream.dispatched     endpoint.go, back.go: a connection with room, or the call waits for one
//	          front.data -> stream.received -> pushIn -> sendIn     request.go: DATA is appended to the back's output, as the endpoint's windows allow
//	endpoint  back.read -> back.block, back.data                    back.go
//	          stream.header -> answered -> trailers                 response.go: whole messages are appended to the front's output, as the client's windows allow
//	          stream.pushOut -> sendEnd -> finish                   end.go: after the last byte the end is sent, and the call is taken from its front
//
// Whether a failed attempt is retried, what a RST_STREAM means and in which form a call ends is decided by the pure functions of decide.go. A call that is retried goes back to
// dispatch (retry.go). What ends a call earlier is a timer (timers.go), its client (stream.cancelled), the end
// of the back's connection (stream.lost), a drain (drain.go) or what it holds (pressure.go). They all lead to end, drop or cancelled.
//
// # Goroutines
//
// Each connection has two: one reads, one writes. A stream has none, and neither has an endpoint. The reader of a connection parses frames and does all that follows from
// them for both sides of a call: it appends what is to be sent to the output of the other connection, and notes in a wakeups whose writer has something to do. Writers are woken
// once for all that was read together, after all locks were released. A reader never waits for a socket of another connection: what cannot be sent on is kept with its stream,
// which is bounded by the window that the proxy grants for it. So a peer that does not read slows down its own streams, and nobody else's.
//
// The other goroutines are the wheel's, which runs timers; one for each backend's discovery (cluster.update); one for each connection that is being made
// (endpoint.connect, which then is its reader); and those of active health checks.
//
// # Locks
//
// The order is drains, reloading, front, endpoint, back, Proxy, cluster. Those of a balance.Set, the wheel and counters are below all.
//
//	front.mu     all of its streams, with both of their sides, and its output
//	endpoint.mu  which connections take streams, and the calls that wait for one
//	back.mu      its output, its windows, and the map of the streams that it carries; not what is in them
//	cluster.mu   the calls that wait for an endpoint or for room at one
//	Proxy.mu     the lists of listeners, fronts and backs, and the map of route counters
//
// Nothing is done to another front while a front's lock is held: what a call has to do to calls of other fronts, such as giving them the room that it leaves, is noted in
// its wakeups and done after its lock was released. A stream's memory is used again for the next call, so who keeps a pointer without the lock keeps a ref, and asks it under the
// lock whether it is still the same call.
//
// # Files
//
// One folder, because a call, its front and its back are changed together under the locks above; what needs none of them is in folders below. Beside the files of the way of a
// call: proxy.go, listener.go, relisten.go, inherited.go and tls.go (listeners), cluster.go and checks.go (endpoints), limit.go, pressure.go, memory.go and abuse.go
// (limits), stats.go, view.go and watch.go (what is counted, shown and traced), collector.go (the garbage collector's target).
package proxy

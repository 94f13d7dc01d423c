// Package sdk is for writing the functions of a pipeline in Go: maps, source transformers, sources and sinks.
//
// A function is a small program whose main calls one of ServeMap, ServeBatchMap, ServeStreamMap, ServeTransform,
// ServeSource or ServeSink. The platform runs it as a process or container of its own and talks to it over a Unix socket.
// The contract on the socket is Numaflow's, so the same program runs on Levada and on Numaflow. A unary map
// also offers block mode, which carries hundreds of messages in one gRPC message; Levada takes it, Numaflow ignores it.
//
// # Lifetimes
//
// What a call of user code receives is valid until the call returns. Message.Value points into the frame that
// carried the message; so do the strings. They are never overwritten, but one that is kept keeps its whole frame in memory:
// Clone what must outlive the call. What a call returns must not be changed afterwards.
//
// # Failures
//
// In block mode an error or a panic fails one message, and the platform decides what becomes of it.
// The older contract cannot say that: there an error or a panic ends the stream with the status
// UDF_EXECUTION_ERROR and the process, so Serve functions return an error then, and main should exit with it.
//
// # Stopping
//
// When the context ends, or on SIGTERM or SIGINT, a server takes no new connection and serves the open streams until the
// platform has closed them, so that the platform can drain. It waits for that no longer than WithGrace says.
//
// # Files
//
// One folder, because it is what users import: map.go, batchmap.go, streammap.go, transform.go, source.go and sink.go are the kinds of functions; server.go, serverinfo.go
// and options.go serve them; decode.go, encode.go, envelope.go and codec.go are the wire; block.go, crew.go and outcomes.go block mode; announce*.go the announce file.
package sdk

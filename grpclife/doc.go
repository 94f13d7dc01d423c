// Package grpclife makes gRPC streams end with the truth.
//
// On the server, [Age] ends streams that have lived long enough, so that clients spread over new servers, and [Drain] ends all of
// them, spread over a time, before a shutdown. Both end a stream between two messages, with UNAVAILABLE, a google.rpc.ErrorInfo
// that says why and a google.rpc.RetryInfo that says when to come back: a status that passes every proxy untouched, where a
// connection that is cut comes out as INTERNAL, UNKNOWN or RESOURCE_EXHAUSTED. [Recovery] makes panics a status.
//
// On the client, [Classify] tells who ended a call, [Unmask] makes UNAVAILABLE again of a cut connection that a proxy made
// another error of, and [Retry] tries again what cannot have happened, or may happen, twice.
//
// The order of interceptors, from the outside in: on the server Drain, Age, then others, then Recovery; on the client others,
// then Retry, then Unmask.
package grpclife

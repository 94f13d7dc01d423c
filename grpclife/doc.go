// Package grpclife has interceptors for grpc-go that make streams end with an accurate status.
//
// On the server, [Age] ends streams that have reached an age, so that clients spread over new servers. [Drain] ends all streams, one by one over a
// period, before a shutdown. Both end a stream between two messages, with UNAVAILABLE, a google.rpc.ErrorInfo with the reason and a
// google.rpc.RetryInfo with the delay before a retry. This status passes every proxy unchanged. A connection that is cut does not: proxies
// turn it into INTERNAL, UNKNOWN or RESOURCE_EXHAUSTED. [Recovery] turns panics into a status.
//
// On the client, [Classify] finds which side ended a call. [RestoreUnavailable] turns the statuses by which proxies hide a lost connection back into
// UNAVAILABLE. [Retry] retries calls that provably were not processed, and those of methods that may run twice.
//
// The order of interceptors, from the outside in: on the server Drain, Age, then others, then Recovery; on the client others,
// then Retry, then RestoreUnavailable.
package grpclife

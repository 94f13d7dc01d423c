package proxy

import (
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"google.golang.org/grpc/codes"
)

// What is decided about a call without looking at anything but the facts given here: whether a failed attempt is retried, what an endpoint's RST_STREAM means, and in which
// form a call ends. testdata/decisions.txt lists the cases. Nothing here waits, locks or reads a clock.

// attempt is what the retry decision needs to know of a call.
type attempt struct {
	responseStarted bool // the response's header was passed on: the call is committed
	ended           bool
	replayable      bool // all of the request is still here
	transparent     bool // a transparent retry was made
	retries         int  // that the route's policy has made
}

// failure of an attempt.
type attemptFailure struct {
	unprocessed bool // the endpoint provably has not processed it
	reset       bool // by the endpoint: the route's policy is not asked, as the client gets the reset
	code        codes.Code
	pushback    time.Duration // of the endpoint; negative forbids a retry
	hasPushback bool
}

// retryPolicy is the part of a route's policy that the decision needs.
type retryPolicy struct {
	attempts int    // in all
	on       uint32 // codes, as bits
}

func (p retryPolicy) retries(code codes.Code) bool { return p.on&(1<<uint32(code&31)) != 0 }

// retryDecision is what follows a failed attempt.
type retryDecision uint8

const (
	noRetry          retryDecision = iota // the call ends
	transparentRetry                      // at once, to another endpoint, once per call; it costs nothing of the policy's attempts or budget
	retryByPolicy                         // after the backoff, if the retry budget allows
)

func (d retryDecision) String() string {
	return [...]string{"no retry", "transparent retry", "retry by policy"}[d]
}

// attemptsLeft reports whether the policy may still make one. It never does after the response has started, or without all of the request.
func (a attempt) attemptsLeft(p retryPolicy) bool {
	return !a.responseStarted && a.replayable && a.retries+1 < p.attempts
}

func (a attempt) decide(f attemptFailure, p retryPolicy) retryDecision {
	switch {
	case a.responseStarted || a.ended || !a.replayable:
		return noRetry
	case f.unprocessed && !a.transparent:
		return transparentRetry
	case f.reset || f.hasPushback && f.pushback < 0:
		return noRetry
	case a.attemptsLeft(p) && p.retries(f.code):
		return retryByPolicy
	}
	return noRetry
}

// backoffLimit is the longest wait before a retry; the wait is drawn evenly between 0 and it. retries counts this one, from 1.
func backoffLimit(base, most time.Duration, retries int) time.Duration {
	if doublings := min(retries-1, 20); base <= most>>doublings {
		return base << doublings
	}
	return most
}

// resetMeaning is what an endpoint's RST_STREAM means for the call.
type resetMeaning uint8

const (
	resetPassedOn resetMeaning = iota // it is the endpoint's own end, and the client gets it as it came
	resetRefused                      // not processed. Passed on, it would make some clients send the call again, also after a header
	resetDeadline                     // the endpoint noticed first that the deadline has passed
	resetHidden                       // another proxy behind this one lost its connection
)

func (m resetMeaning) String() string {
	return [...]string{"passed on", "refused", "deadline", "hidden transport failure"}[m]
}

// meaningOfReset decides. late: the call's deadline has passed, give or take the clocks' differences. restore: the route's restoreUnavailable.
func meaningOfReset(code frame.Code, grpc, late, restore bool) resetMeaning {
	switch {
	case code == frame.RefusedStream:
		return resetRefused
	case grpc && late:
		return resetDeadline
	case grpc && restore && (code == frame.InternalError || code == frame.NoError):
		return resetHidden
	}
	return resetPassedOn
}

// endFacts decide the form in which a call ends for its client.
type endFacts struct {
	reset    bool // the endpoint's RST_STREAM is passed on
	trailers bool // the endpoint's trailers, or its only block, are
	own      bool // the proxy ends the call, with a status of its own
	grpc     bool
	headed   bool // the response's header was passed on
	messages int  // that were sent whole
	partial  bool // and the beginning of another
}

// endForm is the frame that ends a call.
type endForm uint8

const (
	endReset        endForm = iota // the endpoint's RST_STREAM
	endTrailers                    // the endpoint's block
	endData                        // an empty DATA frame: not gRPC, and the endpoint's END_STREAM came with data
	endHTTP                        // a whole response that is not gRPC
	endInternal                    // RST_STREAM(INTERNAL_ERROR): not gRPC, and the response has begun
	endRefused                     // RST_STREAM(REFUSED_STREAM)
	endTrailersOnly                // a response that is one block, with the status
	endStatus                      // trailers with the status
)

func (f endForm) String() string {
	return [...]string{"backend's RST_STREAM", "backend's trailers", "empty DATA", "HTTP response", "RST_STREAM(INTERNAL_ERROR)", "RST_STREAM(REFUSED_STREAM)",
		"Trailers-Only", "trailers"}[f]
}

func (f endFacts) form() endForm {
	switch {
	case f.reset:
		return endReset
	case f.trailers:
		return endTrailers
	case !f.own:
		return endData
	case !f.grpc && !f.headed:
		return endHTTP
	case !f.grpc:
		return endInternal
	case f.partial && f.messages > 0:
		// Trailers in the middle of a message would make some clients say INTERNAL. After a whole message no client sends the call again on REFUSED_STREAM; before that, grpc-go does.
		return endRefused
	case !f.headed:
		return endTrailersOnly
	}
	return endStatus
}
